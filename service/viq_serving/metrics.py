"""The one struct of metrics. Labels come from closed sets; seconds and bytes are the units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from platform import python_version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from viq.config import CODES_PER_PATCH, grid_of
from viq_serving.types import Door, Method, ModelInfo, Priority, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Encoders take a millisecond on a GPU for a thumbnail and a minute on a CPU for a poster.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters, histograms and gauges of one app, in a registry of its own so that two apps can share a process."""

    def __init__(self, version: str) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "viq_requests_total",
            "Requests answered; outcome is ok or the error code.",
            ["method", "door", "size", "priority", "outcome"],
            registry=registry,
        )
        self.images = Counter("viq_images_total", "Images answered.", ["method", "size"], registry=registry)
        self.pixels = Counter("viq_pixels_total", "Pixels of images answered.", registry=registry)
        self.patches = Counter("viq_patches_total", "Patches of images answered.", ["method"], registry=registry)
        self.codes = Counter("viq_codes_total", "Codes made by encode.", registry=registry)
        self.rejected = Counter("viq_rejected_total", "Requests refused, by error code.", ["reason"], registry=registry)
        self.duration = Histogram(
            "viq_request_duration_seconds",
            "From the request's headers to the last byte of the reply.",
            ["method", "door"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "viq_stage_duration_seconds",
            "Time of one request in one stage.",
            ["method", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.ready = Gauge("viq_ready", "1 when warmed and not draining.", registry=registry)
        build = Gauge("viq_build_info", "Always 1.", ["version", "python"], registry=registry)
        build.labels(version, python_version()).set(1)
        self.model = Gauge(
            "viq_model_info",
            "Always 1, one series for each loaded size.",
            ["size", "fingerprint", "dtype", "device", "untrained"],
            registry=registry,
        )

    def loaded(self, model: ModelInfo) -> None:
        """Show `model` among the loaded ones."""
        untrained = "true" if model.untrained else "false"
        self.model.labels(model.size, model.fingerprint, model.dtype, model.device, untrained).set(1)

    def served(self, method: Method, size: str, images: Sequence[tuple[int, int]], timings: Timings) -> None:
        """Count one request through the model; `images` holds `(H, W)` of each image answered."""
        patches = sum(h * w for h, w in (grid_of(*image) for image in images))
        self.images.labels(method, size).inc(len(images))
        self.pixels.inc(sum(height * width for height, width in images))
        self.patches.labels(method).inc(patches)
        if method == "encode":
            self.codes.inc(CODES_PER_PATCH * patches)
        for stage, milliseconds in asdict(timings).items():
            self.stages.labels(method, stage).observe(milliseconds / 1000)

    def answered(self, method: str, door: Door, size: str, priority: Priority, outcome: str, seconds: float) -> None:
        """Count one request at a door; `outcome` is "ok", an error code or "cancelled"."""
        self.requests.labels(method, door, size, priority, outcome).inc()
        self.duration.labels(method, door).observe(seconds)
        if outcome not in ("ok", "cancelled"):
            self.rejected.labels(outcome).inc()

    def text(self) -> bytes:
        """All metrics in the Prometheus text form, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
