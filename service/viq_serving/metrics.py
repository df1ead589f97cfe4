"""The one struct of metrics. Labels come from closed sets; seconds and bytes are the units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from platform import python_version

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from viq.config import CODES_PER_PATCH, grid_of
from viq_serving.tracing import Traces
from viq_serving.types import Door, Method, ModelInfo, Priority, Timings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Encoders take a millisecond on a GPU for a thumbnail and a minute on a CPU for a poster.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

_STAGES = tuple(stage.name for stage in fields(Timings))


class Metrics:
    """Counters, histograms and gauges of one app, in a registry of its own so that two apps can share a process."""

    def __init__(self, version: str) -> None:
        registry = self.registry = CollectorRegistry()
        self.traces: Traces | None = None  # set before the doors open, if requests are to be traced
        self._make_requests(registry)
        self._make_cache(registry)
        self._make_durations(registry)
        self._make_batches(registry)
        self._make_queue(registry)
        self._make_lanes(registry)
        self._make_devices(registry)
        self._make_service(registry, version)

    def _make_requests(self, registry: CollectorRegistry) -> None:
        """What was asked, and what became of it."""
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

    def _make_cache(self, registry: CollectorRegistry) -> None:
        """What the cache holds, and how often it helped."""
        self.cached = Counter(
            "viq_cache_total",
            "Images asked of the cache: kept there, computed for it, or computed for another request meanwhile.",
            ["result"],
            registry=registry,
        )
        self.cache_bytes = Gauge("viq_cache_bytes", "Bytes that the cache holds.", registry=registry)

    def _make_durations(self, registry: CollectorRegistry) -> None:
        """How long requests took, and their stages."""
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

    def _make_batches(self, registry: CollectorRegistry) -> None:
        """What was computed together."""
        self.batch_images = Histogram(
            "viq_batch_images",
            "Images computed together.",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
            registry=registry,
        )
        self.batch_patches = Histogram(
            "viq_batch_patches",
            "Patches computed together.",
            buckets=[2**power for power in range(4, 18)],
            registry=registry,
        )
        self.batch_fill = Histogram(
            "viq_batch_fill_ratio",
            "Cost of a batch over the most that is computed together; over 1 for a single larger image.",
            buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0, 2.0, 10.0),
            registry=registry,
        )

    def _make_queue(self, registry: CollectorRegistry) -> None:
        """What waits for the device."""
        self.queue_requests = Gauge("viq_queue_requests", "Images that wait for the device.", registry=registry)
        self.queue_patches = Gauge("viq_queue_patches", "Patches that wait for the device.", registry=registry)
        self.queue_oldest = Gauge(
            "viq_queue_oldest_seconds", "How long the one that waits longest has waited.", registry=registry
        )

    def _make_lanes(self, registry: CollectorRegistry) -> None:
        """The same by lane, and what each lane has used."""
        self.lane_requests = Gauge(
            "viq_lane_requests", "Images that wait for the device, by lane.", ["lane"], registry=registry
        )
        self.lane_oldest = Gauge(
            "viq_lane_oldest_seconds",
            "How long the one that waits longest for the device has waited, by lane.",
            ["lane"],
            registry=registry,
        )
        self.lane_line = Gauge(
            "viq_lane_line_requests",
            "Requests that wait for room in the queue, as items of streams do, by lane.",
            ["lane"],
            registry=registry,
        )
        self.lane_seconds = Counter(
            "viq_lane_device_seconds_total", "Time of devices that each lane has used.", ["lane"], registry=registry
        )

    def _make_devices(self, registry: CollectorRegistry) -> None:
        """Devices and their memory."""
        self.device_up = Gauge(
            "viq_device_up", "1 while the device works, 0 once it is lost.", ["device", "replica"], registry=registry
        )
        self.device_memory = Gauge(
            "viq_device_memory_bytes", "Memory of a device, by kind.", ["device", "kind"], registry=registry
        )

    def _make_service(self, registry: CollectorRegistry, version: str) -> None:
        """The service and its models."""
        self.codebook_used = Gauge(
            "viq_codebook_used_ratio",
            "Part of the codebook that was used since the start.",
            ["size"],
            registry=registry,
        )
        self._codebooks: dict[str, npt.NDArray[np.bool_]] = {}
        self.ready = Gauge("viq_ready", "1 when warmed and not draining.", registry=registry)
        build = Gauge("viq_build_info", "Always 1.", ["version", "python"], registry=registry)
        build.labels(version, python_version()).set(1)
        self.model = Gauge(
            "viq_model_info",
            "Always 1, one series for each loaded size and device.",
            ["size", "fingerprint", "dtype", "device", "untrained"],
            registry=registry,
        )

    def loaded(self, model: ModelInfo) -> None:
        """Show `model` among the loaded ones."""
        untrained = "true" if model.untrained else "false"
        for device in model.device.split(","):
            self.model.labels(model.size, model.fingerprint, model.dtype, device, untrained).set(1)

        seen = self._codebooks.setdefault(model.size, np.zeros(model.codebook_size, np.bool_))
        self.codebook_used.labels(model.size).set_function(lambda: float(seen.mean()))

    def watch_queue(self, waiting: Callable[[], tuple[int, int, float]]) -> None:
        """Read the gauges of the queue from `waiting`: entries, patches, seconds of the oldest."""
        self.queue_requests.set_function(lambda: waiting()[0])
        self.queue_patches.set_function(lambda: waiting()[1])
        self.queue_oldest.set_function(lambda: waiting()[2])

    def watch_lane(self, lane: Priority, waiting: Callable[[], tuple[int, float, int]]) -> None:
        """Read the gauges of a lane from `waiting`: entries, seconds of the oldest, requests without room."""
        self.lane_requests.labels(lane).set_function(lambda: waiting()[0])
        self.lane_oldest.labels(lane).set_function(lambda: waiting()[1])
        self.lane_line.labels(lane).set_function(lambda: waiting()[2])

    def watch_memory(self, device: str, kinds: Mapping[str, Callable[[], float]]) -> None:
        """Read the memory of `device` from these functions, by kind."""
        for kind, read in kinds.items():
            self.device_memory.labels(device, kind).set_function(read)

    def batch(self, images: int, patches: int, fill: float) -> None:
        """Count one batch."""
        self.batch_images.observe(images)
        self.batch_patches.observe(patches)
        self.batch_fill.observe(fill)

    def used(self, size: str, codes: npt.NDArray[np.uint16]) -> None:
        """Note which codes of the codebook came up."""
        self._codebooks[size][codes.reshape(-1)] = True

    def served(self, method: Method, size: str, images: Sequence[tuple[int, int]], timings: Timings) -> None:
        """Count one request through the model; `images` holds `(H, W)` of each image answered."""
        patches = sum(h * w for h, w in (grid_of(*image) for image in images))
        self.images.labels(method, size).inc(len(images))
        self.pixels.inc(sum(height * width for height, width in images))
        self.patches.labels(method).inc(patches)
        if method == "encode":
            self.codes.inc(CODES_PER_PATCH * patches)
        for stage in _STAGES:
            self.stages.labels(method, stage).observe(getattr(timings, stage) / 1000)

    def recalled(self, size: str, images: Sequence[tuple[int, int]]) -> None:
        """Count images of `(H, W)` pixels that were answered from what others had computed."""
        self.images.labels("encode", size).inc(len(images))
        self.pixels.inc(sum(height * width for height, width in images))
        self.patches.labels("encode").inc(sum(h * w for h, w in (grid_of(*image) for image in images)))

    def answered(self, method: str, door: Door, size: str, priority: Priority, outcome: str, seconds: float) -> None:
        """Count one request at a door; `outcome` is "ok", an error code or "cancelled"."""
        self.requests.labels(method, door, size, priority, outcome).inc()
        self.duration.labels(method, door).observe(seconds)
        if outcome not in ("ok", "cancelled"):
            self.rejected.labels(outcome).inc()

    def text(self) -> bytes:
        """All metrics in the Prometheus text form, of type `CONTENT_TYPE`."""
        return generate_latest(self.registry)
