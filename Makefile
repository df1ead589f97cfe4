# One command each, the same for people, hooks and CI.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help install dev system-packages test check format proto proto-baseline serve lock golden bench bench-service bench-million clean test-extract

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # half an environment would be taken for a whole one

# torch first: packages that depend on it then keep the pinned one.
$(VENV)/.installed: $(BIN)/python pyproject.toml $(LOCK)
	$(PIP) install --quiet --constraint $(LOCK) pip  # dependency groups need a recent one
	$(PIP) install --quiet --constraint $(LOCK) torch
	$(PIP) install --quiet --constraint $(LOCK) --editable '.[server]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint $(LOCK) --group dev
	@touch $@

install: $(VENV)/.installed  ## virtual environment with the project and everything needed to serve

dev: $(VENV)/.dev  ## the same with what tests and checks need

serve: install  ## serve on http://127.0.0.1:8000 (ARGS="--http-port 9000 …")
	$(BIN)/viq serve $(ARGS)

# RUNLEVEL: what is installed for tests is not started as a service.
system-packages:  # curl, two proxies and a browser, which tests drive; only as root on Debian, elsewhere they are skipped and say why
	@for program in curl haproxy nginx; do command -v $$program >/dev/null || missing=1; done; \
	  [ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q \
	  && RUNLEVEL=1 apt-get install -qy --no-install-recommends curl haproxy nginx-light; } || true
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -q && RUNLEVEL=1 apt-get install -qy --no-install-recommends chromium; } || true

# A file of tests stays in one process, with the servers it started; one more than cores, as they wait for servers and
# browsers. WORKERS=0: all in this one, as for a debugger.
WORKERS ?= 3
test: dev system-packages  ## all tests (ARGS="-k codes" WORKERS=0)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: dev  ## lint, formatting, types, import layers, interfaces and the code made from them
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(BASELINE)
	rm -rf build/proto && mkdir -p build/proto
	$(call GENERATE,build/proto)
	diff -r -x __init__.py -x __pycache__ build/proto/viq_serving/pb service/viq_serving/pb \
	  || { echo 'service/viq_serving/pb is not what proto/ makes: run make proto'; exit 1; }

# Into the folder $(1), which then holds viq_serving/pb.
GENERATE = $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --pyi_out=$(1) --grpc_python_out=$(1) \
  proto/viq_serving/pb/*.proto

proto: dev  ## generate service/viq_serving/pb from proto/
	$(call GENERATE,service)

# What `make check` holds the interfaces against: renewed when a version is released, or for what was never in one.
BASELINE := proto/baseline.binpb
proto-baseline: dev  ## take the interfaces as they are for what later ones must not break
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

format: dev  ## format and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# A fresh environment resolves what pyproject.toml allows; the pinned torch is the one thing chosen by hand.
TORCH ?= 2.13.0
lock:  ## write requirements.lock anew (TORCH=version)
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet torch==$(TORCH)
	build/lock/bin/python -m pip install --quiet --group dev '.[server]'
	{ echo '# Exact versions of every environment this project makes: written by `make lock`.'; \
	  build/lock/bin/python -m pip freeze --all --exclude viq-serving | grep -v '^setuptools==' | sed 's/+cpu$$//'; } > $(LOCK)
	rm -rf build/lock

golden: dev  ## compare with a full folder of golden tensors (GOLDEN=path)
	$(BIN)/python bench/golden.py $(GOLDEN)

bench: dev  ## the figures of README: row invariance, VAE, full size (minutes, 10 GB of disk under BENCH_DIR)
	$(BIN)/python bench/row_invariance.py --out bench/results/row_invariance.json
	$(BIN)/python bench/vae.py --out bench/results/vae.json
	$(BIN)/python bench/make_weights.py --size 16k -o $(or $(BENCH_DIR),/tmp/viq-full)
	for dtype in float32 bfloat16; do $(BIN)/python bench/full_size.py $(or $(BENCH_DIR),/tmp/viq-full) --size 16k \
	  --dtypes $$dtype --repeats 5 --out bench/results/full_size_$$dtype.json || exit 1; done
	$(MAKE) bench-compare

bench-service: dev  ## the figures of the service: about 30 minutes on 2 cores that nobody else uses
	OMP_WAIT_POLICY=passive $(BIN)/python bench/overhead.py --out bench/results/overhead.json
	OMP_WAIT_POLICY=passive $(BIN)/python bench/engine.py --images 32 --rounds 3 --out bench/results/engine.json
	$(BIN)/python bench/throughput.py --out bench/results/throughput.json
	$(BIN)/python bench/overload.py --out bench/results/overload.json
	$(BIN)/python bench/spinning.py --out bench/results/spinning.json
	$(BIN)/python bench/interrupting.py --out bench/results/interrupting.json
	$(BIN)/python bench/shortcut.py --out bench/results/shortcut.json
	$(BIN)/python bench/heap.py --out bench/results/heap.json
	$(BIN)/python bench/comparisons.py --count 10000 --out bench/results/comparisons.json
	$(BIN)/python bench/lanes.py --out bench/results/lanes.json
	$(BIN)/python bench/replicas.py --out bench/results/replicas.json
	$(BIN)/python bench/streams.py --out bench/results/streams.json

bench-compare: dev  ## fails if this machine's figures are worse than the committed ones (ARGS="--out bench/results/regression.json")
	$(BIN)/python bench/regression.py --against bench/results/regression.json $(ARGS)

# A scenario of loadtest/scenarios at a server started for it, or at the one that ARGS name.
.PHONY: bench-compare loadtest loadtest-figures
SCENARIO ?= sweep
loadtest: dev  ## load a server and measure (SCENARIO=photos ARGS="--url http://host:8000 --grpc host:8001")
	$(BIN)/viq bench @loadtest/scenarios/$(SCENARIO).args $(or $(ARGS),--serve "") -o build/loadtest/$(SCENARIO).json

loadtest-figures: dev  ## the generator's files in loadtest/results, and the figures of bench-compare (5 minutes alone on the machine)
	for scenario in sweep sizes; do $(BIN)/viq bench @loadtest/scenarios/$$scenario.args --serve "" --duration 6 --warm-up 1 \
	  --name "$$(nproc) cores" -o loadtest/results/$$scenario.json --plot loadtest/results/$$scenario.png || exit 1; done
	$(BIN)/python loadtest/generator.py --rounds 2 --seconds 1.2 --out loadtest/results/generator.json
	$(BIN)/python bench/regression.py --rounds 3 --out bench/results/regression.json

bench-million: dev  ## 1,000,000 small items through streams from 16 clients (hours on 2 cores)
	$(BIN)/python bench/streams.py --items 1000000 --side 16 --sides --out bench/results/streams_million.json

# The packaged weights: models/nano/README.md. All of it lies under build/nano; each step goes on where it was stopped.
.PHONY: nano-packages nano-data nano-train nano-evaluate nano-export
NANO := $(BIN)/python -m nano

nano-packages: dev
	@$(PIP) install --quiet --constraint $(LOCK) --requirement models/nano/requirements.txt

nano-data: nano-packages  ## fetch and draw the pictures that nano is trained and measured on
	$(NANO).data $(ARGS)

nano-train: dev  ## train nano: 60 minutes on the machine's CPUs or one GPU (ARGS="--minutes 90")
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(NANO).train $(ARGS)

nano-export: dev  ## make the checkpoint that is packaged out of the run (ARGS="--out models/viq/weights")
	$(NANO).export $(ARGS)

nano-evaluate: dev  ## measure the packaged checkpoint on the held-out pictures (ARGS="--weights build/nano/weights")
	$(NANO).evaluate $(ARGS)

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build

# Deployment: what `make test` checks of it needs these; what cannot be had is named, and its tests are skipped.
.PHONY: deploy-tools deploy-packages image k8s-rules deploy-autoscaling test-deploy
DEPLOY := build/deploy
test: deploy-tools

deploy-tools: dev  ## programs that check manifests, rules and proxies' configurations
	@command -v promtool >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && apt-get update -q && RUNLEVEL=1 apt-get install -qy --no-install-recommends prometheus; } || true
	@$(BIN)/python tests/deploy/tools.py $(DEPLOY)

k8s-rules: dev  ## write the Prometheus operator's rules from deploy/prometheus
	@mkdir -p $(DEPLOY)
	$(BIN)/python deploy/prometheus/rule_resource.py > $(DEPLOY)/rules.yaml
	cp $(DEPLOY)/rules.yaml k8s/components/monitoring/prometheus-rule.yaml

deploy-autoscaling: dev  ## draw how the autoscaling rule reacts (RECORD=1: to a step of load recorded anew)
	$(if $(RECORD),$(BIN)/python deploy/autoscaling/record.py > deploy/autoscaling/recorded.json)
	$(BIN)/python deploy/autoscaling/simulate.py

IMAGE ?= viq-serving:cpu
CONTAINER_TOOL ?= docker
image:  ## the container image (IMAGE=name:tag TORCH_INDEX=cpu|cu130 BASE_IMAGE=… CONTAINER_TOOL=docker|podman|buildah)
	$(CONTAINER_TOOL) build -t $(IMAGE) $(if $(TORCH_INDEX),--build-arg TORCH_INDEX=$(TORCH_INDEX)) \
	  $(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
	  --build-arg REVISION=$$(git rev-parse HEAD) --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' models/viq/__init__.py) .

# As root on Debian; what is there already is taken as it is.
deploy-packages:
	@for program in nginx haproxy buildah podman runc catatonit debootstrap; do command -v $$program >/dev/null || missing=1; done; \
	  [ -z "$$missing" ] || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -q && RUNLEVEL=1 apt-get install -qy \
	  --no-install-recommends nginx-light haproxy buildah podman runc catatonit debootstrap; } || true
	@[ -e /usr/lib/cni/dnsname ] || command -v /usr/lib/podman/netavark >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
	  && RUNLEVEL=1 apt-get install -qy --no-install-recommends containernetworking-plugins iptables \
	  golang-github-containernetworking-plugin-dnsname; } || true

test-deploy: deploy-tools deploy-packages  ## slow ones: restarts behind real proxies, Prometheus on a live server, the image under podman, compose
	$(BIN)/python -m pytest -s --timeout 1800 tests/deploy/e2e/check_*.py $(ARGS)

test-extract: dev  ## slow: 100,000 images through viq extract, killed ten times, equal to an unbroken run (ARGS="--items 5000")
	$(BIN)/python bench/extract.py --out bench/results/extract.json $(ARGS)
	$(BIN)/python bench/loaders.py --out bench/results/loaders.json

# Ray has an environment of its own, which sees the project's.
.PHONY: test-extract-ray training-speedup
RAY := build/ray
test-extract-ray: dev  ## slow: extraction on a local Ray cluster of two nodes, one of which is killed (ARGS="--items 1500")
	$(BIN)/python -m venv $(RAY)
	echo "import site; site.addsitedir('$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')')" \
	  > $$($(RAY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth
	$(RAY)/bin/python -m pip install --quiet 'ray[data]>=2.40'
	ln -sf ../../../$(BIN)/viq $(RAY)/bin/viq
	$(RAY)/bin/python bench/extract_ray.py --out bench/results/extract_ray.json $(ARGS)

training-speedup: dev  ## time of training steps with the encoder in the loop and from extracted codes (ARGS="--lengths 512")
	$(BIN)/python loadtest/training_speedup/speedup.py --out loadtest/results/training_speedup.json $(ARGS)

.PHONY: bench-heads
bench-heads: dev  ## quantization heads by each back end: codes and time against eager (docs/heads.md)
	OMP_WAIT_POLICY=passive $(BIN)/python bench/heads.py --out bench/results/heads.json

.PHONY: bench-precision
bench-precision: dev  ## codes of each compute type against float32's (docs/precision.md)
	OMP_NUM_THREADS=1 $(BIN)/python bench/precision.py --out bench/results/precision.json

# Other servers with the same network: loadtest/peers/README.md. What is measured already is kept; ARGS="--rows mosec --rounds 3".
.PHONY: peers
PEERS := loadtest/results/peers
peers: install  ## the same network behind other servers, side by side (an hour, 7 GB under build/peers, 2 cores of one's own)
	$(BIN)/python loadtest/peers/environments.py
	$(BIN)/python loadtest/peers/measure.py --out $(PEERS).json $(ARGS)
	$(BIN)/python loadtest/peers/table.py $(PEERS).json -o $(PEERS).md
	$(BIN)/python loadtest/peers/perf_analyzer.py --out $(PEERS)_perf_analyzer.json
