"""File descriptors: how many connections they allow, and whether any is left."""

import asyncio
import errno
import os
import resource
from typing import Any, Final

from serving.telemetry.logs import SERVICE

# Descriptors for everything else: lingering connections, the model, the journal, assets being sent.
SPARE_DESCRIPTORS: Final = 128

_NONE_LEFT: Final = (errno.EMFILE, errno.ENFILE)


def affordable(connections: int) -> int:
    """Raise the file descriptor limit for ``connections`` connections; returns how many it allows."""
    wanted = connections + SPARE_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most == wanted:
        return connections
    allowed = max(most // 2, most - SPARE_DESCRIPTORS)
    SERVICE.warning(
        "fewer connections than max_connections: the file descriptor limit is too low",
        extra={"fields": {"max_connections": connections, "allowed": allowed, "descriptors": most}},
    )
    return allowed


def exhausted() -> bool:
    """Tell whether no file can be opened."""
    try:
        os.close(os.dup(0))
    except OSError as error:
        return error.errno in _NONE_LEFT
    return False


def log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what an event loop could not do, but for accepting connections while no file descriptor is left.

    asyncio reports that for each connection that could wait, thousands of times a second, and other lines are lost; and
    again, when the socket has been closed meanwhile, as it tries to go on accepting a second later.
    """
    error = context.get("exception")
    accepting = "socket" in context and isinstance(error, OSError) and error.errno in _NONE_LEFT
    if not accepting and "._start_serving(" not in context.get("message", ""):
        loop.default_exception_handler(context)
