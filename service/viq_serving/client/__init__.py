"""Client of a ViQ service. Needs numpy, Pillow and httpx; no torch."""

from viq_serving.client.errors import ServerError
from viq_serving.client.http import Client

__all__ = ["Client", "ServerError"]
