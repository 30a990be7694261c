"""Photos to send, and the programs of this environment."""

import shutil
import sys
from pathlib import Path

import pytest

from ops.bench import requests
from ops.bench.servers import Programs

SERVICE = Path(sys.executable).with_name("catsdogs")
HERE = Programs(SERVICE, Path(sys.executable))
WRK = pytest.mark.skipif(not shutil.which("wrk"), reason="the load generator is not installed")
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="read from Linux's /proc")
SPIN = [sys.executable, "-c", "while True: pass"]


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> requests.Photos:
    return requests.make(tmp_path_factory.mktemp("bench") / "photos", None)


@pytest.fixture(scope="session")
def folder(photos: requests.Photos, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos.write(tmp_path_factory.mktemp("bench") / "mixed", requests.MIX)
