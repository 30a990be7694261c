"""What `promote` registers, ships, keeps out and refuses."""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import time
from pathlib import Path

import mlflow
import msgspec
import onnx
import pytest

from shared import contract
from shared.contract import Contract, Precision
from shared.files import write_json, write_whole
from shared.intervals import Interval
from tests.conftest import ROOT
from tests.training.promotion.conftest import LOG_MODEL, Make
from tests.training.promotion.redness import EACH, Redness, champion, client, done, place, refused, served, state, tags
from training import stage, tracking
from training.graph import Runner
from training.promotion import registry
from training.promotion.files import read, read_contract
from training.promotion.promote import PIPELINE
from training.promotion.served import SERVED, exclusive

GOOD = Redness()
BAD = Redness(wrong=16)
SMALLER = Redness(padding=4000)


def contradict(path: Path, **changes: object) -> None:
    """Change a file's contract behind its back."""
    model = onnx.load(path)
    loaded = msgspec.json.decode(model.metadata_props[0].value, type=Contract)
    model.metadata_props[0].value = contract.dumps(msgspec.structs.replace(loaded, **changes))
    onnx.save(model, path)


def test_the_first_candidate_is_champion_and_every_file_names_its_version(make: Make) -> None:
    make()
    made = stage.MODEL.read_bytes()
    assert "promote: no champion can serve" in done("promote")
    assert champion() == "cats-dogs/1"
    assert sorted(served()) == ["cats-dogs.fp32.json", "cats-dogs.fp32.onnx"]
    assert read_contract((SERVED / "cats-dogs.fp32.onnx").read_bytes()).provenance.registry == "cats-dogs/1"
    assert json.loads(served()["cats-dogs.fp32.json"])["registry"] == "cats-dogs/1"
    assert tags(1)["sha256_fp32"] == hashlib.sha256(made).hexdigest()
    assert tags(1)["decision"] == "promoted"


def test_a_fresh_clone_keeps_its_model_against_a_worse_one_and_can_bring_it_back(make: Make) -> None:
    place(GOOD, "fp32", created="2026-11-24T00:00:00+00:00")
    place(GOOD, "int8", created="2026-11-24T00:00:00+00:00")
    before = served()
    make(BAD)
    output = done("promote")
    assert "serving/models holds a model that the registry does not know, not a champion: it is champion" in output
    assert "keep out: against cats-dogs/1: accuracy may be worse by" in output
    assert served() == before
    assert champion() == "cats-dogs/1"
    assert (tags(1)["decision"], tags(2)["decision"]) == ("served already", "kept out")
    make(SMALLER)
    done("promote")
    assert champion() == "cats-dogs/3"
    assert "cats-dogs/1: champion again" in done("rollback")
    back = read(SERVED)
    assert back.named(None).digests == {name: value for name, value in tags(1).items() if name in back.digests}
    assert sorted(served()) == sorted(before)


def test_the_int8_file_that_serves_is_the_rival_also_where_its_fp32_is_worse(make: Make) -> None:
    place(BAD)
    place(GOOD, "int8")
    make(Redness(wrong=12, padding=4000))
    assert "keep out" in done("promote")
    assert champion() == "cats-dogs/1"


def test_the_registry_follows_the_files_that_serve(make: Make) -> None:
    make(BAD)
    done("promote")
    first = served()
    make(GOOD)
    done("promote")
    for name, data in first.items():  # as `git checkout` of an older commit does
        (SERVED / name).write_bytes(data)
    make(Redness(wrong=15, padding=4000))
    assert "serving/models holds cats-dogs/1, not cats-dogs/2: it is champion, as it serves" in done("promote")
    assert champion() == "cats-dogs/1"
    assert served() == first


def test_files_that_are_no_model_stop_the_comparison_instead_of_losing_it(make: Make) -> None:
    make(GOOD)
    done("promote")
    (SERVED / "cats-dogs.fp32.onnx").write_bytes(b"cut off")
    make(BAD)
    assert "serving/models: not a model of this project" in refused("promote")
    assert "not a model of this project" in refused("rollback")
    done("restore", "1")
    assert read_contract((SERVED / "cats-dogs.fp32.onnx").read_bytes()).provenance.registry == "cats-dogs/1"
    assert "keep out" in done("promote")


def test_a_champion_that_fails_its_exam_here_stops_the_comparison(make: Make) -> None:
    place(GOOD)
    path = SERVED / "cats-dogs.fp32.onnx"
    questions = read_contract(path.read_bytes()).exam.questions
    wrong = tuple(msgspec.structs.replace(question, familiarity=0.0) for question in questions)
    contradict(path, exam=contract.Exam(wrong, 0.05))
    make(BAD)
    assert "cannot be compared, as it cannot serve here: it fails its exam" in refused("promote")


def test_where_int8_fails_its_exam_robustness_is_that_of_the_file_that_answers(make: Make) -> None:
    shares: dict[Precision, float] = {"fp32": 0.001, "int8": 0.1}
    for precision, wrong in shares.items():
        place(GOOD, precision)
        write_json(SERVED / f"cats-dogs.{precision}.json", {"version": "shipped"} | cells(dark=wrong))
    int8 = SERVED / "cats-dogs.int8.onnx"
    contradict(int8, exam=msgspec.structs.replace(read_contract(int8.read_bytes()).exam, questions=()))
    make(SMALLER, report=cells(dark=0.05))
    assert "robustness: dark 3 may be worse by +4.90%" in done("promote")


def test_a_significantly_worse_candidate_is_kept_out_though_it_is_smaller(make: Make) -> None:
    make(GOOD)
    done("promote")
    before = served()
    make(Redness(wrong=8, padding=4000))
    assert "keep out: against cats-dogs/1: accuracy may be worse by" in done("promote")
    assert champion() == "cats-dogs/1"
    assert served() == before
    found = tags(2)
    assert found["decision"] == "kept out"
    assert (found["rival"], found["compared_with"], found["test_photos"]) == ("cats-dogs/1", "cats-dogs/1", "440")
    assert float(found["champion_accuracy"]) == 1
    assert float(found["candidate_accuracy"]) == pytest.approx(432 / 440, 1e-5)
    assert float(found["accuracy_p_value"]) == pytest.approx(2 / 2**8)
    assert found["accuracy_worse_by"].startswith("0.0181818 (95 % ")
    assert int(found["candidate_bytes"]) < int(found["champion_bytes"])
    assert float(found["candidate_milliseconds"]) > 0


def test_a_significantly_better_candidate_wins_though_it_is_larger(make: Make) -> None:
    make(BAD)
    done("promote")
    make(Redness(padding=48_000))
    assert "promote: significantly better in accuracy" in done("promote")
    assert champion() == "cats-dogs/2"
    assert tags(2)["previous_champion"] == "1"
    assert read_contract((SERVED / "cats-dogs.fp32.onnx").read_bytes()).provenance.registry == "cats-dogs/2"


def test_an_equal_and_smaller_candidate_wins(make: Make) -> None:
    make(GOOD)
    done("promote")
    make(SMALLER)
    assert re.search(r"promote: \d\d% smaller", done("promote"))
    assert champion() == "cats-dogs/2"


def test_an_equal_larger_and_slower_candidate_is_kept_out(make: Make) -> None:
    make(GOOD)
    done("promote")
    make(Redness(padding=44_000, work=1))
    assert "keep out: " in done("promote")
    assert champion() == "cats-dogs/1"


@pytest.mark.parametrize(
    ("worse", "reason"),
    [
        (Redness(padding=4000, questions=1), "the fp32 exam has 1 questions, the rival's 2"),
        (Redness(padding=4000, close_call=0.7), "coverage may be worse by"),
        (Redness(padding=4000, close_call=0.5, wrong=1), "wrong answers may be worse by"),
        (Redness(padding=4000, steepness=0.015), "log loss may be worse by"),
        (Redness(padding=4000, stranger=255), "other things may be worse by +100.00%"),
        (Redness(padding=120_000, steepness=0.03), "bytes may be worse by"),
        (Redness(padding=4000, close_call=1.0), "it answers 0 of 440 photos"),
        (Redness(padding=4000, stranger=0), "it answers 0 of 440 photos"),
        (Redness(padding=4000, steepness=-0.02), "answers are wrong, no better than a coin's"),
        (Redness(padding=4000, tolerance=0.3), "its exam has tolerances above 0.2"),
    ],
    ids=lambda value: value.split(" ")[0] if isinstance(value, str) else "",
)
def test_what_is_worse_in_one_thing_is_kept_out_whatever_else_it_wins(
    make: Make, others: Path, worse: Redness, reason: str
) -> None:
    place(GOOD)
    make(worse)
    output = done("promote", "--dry-run")
    assert "\nkeep out: " in output
    assert reason in output


@pytest.mark.parametrize("useless", [{"close_call": 1.0}, {"steepness": -0.02}, {"wrong": 215}])
def test_a_useless_model_is_kept_out_also_where_nothing_serves(make: Make, useless: dict[str, float]) -> None:
    make(msgspec.structs.replace(GOOD, **useless))
    assert "keep out: candidate: " in done("promote")
    assert not served()


def test_a_useless_fallback_is_kept_out(make: Make) -> None:
    make(Redness(close_call=1.0), GOOD)
    assert "keep out: candidate's fp32: it answers 0 of 440 photos" in done("promote")


def test_wider_tolerances_and_what_is_not_compared_are_said(make: Make) -> None:
    place(GOOD)
    make(Redness(padding=4000, tolerance=0.1))
    output = done("promote")
    assert "exam, fp32: wider tolerances for 2 questions, blobs 0.png from 0.05 to 0.1" in output
    assert "robustness: not compared, the report of the rival has none" in output
    assert "other things: not compared, there are no photos of them" in output
    assert champion() == "cats-dogs/2"


def cells(severity: int = 3, **wrong: float) -> dict[str, dict[str, object]]:
    return {
        "robustness": {
            f"{name} {severity}": {"severity": severity, "wrong_when_answered": {"value": value}}
            for name, value in wrong.items()
        }
    }


def test_robustness_is_compared_cell_by_cell(make: Make) -> None:
    make(GOOD, report=cells(dark=0.01, upside_down=0.01))
    done("promote")
    make(SMALLER, report=cells(dark=0.01, upside_down=0.03))
    assert "keep out: against cats-dogs/1: robustness: upside_down 3 may be worse by +2.00%" in done("promote")
    make(Redness(padding=4400), report=cells(dark=0.01))
    assert "keep out: against cats-dogs/1: robustness is not reported for upside_down 3" in done("promote")
    make(Redness(padding=4800), report=cells(dark=0.02, upside_down=0.01))
    done("promote")
    assert champion() == "cats-dogs/4"


def test_a_promise_of_robustness_that_is_kept_at_last_is_a_reason(make: Make) -> None:
    make(GOOD, report=cells(dark=0.02, blurred=0.01))
    done("promote")
    make(Redness(padding=40_100), report=cells(dark=0.016, blurred=0.0))
    assert "neither significantly better" in done("promote")
    make(Redness(padding=40_200), report=cells(dark=0.015, blurred=0.015))
    assert "promote: at most 1.5% wrong in every corruption (not so the champion: dark 3)" in done("promote")


def test_robustness_is_compared_where_corruption_is_of_severity_3_only(make: Make) -> None:
    make(GOOD, report=cells(dark=0.01))
    done("promote")
    make(SMALLER, report={"robustness": cells(dark=0.01)["robustness"] | cells(5, dark=0.5)["robustness"]})
    assert "promote: " in done("promote")


def test_a_file_answers_with_its_second_look(make: Make) -> None:
    place(Redness(wrong=16))
    make(Redness(wrong=16, sure=0.6, wrong_again=0))  # sees the 16 once more, and knows better
    output = done("promote")
    assert "promote: significantly better in accuracy" in output
    assert re.search(r"accuracy +96.36% +100.00%", output)


@pytest.mark.slow
def test_eight_creeping_candidates_do_not_add_up(make: Make) -> None:
    make(GOOD)
    done("promote")
    for step in range(1, 9):  # each is within the margins of the one before, surer, and smaller
        make(Redness(wrong=step, steepness=0.02 + 0.002 * step, padding=40_000 - 4000 * step))
        output = done("promote")
        assert ("\npromote: " in output) == (step == 1), output
        if step > 1:
            assert "against cats-dogs/1: accuracy may be worse by" in output
            assert "against cats-dogs/2: accuracy" not in output or step > 2
    assert champion() == "cats-dogs/2"


def test_a_candidate_that_mends_what_was_hard_wins_and_attempts_on_each_side_count(make: Make) -> None:
    table = stage.SPLIT.read_text()
    # The four cats that the champion takes for dogs, from users.
    rows = [
        f"drawn/{EACH - 1 - number % 4}.png,cats,production,hard,{number:020}{'0' * 44}\n" for number in range(1, 13)
    ]
    stage.SPLIT.write_text(table + "".join(rows))
    make(Redness(wrong=4))
    done("promote")
    make(GOOD)
    assert "promote: significantly better in hard (p = 0.00049)" in done("promote")
    found = tags(2)
    assert (found["champion_hard"], found["candidate_hard"], found["attempt"]) == ("0", "1", "1")
    assert float(found["level"]) == 0.05 / (4 * 2)
    stage.SPLIT.write_text("".join(table.splitlines(keepends=True)[:-1] + rows))
    make(Redness(padding=40_400))
    done("promote")
    assert tags(3)["test_side"] != found["test_side"]
    assert (tags(3)["test_side_hard"], tags(3)["attempt"]) == (found["test_side_hard"], "2")


def test_a_version_that_lacks_its_attempt_is_an_attempt_all_the_same(make: Make) -> None:
    place(Redness(wrong=9))
    for number in (2, 3):
        make(Redness(wrong=9, padding=40_000 + 800 * number))
        done("promote")
        client().delete_model_version_tag("cats-dogs", str(number), "attempt")  # as if killed while tags were set
    done("promote")
    assert tags(3)["attempt"] == "2"


def test_each_attempt_on_a_test_side_needs_more_and_another_side_begins_anew(make: Make) -> None:
    place(Redness(wrong=9))
    for attempt in (1, 2, 3):
        make(Redness(wrong=9, padding=40_000 + 800 * attempt))
        done("promote")
        assert tags(attempt + 1)["attempt"] == str(attempt)
    done("promote")
    assert tags(4)["attempt"] == "3"  # the same files are not another attempt
    make(Redness(padding=44_000))
    output = done("promote")  # p = 0.0039 would have been enough the first time
    assert "keep out: neither significantly better (p below 0.00083)" in output
    stage.SPLIT.write_text("".join(stage.SPLIT.read_text().splitlines(keepends=True)[:-1]))
    make(Redness(padding=44_000))
    assert "promote: significantly better in accuracy (p = 0.0039)" in done("promote")
    assert tags(6)["attempt"] == "1"


def test_a_version_that_was_rolled_back_stays_out_until_told(make: Make) -> None:
    make(BAD)
    done("promote")
    make(GOOD)
    done("promote")
    done("rollback")
    before = state()
    assert "keep out: cats-dogs/2 was rolled back; --again lets it try once more" in done("promote")
    assert state() == before
    make(GOOD, created="2026-11-30T00:00:00+00:00")  # the same network, exported once more
    assert "keep out: cats-dogs/2 was rolled back" in done("promote")
    make(GOOD)
    assert "promote: significantly better in accuracy" in done("promote", "--again")
    assert champion() == "cats-dogs/2"
    assert "cats-dogs/2: champion already" in done("promote")


def test_what_was_rolled_back_is_no_standard(make: Make) -> None:
    make(Redness(wrong=16))
    done("promote")
    make(GOOD)
    done("promote")
    done("rollback")
    make(Redness(wrong=4))
    assert "promote: significantly better in accuracy" in done("promote")


def test_the_best_that_has_served_is_the_standard_also_after_an_older_one_is_restored(make: Make) -> None:
    make(BAD)
    done("promote")
    make(GOOD)
    done("promote")
    done("restore", "1")
    make(Redness(wrong=4, padding=4000))
    assert "keep out: against cats-dogs/2: accuracy may be worse by" in done("promote")
    assert champion() == "cats-dogs/1"


def test_the_int8_file_is_what_is_compared_and_both_are_shipped(make: Make) -> None:
    make(GOOD)
    done("promote")
    make(Redness(padding=80_000), Redness(padding=8000))
    size = stage.MODEL_INT8.stat().st_size
    done("promote")
    assert champion() == "cats-dogs/2"
    assert sorted(served()) == [f"cats-dogs.{p}.{s}" for p in ("fp32", "int8") for s in ("json", "onnx")]
    loaded = read_contract((SERVED / "cats-dogs.int8.onnx").read_bytes())
    assert (loaded.precision, loaded.provenance.registry) == ("int8", "cats-dogs/2")
    assert int(tags(2)["candidate_bytes"]) == size
    make(SMALLER)  # a version without int8 leaves no int8 of another behind
    done("promote")
    assert sorted(served()) == ["cats-dogs.fp32.json", "cats-dogs.fp32.onnx"]


def test_a_dry_run_says_the_same_and_changes_nothing(make: Make) -> None:
    place(BAD)
    make(GOOD)
    before = state()
    said = done("promote", "--dry-run")
    assert state() == before
    assert said.splitlines()[-1].replace("serving/models", "cats-dogs/1") == done("promote").splitlines()[-2]
    assert champion() == "cats-dogs/2"


def test_the_registry_s_model_is_an_mlflow_model_with_its_signature(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlflow.onnx.log_model", LOG_MODEL)
    make(GOOD, SMALLER)
    done("promote")
    model = mlflow.onnx.load_model("models:/cats-dogs@champion")
    assert {entry.key for entry in model.metadata_props} == {contract.METADATA_KEY}
    signature = mlflow.models.get_model_info("models:/cats-dogs@champion").signature
    assert signature is not None
    assert [tensor.name for tensor in signature.inputs] == ["image", "again"]
    assert [tensor.name for tensor in signature.outputs] == ["probabilities", "evidence", "familiarity"]
    served = mlflow.pyfunc.load_model("models:/cats-dogs@champion")
    answer = served.predict(served.input_example)
    assert [answer[tensor.name].shape for tensor in signature.outputs] == [(1, 2), (1, 7, 7), (1,)]


def test_a_version_belongs_to_the_run_that_trained_it(make: Make) -> None:
    with tracking.run(name="training") as run_id:
        pass
    make(mlflow_run_id=run_id)
    done("promote")
    assert client().get_model_version("cats-dogs", "1").run_id == run_id


def test_a_champion_whose_files_are_gone_from_serving_is_put_there_again(make: Make) -> None:
    make(GOOD)
    done("promote")
    before = served()
    shutil.rmtree(SERVED)
    assert "cats-dogs/1: champion already" in done("promote")
    assert served() == before
    shutil.rmtree(SERVED)
    make(BAD)
    assert "keep out: against cats-dogs/1" in done("promote")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_candidate_that_must_not_serve_is_refused_and_not_registered(make: Make, precision: Precision) -> None:
    path = PIPELINE[precision][0]
    make()
    done("promote")
    before = state()

    def is_refused(reason: str) -> None:
        assert reason in refused("promote")
        assert state() == before

    def again(**provenance: str) -> None:
        make(GOOD, SMALLER, **provenance)

    again()
    contradict(path, pixels="0" * 64)
    is_refused("another procedure")
    again()
    contradict(path, exam=msgspec.structs.replace(read_contract(path.read_bytes()).exam, questions=()))
    is_refused("fails its exam")
    again()
    path.write_bytes(path.read_bytes()[:200])
    is_refused("it does not run")
    again()
    write_json(PIPELINE[precision][1], {"version": "another"})
    is_refused("is about another")
    again(split_digest="1" * 64)
    is_refused("another split")
    again()
    contradict(path, provenance=GOOD.contract(Runner(path.read_bytes()), precision, mlflow_run_id="e" * 32).provenance)
    is_refused("come from different training runs")
    again()
    PIPELINE[precision][1].unlink()
    is_refused("run `catsdogs evaluate` first")


def test_without_a_candidate_or_photos_it_says_what_to_run(make: Make) -> None:
    assert "run `catsdogs evaluate` first" in refused("promote")
    make()
    shutil.rmtree(stage.RAW)
    assert "run `catsdogs fetch` again" in refused("promote")


def test_a_champion_for_pixels_of_another_time_is_held_against_its_recorded_figures(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = contract.TestMetrics(
        pictures=440, accuracy=Interval(0.99, 0.98, 1.0), log_loss=0.3, confusion=((218, 2), (2, 218))
    )
    place(GOOD)
    contradict(SERVED / "cats-dogs.fp32.onnx", test=recorded)
    monkeypatch.setattr("shared.spec.DIGEST", "1" * 64)
    make(BAD)
    contradict(stage.MODEL, pixels="1" * 64)
    output = done("promote")
    assert "cats-dogs/1 can no longer serve: it was trained on pixels" in output
    assert "keep out: accuracy is 96.36%, the champion's contract says 99.00%" in output
    make(GOOD)
    contradict(stage.MODEL, pixels="1" * 64)
    done("promote")
    assert champion() == "cats-dogs/3"
    assert "cats-dogs/1 must not serve" in refused("rollback")


def test_a_champion_of_an_older_schema_is_held_against_its_recorded_figures(make: Make) -> None:
    recorded = {"pictures": 440, "accuracy": {"value": 0.99, "low": 0.98, "high": 1.0}, "log_loss": 0.3}
    place(GOOD)
    path = SERVED / "cats-dogs.fp32.onnx"
    model = onnx.load(path)
    document = json.loads(model.metadata_props[0].value)
    document |= {"schema": 1, "test": recorded | {"confusion": [[218, 2], [2, 218]]}}
    del document["second_look"]
    for question in document["exam"]["questions"]:
        del question["closer"]
    model.metadata_props[0].value = json.dumps(document)
    onnx.save(model, path)
    make(BAD)
    output = done("promote")
    assert "cats-dogs/1 can no longer serve: its contract" in output
    assert "keep out: accuracy is 96.36%, the champion's contract says 99.00%" in output
    make(GOOD, created="2026-11-30T00:00:00+00:00")
    assert "promote: no champion can serve" in done("promote")
    assert champion() == "cats-dogs/3"
    make(SMALLER)
    assert "cats-dogs/1: not compared, its contract" in done("promote")
    assert champion() == "cats-dogs/4"


def test_a_version_whose_files_are_lost_or_changed_is_an_error(make: Make, work: Path) -> None:
    make(BAD)
    done("promote")
    make(GOOD)
    done("promote")
    (kept,) = (path for path in work.glob("mlruns/**/extra_files/*.onnx") if BAD.file() == path.read_bytes())
    kept.write_bytes(kept.read_bytes() + b"\0")
    before = served()
    assert "cats-dogs/1: its files in the MLflow store differ from those that were registered" in refused("rollback")
    assert "differ from those that were registered" in refused("restore", "1")
    make(SMALLER)
    assert "differ from those that were registered" in refused("promote")
    shutil.rmtree(work / "mlruns")
    assert "cannot be downloaded" in refused("promote")
    assert (champion(), served()) == ("cats-dogs/2", before)


def test_two_commands_at_once_are_refused(make: Make) -> None:
    make()
    with exclusive():
        for command in (["promote"], ["rollback"], ["restore", "1"]):
            assert "another command is changing it" in refused(*command)


def patiently(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of each sleep from now on; none of them is slept."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_dead_server_is_one_clear_line_and_nothing_changes(
    make: Make, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    make(BAD)
    done("promote")
    make(GOOD)
    before, store = state(), os.environ["MLFLOW_TRACKING_URI"]
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    slept = patiently(monkeypatch)
    said = refused(command)
    assert sum(slept) < 30
    assert f"Error: the MLflow store http://127.0.0.1:{port} failed: [Errno 111] Connection refused; " in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    assert state() == before


def test_a_broken_store_is_said_at_once(make: Make, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make()
    (work / "mlflow.db").write_bytes(b"no database" * 100)
    slept = patiently(monkeypatch)
    assert "file is not a database" in refused("promote")
    assert sum(slept) < 5


@pytest.mark.parametrize("full_at", [1, 2, 3, 4, 5])
def test_a_full_disk_leaves_the_champion_serving(make: Make, monkeypatch: pytest.MonkeyPatch, full_at: int) -> None:
    make(BAD, BAD)
    done("promote")
    before = served()
    make(GOOD, GOOD)
    writes = 0

    def write_until_full(path: Path, data: bytes | str) -> None:
        nonlocal writes
        writes += path.parent == SERVED
        if writes == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_whole(path, data)

    with monkeypatch.context() as full:
        full.setattr("training.promotion.served.write_whole", write_until_full)
        assert "No space left on device: nothing is half-written" in refused("promote")
    assert (champion(), served()) == ("cats-dogs/1", before)
    done("promote")
    assert champion() == "cats-dogs/2"
    assert len(registry.versions(client())) == 2


def test_a_server_that_dies_when_the_alias_moves_leaves_the_old_files_and_the_next_command_moves_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(BAD)
    done("promote")
    before = read(SERVED)
    make(GOOD)

    def dead(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("API request to http://x failed (Caused by e: connection reset)")

    with monkeypatch.context() as dying:
        dying.setattr(mlflow.MlflowClient, "set_registered_model_alias", dead)
        assert "failed: connection reset; finished work is kept" in refused("promote")
    assert (champion(), read(SERVED)) == ("cats-dogs/1", before)
    assert "a change was interrupted" in refused("promote", "--dry-run")
    assert "cats-dogs/2: finishing a change that was interrupted" in done("promote")
    assert champion() == "cats-dogs/2"
    assert read(SERVED).named(None).digests["sha256_fp32"] == tags(2)["sha256_fp32"]


def test_the_documented_commands_run(make: Make) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/pipeline.md").read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if re.search(r"/bin/catsdogs (promote|rollback|restore)", line)]
    assert commands == [["promote", "--dry-run"], ["rollback"], ["restore", "--list"], ["restore", "3"]]
    for wrong in (30, 15, 0):
        make(Redness(wrong=wrong))
        done("promote")
    for command in commands:
        assert done(*command)
    assert champion() == "cats-dogs/3"
