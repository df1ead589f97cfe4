# syntax=docker/dockerfile:1
# One file for CPU and CUDA:
#   docker build -t viq-serving:cpu .
#   docker build -t viq-serving:cuda --build-arg TORCH_INDEX=cu130 .
# torch's CUDA wheels bring the CUDA libraries; only the driver comes from the node, so both kinds share one base.

# Any Debian-like image with Python 3.11 or newer and its venv module.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
WORKDIR /src

# Which of PyTorch's own package indexes torch comes from (cpu, cu126, cu130 ...); empty: from where pip is set up to look.
ARG TORCH_INDEX=cpu

# The environment itself gets no pip: the image installs nothing later, and neither does who breaks into it.
RUN python3 -m venv --without-pip /opt/viq && python3 -m venv /opt/build

# What the project needs, pinned by the lock and wheels only, in a layer that changes with these two files alone.
COPY pyproject.toml requirements.lock ./
COPY deploy/image/wanted.py /opt/build/
RUN grep -iE '^(pip|hatchling)==' requirements.lock > /opt/build/tools.txt \
    && /opt/build/bin/python -m pip install --no-cache-dir --constraint requirements.lock --requirement /opt/build/tools.txt \
    && /opt/build/bin/python /opt/build/wanted.py pyproject.toml > /opt/build/wanted.txt \
    && install() { /opt/build/bin/python -m pip --python /opt/viq/bin/python install --no-cache-dir --only-binary :all: \
        --constraint requirements.lock "$@"; } \
    && install ${TORCH_INDEX:+--index-url "https://download.pytorch.org/whl/${TORCH_INDEX}"} torch \
    && install --requirement /opt/build/wanted.txt

# torch's tests, C++ headers and tools: a sixth of the image, and nothing that runs here asks for them.
RUN rm -rf /opt/viq/lib/python3*/site-packages/torch/test /opt/viq/lib/python3*/site-packages/torch/include \
    && find /opt/viq/lib/python3*/site-packages/torch/bin -type f ! -name torch_shm_manager -delete

COPY LICENSE README.md ./
COPY models ./models
COPY service ./service
# requirements.txt says exactly what is inside; the last lines fail the build if the service cannot even start.
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-build-isolation --no-deps --wheel-dir /opt/build/wheels . \
    && /opt/build/bin/python -m pip --python /opt/viq/bin/python install --no-cache-dir --no-deps /opt/build/wheels/*.whl \
    && /opt/build/bin/python -m pip --python /opt/viq/bin/python check \
    && /opt/build/bin/python -m pip --python /opt/viq/bin/python freeze > /opt/viq/requirements.txt \
    && cp LICENSE /opt/viq/ \
    && /opt/viq/bin/viq serve --print-config > /dev/null \
    && /opt/viq/bin/python -c 'import viq_serving.app'


FROM ${BASE_IMAGE}

# Python's own images bring a pip of their own.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/site-packages/pip* /usr/local/lib/python3*/ensurepip

ARG VERSION=0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="viq-serving" \
      org.opencontainers.image.description="Images of any resolution to discrete ViQ codes and back" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

COPY --from=build /opt/viq /opt/viq
COPY deploy/image/healthcheck.py /opt/viq/

# The root file system may be read-only: /tmp is the one place written to (spooled uploads, the hub's cache).
# The two NVIDIA variables are read by its container runtime and by nothing else.
ENV PATH=/opt/viq/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    VIQ_HOST=0.0.0.0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# A number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000 8001
STOPSIGNAL SIGTERM

# For engines that have no probes of their own; Kubernetes ignores it.
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "/opt/viq/healthcheck.py"]

ENTRYPOINT ["viq"]
CMD ["serve"]
