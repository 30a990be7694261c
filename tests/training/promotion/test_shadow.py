"""What a candidate's answers in shadow change about its promotion."""

from pathlib import Path

import pytest

from shared.contract import Actual, Label
from shared.journal import ChallengerLine, Line
from tests.shared.test_journal import feedback, prediction, write
from tests.training.promotion.conftest import Make
from tests.training.promotion.redness import Redness, champion, done, tags
from training.promotion.decision import PromotionDecision
from training.promotion.files import Files
from training.promotion.promote import PIPELINE
from training.promotion.shadow import Shadow, read
from training.stage import StageError

VERSION = "2026.11.23-redness-fp32"
WON, LOST = PromotionDecision(True, "it is better"), PromotionDecision(False, "it is slower")


def pairs(count: int, shown: Label, shadowed: Label, actual: Actual | None, **answer: object) -> list[Line]:
    """Lines of a number of pictures: what was shown, what the challenger said, and what feedback did."""
    lines: list[Line] = []
    for number in range(count):
        line = prediction(f"{shown}-{shadowed}-{actual}-{sorted(answer)}-{number}", label=shown, model=VERSION)
        fields = {"model": VERSION, "again": False, **answer}
        lines += [
            line,
            ChallengerLine(
                time=line.time,
                id=line.id,
                label=shadowed,
                verdict=shadowed,
                probabilities=line.probabilities,
                **fields,  # type: ignore[arg-type]
            ),
        ]
        # What another replica took may come first.
        lines.insert(0 if number % 2 else len(lines), feedback(line.id, label=actual)) if actual else None
    return lines


@pytest.fixture
def files(make: Make) -> Files:
    make()
    return Files({"fp32": PIPELINE["fp32"][0].read_bytes()}, {})


def seen(tmp_path: Path, files: Files, *lines: Line) -> Shadow:
    return read(write(tmp_path / "journal.jsonl", *lines), files, files)


def test_pairs_are_of_one_animal_with_feedback_and_of_these_two_models(tmp_path: Path, files: Files) -> None:
    found = seen(
        tmp_path,
        files,
        *pairs(5, "cats", "cats", "cats"),
        *pairs(3, "cats", "dogs", "cats"),
        *pairs(2, "dogs", "cats", "cats"),
        *pairs(7, "cats", "dogs", None),
        *pairs(7, "cats", "dogs", "neither"),
        *pairs(7, "cats", "dogs", "both"),
        *pairs(7, "cats", "dogs", "cats", model="another"),
        *pairs(4, "cats", "dogs", "cats", again=True),
        prediction("other", label="cats", model="another"),
        feedback("other"),
        feedback("unknown"),
    )
    assert found.comparison
    assert (found.comparison.n, found.comparison.only_first_right, found.comparison.only_second_right) == (10, 3, 2)
    assert found.again == 4
    assert "no significant difference (3 of 10 photos only the champion has right, 2 only the candidate" in (
        found.describe()
    )


def test_the_last_feedback_on_a_picture_counts(tmp_path: Path, files: Files) -> None:
    lines = pairs(1, "cats", "dogs", "cats")
    found = seen(tmp_path, files, *lines, feedback(lines[0].id, label="dogs"))
    assert found.comparison
    assert (found.comparison.only_first_right, found.comparison.only_second_right) == (0, 1)


@pytest.mark.parametrize(
    ("worse", "better", "vetoed"), [(12, 0, True), (12, 1, True), (3, 0, False), (5, 5, False), (0, 40, False)]
)
def test_it_may_keep_a_candidate_out_and_never_promotes_one(
    tmp_path: Path, files: Files, worse: int, better: int, vetoed: bool
) -> None:
    found = seen(tmp_path, files, *pairs(worse, "cats", "dogs", "cats"), *pairs(better, "dogs", "cats", "cats"))
    assert found.weigh(WON).promote is not vetoed
    assert not found.weigh(LOST).promote
    assert found.weigh(LOST).reason.startswith("it is slower")
    if vetoed:
        assert "the champion is significantly better" in found.weigh(WON).reason
    else:
        assert found.weigh(WON) == WON


def test_a_journal_without_pairs_changes_nothing(tmp_path: Path, files: Files) -> None:
    found = seen(tmp_path, files)
    assert (found.weigh(WON), found.comparison) == (WON, None)
    assert "no feedback on what both answered" in found.describe()


def test_promote_keeps_out_what_is_worse_in_shadow_and_says_so(make: Make, tmp_path: Path) -> None:
    make()
    done("promote")
    (journal := tmp_path / "journal").mkdir()
    write(journal / "journal-000001.jsonl", *pairs(12, "cats", "dogs", "cats"))
    make(Redness(padding=4000))
    output = done("promote", "--shadow", str(journal))
    assert "in shadow: the champion is significantly better (12 of 12 photos only the champion has right" in output
    assert "keep out: in shadow: the champion is" in output
    assert champion() == "cats-dogs/1"
    found = tags(2)
    assert (found["shadow_pairs"], found["shadow_candidate_accuracy"]) == ("12", "0")
    assert found["reason"].startswith("in shadow: ")
    assert "promote: " in done("promote"), "what was said in shadow does not stick"


def test_a_journal_that_is_not_there_is_said_to_be_so(tmp_path: Path, files: Files) -> None:
    with pytest.raises(StageError, match="nowhere: No such file"):
        read(tmp_path / "nowhere", files, files)
