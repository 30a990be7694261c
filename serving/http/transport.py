"""The transport of a connection."""

import asyncio
import contextlib
import fcntl
import socket
import sys
import termios
from typing import Any, Final

START: Final = b"HTTP/1.1 "


class ClientTransport:
    """A transport that joins writes, and tells more about the client than asyncio's.

    It sends an answer's head together with its body: two sends would wake the client twice.
    """

    def __init__(self, transport: asyncio.Transport, read_bytes: int) -> None:
        """Wrap ``transport``, and read at most ``read_bytes`` at a time.

        asyncio's 256 kB for each of a thousand connections would be 256 MB.
        """
        self._transport = transport
        self._transport.max_size = read_bytes  # type: ignore[attr-defined]
        self._socket: socket.socket = transport.get_extra_info("socket")
        self._head = b""
        self._begun = False

    def begin(self) -> None:
        """Send the start of the next answer, which is the same for all."""
        self._begun = True
        self._transport.write(START)

    def write(self, data: bytes) -> None:
        """Write, but hold back a head until its body is written."""
        if self._begun:
            self._begun = False
            data = data.removeprefix(START)
        if data.startswith(START) and data[9:10] != b"1" and data.endswith(b"\r\n\r\n"):
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

    def unread(self) -> int:
        """Bytes that the client has not read, with those in the kernel, which may be megabytes."""
        return self._transport.get_write_buffer_size() + self._in_kernel(termios.TIOCOUTQ)

    def received(self) -> int:
        """Bytes from the client that have not been read."""
        return self._in_kernel(termios.FIONREAD)

    def was_reset(self) -> bool:
        """Whether the client has reset the connection; told once."""
        return not self._transport.is_closing() and self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _in_kernel(self, queue: int) -> int:
        with contextlib.suppress(OSError, ValueError):  # not every system supports it, and the connection may be closed
            told = fcntl.ioctl(self._socket, queue, bytes(4))
            return int.from_bytes(told, sys.byteorder)
        return 0

    def __getattr__(self, name: str) -> Any:
        """Leave everything else to the transport."""
        return getattr(self._transport, name)
