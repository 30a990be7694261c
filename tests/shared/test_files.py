import json
import os
from pathlib import Path

import pytest

from shared.files import write_json, write_whole


def test_a_file_is_written_into_a_folder_that_was_not_there(tmp_path: Path) -> None:
    write_whole(tmp_path / "a" / "b.txt", "käse")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "käse".encode()


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError("disk full")

    file = tmp_path / "file"
    write_whole(file, b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(file, b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"old"}


def test_json_is_indented_and_keeps_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "report.json", {"a": [1], "name": "käse"})
    text = (tmp_path / "report.json").read_text()
    assert json.loads(text) == {"a": [1], "name": "käse"}
    assert "käse" in text
    assert text.endswith("}\n")
