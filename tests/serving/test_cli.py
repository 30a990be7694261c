import json
import os
import re
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from serving import cli, extras, local
from tests.conftest import ROOT, blobs, encoded

PIP = Path(sys.executable).with_name("pip")


def catsdogs(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good.jpg").write_bytes(encoded(blobs(1), "JPEG"))
    (tmp_path / "also good.png").write_bytes(encoded(blobs(2), "PNG"))
    (tmp_path / "broken.jpg").write_bytes(encoded(blobs(3), "JPEG")[:700])
    (tmp_path / "a folder").mkdir()
    (tmp_path / ".hidden.jpg").write_bytes(b"")
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
    names = ["good.jpg", "missing.jpg", "broken.jpg", "also good.png"]
    result = catsdogs("predict", "--json", *(str(folder / name) for name in names))
    assert result.exit_code == 1
    assert len(result.stdout.splitlines()) == 2
    missing_line, broken_line = result.stderr.splitlines()
    assert missing_line.endswith("missing.jpg: No such file or directory")
    assert broken_line.endswith("broken.jpg: the JPEG data is truncated or corrupt")


def answered(result: Result) -> list[str]:
    return [json.loads(line)["client_id"] for line in result.stdout.splitlines()]


def test_a_folder_is_its_files_but_hidden_ones_and_a_pattern_what_it_matches(folder: Path) -> None:
    (folder / "a folder" / "deep").mkdir()
    deep = folder / "a folder" / "deep" / "photo[1].jpg"
    deep.write_bytes(encoded(blobs(4), "JPEG"))
    good = [str(folder / "also good.png"), str(folder / "good.jpg")]
    assert list(local.files(str(folder))) == [str(deep), good[0], str(folder / "broken.jpg"), good[1]]
    assert list(local.files(f"{folder}/*good.*")) == good
    assert list(local.files(f"{folder}/**/photo*")) == [str(deep)]
    assert list(local.files(f"{folder}/a f*")) == [str(deep)]
    assert list(local.files(str(deep))) == [str(deep)]  # a file, though its name is a pattern too
    assert list(local.files("-")) == ["-"]
    result = catsdogs("predict", "--json", str(folder), f"{folder}/*.webp")
    assert answered(result) == [str(deep), *good]
    assert result.stderr.splitlines() == [
        f"{folder}/broken.jpg: the JPEG data is truncated or corrupt",
        f"{folder}/*.webp: No such file or directory",
    ]


def test_folders_without_files_are_a_mistake(folder: Path) -> None:
    result = catsdogs("predict", str(folder / "a folder"))
    assert result.exit_code == 2
    assert "no files in these folders" in result.stderr


def test_a_picture_may_come_on_stdin(folder: Path) -> None:
    picture = (folder / "good.jpg").read_bytes()
    result = CliRunner().invoke(cli.main, ["predict", "--json", "-"], input=picture)
    assert answered(result) == ["-"]


def test_predict_takes_a_name_that_is_no_text_and_says_so_of_one_that_can_be_none(folder: Path) -> None:
    name = folder / os.fsdecode(b"caf\xe9.jpg")
    name.write_bytes((folder / "good.jpg").read_bytes())
    result = CliRunner().invoke(cli.main, ["predict", "--json", str(name)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["client_id"] == f"{folder}/caf\\xe9.jpg"
    result = CliRunner().invoke(cli.main, ["predict", "x" * 300])
    assert result.exit_code == 1
    assert "too long" in result.stderr


def test_a_mistake_in_the_service_s_settings_is_none_of_predict(folder: Path) -> None:
    environment = {"CATSDOGS_PORT": "http", "CATSDOGS_API_KEYS": "", "CATSDOGS_MAX_PIXELS": "1"}
    result = CliRunner().invoke(cli.main, ["predict", "--json", str(folder / "good.jpg")], env=environment)
    assert result.exit_code == 0
    other = CliRunner().invoke(cli.main, ["predict", "x.jpg"], env={"CATSDOGS_MODEL": str(folder / "good.jpg")})
    assert "not a model" in other.stderr


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


def test_help_groups_what_is_installed_and_names_the_extra_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = [f'absent>=1; extra == "{extra}"' for extra in ("train", "tune", "score")] + ['click>=8; extra == "ops"']
    monkeypatch.setattr(extras, "requires", lambda _: needs)
    monkeypatch.chdir(ROOT)
    sections = catsdogs("--help").stdout.split("\n\n")
    service, operation, absent = sections[-3:]
    assert re.findall(r"^ {0,2}(\S+)", service, re.MULTILINE) == ["Service:", "serve", "predict", "forget", "key"]
    assert re.findall(r"^ {0,2}(\S+)", operation, re.MULTILINE) == ["Operation:", "collect", "report"]
    assert re.fullmatch(
        r"Not installed:\s+fetch, audit, split, …\s[^…]+ install -e\s'\.\[train\]'\s+"
        r"tune\s[^…]+ install -e\s'\.\[tune\]'\s+"
        r"score, sort\s[^…]+ install -e\s'\.\[score\]'\s+",
        absent,
    )


def test_without_a_checkout_the_hint_says_that_one_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "site-packages/serving/extras.py"))
    assert extras.hint("ops").endswith("install '.[ops]', in a checkout")


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
        ("training.train", "absent.nn", f"needs absent, which comes with: {PIP} install -e '{ROOT}[train]'"),
        (
            "sklearn.base",
            "absent",
            f"scikit-learn lacks the module absent: {PIP} install --force-reinstall scikit-learn",
        ),
        ("training.train", "PIL.absent", f"pillow lacks the module PIL.absent: {PIP} install --force-reinstall pillow"),
        ("lzma", "_absent", "this Python was built without its module _absent"),
        ("training.train", "training.gone", None),
    ],
)
def test_a_missing_module_is_named_with_the_pip_install_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, importer: str, wants: str, told: str | None
) -> None:
    found = {"catsdogs.commands.train": [Absent(name, importer, wants)]}
    assert found.keys() < cli.GROUPS.keys()
    monkeypatch.setattr(cli, "entry_points", lambda group: found.get(group, []))
    monkeypatch.chdir(tmp_path)
    # A command that could not be loaded is there all the same, and takes options that nobody can know.
    arguments = [name, "--some", "option"] if name == "early" else [name]
    result = CliRunner().invoke(cli.Commands("catsdogs"), arguments)
    if told:
        assert result.exit_code == 2
        assert told in result.stderr.replace("Pillow", "pillow")
    else:  # our own fault, which no extra mends
        assert isinstance(result.exception, ModuleNotFoundError)
