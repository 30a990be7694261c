"""What a person decides about a label, and how photos that need deciding are found."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from training import labels
from training.labels import Decision, audited, decisions, out_of_fold
from training.stage import StageError

SHA = "ab" * 32
HEADER = "sha256,label,decision,reason\n"


def file(folder: Path, *rows: str) -> Path:
    path = folder / "labels.csv"
    path.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    return path


def test_the_repository_s_own_decisions_can_be_read_and_each_has_a_reason() -> None:
    decided = decisions()
    assert len(decided) > 100
    assert {decision.decision for decision in decided.values()} == {"keep", "relabel", "exclude"}
    assert all(decision.reason.strip() for decision in decided.values())


def test_a_decision_is_found_by_the_name_of_the_prepared_picture(tmp_path: Path) -> None:
    (name, decision), *rest = decisions(file(tmp_path, f"{SHA},cats,relabel,a dog")).items()
    assert not rest
    assert name == SHA[:20]
    assert decision == Decision(SHA, "cats", "relabel", "a dog")


@pytest.mark.parametrize(
    "row",
    [
        f"{SHA[:-1]},cats,keep,too short a digest",
        f"{SHA.upper()},cats,keep,another way to write the digest",
        f"{SHA},cat,keep,no such class",
        f"{SHA},cats,drop,no such decision",
        f"{SHA},cats,keep,",
        f"{SHA},cats,keep",
        f"{SHA},cats,keep,one column, too many",
    ],
)
def test_a_malformed_row_is_refused_with_the_file_s_name(tmp_path: Path, row: str) -> None:
    with pytest.raises(StageError, match=r"labels\.csv: "):
        decisions(file(tmp_path, f"{SHA[::-1]},dogs,keep,a good row", row))


def test_a_photo_decided_twice_is_refused_even_where_both_agree(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=f"{SHA} has two decisions"):
        decisions(file(tmp_path, f"{SHA},cats,keep,a cat", f"{SHA},cats,keep,a cat"))


def test_the_audit_relabels_leaves_out_and_keeps() -> None:
    decided = {
        "mixed up": Decision(SHA, "cats", "relabel", "a dog"),
        "both": Decision(SHA, "dogs", "exclude", "both animals"),
        "odd": Decision(SHA, "cats", "keep", "a cat from behind"),
    }
    assert audited("mixed up", "cats", decided) == "dogs"
    assert audited("both", "dogs", decided) is None
    assert audited("odd", "cats", decided) == "cats"
    assert audited("never looked at", "dogs", decided) == "dogs"


def test_a_decision_about_another_label_is_out_of_date_and_not_followed() -> None:
    decided = {"filed anew": Decision(SHA, "cats", "relabel", "a dog"), "again": Decision(SHA, "dogs", "exclude", "x")}
    assert audited("filed anew", "dogs", decided) == "dogs"
    assert audited("again", "cats", decided) == "cats"


def features(each: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Two clouds that a plane parts."""
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1], each)
    return (random.normal(size=(2 * each, 8)) + 4 * truth[:, None]).astype(np.float32), truth


def test_wrong_labels_are_the_ones_that_the_other_folds_contradict() -> None:
    rows, truth = features(100)
    given = truth.copy()
    given[[3, 50, 170]] ^= 1
    own = out_of_fold(rows, given, folds=5, seed=1)
    assert own.shape == (200,)
    assert np.flatnonzero(own < labels.CONTRADICTED).tolist() == [3, 50, 170]


def test_the_same_seed_judges_the_same() -> None:
    rows, truth = features(20)
    assert (out_of_fold(rows, truth, 5, seed=1) == out_of_fold(rows, truth, 5, seed=1)).all()


def test_a_class_smaller_than_the_folds_makes_fewer_and_a_single_photo_is_refused() -> None:
    rows, truth = features(20)
    assert len(out_of_fold(rows[:23], truth[:23], 5, seed=1)) == 23
    with pytest.raises(StageError, match="too few"):
        out_of_fold(rows[:21], truth[:21], 5, seed=1)
