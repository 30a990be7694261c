"""Raw HTTP requests and the order in which they are sent."""

import json
import subprocess
import sys
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ops.bench.errors import BenchError
from ops.bench.processes import ROOT

BOUNDARY: Final = "6c3a1f0e9d274b58"
MIX: Final = {"small": 45, "medium": 45, "large": 10}  # per cent
MIXES: Final = {"mixed": MIX, "uniform": {"medium": 1}, "large": {"large": 1}}


@dataclass(frozen=True)
class Photos:
    """JPEG files by size, as many of each."""

    files: dict[str, list[bytes]]

    def write(self, folder: Path, mix: dict[str, int]) -> Path:
        """Write the photos, their requests and the order into ``folder``; returns it."""
        folder.mkdir()
        names = order(mix, len(self.files["small"]))
        for size, number in dict.fromkeys(names):
            (folder / f"{size}-{number}.jpg").write_bytes(self.files[size][number])
            (folder / f"{size}-{number}").write_bytes(form(self.files[size][number]))
        (folder / "order").write_text("".join(f"{size}-{number}\n" for size, number in names))
        return folder


def make(folder: Path, source: Path | None) -> Photos:
    """Make the photos in ``folder``, which must not exist yet, and read them.

    Raises:
        BenchError: ``source`` has no photos.
    """
    folder.mkdir()
    command = [sys.executable, "-m", "ops.bench.photos", str(folder)]
    command += [str(source.resolve())] if source else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(done.stderr.strip() or "the photos could not be made")
    return Photos({size: [path.read_bytes() for path in sorted(folder.glob(f"{size}-*.jpg"))] for size in MIX})


def order(mix: dict[str, int], each: int) -> list[tuple[str, int]]:
    """Sizes and numbers of the photos to send in turn: ``mix`` per cent of each size, spread evenly."""
    total = sum(mix.values())
    sent = dict.fromkeys(mix, 0)
    names = []
    for place in range(1, total * each + 1):
        behind = {size: share * place / total - sent[size] for size, share in mix.items()}
        size = max(behind, key=behind.__getitem__)
        names.append((size, sent[size] % each))
        sent[size] += 1
    return names


def form(data: bytes, path: str = "/predict", field: str = "file") -> bytes:
    """A raw request that sends one file in a multipart form."""
    return _form([data], path, field)


def batch_form(files: list[bytes]) -> bytes:
    """A raw request that sends files to ``/predict/batch`` in a multipart form."""
    return _form(files, "/predict/batch", "file")


def _form(files: list[bytes], path: str, field: str) -> bytes:
    head = (
        f"--{BOUNDARY}\r\n"
        f'Content-Disposition: form-data; name="{field}"; filename="photo.jpg"\r\n'
        "Content-Type: image/jpeg\r\n\r\n"
    ).encode()
    body = b"".join(head + data + b"\r\n" for data in files) + f"--{BOUNDARY}--\r\n".encode()
    return post(path, f"multipart/form-data; boundary={BOUNDARY}", body)


def batch(files: list[bytes]) -> bytes:
    """A raw request that sends files to ``/predict/batch`` as base64 in JSON."""
    body = json.dumps({"images": [{"data": b64encode(data).decode()} for data in files]})
    return post("/predict/batch", "application/json", body.encode())


def post(path: str, kind: str, body: bytes) -> bytes:
    """A raw request with a body."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
