"""Real services for what runs around them."""

from tests.serving.conftest import server, start

__all__ = ["server", "start"]
