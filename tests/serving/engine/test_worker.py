"""A lane from inside: what it says to each request on its socket."""

import io
import json
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator

import msgspec
import pytest
from PIL import Image

from serving.engine.wire import (
    ANSWER,
    PLAIN,
    REQUEST,
    SHARED_BYTES,
    Answer,
    Batch,
    Flags,
    Outcome,
    PictureRefused,
    Ready,
    Start,
)
from serving.settings import SHIPPED_INT8
from shared.pixels import pixels
from tests.conftest import ROOT, blobs, encoded, measured
from tests.fuzz.bombs import arithmetic_scans

START = Start(path=str(SHIPPED_INT8), max_pixels=1_000_000, max_bytes=300_000_000, cpu_seconds=20.0)
PHOTO = encoded(blobs(1), "JPEG")
# Its base64 has both of the characters that the URL-safe alphabet writes otherwise, and padding.
SMALL = next(
    data
    for seed in range(100)
    if {"+", "/", "="} <= set(b64encode(data := encoded(blobs(seed, (32, 24)), "PNG")).decode())
)


class Single:
    """A lane that the test itself started and talks to."""

    def __init__(self, start: Start) -> None:
        self.connection, theirs = socket.socketpair()
        memory = os.memfd_create("bodies")
        os.truncate(memory, SHARED_BYTES)
        self.shared = mmap.mmap(memory, SHARED_BYTES)
        with theirs:
            command = [sys.executable, "-m", "tests.serving.engine.single", str(theirs.fileno()), str(memory)]
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno(), memory], stdin=subprocess.PIPE, env=os.environ | measured()
            )
        os.close(memory)
        assert self.process.stdin is not None
        with self.process.stdin as told:
            told.write(msgspec.msgpack.encode(start))

    def hear(self) -> Outcome | Ready:
        (size,) = ANSWER.unpack(self.connection.recv(ANSWER.size, socket.MSG_WAITALL))
        message = self.connection.recv(size, socket.MSG_WAITALL)
        heard: Outcome | Ready = msgspec.msgpack.decode(message, type=Outcome | Ready)
        return heard

    def ask(self, data: bytes, flags: Flags = PLAIN) -> Outcome | Ready:
        self.send(data, flags)
        return self.hear()

    def send(self, data: bytes, flags: Flags = PLAIN) -> None:
        shared = data if len(data) <= SHARED_BYTES else b""
        self.shared[: len(shared)] = shared
        self.connection.sendall(REQUEST.pack(len(data), flags) + data[len(shared) :])

    def end(self) -> int:
        self.connection.close()
        return self.process.wait(60)


@pytest.fixture(scope="module")
def lane() -> Iterator[Single]:
    """A lane with the shipped model."""
    begun = Single(START)
    assert begun.hear() == Ready()
    yield begun
    assert begun.end() == 0


def test_evidence_and_drawing_come_when_they_are_asked_for(lane: Single) -> None:
    plain, explained, drawn = (lane.ask(PHOTO, flags) for flags in (PLAIN, Flags.EXPLAIN, Flags.DRAW | Flags.ALONE))
    assert isinstance(plain, Answer) and isinstance(explained, Answer) and isinstance(drawn, Answer)
    assert (plain.evidence, plain.png) == (None, None)
    assert explained.evidence is not None
    assert [len(row) for row in explained.evidence] == [7] * 7
    assert drawn.png is not None
    assert Image.open(io.BytesIO(drawn.png)).size == (448, 336)


@pytest.mark.parametrize("data", [PHOTO, bytes(range(256)) * 588], ids=["file", "pixels"])
def test_what_the_network_saw_is_left_in_the_shared_memory_if_it_is_asked_for(lane: Single, data: bytes) -> None:
    form = Flags.PIXELS if data is not PHOTO else PLAIN
    assert isinstance(lane.ask(data, form), Answer)
    assert lane.shared[: len(data)] == data
    assert isinstance(lane.ask(data, form | Flags.KEEP), Answer)
    seen = pixels(PHOTO).tobytes() if data is PHOTO else data
    assert lane.shared[: len(seen)] == seen


def test_what_the_network_saw_is_left_there_if_it_was_unsure(lane: Single) -> None:
    verdicts = set()
    for data in ((ROOT / "tests/cat.jpg").read_bytes(), PHOTO):
        answer = lane.ask(data, Flags.KEEP_UNSURE)
        assert isinstance(answer, Answer)
        verdicts.add(answer.verdict)
        seen = pixels(data).tobytes() if answer.verdict == "unsure" else data
        assert answer.kept is (answer.verdict == "unsure")
        assert lane.shared[: len(seen)] == seen
    assert verdicts == {"cats", "unsure"}


@pytest.mark.parametrize(
    "text",
    [
        b64encode(SMALL).decode(),
        "data:image/png;base64," + b64encode(SMALL).decode(),
        urlsafe_b64encode(SMALL).decode().rstrip("="),
        "\r\n".join(b64encode(SMALL).decode()[at : at + 76] for at in range(0, 4 * len(SMALL) // 3 + 4, 76)),
    ],
)
def test_base64_is_taken_as_clients_write_it(lane: Single, text: str) -> None:
    answer = lane.ask(json.dumps(text).encode(), Flags.BASE64)
    assert isinstance(answer, Answer)
    assert answer.size == len(SMALL)


@pytest.mark.parametrize("data", [b'"a"', b'"a*bc"', b"5", b"", b'"\xc3\xa4aaa"'])
def test_what_is_no_base64_is_malformed(lane: Single, data: bytes) -> None:
    refused = lane.ask(data, Flags.BASE64)
    assert isinstance(refused, PictureRefused)
    assert refused.code == "malformed_request"
    assert ("invalid base64" in refused.detail) == (len(data) > 2)


def test_a_batch_is_taken_apart_without_decoding_its_pictures(lane: Single) -> None:
    body = b'{"other": {"data": 1}, "images": [{"data": "YWJj", "id": "one"}, {"data":"ZA=="}]}'
    batch = lane.ask(body, Flags.BATCH)
    assert isinstance(batch, Batch)
    found = [(item.id, body[item.start : item.end]) for item in batch.items]
    assert found == [("one", b'"YWJj"'), (None, b'"ZA=="')]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"images": [{"data": ""}] * 65}, "at most 64"),
        ({"images": [{"data": ""}] * 5000}, "at most 64"),
        ({"images": [0] * 200_000}, "at most 64"),
        ({"images": 5}, "array"),
        ({}, "images"),
    ],
)
def test_a_batch_that_is_none_is_malformed(lane: Single, body: object, reason: str) -> None:
    refused = lane.ask(json.dumps(body).encode(), Flags.BATCH)
    assert isinstance(refused, PictureRefused)
    assert refused.code == "malformed_request"
    assert reason in refused.detail


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("null", "Expected `object`, got `null`"),
        ("{}", "required field `data`"),
        ('{"data": "YWJj", "id": 7}', "Expected `str | null`, got `int` - at `$.id`"),
        (json.dumps({"data": "", "id": "a" * 201}), "longer than 200"),
    ],
)
def test_an_item_that_is_none_leaves_the_others_where_they_are(lane: Single, bad: str, reason: str) -> None:
    body = f'\ufeff{{"images": [{bad}, {{"id": "good", "data": "ZA=="}}]}}'.encode()
    batch = lane.ask(body, Flags.BATCH)
    assert isinstance(batch, Batch)
    refused, good = batch.items
    assert refused.refused is not None and reason in refused.refused
    assert (good.id, body[good.start : good.end], good.refused) == ("good", b'"ZA=="', None)


def test_nesting_without_end_is_malformed(lane: Single) -> None:
    refused = lane.ask(b'{"a":' + b"[" * 1_000_000, Flags.BATCH)
    assert isinstance(refused, PictureRefused)
    assert refused.code == "malformed_request"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"no picture", "unsupported_format"),
        (PHOTO[:500], "undecodable_image"),
        (encoded(Image.new("1", (1001, 1000)), "PNG"), "image_too_large"),
    ],
)
def test_a_picture_is_refused_with_its_code(lane: Single, data: bytes, code: str) -> None:
    refused = lane.ask(data)
    assert isinstance(refused, PictureRefused)
    assert refused.code == code


@pytest.mark.slow
def test_above_50_megapixels_a_picture_gets_no_more_processor_time() -> None:
    single = Single(msgspec.structs.replace(START, max_pixels=250_000_000, max_bytes=None, cpu_seconds=0.5))
    assert single.hear() == Ready()
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    single.send(arithmetic_scans(1_000, 9000))
    assert single.connection.recv(1) == b""
    assert single.end() == -signal.SIGPROF
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 7.5  # 8.6 for 81 megapixels


def test_without_a_limit_of_memory_the_budget_of_processor_time_still_ends_it() -> None:
    single = Single(msgspec.structs.replace(START, max_bytes=None, cpu_seconds=1e-6))
    assert single.hear() == Ready()
    bomb = arithmetic_scans(1_000, 1000)
    single.send(bomb)
    assert single.connection.recv(1) == b""
    assert single.end() == -signal.SIGPROF
