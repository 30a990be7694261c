"""The fuzzer itself works, and a short run of it finds nothing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fuzz import SCALE
from tests.fuzz.pictures import good

pytestmark = pytest.mark.slow

RUNS = 5000


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this Python")
def test_a_guided_search_finds_no_file_that_is_neither_decoded_nor_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    command = [
        sys.executable, "-m", "tests.fuzz.fuzz_pixels", str(corpus), f"-runs={RUNS * SCALE}",
        f"-artifact_prefix={tmp_path}/", *(["-seed=1"] if SCALE == 1 else []),
    ]  # fmt: skip
    # Through a shell that forks: a process keeps the peak of the memory it was started from, here a test run's with
    # torch in it, and libFuzzer takes that peak for the fuzzer's own.
    forked = ["sh", "-c", '"$@"; exit $?', "sh", *command]
    done = subprocess.run(forked, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not [path.name for path in tmp_path.iterdir() if path != corpus]
    assert len(list(corpus.iterdir())) > len(good())
