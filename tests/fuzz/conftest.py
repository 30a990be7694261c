"""The server of the service's own tests."""

from tests.serving.conftest import server, start

__all__ = ["server", "start"]
