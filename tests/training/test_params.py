from pathlib import Path

import pytest

from tests.conftest import ROOT
from training import params
from training.stage import StageError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def test_the_repository_s_own_file_is_valid() -> None:
    assert params.load(ROOT / "params.yaml").train.model == "efficientnet_lite0"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("epochs: 5", "epochs: 0", "epochs"),
        ("epochs: 5", "epoch: 5", "epoch"),
        ("lr: 6.0e-5", "lr: fast", "lr"),
        ("train: 0.8", "train: 0.95", "nothing to test on"),
        ("near_duplicate: 0.97", "near_duplicate: 1.0", "near_duplicate"),
        ("source: [kaggle]", "source: []", "source"),
        ("fetch:", "fetch: [", "params.yaml"),
    ],
)
def test_a_wrong_name_or_value_is_said_before_anything_runs(copy: Path, old: str, new: str, reason: str) -> None:
    assert old in copy.read_text()
    copy.write_text(copy.read_text().replace(old, new, 1))
    with pytest.raises(StageError, match=reason):
        params.load(copy)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run this where params"):
        params.load(tmp_path / "params.yaml")


def test_setting_a_value_keeps_the_comments(copy: Path) -> None:
    before = copy.read_text()
    params.assign(copy, "fetch.source", ["a b.zip", "c.zip"])
    assert params.load(copy).fetch.source == ["a b.zip", "c.zip"]
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in copy.read_text().splitlines() if "#" in line
    ]
