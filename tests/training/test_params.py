from pathlib import Path

import msgspec
import pytest

from tests.conftest import ROOT
from training import params
from training.fetch import named
from training.stage import StageError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    return path


def test_the_repository_s_own_file_is_valid() -> None:
    assert params.load(ROOT / "params.yaml").train.model == "efficientnet_lite0"


def test_the_collections_of_the_page_are_valid(copy: Path) -> None:
    block = (ROOT / "docs/pipeline.md").read_text().split("```yaml\nfetch:\n")[1].split("```")[0]
    copy.write_text(copy.read_text().replace("  source: [kaggle]\n", block, 1))
    assert [collection.name for collection in named(params.load(copy).fetch.source)] == [
        "petimages",
        "oxford-iiit-pet",
        "stanford-dogs",
    ]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("epochs: 5", "epochs: 0", "epochs"),
        ("epochs: 5", "epoch: 5", "epoch"),
        ("lr: 6.0e-5", "lr: fast", "lr"),
        ("train: 0.8", "train: 0.95", "no photos for the test set"),
        ("near_duplicate: 0.97", "near_duplicate: 1.0", "near_duplicate"),
        ("source: [kaggle]", "source: []", "source"),
        ("source: [kaggle]", "source: [{source: a, name: ../up}]", "source"),
        ("source: [kaggle]", "source: [{source: a, license: CC0}]", "license"),
        ("source: [kaggle]", "source: [{source: a, name: x}, {source: b, name: X}]", "same name: x, x"),
        ("folds: 5", "folds: 1", "folds"),
        ("swapped: 0.2", "swapped: 20", "swapped"),
        ("fetch:", "fetch: [", "params.yaml"),
    ],
)
def test_a_wrong_name_or_value_is_said_before_anything_runs(copy: Path, old: str, new: str, reason: str) -> None:
    assert old in copy.read_text()
    copy.write_text(copy.read_text().replace(old, new, 1))
    with pytest.raises(StageError, match=reason):
        params.load(copy)


def test_the_soup_s_members_differ_from_the_section_only_where_they_say(copy: Path) -> None:
    section = params.load(copy).train
    variation = params.Variation("wider", {"epochs": 2, "augmentation.crop_scale": [0.2, 0.9]})
    varied = section.varied(variation)
    assert (varied.epochs, varied.augmentation.crop_scale, varied.soup) == (2, (0.2, 0.9), ())
    augmentation = msgspec.structs.replace(varied.augmentation, crop_scale=section.augmentation.crop_scale)
    assert msgspec.structs.replace(varied, epochs=5, augmentation=augmentation, soup=section.soup) == section


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("{epoch: 2}", "odd: no parameter 'epoch'"),
        ("{augmentation.blur: 2}", "odd: no parameter 'augmentation.blur'"),
        ("{colours.hue: 0.1}", "odd: no parameter 'colours.hue'"),
        ("{lr.head: 0.1}", "odd: no parameter 'lr.head'"),
        ("{augmentation.flip.chance: 0.1}", "odd: no parameter 'augmentation.flip.chance'"),
        ("{epochs: 0}", "odd: Expected `int` >= 1"),
        ("{augmentation.jpeg: [30, 101]}", r"odd: Expected `int` <= 100.*jpeg"),
        ("{audited: perhaps}", "odd: Expected `bool`"),
    ],
)
def test_an_impossible_member_is_said_before_the_first_has_taken_its_hours(
    copy: Path, changes: str, reason: str
) -> None:
    copy.write_text(copy.read_text().replace("  soup:\n", f"  soup:\n    - {{name: odd, changes: {changes}}}\n", 1))
    with pytest.raises(StageError, match=reason):
        params.load(copy)


def test_two_members_of_one_name_are_refused(copy: Path) -> None:
    name = params.load(copy).train.soup[0].name
    for taken in (name, "fine-tuned"):
        text = (ROOT / "params.yaml").read_text()
        copy.write_text(text.replace("  soup:\n", f"  soup:\n    - {{name: '{taken}', changes: {{epochs: 1}}}}\n", 1))
        with pytest.raises(StageError, match=f"two members have the same name: .*{taken}"):
            params.load(copy)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run this in the folder that has params"):
        params.load(tmp_path / "params.yaml")


def test_setting_a_value_keeps_the_comments(copy: Path) -> None:
    before = copy.read_text()
    params.assign(copy, "fetch.source", ["a b.zip", "c.zip"])
    assert params.load(copy).fetch.source == ["a b.zip", "c.zip"]
    assert [line for line in before.splitlines() if "#" in line] == [
        line for line in copy.read_text().splitlines() if "#" in line
    ]
