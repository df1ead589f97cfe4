"""Triton's Python backend: https://github.com/triton-inference-server/python_backend.

A batch of requests comes as a list; each gets its own response, so codes of different lengths need no padding.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

sys.path[:0] = os.environ["PEER_PATH"].split(os.pathsep)  # the embedded interpreter heeds no PYTHONPATH
from network import Network  # noqa: E402


class TritonPythonModel:
    """Image file in, flat codes out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Once in every instance."""
        self.network = Network()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch."""
        files = [pb_utils.get_input_tensor_by_name(request, "image").as_numpy().reshape(-1) for request in requests]
        pixels = [self.network.pixels(file) for of_request in files for file in of_request]
        codes = iter(self.network.codes(pixels))
        responses = []
        for of_request in files:
            # A request of more than one image would need a rectangle, which the peers' load never asks for.
            flat = np.stack([np.frombuffer(next(codes), "<u2") for _ in of_request])
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("codes", flat)]))
        return responses
