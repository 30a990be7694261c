"""The report: figures that are right, said in three ways, whatever the journal holds."""

import json
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from ops.cli import report as command
from ops.report import make_report
from ops.served import Served
from shared import journal
from shared.contract import Histogram, Reference
from shared.intervals import wilson
from shared.journal import Line
from shared.metrics import calibration_error, reliability_bins
from tests.conftest import ROOT
from tests.serving.conftest import Running
from tests.shared.test_journal import feedback, prediction, write

UNIT = tuple(np.linspace(0, 1, 21).tolist())


def answers(count: int, seed: int = 1, **other: object) -> list[Line]:
    """Predictions of all confidences, each right as often as it says, and feedback on all of them."""
    chance = random.Random(seed)
    lines: list[Line] = []
    for number in range(count):
        dogs = round(chance.betavariate(0.3, 0.3), 6)
        said = "dogs" if dogs > 0.5 else "cats"
        sure = max(dogs, 1 - dogs)
        unsure = sure < 0.7
        lines += [
            prediction(
                f"{seed}-{number}",
                label=said,
                probabilities={"cats": 1 - dogs, "dogs": dogs},
                verdict="unsure" if unsure else said,
                unsure_because="close_call" if unsure else None,
                familiarity=chance.betavariate(20, 3),
                brightness=chance.betavariate(8, 8),
                **other,
            ),
            feedback(f"{seed}-{number}", label="dogs" if chance.random() < dogs else "cats"),
        ]
    return lines


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of two models in two files."""
    (tmp_path / "journal").mkdir()
    write(tmp_path / "journal" / journal.name(1), *answers(600, 1, model="old"))
    write(tmp_path / "journal" / journal.name(2), *answers(400, 2, model="new"), prediction("untold", model="new"))
    return tmp_path / "journal"


def served(seed: int = 3, version: str = "new") -> Served:
    """A model whose validation set looked as ``answers`` do."""
    chance = random.Random(seed)

    def histogram(edges: tuple[float, ...], values: list[float]) -> Histogram:
        return Histogram(edges=edges, counts=tuple(np.histogram(values, edges)[0].tolist()))

    sure = [max(value, 1 - value) for value in (chance.betavariate(0.3, 0.3) for _ in range(1283))]
    return Served(
        version=version,
        reference=Reference(
            confidence=histogram((0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0), sure),
            brightness=histogram(UNIT, [chance.betavariate(8, 8) for _ in range(1283)]),
            familiarity=histogram(UNIT, [chance.betavariate(20, 3) for _ in range(1283)]),
        ),
    )


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_accuracy_is_counted_with_its_interval_over_all_and_where_answered(folder: Path) -> None:
    made = make_report([folder], None)
    lines = answers(600, 1) + answers(400, 2)
    pairs = list(zip(lines[::2], lines[1::2], strict=True))
    right = [said.label == was.label for said, was in pairs]
    sure = [one for one, (said, _) in zip(right, pairs, strict=True) if said.verdict != "unsure"]  # type: ignore[union-attr]
    assert made.predictions == 1001
    assert made.quality is not None
    assert made.quality.feedback == 1000
    assert made.quality.with_unsure == wilson(sum(right), 1000)
    assert made.quality.accuracy == wilson(sum(sure), len(sure))
    assert made.verdicts["unsure"] == 1000 - len(sure)
    assert sum(made.verdicts.values()) == 1001
    assert sum(map(sum, made.quality.confusion)) == 1000
    assert made.quality.confusion[0][1] == sum((s.label, w.label) == ("dogs", "cats") for s, w in pairs)


def test_pictures_of_neither_or_both_are_counted_by_themselves(tmp_path: Path) -> None:
    file = write(
        tmp_path / "j",
        *(prediction(id_) for id_ in "abc"),
        prediction("d", verdict="unsure", unsure_because="unfamiliar"),
        feedback("a", label="neither"),
        feedback("d", label="neither"),
        feedback("b", label="both"),
    )
    made = make_report([file], None)
    assert made.quality is None
    assert {label: (others.feedback, others.answered) for label, others in made.others.items()} == {
        "neither": (2, 1), "both": (1, 1),
    }  # fmt: skip
    text = run(file, "--html", tmp_path / "page.html")
    assert "shown neither     2, of which 1 were answered" in text
    assert "Pictures that showed both: 1, of which 1 were answered." in (tmp_path / "page.html").read_text()
    write(file, *(prediction(id_) for id_ in "abc"), feedback("a"), feedback("b", label="both"))
    share = make_report([file], None)
    assert share.quality is not None
    assert share.quality.accuracy == wilson(1, 1)
    assert [model.accuracy for model in share.models.values()] == [wilson(1, 1)]


def test_the_share_looked_at_again_has_its_interval(tmp_path: Path) -> None:
    file = write(tmp_path / "j", *answers(30, again=True), *answers(10, seed=2))
    assert make_report([file], None).looked_again == wilson(30, 40)
    assert "looked at again   75.00%" in run(file)


def test_calibration_is_what_the_evaluation_would_say(folder: Path) -> None:
    made = make_report([folder], None)
    assert made.quality is not None
    lines = answers(600, 1) + answers(400, 2)
    confidence = np.array([max(said.probabilities.values()) for said in lines[::2]])  # type: ignore[union-attr]
    right = np.array([said.label == was.label for said, was in zip(lines[::2], lines[1::2], strict=True)])
    assert made.quality.calibration_error == pytest.approx(calibration_error(reliability_bins(confidence, right)))
    assert made.quality.calibration_error < 0.05
    assert sum(each.count for each in made.quality.reliability) == 1000


def test_each_model_has_its_own_figures(folder: Path) -> None:
    made = make_report([folder], None)
    assert list(made.models) == ["old", "new"]
    answered = [sum(line.verdict != "unsure" for line in answers(*n)[::2]) for n in ((600, 1), (400, 2))]  # type: ignore[union-attr]
    assert [(share.predictions, share.feedback) for share in made.models.values()] == [
        (600, answered[0]),
        (401, answered[1]),
    ]


def test_the_last_feedback_counts_and_belongs_to_the_prediction_before_it(tmp_path: Path) -> None:
    path = write(
        tmp_path / journal.name(1),
        prediction("a", label="cats"),
        feedback("a", label="dogs"),
        feedback("a", label="cats"),
        prediction("a", label="dogs", probabilities={"cats": 0.1, "dogs": 0.9}),
        feedback("a", label="cats"),
        feedback("b", label="cats"),
    )
    made = make_report([path], None)
    assert made.quality is not None
    assert made.quality.confusion == ((1, 1), (0, 0))
    assert (made.feedback_lines, made.orphans) == (4, 1)
    assert "feedback without its prediction in these files: 1" in run(path)


def test_feedback_that_another_replica_took_is_matched_though_its_file_comes_first(tmp_path: Path) -> None:
    write(tmp_path / journal.name(1), feedback("a", label="dogs"), feedback("a", label="cats"), feedback("b"))
    write(tmp_path / journal.name(2), prediction("a"), prediction("b"), feedback("b", label="dogs"))
    made = make_report([tmp_path], None)
    assert made.quality is not None
    assert made.quality.confusion == ((1, 0), (1, 0))
    assert made.orphans == 0


def test_drift_is_of_the_model_that_serves_and_sees_what_has_changed(folder: Path) -> None:
    same = make_report([folder], served()).drift
    assert same is not None
    assert (same.model, same.predictions) == ("new", 401)
    assert {name: signal.says for name, signal in same.signals.items()} == dict.fromkeys(
        ("confidence", "brightness", "familiarity"), "as validated"
    )
    dark = [msgspec.structs.replace(line, brightness=0.1) for line in answers(400, 2, model="new")[::2]]
    write(folder / journal.name(3), *dark)
    changed = make_report([folder / journal.name(3)], served()).drift
    assert changed is not None
    assert changed.signals["brightness"].says == "shifted"
    assert changed.signals["familiarity"].says == "as validated"


def test_a_model_that_is_not_in_the_journal_has_no_drift(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(served(version="other")))
    assert "the journal has no predictions by other" in run(folder, "--contract", tmp_path / "model.json")
    run(folder, "--contract", tmp_path / "model.json", "--html", tmp_path / "page.html")
    assert "The journal has no predictions by other." in (tmp_path / "page.html").read_text()


def test_a_clock_that_was_set_back_changes_no_figure(tmp_path: Path) -> None:
    lines = answers(50)
    back = [msgspec.structs.replace(line, time=line.time - timedelta(days=number)) for number, line in enumerate(lines)]
    one, other = (make_report([write(tmp_path / str(i), *some)], None) for i, some in enumerate((lines, back)))
    assert other.quality == one.quality
    assert other.first is not None
    assert other.last is not None
    assert other.first < other.last


def test_text_json_and_page_say_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(served()))
    text = run(
        folder, "--contract", tmp_path / "model.json", "--json", tmp_path / "r.json", "--html", tmp_path / "r.html"
    )
    figures = json.loads((tmp_path / "r.json").read_text())
    page = (tmp_path / "r.html").read_text()
    share = figures["quality"]["accuracy"]
    answered = f"{figures['quality']['answered']} answers with feedback on one animal"
    assert f"{share['value']:.2%} ({share['low']:.2%} to {share['high']:.2%}) of {answered}" in text
    assert f"{share['value']:.2%}" in page
    for signal, found in figures["drift"]["signals"].items():
        assert f"{signal:<12} {found['psi']:>7.3f}" in text
        assert f"{signal}: PSI {found['psi']:.3f}" in page
    assert page.count("<svg") == 3
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "src=" not in page
    assert json.loads(run(folder, "--json", "-"))["predictions"] == 1001


@pytest.mark.parametrize("content", [b"", b'{"type":"pre', b"no journal\n"])
def test_a_journal_with_nothing_in_it_is_said_to_be_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / journal.name(1)).write_bytes(content)
    (tmp_path / "model.json").write_bytes(msgspec.json.encode(served()))
    text = run(tmp_path, "--html", tmp_path / "page.html", "--contract", tmp_path / "model.json")
    assert "The journal has no predictions." in text
    assert "The journal has no predictions." in (tmp_path / "page.html").read_text()
    assert ("unreadable lines, left out: 1" in text) == content.endswith(b"\n")
    assert json.loads(run(tmp_path, "--json", "-"))["quality"] is None


def test_an_empty_folder_is_an_empty_journal(tmp_path: Path) -> None:
    assert "The journal has no predictions." in run(tmp_path)


def test_without_feedback_it_says_so_and_reports_the_rest(tmp_path: Path) -> None:
    write(tmp_path / journal.name(1), *answers(30)[::2])
    text = run(tmp_path, "--html", tmp_path / "page.html")
    assert "There is no feedback" in text
    assert "milliseconds" in text
    assert "--url or --contract" in text
    assert "There is no feedback" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_read_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{}")
    write(tmp_path / journal.name(1), prediction())
    for arguments, words in (
        ([tmp_path / "missing"], "No such file"),
        ([tmp_path, "--contract", tmp_path / "missing.json"], "No such file"),
        ([tmp_path, "--contract", tmp_path / "bad.json"], "not a contract"),
        ([tmp_path, "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
        ([tmp_path, "--url", "nonsense"], "nonsense"),
        ([tmp_path, "--url", "http://ann:s3cret@127.0.0.1:9"], "http://***@127.0.0.1:9"),
        ([tmp_path, "--url", "http://ann:s3cret/x@127.0.0.1:9"], "http://***@127.0.0.1:9: not a URL"),
        ([tmp_path, "--html", tmp_path / "bad.json" / "page.html"], "File exists"),
    ):
        done = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert done.exit_code == 2, words
        assert words in done.output
        assert "s3cret" not in done.output
    assert not list(tmp_path.glob(".*"))


def test_the_reference_comes_from_a_running_service(server: Running, tmp_path: Path) -> None:
    write(tmp_path / journal.name(1), *answers(300, model=server.service.model.contract.version))
    figures = json.loads(run(tmp_path, "--url", f"http://127.0.0.1:{server.port}", "--json", "-"))
    assert figures["drift"]["predictions"] == 300
    assert figures["drift"]["signals"]["confidence"]["says"] == "shifted"


def test_text_and_json_need_neither_jinja2_nor_matplotlib(folder: Path) -> None:
    code = f"""
import sys
sys.modules["jinja2"] = sys.modules["matplotlib"] = None
from ops.cli import report
report([{str(folder)!r}])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1,001 predictions")
