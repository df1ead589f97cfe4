"""What holds for all tests."""

from __future__ import annotations

from viq_serving.openmp import sleep_when_idle

sleep_when_idle()  # as the service does: tests have servers, clients and models in the same two cores
