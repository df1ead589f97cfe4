"""What holds for all tests."""

from __future__ import annotations

import os

# Tests have servers, clients and models in the same few cores: torch's threads sleep as soon as they are idle. It is
# read when torch is imported, here and in every process that a test starts.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
