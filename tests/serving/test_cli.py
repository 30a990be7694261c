import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from serving import cli
from tests.conftest import ROOT, blobs, encoded


def catsdogs(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.jpg").write_bytes(encoded(blobs(1), "JPEG"))
    (tmp_path / "also good.png").write_bytes(encoded(blobs(2), "PNG"))
    (tmp_path / "broken.jpg").write_bytes(encoded(blobs(3), "JPEG")[:700])
    (tmp_path / "a folder").mkdir()
    return tmp_path


def test_a_table_for_people(folder: Path) -> None:
    result = catsdogs("predict", str(folder / "good.jpg"), str(folder / "also good.png"))
    assert result.exit_code == 0
    head, *lines = result.stdout.splitlines()
    assert head.split() == ["verdict", "cats", "dogs", "familiar", "file"]
    assert len(lines) == 2
    assert all("%" in line for line in lines)


def test_json_for_programs(folder: Path) -> None:
    result = catsdogs("predict", "--json", str(folder / "good.jpg"), str(folder / "also good.png"))
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["client_id"] for answer in answers] == [str(folder / "good.jpg"), str(folder / "also good.png")]
    assert answers[0]["probabilities"].keys() == {"cats", "dogs"}


def test_bad_files_are_named_the_others_answered_and_the_exit_code_says_so(folder: Path) -> None:
    names = ["a folder", "good.jpg", "missing.jpg", "broken.jpg", "also good.png"]
    result = catsdogs("predict", "--json", *(str(folder / name) for name in names))
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    folder_line, missing_line, broken_line = result.stderr.splitlines()
    assert folder_line.endswith("a folder: Is a directory")
    assert missing_line.endswith("missing.jpg: No such file or directory")
    assert broken_line.endswith("broken.jpg: the JPEG data is truncated or corrupt")


def test_a_model_that_must_not_answer(folder: Path) -> None:
    result = catsdogs("predict", "--model", str(folder / "good.jpg"), str(folder / "good.jpg"))
    assert result.exit_code == 2
    assert "not a model" in result.stderr


def test_serve_refuses_what_it_cannot_use_before_it_opens_a_port() -> None:
    assert "no such model file" in catsdogs("serve", "--model", "/nowhere.onnx").stderr
    result = catsdogs("serve", "--port", "70000")
    assert result.exit_code == 2
    assert "CATSDOGS_PORT" in result.stderr


def test_help_shows_every_command_with_examples() -> None:
    text = catsdogs("--help").stdout
    for name in ("fetch", "audit", "split", "prepare", "train", "export", "evaluate", "serve", "predict"):
        assert f"\n  {name} " in text
    assert "catsdogs serve --host 0.0.0.0" in catsdogs("serve", "--help").stdout


def test_an_unknown_command() -> None:
    result = catsdogs("meow")
    assert result.exit_code == 2
    assert "No such command 'meow'" in result.stderr


def test_a_stage_s_error_is_one_line_and_exit_code_2(in_folder: Path) -> None:
    result = catsdogs("fetch", "--params", str(ROOT / "params.yaml"), "nowhere.zip")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {in_folder / 'nowhere.zip'}: no such file or folder"
    assert not any(path.is_file() for path in in_folder.rglob("*"))
    assert "params.yaml: No such file" in catsdogs("audit").stderr


class Absent:
    """A command whose module, or one that it imports, wants a module that is not installed."""

    def __init__(self, name: str, importer: str, wants: str) -> None:
        self.name = name
        self.importer = importer
        self.wants = wants

    def import_it(self) -> None:
        exec(f"import {self.wants}", {"__name__": self.importer})

    def load(self) -> click.Command:
        if self.name == "late":

            @click.command("late")
            def late() -> None:
                self.import_it()

            return late
        self.import_it()
        raise AssertionError


@pytest.mark.parametrize("name", ["early", "late"])
@pytest.mark.parametrize(
    ("importer", "wants", "told"),
    [
        ("training.train", "absent.nn", "needs absent, which comes with: pip install 'cats-dogs[train]'"),
        ("sklearn.base", "absent", "scikit-learn lacks its module absent: pip install --force-reinstall scikit-learn"),
        ("training.train", "training.gone", None),
    ],
)
def test_a_missing_module_is_named_with_the_pip_install_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, name: str, importer: str, wants: str, told: str | None
) -> None:
    found = {"catsdogs.commands.train": [Absent(name, importer, wants)]}
    assert found.keys() < cli.GROUPS.keys()
    monkeypatch.setattr(cli, "entry_points", lambda group: found.get(group, []))
    # A command that could not be loaded is there all the same, and takes options that nobody can know.
    arguments = [name, "--some", "option"] if name == "early" else [name]
    result = CliRunner().invoke(cli.Commands("catsdogs"), arguments)
    if told:
        assert result.exit_code == 2
        assert told in result.stderr
    else:  # our own fault, which no extra mends
        assert isinstance(result.exception, ModuleNotFoundError)
