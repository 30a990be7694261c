"""A client for the scenarios, on asyncio's streams: it sends raw requests, whole or in part."""

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

ANSWER_SECONDS = 60
# What a line of limited speed takes at once.
PACKETS_BYTES = 16_384


@dataclass(frozen=True)
class Answer:
    """A response and its times."""

    status: int
    headers: dict[str, str]
    body: bytes
    sent: float
    received: float

    @property
    def seconds(self) -> float:
        """From the start of sending to the whole answer."""
        return self.received - self.sent

    @property
    def code(self) -> str:
        """The problem's code, or the status if it is no problem."""
        if "problem+json" in self.headers.get("content-type", ""):
            found: dict[str, Any] = json.loads(self.body)
            return str(found.get("code", self.status))
        return str(self.status)


class Connection:
    """A persistent connection, opened again if the server closes it."""

    def __init__(self, port: int, bytes_per_second: int | None = None) -> None:
        """Connect to ``port`` of this machine with the first request, and send no faster than is said."""
        self._port = port
        self._bytes_per_second = bytes_per_second
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, unless it is connected."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for the answer.

        Raises:
            OSError: the connection broke.
            TimeoutError: no answer came.
        """
        reader, writer = await self.open()
        sent = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._send(writer, request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as error:
            await self.close()
            raise ConnectionResetError("the server closed the connection without an answer") from error
        except BaseException:
            await self.close()
            raise
        answer = Answer(int(head[0].split()[1]), headers, body, sent, time.monotonic())
        if headers.get("connection", "").lower() == "close":
            await self.close()
        return answer

    async def _send(self, writer: asyncio.StreamWriter, request: bytes) -> None:
        if self._bytes_per_second is None:
            writer.write(request)
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        for start in range(0, len(request), PACKETS_BYTES):
            piece = request[start : start + PACKETS_BYTES]
            # It arrives when its last byte does.
            await asyncio.sleep(began + (start + len(piece)) / self._bytes_per_second - loop.time())
            writer.write(piece)
            await writer.drain()

    async def abort(self, request: bytes) -> None:
        """Send the first half of a request and close the connection."""
        _, writer = await self.open()
        writer.write(request[: len(request) // 2])
        await writer.drain()
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.close()
            with contextlib.suppress(OSError):  # it was broken already
                await writer.wait_closed()

    async def __aenter__(self) -> "Connection":
        """Use it in a block."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()
