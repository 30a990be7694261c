"""Ray clusters."""

import logging
import os
import socket
from typing import Final

CONNECT_SECONDS: Final = 10.0


def connect(address: str) -> None:
    """Connect this process to the Ray cluster at ``host:port``, or with ``auto`` to the one that this machine is in.

    Raises:
        ConnectionError: there is none.
    """
    import ray  # noqa: PLC0415 - an extra

    if address != "auto":
        _knock(address)
    # Else it warns of what the callers know: that an actor's arguments may be lost before the actor starts again.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except (ray.exceptions.RayError, RuntimeError, ValueError) as error:
        raise ConnectionError(f"Ray at {address}: {str(error).splitlines()[0]}") from error


def _knock(address: str) -> None:
    """Find out whether something listens there, since Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no Ray cluster at {address}: {error}") from error
