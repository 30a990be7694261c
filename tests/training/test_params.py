import re
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
        ("  epochs: ", "  epochs: 0 #", "epochs"),
        ("  epochs: ", "  epoch: ", "epoch"),
        ("  lr: ", "  lr: fast #", "lr"),
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


def test_the_second_network_s_recipe_differs_from_the_first_s_only_where_it_says(copy: Path) -> None:
    params.assign(copy, "closer", {"side": 260, "augmentation.crop_scale": [0.3, 0.9]})
    document = params.load(copy)
    recipe = document.closer_recipe()
    assert recipe is not None
    assert (recipe.side, recipe.augmentation.crop_scale) == (260, (0.3, 0.9))
    augmentation = msgspec.structs.replace(recipe.augmentation, crop_scale=document.train.augmentation.crop_scale)
    assert msgspec.structs.replace(recipe, side=224, augmentation=augmentation) == document.train
    params.assign(copy, "closer", None)
    assert params.load(copy).closer_recipe() is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ("{epoch: 2}", "closer: no parameter 'epoch'"),
        ("{augmentation.blur: 2}", "closer: no parameter 'augmentation.blur'"),
        ("{colours.hue: 0.1}", "closer: no parameter 'colours.hue'"),
        ("{lr.head: 0.1}", "closer: no parameter 'lr.head'"),
        ("{augmentation.flip.chance: 0.1}", "closer: no parameter 'augmentation.flip.chance'"),
        ("{epochs: 0}", "closer: Expected `int` >= 1"),
        ("{augmentation.jpeg: [30, 101]}", r"closer: Expected `int` <= 100.*jpeg"),
        ("{audited: perhaps}", "closer: Expected `bool`"),
    ],
)
def test_an_impossible_second_recipe_is_said_before_the_first_network_has_taken_its_hours(
    copy: Path, changes: str, reason: str
) -> None:
    text = re.sub(r"(?m)^closer:.*\n(  .*\n)+", f"closer: {changes}\n", copy.read_text())
    copy.write_text(text)
    with pytest.raises(StageError, match=reason):
        params.load(copy)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run this in the folder that has params"):
        params.load(tmp_path / "params.yaml")


def test_setting_a_value_keeps_the_comments(copy: Path) -> None:
    before = copy.read_text()
    params.assign(copy, "fetch.source", ["a b.zip", "c.zip"])
    assert params.load(copy).fetch.source == ["a b.zip", "c.zip"]
    comments = [
        [line[line.index("#") :] for line in text.splitlines() if "#" in line] for text in (before, copy.read_text())
    ]
    assert comments[0] == comments[1]


def test_a_value_that_was_not_there_is_put_among_those_of_its_section(copy: Path) -> None:
    params.assign(copy, "gather.digest", "0" * 64)
    lines = copy.read_text().splitlines()
    place = next(number for number, line in enumerate(lines) if line.startswith("  digest: "))
    assert lines[place - 1].startswith("  samples:")
    assert lines[place + 1].startswith("  labels:")
