import csv
import io
import json
import os
import random
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as arrow
import pytest
from click.testing import CliRunner
from pyarrow import parquet

from tests.conftest import ROOT, blobs, encoded
from tests.training.conftest import write_params
from training import cli, params, sources
from training.audit import audit
from training.fetch import Fetched, fetch, named
from training.params import Collection
from training.split import given_sides, split
from training.stage import StageError

CLASSES = "cats=cat,kitten,0 dogs=dog,puppy,1"


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


GOOD = {"PetImages/Cat/0.jpg": b"cat", "PetImages/Dog/0.jpg": b"dog"}


def test_zip_files_keep_to_themselves_though_their_names_collide(tmp_path: Path) -> None:
    one = archive(tmp_path / "one.zip", GOOD)
    two = archive(tmp_path / "two.zip", {"cats/0.jpg": b"another cat"})
    assert fetch([str(one), str(two)], tmp_path / "raw").photos == {"cats": 2, "dogs": 1}
    assert files_below(tmp_path / "raw") == {"one/cats/0.jpg", "one/dogs/0.jpg", "two/cats/0.jpg"}
    assert (tmp_path / "raw/two/cats/0.jpg").read_bytes() == b"another cat"


def test_each_photo_has_its_collection_with_its_terms(in_folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two/one", "three"):
        lay(tmp_path / name, pets("{animal}/{number}.jpg"))
    stated = {"source": str(tmp_path / "three"), "name": "One", "licence": "CC0", "origin": "https://example.org"}
    write_params(in_folder, fetch={"source": [str(tmp_path / "one"), str(tmp_path / "two/one"), stated]})
    result = CliRunner().invoke(cli.fetch, ["--classes", CLASSES])
    assert result.exit_code == 0, result.output
    assert "One: 3 cats, 3 dogs; licence: CC0" in result.stdout
    unknown = {"licence": "not stated", "origin": "not stated", "cats": 3, "dogs": 3}
    assert json.loads(Path("reports/fetch.json").read_text())["collections"] == {
        "one-2": unknown,
        "one-3": unknown,
        "One": {"licence": "CC0", "origin": "https://example.org", "cats": 3, "dogs": 3},
    }
    with Path("data/names.csv").open(newline="") as file:
        assert all(row["path"].startswith(f"{row['collection']}/") for row in csv.DictReader(file))


def test_what_is_stated_of_a_collection_that_is_known_wins(tmp_path: Path) -> None:
    (found,) = named([Collection("kaggle", name="mine", licence="asked for")])
    assert (found.name, found.licence) == ("mine", "asked for")
    assert "Microsoft" in found.origin


def test_a_folder(tmp_path: Path) -> None:
    for name in ("deep/down/Cat/1.jpg", "deep/down/Dog/1.jpg", "deep/down/Dog/.hidden", "deep/elsewhere/2.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    assert fetch([str(tmp_path / "in")], tmp_path / "raw").photos == {"cats": 1, "dogs": 1}
    assert files_below(tmp_path / "raw") == {"in/cats/1.jpg", "in/dogs/1.jpg"}


def test_a_member_cannot_leave_the_folder(tmp_path: Path) -> None:
    source = archive(tmp_path / "evil.zip", GOOD | {"../../../Cat/escaped.jpg": b"x", "/Dog/absolute.jpg": b"x"})
    fetch([str(source)], tmp_path / "deep/down/raw")
    assert files_below(tmp_path / "deep/down/raw") == {
        "evil/cats/0.jpg",
        "evil/cats/escaped.jpg",
        "evil/dogs/0.jpg",
        "evil/dogs/absolute.jpg",
    }
    assert not list(tmp_path.glob("**/Cat"))


def test_equal_names_in_one_source_are_all_kept(tmp_path: Path) -> None:
    source = archive(tmp_path / "s.zip", GOOD | {"train/Cat/0.jpg": b"second", "test/Cat/0.jpg": b"third"})
    assert fetch([str(source)], tmp_path / "raw").photos["cats"] == 3
    assert {p.read_bytes() for p in (tmp_path / "raw/s/cats").iterdir()} == {b"cat", b"second", b"third"}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"PetImages/Cat/0.jpg": b"x"}, "no files of dogs"),
        ({"PetImages/Cat/0.jpg": b"x", "PetImages/Dog/": b""}, "no files of dogs"),
        ({"pictures/0.jpg": b"x"}, "no files of cats or dogs"),
        ({}, "no files of cats or dogs"),
    ],
)
def test_a_class_that_is_missing_or_empty(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    source = archive(tmp_path / "half.zip", members)
    with pytest.raises(StageError, match=reason):
        fetch([str(source)], tmp_path / "raw")
    assert not (tmp_path / "raw").exists()


def test_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nowhere: no such file or folder"):
        fetch([str(tmp_path / "nowhere")], tmp_path / "raw")


def test_what_is_no_zip(tmp_path: Path) -> None:
    (tmp_path / "fake.zip").write_bytes(b"I am a zip file, honestly")
    with pytest.raises(StageError, match=r"fake\.zip: not a readable zip or tar file"):
        fetch([str(tmp_path / "fake.zip")], tmp_path / "raw")


def test_a_zip_cut_short_leaves_nothing_behind(tmp_path: Path) -> None:
    source = archive(tmp_path / "s.zip", {f"Cat/{i}.jpg": bytes(500) for i in range(50)} | {"Dog/0.jpg": b"dog"})
    source.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(StageError, match="not a readable zip or tar file"):
        fetch([str(source)], tmp_path / "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]


def test_a_failure_keeps_what_was_there_before(tmp_path: Path) -> None:
    fetch([str(archive(tmp_path / "good.zip", GOOD))], tmp_path / "raw")
    with pytest.raises(StageError):
        fetch([str(tmp_path / "nowhere")], tmp_path / "raw")
    assert files_below(tmp_path / "raw") == {"good/cats/0.jpg", "good/dogs/0.jpg"}


def photo(seed: int) -> bytes:
    return encoded(blobs(seed, (64, 48)), "JPEG")


def names(raw: Path) -> dict[str, dict[str, str]]:
    """The rows of names.csv, by the name in the source."""
    with (raw.parent / "names.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def lay(folder: Path, members: Mapping[str, bytes]) -> Path:
    for name, data in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(members: Mapping[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return data.getvalue()


def taped(members: Mapping[str, bytes], mode: str = "w:gz") -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return data.getvalue()


def tabled(columns: Mapping[str, list[object]], features: Mapping[str, object] | None = None) -> bytes:
    data, table = io.BytesIO(), arrow.table(dict(columns))
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, data, row_group_size=2)
    return data.getvalue()


def pets(form: str) -> dict[str, bytes]:
    """Three cats and three dogs, named by a form such as ``{animal}/{number}.jpg``."""
    return {
        form.format(animal=animal, number=number, code=code): photo(100 * code + number)
        for code, animal in enumerate(("cat", "dog"))
        for number in range(3)
    }


IMAGE = [{"bytes": photo(100 * code + number), "path": f"{number}.jpg"} for code in range(2) for number in range(3)]
PATHS: list[object] = [f"pictures/{number}.jpg" for number in range(6)]
WORDS: list[object] = [*["cat"] * 3, *["Dogs"] * 3]
CODES: list[object] = [*[0] * 3, *[1] * 3]
PICTURES = dict(zip(map(str, PATHS), pets("{animal}/{number}").values(), strict=True))
OXFORD = {
    **{f"images/{breed}_{n}.jpg": photo(n) for n, breed in enumerate(("Abyssinian", "Maine_Coon", "Sphynx"))},
    **{f"images/{breed}_{n}.jpg": photo(100 + n) for n, breed in enumerate(("pug", "saint_bernard", "boxer"))},
    "annotations/trimaps/Abyssinian_0.png": encoded(blobs(1), "PNG"),
    "annotations/list.txt": b"Abyssinian_0 1 1 1",
}
CSV = "\n".join(["Image Path;Label", *(f"{path};{word}" for path, word in zip(PATHS, WORDS, strict=True))]).encode()
HUGGING_FACE = {f"train/{number}.jpg": data for number, data in enumerate(PICTURES.values())}
JSONL = "".join(json.dumps({"file_name": f"{n}.jpg", "label": word}) + "\n" for n, word in enumerate(WORDS)).encode()
METADATA = "file_name,label\n" + "".join(f"{n}.jpg,{word}\n" for n, word in enumerate(WORDS))

# Each row of the table in docs/pipeline.md: the files of a folder, or one file, and the classes where they have others.
LAYOUTS: dict[str, tuple[Mapping[str, bytes], str]] = {
    "PetImages/Cat/1.jpg": (pets("PetImages/{animal}/{number}.jpg"), ""),
    "train/cat.0.jpg": (pets("train/{animal}.{number}.jpg"), ""),
    "Cat/Abyssinian/1.jpg": (pets("{animal}/some breed/{number}.jpg"), ""),
    "training_set/training_set/cats/cat.1.jpg": (pets("training_set/training_set/{animal}s/{animal}.{number}.jpg"), ""),
    "images/Abyssinian_1.jpg, images/beagle_1.jpg": (OXFORD, ""),
    "train.zip": ({"dogs-vs-cats.zip": zipped({"train.zip": zipped(pets("train/{animal}.{number}.jpg"))})}, ""),
    "cats.zip, dogs.zip": (
        {f"{animal}s.zip": zipped({f"{n}.jpg": photo(100 * code + n) for n in range(3)})
         for code, animal in enumerate(("cat", "dog"))}, ""
    ),
    "PetImages\\Cat\\1.jpg": ({"windows.zip": zipped(pets("PetImages\\{animal}\\{number}.jpg"))}, ""),
    "photos.tar, photos.tar.gz": (
        {"a.tar": taped(pets("./{animal}/{number}.jpg"), "w"), "b.tgz": taped({"Cat/9.jpg": b"x"})}, ""
    ),
    "labels.csv": ({"labels.csv": CSV, **PICTURES}, ""),
    "labels.parquet": ({"labels.parquet": tabled({"path": PATHS, "label": WORDS}), **PICTURES}, ""),
    "train-00000.parquet": (
        {"data/train-00000.parquet": tabled(
            {"image": list(IMAGE), "labels": CODES}, {"labels": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
        )}, ""
    ),
    "train/metadata.csv": ({"train/metadata.csv": METADATA.encode(), **HUGGING_FACE}, ""),
    "train/metadata.jsonl": ({"train/metadata.jsonl": JSONL, **HUGGING_FACE}, ""),
    "train/0/1.jpg": (pets("train/{code}/{number}.jpg"), CLASSES),
    "kitten/1.jpg": (
        {f"{name}/{n}.jpg": photo(seed + n) for seed, name in ((0, "Kitten"), (100, "puppy")) for n in range(3)},
        CLASSES,
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("packed", ["folder", "archive.zip", "archive.tar.gz"])
def test_a_layout_is_read_from_a_folder_and_from_an_archive(tmp_path: Path, layout: str, packed: str) -> None:
    files, classes = LAYOUTS[layout]
    source = tmp_path / packed
    if packed == "folder":
        lay(source, files)
    else:
        source.write_bytes(zipped(files) if packed == "archive.zip" else taped(files))
    named = params.with_classes(params.load(ROOT / "params.yaml").fetch, classes or "cats=cat,cats dogs=dog,dogs")
    found = fetch([str(source)], tmp_path / "raw", named.labels())
    assert (found.photos["cats"], found.photos["dogs"]) == ((4, 3) if "tar.gz" in layout else (3, 3))
    dogs = {path.read_bytes() for path in (tmp_path / "raw").glob("*/dogs/*")}
    assert dogs == {photo(100 + number) for number in range(3)}


def test_the_page_lists_the_layouts_that_are_tested() -> None:
    page = (ROOT / "docs/pipeline.md").read_text()
    for layout in LAYOUTS:
        for name in layout.split(", "):
            assert f"`{name}`" in page, name


@pytest.mark.parametrize("name", ["labels.csv", "labels.parquet"])
def test_a_table_is_a_source_of_the_photos_that_it_names_and_of_no_other(tmp_path: Path, name: str) -> None:
    lay(tmp_path / "set", {**LAYOUTS[name][0], "Cat/another.jpg": photo(50)})
    assert fetch([str(tmp_path / "set" / name)], tmp_path / "raw").photos == {"cats": 3, "dogs": 3}


def test_a_table_takes_no_photo_from_outside_its_folder(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {"secret.jpg": photo(9), "set/labels.csv": CSV + f"\n../secret.jpg;cat\n{tmp_path}/secret.jpg;dog".encode()},
    )
    lay(tmp_path / "set", PICTURES)
    for source in ("set/labels.csv", "set"):
        found = fetch([str(tmp_path / source)], tmp_path / "raw")
        assert (found.photos, found.passed_over) == ({"cats": 3, "dogs": 3}, {"missing": 2}), source


def test_pictures_in_parquet_come_with_labels_that_have_a_name(tmp_path: Path) -> None:
    pictures: list[object] = [*IMAGE, IMAGE[5], IMAGE[5], {"bytes": None, "path": "gone.jpg"}]
    names = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    lay(tmp_path, {"t.parquet": tabled({"image": pictures, "label": [*CODES, -1, 2, 1]}, names)})
    found = fetch([str(tmp_path / "t.parquet")], tmp_path / "raw")
    assert (found.photos, found.passed_over) == ({"cats": 3, "dogs": 3}, {"no_class": 2, "missing": 1})
    lay(tmp_path, {"t.parquet": tabled({"image": [photo(1), photo(2)], "label": ["cat", "dog"]})})
    assert fetch([str(tmp_path / "t.parquet")], tmp_path / "raw").photos == {"cats": 1, "dogs": 1}


def test_a_table_without_the_columns_says_which_it_needs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,score\n1,0.5\n")
    with pytest.raises(StageError, match=r"t\.csv: expected a column of paths \(file_name, .*one of labels \(label, "):
        fetch([str(tmp_path / "t.csv")], tmp_path / "raw")
    (tmp_path / "t.parquet").write_bytes(b"PAR1, honestly")
    with pytest.raises(StageError, match=r"t\.parquet: not a readable table"):
        fetch([str(tmp_path / "t.parquet")], tmp_path / "raw")


def test_what_is_passed_over_is_counted_by_its_reason_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LARGEST", 100_000)
    data = bytearray(
        zipped(pets("{animal}/{number}.jpg") | {"Cat/broken.jpg": b"before damage", "Cat/locked.jpg": b"x"})
    )
    at = data.index(b"before damage")
    data[at : at + 6] = b"BEFORE"
    entry = data.rindex(b"PK\x01\x02")  # the last in the directory: its flags say that it is encrypted
    data[entry + 8] |= 1
    lay(
        tmp_path / "in",
        {
            "inner.zip": bytes(data),
            ".git/Cat/1.jpg": photo(1),
            "__MACOSX/Cat/._1.jpg": photo(1),
            "Cat/Thumbs.db": b"x",
            "Dog/bomb.jpg": bytes(200_000),
            "test1/1.jpg": photo(2),
            "fake.zip": b"no zip",
            "Dog/empty.jpg": b"",  # left to the audit, as what is named like a picture
        },
    )
    (tmp_path / "in/Dog/gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "in/Cat/twice.jpg").symlink_to(tmp_path / "in/Cat/once.jpg")
    lay(tmp_path / "in", {"Cat/once.jpg": photo(70)})
    found = fetch([str(tmp_path / "in")], tmp_path / "raw")
    assert found.photos == {"cats": 4, "dogs": 4}
    assert found.report()["passed_over"] == {
        "hidden": 2,
        "no_class": 1,
        "not_a_picture": 1,
        "password_protected": 1,
        "broken": 3,
        "too_large": 1,
        "missing": 0,
        "repeated": 1,
    }
    assert "passed over 1 in no class folder: 'test1/1.jpg'" in found.lines()
    assert "passed over 1 password-protected: 'inner.zip/Cat/locked.jpg'" in found.lines()


def test_archives_in_archives_have_an_end(tmp_path: Path) -> None:
    data = zipped(pets("{animal}/{number}.jpg"))
    for _ in range(5):
        data = zipped({"again.zip": data} | GOOD)
    found = fetch([str(lay(tmp_path, {"deep.zip": data}) / "deep.zip")], tmp_path / "raw")
    assert found.passed_over["too_large"] == 1


def test_a_source_of_which_nothing_can_be_taken_says_why(tmp_path: Path) -> None:
    lay(tmp_path / "in", pets("{code}/{number}.jpg"))
    with pytest.raises(
        StageError, match=r"--classes \"cats=cat,kitten,0 dogs=.*passed over 6 in no class folder: '0/0"
    ):
        fetch([str(tmp_path / "in")], tmp_path / "raw")


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    lay(tmp_path / "elsewhere", pets("{animal}/{number}.jpg"))
    photos = lay(tmp_path / "photos", {"Dog/1.jpg": photo(1)})
    (photos / "Cat").symlink_to(tmp_path / "elsewhere/cat")
    (photos / "Dog/up").symlink_to(photos)
    (tmp_path / "elsewhere/cat/back").symlink_to(photos)
    (photos / "cats").symlink_to(tmp_path / "elsewhere/cat")
    (photos / "Dog/2.jpg").symlink_to(tmp_path / "elsewhere/dog/0.jpg")
    found = fetch([str(photos)], tmp_path / "raw")
    assert found.photos == {"cats": 3, "dogs": 2}
    assert found.passed_over == {"repeated": 3}


def test_a_link_in_a_tar_leads_to_a_member_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(photo(9))
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as file:
        for name, data in pets("{animal}/{number}.jpg").items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
        for name, target in (("cat/link.jpg", "0.jpg"), ("cat/out.jpg", str(tmp_path / "secret.jpg"))):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            file.addfile(entry)
    found = fetch([str(tmp_path / "s.tar.gz")], tmp_path / "raw")
    assert (found.photos, found.passed_over) == ({"cats": 4, "dogs": 3}, {"broken": 1})


ODD = (
    "Icon\r.jpg",
    'a "cat", it is.jpg',
    "line\nend.jpg",
    "Katze \u00fc.jpg",
    "\u732b.jpg",
    "-rf.jpg",
    "bytes \udcff\udcfe.jpg",
)


def odd_folder(folder: Path) -> Path:
    for number, name in enumerate(ODD):
        lay(folder, {f"Cat/{name}": photo(number), f"Dog/{name}": photo(100 + number)})
    return folder


def odd_zip(folder: Path) -> Path:
    members = {
        f"{label}/{name}": photo(n + seed)
        for n, name in enumerate(ODD[:-1])
        for label, seed in (("Cat", 0), ("Dog", 100))
    }
    return lay(folder, {"\u732b\r.zip": zipped(members)}) / "\u732b\r.zip"


def odd_tar(folder: Path) -> Path:
    members = {
        f"{label}/{name}": photo(n + seed) for n, name in enumerate(ODD) for label, seed in (("Cat", 0), ("Dog", 100))
    }
    return lay(folder, {"s.tar": taped(members, "w")}) / "s.tar"


@pytest.mark.parametrize("make", [odd_folder, odd_zip, odd_tar])
def test_names_in_any_bytes_pass_every_table_and_are_kept_as_information(
    in_folder: Path, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path / "odd")
    each = len(ODD) - (make is odd_zip)  # whose names are text
    write_params(in_folder, fetch={"source": [str(source)]}, split={"train": 0.4, "val": 0.3})
    for stage in (cli.fetch, cli.audit, cli.split):
        result = CliRunner().invoke(stage, [])
        assert result.exit_code == 0, result.output
    with Path("data/split.csv").open(newline="") as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    assert len(paths) == 2 * each
    assert all(path.isascii() and path.isprintable() and Path("data/raw", path).is_file() for path in paths)
    known = names(Path("data/raw"))
    assert {row["path"] for row in known.values()} == set(paths)
    assert {f"Cat/{name}" for name in ODD[:-1]} <= set(known)
    assert ("Cat/bytes \\udcff\\udcfe.jpg" in known) == (make is not odd_zip)


def sides_of(found: Fetched) -> dict[str, int]:
    return dict(found.report()["sides"])


def test_sides_are_pooled_unless_they_are_to_be_kept(tmp_path: Path) -> None:
    source = lay(tmp_path / "in", pets("train/{animal}/{number}.jpg"))
    lay(source, {"validation/cat/7.jpg": photo(7), "validation/dog/7.jpg": photo(107)})
    lay(source, {"test_set/cat/8.jpg": photo(8), "test_set/dog/8.jpg": photo(108)})
    found = fetch([str(source)], tmp_path / "raw")
    assert sides_of(found) == {"train": 6, "val": 2, "test": 2}
    assert given_sides(tmp_path / "names.csv") == {}
    fetch([str(source)], tmp_path / "raw", keep_sides=True)
    given = given_sides(tmp_path / "names.csv")
    photos = split(audit(tmp_path / "raw", tmp_path / "audit.csv", 0.97), tmp_path / "split.csv", 0.8, 0.1, given)
    assert {photo.path: photo.side for photo in photos} == given
    assert sorted(given.values()) == ["test"] * 2 + ["train"] * 6 + ["val"] * 2


def test_a_side_that_no_folder_names_is_taken_from_the_training_side(tmp_path: Path) -> None:
    for number in range(40):
        lay(tmp_path / "in", {f"train/cat/{number}.jpg": photo(number), f"train/dog/{number}.jpg": photo(100 + number)})
    lay(tmp_path / "in", {"test/cat/1.jpg": photo(999), "test/dog/1.jpg": photo(998)})
    fetch([str(tmp_path / "in")], tmp_path / "raw", keep_sides=True)
    rows = audit(tmp_path / "raw", tmp_path / "audit.csv", 0.97)
    photos = split(rows, tmp_path / "split.csv", 0.6, 0.2, given_sides(tmp_path / "names.csv"))
    assert sorted(photo.sha256 for photo in photos if photo.side == "test") == sorted(
        row.sha256 for row in rows if "test" in names(tmp_path / "raw")[_name(row.path, tmp_path / "raw")]["side"]
    )
    assert 10 < sum(photo.side == "val" for photo in photos) < 30


def _name(path: str, raw: Path) -> str:
    return next(name for name, row in names(raw).items() if row["path"] == path)


def test_keeping_sides_that_no_folder_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no train, validation or test folder in "):
        fetch([str(archive(tmp_path / "s.zip", GOOD))], tmp_path / "raw", keep_sides=True)


def test_the_command_reports_what_it_found_and_warns_of_imbalance(in_folder: Path, tmp_path: Path) -> None:
    source = lay(tmp_path / "in", {f"train/kitten/{n}.jpg": photo(n) for n in range(20)} | {"val/1/1.jpg": photo(100)})
    lay(source, {"val/1/2.jpg": photo(101), "readme.md": b"x"})
    write_params(in_folder)
    result = CliRunner().invoke(cli.fetch, [str(source), "--classes", CLASSES])
    assert result.exit_code == 0, result.output
    assert "passed over 1 in no class folder: 'readme.md'" in result.stdout
    assert "20 for train, 2 for val, are put together and split anew" in result.stdout
    assert "warning: 20 cats and only 2 dogs" in result.stdout
    report = json.loads(Path("reports/fetch.json").read_text())
    assert (report["photos"], report["passed_over"]["no_class"]) == ({"cats": 20, "dogs": 2}, 1)


def test_a_side_left_without_the_rarer_class_is_refused_in_plain_words(in_folder: Path, tmp_path: Path) -> None:
    source = lay(
        tmp_path / "in",
        {f"cat/{n}.jpg": photo(n) for n in range(60)} | {f"dog/{n}.jpg": photo(100 + n) for n in range(3)},
    )
    write_params(in_folder, fetch={"source": [str(source)]})
    for stage in (cli.fetch, cli.audit):
        assert CliRunner().invoke(stage, []).exit_code == 0
    result = CliRunner().invoke(cli.split, [])
    assert result.exit_code == 2
    assert "none left for " in result.stderr
    assert "There are 60 cats and 3 dogs: add photos" in result.stderr


@pytest.mark.parametrize(
    "text", ["cats=cat", "cats= dogs=dog", "cats=cat dogs=Cat", "cats=cat dogs=dog fish=fish", "cat dog"]
)
def test_classes_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(StageError, match="expected a form such as"):
        params.with_classes(params.load(ROOT / "params.yaml").fetch, text)


def test_the_digest_of_a_source_follows_what_it_holds(tmp_path: Path) -> None:
    folder = lay(tmp_path / "in", {"Cat/1.jpg": b"1", "labels.csv": b"path,label\nCat/1.jpg,cat\n"})
    packed = archive(tmp_path / "s.zip", GOOD)
    places = (folder, packed, folder / "labels.csv")
    before = [sources.digest(place) for place in places]
    assert before == [sources.digest(place) for place in places]
    os.utime(folder / "Cat/1.jpg", (1, 1))
    archive(packed, {**GOOD, "PetImages/Cat/0.jpg": b"CAT"})
    assert all(old != sources.digest(place) for old, place in zip(before, places, strict=True))


def test_noise_in_place_of_an_archive_is_refused_or_passed_over(tmp_path: Path) -> None:
    rng = random.Random(5)
    good = {"s.zip": zipped(pets("{animal}/{number}.jpg")), "s.tar.gz": taped(pets("{animal}/{number}.jpg"))}
    for number in range(60):
        name = rng.choice(sorted(good))
        data = bytearray(good[name])
        for _ in range(rng.randrange(1, 30)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / name).write_bytes(data[: rng.randrange(len(data) // 2, len(data) + 1)])
        try:
            fetch([str(tmp_path / name)], tmp_path / "raw")
        except StageError as error:
            assert "not a readable" in str(error) or "no files of" in str(error), number
