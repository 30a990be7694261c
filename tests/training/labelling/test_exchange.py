"""Labels from elsewhere, and for others, through the command."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shared.samples import TOMBSTONE
from tests.training.labelling.conftest import keep
from training import cli
from training.decisions import Decision, append, decisions, read


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)


def done(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.label, ["samples", *map(str, arguments)])


def take(text: str, suffix: str = ".csv", who: str = "Anna") -> Result:
    Path(f"given{suffix}").write_text(text)
    return done("--as", who, "--import", f"given{suffix}")


def annotated(label: str, who: object = None, **other: object) -> dict[str, object]:
    choices = {"from_name": "x", "to_name": "y", "type": "choices", "value": {"choices": [label]}}
    text = {"from_name": "z", "to_name": "y", "type": "textarea", "value": {"text": ["blurred"]}}
    return {"completed_by": who, "result": [text, choices], **other}


def test_a_table_of_ids_and_labels_is_taken_as_the_labels_of_who_brings_it(folder: Path) -> None:
    said = take("label,id,note\ncats,b1-unsure,clear\nneither,d2-unsure,\ndogs,x9,\n")
    assert said.output == "labels.csv: 2 of 3 labels are new; 1 are of samples that are not there\n"
    assert [(line.id, line.label, line.who, line.model) for line in read(Path("labels.csv"))] == [
        ("b1-unsure", "cats", "Anna", "shipped-1"),
        ("d2-unsure", "neither", "Anna", "shipped-1"),
    ]


def test_another_ledger_is_merged_once_and_later_decisions_win(ledger: Path) -> None:
    head = "id,label,decision,who,when,model\n"
    first = "b1-unsure,cats,label,Ben,2026-11-29T12:00:00Z,m\n"
    earlier = "b1-unsure,dogs,label,Ben,2026-11-29T10:00:00Z,m\n"
    later = "b1-unsure,dogs,label,Ben,2026-11-29T15:00:00+02:00,m\n"
    taken_back = "d2-unsure,cats,label,Ben,2026-11-29T12:00:00Z,m\nd2-unsure,cats,undo,Ben,2026-11-29T12:00:00Z,m\n"
    new = [take(head + rows).output.split()[1] for rows in (first, first, earlier, later, taken_back)]
    assert new == ["1", "0", "0", "1", "0"]
    assert ledger.read_text().splitlines()[-1] == "b1-unsure,dogs,label,Ben,2026-11-29T13:00:00Z,m"
    assert decisions(ledger) == {"b1-unsure": "dogs"}


def test_annotations_of_label_studio_are_labels_and_its_predictions_are_not(ledger: Path) -> None:
    tasks = [
        {
            "id": 1,
            "data": {"image": "s3://bucket/b1-unsure.png", "id": "b1-unsure"},
            "annotations": [annotated("Cat", 7, created_at="2026-11-29T12:00:00.5Z", id=3)],
            "predictions": [annotated("dogs")],
        },
        {
            "data": {"image": "/data/upload/1/0a1b2c3d-h_1.png"},
            "annotations": [annotated("both", {"email": "b@x.org"})],
        },
        {"data": {"image": "/data/local-files/?d=samples/h_2.png"}, "annotations": [annotated("dogs")]},
        {"data": {"id": "d2-unsure"}, "annotations": [annotated("cats", 7, was_cancelled=True)]},
        {"data": {"id": "c3-unsure"}, "predictions": [annotated("dogs")]},
    ]
    for name in ("h_1", "h_2"):
        keep(Path("samples"), name, "unsure")
    assert take(json.dumps(tasks), ".json").exit_code == 0
    assert [(line.id, line.label, line.who) for line in read(ledger)] == [
        ("b1-unsure", "cats", "Label Studio 7"),
        ("h_1", "both", "b@x.org"),
        ("h_2", "dogs", "Anna"),
    ]
    assert "0 of 3 labels" in take(json.dumps(tasks[:1] * 3), ".json").output
    first = annotated("cats", 7, created_at="2026-11-29T12:00:00.5Z")
    corrected = annotated("dogs", 7, created_at="2026-11-29T12:00:00.5Z", updated_at="2026-11-29T15:00:00Z")
    take(json.dumps([{"data": {"id": "b1-unsure"}, "annotations": [corrected, first]}]), ".json")
    assert decisions(ledger)["b1-unsure"] == "dogs"


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_an_older_file_takes_nothing_back(ledger: Path, suffix: str) -> None:
    """What was decided later stands: a label that was taken back, and a settlement."""
    head = "id,label,decision,who,when\n"
    take(f"{head}b1-unsure,cats,label,Anna,2026-11-29T12:00:00Z\nc3-unsure,cats,settle,Dora,2026-11-29T13:00:00Z\n")
    done("--export", f"old{suffix}")
    at = datetime(2026, 11, 29, 14, tzinfo=UTC)
    append(ledger, [Decision("b1-unsure", "cats", "undo", "Anna", at, "m")])
    append(ledger, [Decision("c3-unsure", "both", "settle", "Cleo", at, "m")])
    assert "0 of 2 labels are new" in done("--as", "Anna", "--import", f"old{suffix}").output
    assert decisions(ledger) == {"c3-unsure": "both"}


def test_the_ledger_is_not_exported_over(ledger: Path) -> None:
    take("id,label\nb1-unsure,cats\n")
    take("id,label\nb1-unsure,dogs\n")
    before = ledger.read_bytes()
    for name in ("labels.csv", "./labels.csv", "samples/../labels.csv"):
        said = done("--export", name)
        assert (said.exit_code, "never rewritten" in said.output) == (2, True), said.output
    assert ledger.read_bytes() == before


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_what_is_exported_can_be_imported_elsewhere(ledger: Path, suffix: str) -> None:
    take("id,label,who\nb1-unsure,cats,Anna\nb1-unsure,dogs,Ben\nc3-unsure,both,Ben\na4-disputed,dogs,Ben\n")
    take("id,label,decision,who\na4-disputed,neither,settle,Cleo\n")
    before = decisions(ledger)
    assert done("--export", f"out{suffix}").output == f"out{suffix}: 3 of 6 samples have labels\n"
    ledger.unlink()
    assert done("--as", "Dora", "--import", f"out{suffix}").exit_code == 0
    assert decisions(ledger) == before == {"c3-unsure": "both", "a4-disputed": "neither"}
    assert {line.who for line in read(ledger)} == {"Anna", "Ben", "Cleo"}


def test_label_studio_gets_every_sample_with_an_address_it_can_read() -> None:
    done("--export", "out.json")
    tasks = json.loads(Path("out.json").read_text())
    assert len(tasks) == 6
    assert {
        "data": {"id": "b1-unsure", "image": "/data/local-files/?d=samples/b1-unsure.png"}, "annotations": []
    } in tasks  # fmt: skip


def test_a_forgotten_sample_is_neither_taken_nor_given(folder: Path, ledger: Path) -> None:
    take("id,label\nb1-unsure,cats\nd2-unsure,dogs\n")
    (folder / f"b1-unsure{TOMBSTONE}").touch()
    assert done("--export", "out.csv").output == "out.csv: 1 of 5 samples have labels\n"
    assert "b1-unsure" not in Path("out.csv").read_text()
    ledger.unlink()
    assert "0 of 1 labels are new; 1 are of samples that are not there" in take("id,label\nb1-unsure,cats\n").output


@pytest.mark.parametrize(
    ("text", "suffix", "says"),
    [
        ("id,label\nb1-unsure,cat\n", ".csv", "line 2: Invalid enum value 'cat'"),
        ("name\nb1-unsure\n", ".csv", "line 2: Object missing required field `id`"),
        ("{}", ".json", "not tasks of Label Studio"),
        (json.dumps([{"data": {"id": "b1"}, "annotations": [annotated("horse")]}]), ".json", "task 1: horse is none"),
        (json.dumps([{"data": {"text": "a"}, "annotations": [annotated("cats")]}]), ".json", "task 1: no id"),
        ("b1-unsure", ".txt", "neither .csv nor .json"),
    ],
)
def test_a_file_that_cannot_be_taken_is_named_with_its_line(ledger: Path, text: str, suffix: str, says: str) -> None:
    said = take(text, suffix)
    assert (said.exit_code, f"given{suffix}" in said.output, says in said.output) == (2, True, True), said.output
    assert not ledger.exists()


def test_a_person_without_a_name_is_asked_for_it() -> None:
    Path("given.csv").write_text("id,label\nb1-unsure,cats\n")
    CliRunner().invoke(cli.label, ["samples", "--import", "given.csv"], input="Ben\n")
    assert [line.who for line in read(Path("labels.csv"))] == ["Ben"]
    assert "is no name" in take("id,label\n", who="A\nB").output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere", "--as", "Anna"], "nowhere: no samples there"),
        (["samples", "--as", "Anna", "--ledger", "samples/b1-unsure.png"], "not a ledger of labels"),
        (["samples", "--as", "Anna", "--import", "a.csv", "--export", "b.csv"], "either --import or --export"),
        (["samples", "--as", "Anna", "--export", "/proc/out.csv"], "/proc/out.csv: "),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments: list[str], says: str) -> None:
    Path("a.csv").write_text("id,label\n")
    said = CliRunner().invoke(cli.label, arguments)
    assert (said.exit_code, says in said.output, "Traceback" in said.output) == (2, True, False), said.output


def test_a_bucket_without_obstore_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert "a bucket needs obstore" in CliRunner().invoke(cli.label, ["s3://b/samples", "--as", "Anna"]).output
