"""The transport of a connection."""

import asyncio
from typing import Any


class JoinedWrites:
    """A transport that sends an answer's head together with its body: two sends would wake the client twice."""

    def __init__(self, transport: asyncio.Transport) -> None:
        """Wrap ``transport``."""
        self._transport = transport
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write, but hold back a head until its body is written."""
        if data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1" and data.endswith(b"\r\n\r\n"):
            self._head = data
            return
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def flush(self) -> None:
        """Write a head that has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Write a head that is held back, and close."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the transport."""
        return getattr(self._transport, name)
