"""Pictures and the disk, from outside: none is written unasked, and a killed service leaves whole ones."""

import contextlib
import ctypes
import json
import os
import signal
import struct
import threading
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from shared.pixels import pixels
from shared.samples import SUFFIX
from tests.conftest import blobs, encoded
from tests.e2e.test_process import CAT, Process, serve
from tests.waiting import until

IN_CREATE_OR_WRITTEN_OR_MOVED = 0x100 | 0x2 | 0x8 | 0x80


@contextlib.contextmanager
def watched(*folders: Path) -> Iterator[list[str]]:
    """Names of what is made or written in these folders meanwhile, by inotify(7)."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0
    for folder in folders:
        assert libc.inotify_add_watch(fd, os.fsencode(folder), IN_CREATE_OR_WRITTEN_OR_MOVED) >= 0
    names: list[str] = []
    try:
        yield names
        with contextlib.suppress(BlockingIOError):
            while data := os.read(fd, 65_536):
                while data:
                    (length,) = struct.unpack_from("12xI", data)
                    names.append(data[16 : 16 + length].rstrip(b"\0").decode())
                    data = data[16 + length :]
    finally:
        os.close(fd)


def opened(process: Process) -> set[str]:
    """Regular files that the service's processes have open for writing, but for memory without a name."""
    found = set()
    for pid in process.family():
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                flags = int(entry.read_text().split()[3], 8)
                path = (Path(f"/proc/{pid}/fd") / entry.name).readlink()
                if flags & os.O_ACCMODE and path.is_file():
                    found.add(str(path))
    return found


@pytest.mark.parametrize("journal", [False, True])
def test_no_picture_is_ever_on_disk_unless_it_is_asked_for(tmp_path: Path, journal: bool) -> None:
    places = {name: tmp_path / name for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "journal", "cwd")}
    for folder in places.values():
        folder.mkdir()
    environment = {name: str(folder) for name, folder in places.items() if name.isupper()}
    if journal:
        environment["CATSDOGS_JOURNAL"] = str(places["journal"])
    large = encoded(blobs(1, (1500, 1500)), "BMP")  # more than most servers keep of an upload in memory
    images = [{"data": b64encode(data).decode()} for data in (CAT, large)] * 3
    written: set[str] = set()
    with watched(*places.values()) as names:
        process = serve(places["cwd"], **environment).ready()
        with httpx.Client(base_url=process.url, timeout=60) as http:
            for path in ("/predict", "/explain"):
                for data in (CAT, large):
                    assert http.post(path, files={"file": data}).status_code == 200
                    assert http.post(path, content=data).status_code == 200
                    written |= opened(process)
            for answer in http.post("/predict/batch", json={"images": images}).json()["results"]:
                told = {"id": answer["id"], "label": "dogs"}
                assert http.post("/feedback", json=told).json()["label"] == "dogs"
            assert http.post("/predict", files={"file": b"not a picture"}).status_code == 415
            written |= opened(process)
        assert process.stop() == 0
    file = places["journal"] / "journal-000001.jsonl"
    assert set(names) == ({file.name} if journal else set())
    assert written == ({str(file)} if journal else set())
    if journal:
        longest = max(file.read_text().splitlines(), key=len)
        assert len(longest) < 600
        assert all(not isinstance(value, list) for value in json.loads(longest).values())


def test_kill_9_leaves_no_half_sample_and_the_next_start_keeps_within_its_caps(tmp_path: Path) -> None:
    folder = tmp_path / "samples"
    settings = {"CATSDOGS_SAMPLES": str(folder), "CATSDOGS_SAMPLE": "random:1"}
    process = serve(tmp_path, **settings).ready()
    images = [{"data": b64encode(encoded(blobs(seed, (64, 48)), "PNG")).decode()} for seed in range(16)]

    def ask() -> None:
        with httpx.Client(base_url=process.url, timeout=60) as http, contextlib.suppress(httpx.TransportError):
            while True:
                http.post("/predict/batch", json={"images": images})

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: folder.exists() and len(list(folder.iterdir())) > 50)
    assert process.stop(signal.SIGKILL) == -signal.SIGKILL
    for thread in threads:
        thread.join()

    found = [path for path in folder.iterdir() if path.suffix == SUFFIX]
    assert len(found) >= 50
    for path in found:
        with Image.open(path) as image:
            image.verify()
        assert pixels(path.read_bytes()).shape == (224, 224, 3)
    process = serve(tmp_path, CATSDOGS_SAMPLES_COUNT="9", **settings).ready()
    until(lambda: sorted(folder.glob(f"*{SUFFIX}")) == sorted(found)[-9:])
    assert process.stop() == 0
