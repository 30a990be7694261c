"""What production met and a person labelled, on its way into the data set."""

import csv
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from shared.contract import Actual
from shared.pixels import SIZE, pixels
from shared.samples import SUFFIX, TOMBSTONE, Reason, Sample, SampleError, encode, known
from tests.conftest import blobs, encoded
from tests.shared.test_journal import prediction
from tests.training.conftest import write_params
from training import cli, own, params
from training.audit import audit, read
from training.decisions import Decision, append
from training.fetch import fetch
from training.gather import digest, gather
from training.params import Gather
from training.prepare import prepare
from training.split import FROM_PRODUCTION, SIDES, Photo, given_sides, side, split
from training.stage import StageError

TRAIN, VAL = 0.5, 0.2


class Kept:
    """What a service kept, and what people said of it."""

    def __init__(self, folder: Path) -> None:
        self.samples, self.labels = folder / "samples", folder / "labels.csv"
        self.samples.mkdir()

    @property
    def params(self) -> Gather:
        return Gather(str(self.samples), str(self.labels))

    def keep(self, id_: str, *why: Reason, picture: np.ndarray | None = None, feedback: Actual | None = None) -> bytes:
        drawn = np.asarray(blobs(sum(id_.encode()), (SIZE, SIZE))) if picture is None else picture
        file = encode(drawn.tobytes(), Sample(why=why, prediction=prediction(id_), feedback=feedback))
        (self.samples / f"{id_}{SUFFIX}").write_bytes(file)
        return file

    def label(self, labels: Mapping[str, Actual]) -> None:
        at = datetime(2026, 11, 30, tzinfo=UTC)
        append(self.labels, [Decision(id_, label, "label", "Ada", at, "1") for id_, label in labels.items()])

    def forget(self, id_: str) -> None:
        (self.samples / f"{id_}{TOMBSTONE}").touch()


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection of 20 photos of each animal."""
    folder = tmp_path_factory.mktemp("collection") / "photos"
    for number in range(40):
        path = folder / ("cats" if number % 2 else "dogs") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(blobs(5000 + number, (96, 96)), "PNG"))
    return folder


def made(folder: Path, photos: Path, gathered: Path | None = None, *, keep_sides: bool = False) -> list[Photo]:
    """Run the stages from fetch to prepare in the folder."""
    fetch([str(photos)], folder / "raw", gathered=gathered, keep_sides=keep_sides)
    rows = audit(folder / "raw", folder / "audit.csv", 0.97)
    found = split(rows, folder / "split.csv", TRAIN, VAL, given_sides(folder / "names.csv"))
    prepare(found, folder / "raw", folder / "processed_split")
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sample_s_side_is_production_if_chance_kept_it_and_hard_otherwise(kept: Kept, tmp_path: Path) -> None:
    reasons: dict[str, tuple[Reason, ...]] = {
        "a": ("random",),
        "b": ("unsure",),
        "c": ("disputed",),
        "d": ("unsure", "disputed"),
        "e": ("unsure", "random"),
    }
    for id_, why in reasons.items():
        kept.keep(id_, *why)
    kept.label(dict.fromkeys(reasons, "cats"))
    gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    places = {path.stem: path.parts[-3:-1] for path in (tmp_path / "out").rglob("*.png")}
    assert places == {id_: ("production" if "random" in why else "hard", "cats") for id_, why in reasons.items()}
    rows = csv.DictReader((tmp_path / "out.csv").read_text().splitlines())
    assert [(row["id"], row["why"], row["model"]) for row in rows] == [
        (id_, "+".join(why), "m") for id_, why in reasons.items()
    ]


def test_a_gathered_photo_is_the_pixels_and_nothing_that_is_known_of_them(kept: Kept, tmp_path: Path) -> None:
    file = kept.keep("a", "unsure")
    kept.label({"a": "dogs"})
    gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    photo = (tmp_path / "out/hard/dogs/a.png").read_bytes()
    assert (pixels(photo) == pixels(file)).all()
    with pytest.raises(SampleError):
        known(photo)
    kept.keep("a", "unsure", "disputed", feedback="cats")  # as the service writes it again
    gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    assert (tmp_path / "out/hard/dogs/a.png").read_bytes() == photo


def test_what_is_left_out_is_counted(kept: Kept, tmp_path: Path) -> None:
    for id_ in "abcdef":
        kept.keep(id_, "unsure")
    kept.keep("g", "random")
    kept.label({"a": "cats", "b": "neither", "c": "both", "d": "cats", "e": "dogs", "g": "cats", "gone": "dogs"})
    append(kept.labels, [Decision("g", "dogs", "label", "Ben", datetime(2026, 11, 30, tzinfo=UTC), "1")])
    kept.forget("d")
    path = kept.samples / "e.png"
    path.write_bytes(path.read_bytes()[:-3000])
    found = gather(kept.params, tmp_path / "out", tmp_path / "out.csv").report()
    assert found["gathered"] == {"production": {"cats": 0, "dogs": 0}, "hard": {"cats": 1, "dogs": 0}}
    assert found["left_out"] == dict.fromkeys(
        ("forgotten", "neither", "both", "disputed", "unlabelled", "missing", "broken"), 1
    )
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["a.png"]


def test_what_was_gathered_stays_when_the_service_s_caps_delete_the_sample(kept: Kept, tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "out.csv"
    for id_ in "abc":
        kept.keep(id_, "unsure")
    kept.label(dict.fromkeys("abc", "cats"))
    before = gather(kept.params, out, table).table()
    for id_ in "ab":
        (kept.samples / f"{id_}{SUFFIX}").unlink()
    assert gather(kept.params, out, table).table() == before
    kept.label({"a": "dogs"})
    assert [(row.id, row.label) for row in gather(kept.params, out, table).rows] == [
        ("a", "dogs"), ("b", "cats"), ("c", "cats")
    ]  # fmt: skip
    kept.forget("a")
    kept.forget("c")
    left = gather(kept.params, out, table)
    assert [row.id for row in left.rows] == ["b"]
    assert [path.stem for path in out.rglob("*.png")] == ["b"]
    assert left.left_out["forgotten"] == 2


def test_a_picture_that_was_sent_again_is_of_production_if_chance_kept_it_once(kept: Kept, tmp_path: Path) -> None:
    picture = np.asarray(blobs(1, (SIZE, SIZE)))
    kept.keep("a", "unsure", picture=picture)
    kept.keep("b", "random", picture=picture)
    kept.keep("c", "unsure")
    kept.label(dict.fromkeys("abc", "cats"))
    found = gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    assert [row.side for row in found.rows] == ["production", "production", "hard"]
    assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.png")) == [
        "hard/cats/c.png", "production/cats/a.png", "production/cats/b.png"
    ]  # fmt: skip


def test_where_none_of_the_labelled_samples_is_the_address_is_wrong(kept: Kept, tmp_path: Path) -> None:
    kept.label({"a": "cats", "b": "dogs"})
    with pytest.raises(StageError, match="none of the 2 samples that have labels is there"):
        gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keep_sides", [False, True])
def test_where_nothing_is_gathered_every_stage_writes_the_same_bytes(
    photos: Path, tmp_path: Path, keep_sides: bool
) -> None:
    if keep_sides:
        photos = Path(shutil.copytree(photos, tmp_path / "sides" / "train")).parent
    report = gather(Gather(None, None), tmp_path / "gathered", tmp_path / "gathered.csv").report()
    assert content(tmp_path / "gathered") == {}
    assert not any(count for found in report["gathered"].values() for count in found.values())
    made(tmp_path / "without", photos, keep_sides=keep_sides)
    made(tmp_path / "with", photos, tmp_path / "gathered", keep_sides=keep_sides)
    assert content(tmp_path / "with") == content(tmp_path / "without")


@pytest.mark.parametrize("keep_sides", [False, True])
def test_samples_move_no_photo_and_none_is_on_the_test_side_of_the_collections(
    photos: Path, kept: Kept, tmp_path: Path, keep_sides: bool
) -> None:
    if keep_sides:
        photos = Path(shutil.copytree(photos, tmp_path / "sides" / "test")).parent
        for name in ("cats", "dogs"):
            shutil.copytree(tmp_path / "sides/test" / name, tmp_path / "sides/train" / name)
        for path in list((tmp_path / "sides").glob("*/*/*.png")):
            if (path.parts[-3] == "test") == (int(path.stem) % 4 < 2):
                path.unlink()
    before = made(tmp_path / "data", photos, keep_sides=keep_sides)
    ids = [f"{number:02}{kind}" for number in range(20) for kind in ("r", "u", "d")]
    for place, id_ in enumerate(ids):
        why: Reason = {"r": "random", "u": "unsure", "d": "disputed"}[id_[2]]  # type: ignore[assignment]
        kept.keep(id_, why, picture=np.asarray(blobs(9000 + place, (SIZE, SIZE))))
    kept.label({id_: "cats" if place % 2 else "dogs" for place, id_ in enumerate(ids)})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    after = made(tmp_path / "data", photos, tmp_path / "gathered", keep_sides=keep_sides)

    assert set(before) < set(after)
    added = {photo for photo in after if photo.collection == "production"}
    assert len(added) == len(after) - len(before) == 60
    for photo in added:
        own_side = "production" if Path(photo.path).stem.endswith("r") else "hard"
        assert photo.side == ("train" if side(photo.sha256, TRAIN, VAL) == "train" else own_side)
    assert {photo.side for photo in added} == {"train", *FROM_PRODUCTION}
    prepared = {path.parts[-3] for path in (tmp_path / "data/processed_split").rglob("*.webp")}
    assert prepared == set(SIDES)


def test_a_forgotten_sample_is_in_no_later_data_set(photos: Path, kept: Kept, tmp_path: Path) -> None:
    for id_ in "abc":
        kept.keep(id_, "unsure")
    kept.label({"a": "cats", "b": "dogs", "c": "dogs"})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    before = made(tmp_path / "data", photos, tmp_path / "gathered")
    kept.forget("b")
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    after = made(tmp_path / "data", photos, tmp_path / "gathered")
    assert {photo.path for photo in set(before) - set(after)} == {"production/dogs/b.png"}
    assert not [name for name in content(tmp_path / "data") if Path(name).stem == "b"]


def test_a_sample_takes_the_place_of_no_photo_that_it_repeats(photos: Path, kept: Kept, tmp_path: Path) -> None:
    for path in sorted(photos.glob("*/*"))[:8]:
        kept.keep(path.stem, "random", picture=pixels(path.read_bytes()))  # the larger file
        kept.label({path.stem: "cats" if path.parent.name == "cats" else "dogs"})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    found = made(tmp_path / "data", photos, tmp_path / "gathered")
    assert {photo.collection for photo in found} == {"photos"}
    assert len(found) == 40


def test_a_sample_with_another_label_than_the_photo_that_it_repeats_leaves_the_photo_alone(
    photos: Path, kept: Kept, tmp_path: Path
) -> None:
    before = made(tmp_path / "data", photos)
    repeated = {photo.path for photo in before if photo.side == "test"}
    for path in repeated:
        kept.keep(Path(path).stem, "random", picture=pixels((tmp_path / "data/raw" / path).read_bytes()))
        kept.label({Path(path).stem: "dogs" if "/cats/" in path else "cats"})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    assert made(tmp_path / "data", photos, tmp_path / "gathered") == before
    found = {row.path: row for row in read(tmp_path / "data/audit.csv")}
    assert {row.twin for row in found.values() if row.status == "cross_class"} == repeated


def test_a_collection_that_comes_after_samples_that_repeat_it_has_all_its_photos(
    photos: Path, kept: Kept, tmp_path: Path
) -> None:
    for path in sorted(photos.glob("*/*")):
        kept.keep(path.stem, "random", picture=pixels(path.read_bytes()))
        kept.label({path.stem: "cats" if path.parent.name == "cats" else "dogs"})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    fetch([str(photos)], tmp_path / "raw", gathered=tmp_path / "gathered")
    shutil.rmtree(tmp_path / "raw/photos")
    audit(tmp_path / "raw", tmp_path / "audit.csv", 0.97)  # of the samples by themselves
    fetch([str(photos)], tmp_path / "raw", gathered=tmp_path / "gathered")
    kept_ones = [row for row in audit(tmp_path / "raw", tmp_path / "audit.csv", 0.97) if row.status == "kept"]
    assert {row.path.partition("/")[0] for row in kept_ones} == {"photos"}


def test_samples_need_no_name_of_a_class_that_the_collections_use(photos: Path, kept: Kept, tmp_path: Path) -> None:
    kept.keep("a", "unsure")
    kept.label({"a": "dogs"})
    gather(kept.params, tmp_path / "gathered", tmp_path / "gathered.csv")
    shutil.copytree(photos / "cats", tmp_path / "photos/kitten")
    shutil.copytree(photos / "dogs", tmp_path / "photos/puppy")
    found = fetch(
        [str(tmp_path / "photos")],
        tmp_path / "raw",
        {"kitten": "cats", "puppy": "dogs"},
        gathered=tmp_path / "gathered",
    )
    (_, row) = found.report()["collections"].items()
    assert row == (
        "production",
        {
            "licence": "of those who sent them",
            "origin": "kept by the service, labelled by a person",
            "cats": 0,
            "dogs": 1,
        },
    )


def test_the_name_production_is_taken(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="production is the name of the samples"):
        params.Fetch([params.Collection(str(photos), "production")], {"cats": ["cats"], "dogs": ["dogs"]}, False)
    fetch([str(shutil.copytree(photos, tmp_path / "production"))], tmp_path / "raw")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["production-2"]


def test_the_command_writes_the_parameters_and_a_digest_that_follows_the_labels(in_folder: Path, kept: Kept) -> None:
    def run() -> params.Gather:
        result = CliRunner().invoke(cli.gather, [str(kept.samples), str(kept.labels)])
        assert result.exit_code == 0, result.output
        return params.load(in_folder / "params.yaml").gather

    write_params(in_folder)
    kept.keep("a", "unsure")
    kept.keep("b", "random")
    kept.label({"a": "cats"})
    first = run()
    assert (first.samples, first.labels) == (str(kept.samples), str(kept.labels))
    assert first.digest == digest(kept.params, Path("data/gathered"), Path("data/gathered.csv"))
    assert run() == first
    kept.label({"b": "dogs"})
    second = run()
    kept.forget("a")
    assert len({first.digest, second.digest, run().digest}) == 3
    assert sorted(path.name for path in Path("data/gathered").rglob("*.png")) == ["b.png"]
    assert CliRunner().invoke(cli.gather, []).exit_code == 0


def test_the_stage_takes_only_what_was_gathered_for_it(in_folder: Path, kept: Kept) -> None:
    """Or DVC would write down the wrong pictures for the digest, and bring them back later."""
    write_params(in_folder)
    kept.keep("a", "unsure")
    kept.keep("b", "random")
    kept.label({"a": "cats"})
    named = [str(kept.samples), str(kept.labels)]
    assert CliRunner().invoke(cli.gather, named).exit_code == 0
    kept.label({"b": "dogs"})
    before = content(Path("data"))
    result = CliRunner().invoke(cli.gather, [])
    assert (result.exit_code, "has changed since it was gathered" in " ".join(result.output.split())) == (2, True)
    assert content(Path("data")) == before
    assert CliRunner().invoke(cli.gather, named).exit_code == 0
    assert CliRunner().invoke(cli.gather, []).exit_code == 0


def test_a_missing_folder_or_ledger_is_named_and_the_parameters_stay(in_folder: Path, kept: Kept) -> None:
    write_params(in_folder)
    before = Path("params.yaml").read_bytes()
    kept.label({"a": "cats"})
    for arguments, said in (
        (["nowhere", str(kept.labels)], "nowhere: no such folder"),
        ([str(kept.samples)], "labels.csv: no such file (gather.labels); `catsdogs label` writes it"),
    ):
        result = CliRunner().invoke(cli.gather, arguments)
        assert (result.exit_code, said in result.output) == (2, True), result.output
    assert Path("params.yaml").read_bytes() == before


def test_own_photographs_take_the_samples_along(in_folder: Path, kept: Kept, photos: Path) -> None:
    write_params(in_folder)
    shutil.copytree(Path(__file__).parents[2] / "training/templates", in_folder / "training")  # anything to link to
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", in_folder)
    kept.keep("a", "unsure")
    kept.label({"a": "cats"})
    Path("kept").symlink_to(kept.samples)
    values = {"gather.samples": "kept", "gather.labels": str(kept.labels)}
    own.prepare(Path("own"), str(photos), values)
    first = params.load(Path("own/params.yaml")).gather
    assert first.samples == str(in_folder / "kept")
    kept.label({"a": "dogs"})
    own.prepare(Path("own"), str(photos), values)
    assert params.load(Path("own/params.yaml")).gather.digest != first.digest


def test_labels_that_cannot_be_read_stop_it(kept: Kept, tmp_path: Path) -> None:
    kept.labels.write_text("not a ledger\n")
    with pytest.raises(StageError, match="not a ledger of labels"):
        gather(kept.params, tmp_path / "out", tmp_path / "out.csv")
    assert not (tmp_path / "out").exists()
