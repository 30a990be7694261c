"""The rule, on answers that are made up."""

import re
from dataclasses import replace
from math import log

import numpy as np
import pytest

from shared.contract import Exam
from tests.conftest import ROOT
from training.comparison import SIGNIFICANT
from training.promotion.decision import REASONS, decide, faults_of, level_of
from training.promotion.files import Files
from training.promotion.match import MARGINS, Answers, Match, match

NO_FILES = Files({}, {})


def answers(
    wrong: list[int], *, unsure: int = 0, loss: float = 0.1, size: int = 100, seconds: float = 0.01, others: int = 0
) -> Answers:
    """Answers to 1,300 photos, with these wrong and the last ones unsure, and to 300 other things, some answered."""
    right = np.ones(1300, bool)
    right[wrong] = False
    return Answers(
        size=size,
        right=right,
        answered=np.arange(1300) < 1300 - unsure,
        losses=np.full(1300, loss),
        again=np.zeros(1300, bool),
        seconds=np.full(1300, seconds),
        others_unsure=np.arange(300) >= others,
    )


CHAMPION = answers(list(range(10)))


def against(candidate: Answers, rival: Answers = CHAMPION) -> Match:
    return match("the champion", (NO_FILES, rival), (NO_FILES, candidate))


@pytest.mark.parametrize(
    ("candidate", "promoted", "reason"),
    [
        (answers([]), True, "significantly better in accuracy"),
        (answers([0, 1, 2]), False, "neither significantly better"),  # seven photos are not enough
        (answers(list(range(10)), loss=0.09), True, "significantly better in log loss"),
        (answers(list(range(10)), loss=0.12), False, "log loss may be worse by +0.0200, margin +0.0100"),
        (answers(list(range(10)), size=99), True, "1% smaller"),
        (answers(list(range(10)), size=50, seconds=0.011), False, "neither"),  # smaller, but slower
        (answers(list(range(10)), seconds=0.0095), True, "5% faster"),
        (answers(list(range(10)), seconds=0.009, size=110), False, "neither"),  # faster, but larger
        (answers(list(range(14)), size=50), False, "wrong answers may be worse by +0.6"),
        (answers(list(range(11)), size=50), True, "50% smaller"),
        (answers([], size=151), False, "bytes may be worse by +51.00%, margin +50.00%"),
        (answers([], seconds=0.016), False, "milliseconds may be worse by +60.00%, margin +50.00%"),
        (answers([], unsure=30), False, "coverage may be worse by"),
        (answers([], unsure=5), True, "significantly better in accuracy"),
        (answers([], others=20), False, "other things may be worse by"),
        (answers([], others=3), True, "significantly better in accuracy"),
        (answers(list(range(10)), loss=float("nan"), size=50), False, "log loss may be worse by +nan"),
    ],
)
def test_the_rule(candidate: Answers, promoted: bool, reason: str) -> None:
    found = decide([], against(candidate), [], level_of(1))
    assert found.promote is promoted, found.reason
    assert reason in found.reason


def on_sides(rights: dict[str, tuple[int, int]], answered: Answers = CHAMPION) -> Answers:
    """The answers; on each side the first ones are wrong, as many as given."""
    return replace(
        answered, from_production={side: np.arange(count) >= wrong for side, (wrong, count) in rights.items()}
    )


@pytest.mark.parametrize(
    ("before", "after", "promoted", "reason"),
    [
        ({"hard": (20, 30)}, {"hard": (5, 30)}, True, "significantly better in hard (p = "),
        ({"hard": (8, 30)}, {"hard": (0, 30)}, False, "neither significantly better"),  # p = 0.0078
        ({"production": (15, 300)}, {"production": (0, 300)}, True, "significantly better in production"),
        (
            {"production": (10, 300), "hard": (20, 30)},
            {"production": (14, 300), "hard": (5, 30)},
            False,
            "production may be worse by +1.33%, margin +1.00%",
        ),
        ({"production": (0, 30), "hard": (20, 30)}, {"production": (1, 30), "hard": (5, 30)}, True, "in hard"),
        ({"production": (0, 30), "hard": (20, 30)}, {"production": (2, 30), "hard": (5, 30)}, False, "+6.67%"),
    ],
)
def test_a_side_of_production_can_win_and_none_may_lose(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], promoted: bool, reason: str
) -> None:
    compared = against(on_sides(after), on_sides(before))
    found = decide([], compared, [], level_of(1, len(before)))
    assert found.promote is promoted, found.reason
    assert reason in found.reason
    assert f"hard: {before['hard'][1]} photos" in compared.table() if "hard" in before else True


def test_a_win_on_the_hard_side_excuses_no_loss_on_the_test_side_of_the_collections() -> None:
    candidate = on_sides({"hard": (0, 30)}, answers(list(range(30))))
    found = decide([], against(candidate, on_sides({"hard": (30, 30)})), [], level_of(1, 1))
    assert not found.promote
    assert "accuracy may be worse by" in found.reason


def test_a_win_on_the_test_side_needs_none_in_production() -> None:
    candidate = on_sides({"hard": (3, 30)}, answers([]))
    found = decide([], against(candidate, on_sides({"hard": (3, 30)})), [], level_of(1, 1))
    assert found.promote
    assert "significantly better in accuracy" in found.reason


def test_a_figure_worse_than_an_earlier_version_s_keeps_out_but_not_its_cost() -> None:
    best = answers([], size=10, seconds=0.001)
    candidate = answers(list(range(10)), size=50)
    earlier = against(candidate, best).without_costs()
    assert not decide([], against(candidate), [earlier], level_of(1)).promote
    dear = against(candidate, answers(list(range(9)), size=10, seconds=0.001)).without_costs()
    assert decide([], against(candidate), [dear], level_of(1)).promote


def test_a_few_photos_prove_nothing() -> None:
    few = Answers(90, *(np.ones(100, bool),) * 2, np.zeros(100), np.zeros(100, bool), np.ones(100), np.ones(0, bool))
    found = decide([], against(few, few), [], level_of(1))
    assert not found.promote
    assert "accuracy may be worse by" in found.reason


def test_faults_count_without_a_champion_too() -> None:
    assert decide([], None, [], level_of(1)).promote
    found = decide(["it answers nothing"], None, [], level_of(1))
    assert (found.promote, found.reason) == (False, "it answers nothing")


@pytest.mark.parametrize(
    ("candidate", "fault"),
    [
        (answers([]), None),
        (answers([], unsure=651), "it answers 649 of 1,300 photos, fewer than 50%"),
        (answers(list(range(640))), "640 of its 1,300 answers are wrong, no better than a coin's"),
        (answers([], loss=log(2)), "its log loss is 0.6931, a coin's 0.6931"),
    ],
)
def test_faults_by_itself(candidate: Answers, fault: str | None) -> None:
    assert faults_of(candidate, Exam(questions=(), tolerance=0.2)) == ([fault] if fault else [])


def test_the_levels_of_all_attempts_together_spend_five_percent() -> None:
    levels = [level_of(attempt) for attempt in range(1, 10_000)]
    assert levels == sorted(levels, reverse=True)
    assert SIGNIFICANT * 0.999 < REASONS * sum(levels) < SIGNIFICANT
    assert level_of(3, 2) == pytest.approx(level_of(3) * REASONS / (REASONS + 2))


def test_the_page_and_the_docstring_have_the_margins() -> None:
    page = dict(
        re.findall(r"^\| ([a-z ]+) \| .*? \| ([\d.]+)(?: %)? \|", (ROOT / "docs/pipeline.md").read_text(), re.M)
    )
    said = dict(re.findall(r"^    ([a-z]+(?: [a-z]+)*)  .*  ([\d.]+) ?%? +(?:95 %|value)$", decide.__doc__ or "", re.M))
    for name, margin in MARGINS.items():
        shown = f"{margin if name == 'log loss' else margin * 100:g}"
        assert (page[name], said[name]) == (shown, shown), name
