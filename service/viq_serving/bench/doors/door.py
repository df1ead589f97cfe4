"""What all ways to a server have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from viq_serving.client.targets import Tls

Method = Literal["encode", "embed", "decode"]


class Answer(NamedTuple):
    """What came of one request. `kind` is empty if it was done, else what went wrong, in few words."""

    kind: str = ""
    received: int = 0
    """Bytes of the answer's content."""
    reject: bool = False
    """Whether the server was full, which is no error of its own."""
    hint_s: float | None = None
    """When it said to come again."""
    content: object = None
    """What `Door.codes_of` understands."""


class Door(Protocol):
    """A way to a server. Requests are numbered by the pictures that they carry, and made before any is sent."""

    async def open(self) -> None:
        """Get ready to ask; called on the event loop that will."""

    async def ask(self, index: int) -> Answer:
        """Send request `index` and wait for what comes of it; raises nothing but cancellation."""

    def codes_of(self, answer: Answer) -> bytes:
        """The codes in an answer of encode, uint16 little-endian; raises `ValueError` if there are none."""

    def sent_bytes(self, index: int) -> int:
        """Bytes of content that request `index` sends."""

    async def close(self) -> None:
        """Let go of all connections."""


@dataclass(frozen=True)
class Target:
    """Where requests go and what all of them say."""

    url: str | None = None
    """Of the HTTP port; for the plain door the whole address that is posted to."""
    grpc: str | None = None
    """HOST:PORT."""
    size: str = ""
    """Of the model; empty: the server's default."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Sent with every request, as HTTP headers or as gRPC metadata."""
    timeout_s: float = 60.0
    connections: int = 1024
    """Most HTTP connections of one process at one time."""
    reply: Literal["octet", "json"] = "octet"
    model: str = ""
    """Of the Open Inference Protocol; empty: the service's own name of the method."""
    oip_input: str = "image"
    oip_shape: tuple[int, ...] = (1,)
    tls: Tls | None = None
    """With which the gRPC port is spoken to, and whom an https address is believed; None: plaintext, the system's."""
