import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.pixels import decode
from tests.conftest import ROOT, blobs, encoded
from training import audit as auditing
from training import split as splitting
from training.audit import audit, dataset_digest, summary
from training.prepare import SIDE, prepare
from training.split import SIDES, side, split
from training.stage import StageError, whole_directory

SIMILARITY = 0.97


def put(raw: Path, name: str, data: bytes) -> None:
    path = raw / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    for number in range(30):
        put(folder, f"s/cats/{number}.jpg", encoded(blobs(number), "JPEG", quality=92))
        put(folder, f"s/dogs/{number}.jpg", encoded(blobs(1000 + number), "JPEG", quality=92))
    return folder


def status(rows: list[auditing.AuditRow]) -> dict[str, str]:
    return {row.path: row.status for row in rows}


def test_photos_unlike_each_other_are_all_kept(raw: Path, tmp_path: Path) -> None:
    rows = audit(raw, tmp_path / "audit.csv", SIMILARITY)
    assert Counter(row.status for row in rows) == {"kept": 60}
    assert auditing.read(tmp_path / "audit.csv") == rows
    assert summary(rows)["kept"] == {"cats": 30, "dogs": 30}


def test_what_the_service_would_refuse_is_left_out(raw: Path, tmp_path: Path) -> None:
    put(raw, "s/cats/empty.jpg", b"")
    put(raw, "s/cats/text.jpg", b"not a picture")
    put(raw, "s/dogs/cut.jpg", encoded(blobs(77), "JPEG")[:2000])
    rows = {row.path: row for row in audit(raw, tmp_path / "audit.csv", SIMILARITY)}
    assert rows["s/cats/empty.jpg"].detail.startswith("undecodable_image")
    assert rows["s/cats/text.jpg"].detail.startswith("unsupported_format")
    assert rows["s/dogs/cut.jpg"].status == "corrupt"
    assert (raw / "s/cats/empty.jpg").exists()


def test_repeats_are_left_out_and_name_their_twin(raw: Path, tmp_path: Path) -> None:
    put(raw, "s/cats/same bytes.jpg", (raw / "s/cats/3.jpg").read_bytes())
    put(raw, "t/cats/smaller.jpg", encoded(blobs(4).resize((180, 180)), "JPEG", quality=75))
    put(
        raw,
        "t/dogs/mirrored.png",
        encoded(blobs(1005).transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((90, 90)), "PNG"),
    )
    put(raw, "t/cats/larger.bmp", encoded(blobs(6), "BMP"))
    rows = {row.path: row for row in audit(raw, tmp_path / "audit.csv", SIMILARITY)}
    # Of two equal files either may stay; of two versions, the one with more bytes does.
    assert sorted((rows["s/cats/same bytes.jpg"].status, rows["s/cats/3.jpg"].status)) == ["duplicate", "kept"]
    assert (rows["t/cats/smaller.jpg"].status, rows["t/cats/smaller.jpg"].twin) == ("near_duplicate", "s/cats/4.jpg")
    assert {rows["t/dogs/mirrored.png"].status, rows["s/dogs/5.jpg"].status} == {"near_duplicate", "kept"}
    assert (rows["s/cats/6.jpg"].status, rows["s/cats/6.jpg"].twin) == ("near_duplicate", "t/cats/larger.bmp")


def test_a_photo_under_both_animals_is_left_out_twice(raw: Path, tmp_path: Path) -> None:
    put(raw, "s/dogs/a cat.jpg", (raw / "s/cats/8.jpg").read_bytes())
    put(raw, "t/cats/a dog, small.jpg", encoded(blobs(1009).resize((100, 80)), "JPEG"))
    found = status(audit(raw, tmp_path / "audit.csv", SIMILARITY))
    crossed = {path for path, value in found.items() if value == "cross_class"}
    assert crossed == {"s/dogs/a cat.jpg", "s/cats/8.jpg", "t/cats/a dog, small.jpg", "s/dogs/9.jpg"}


def test_a_repeat_in_another_collection_is_listed_with_both(raw: Path, tmp_path: Path) -> None:
    put(raw, "t/cats/same.jpg", (raw / "s/cats/3.jpg").read_bytes())
    put(raw, "u/dogs/small.jpg", encoded(blobs(1004).resize((180, 180)), "JPEG", quality=75))
    audit(raw, tmp_path / "audit.csv", SIMILARITY)
    listed = {(row.status, *sorted((row.path, row.twin))) for row in auditing.read(tmp_path / "audit.csv") if row.twin}
    assert listed == {
        ("duplicate", "s/cats/3.jpg", "t/cats/same.jpg"),
        ("near_duplicate", "s/dogs/4.jpg", "u/dogs/small.jpg"),
    }


def test_flat_pictures_are_repeats_of_each_other(raw: Path, tmp_path: Path) -> None:
    put(raw, "s/cats/grey.png", encoded(Image.new("RGB", (50, 50), (90, 90, 90)), "PNG"))
    put(raw, "s/cats/greyer.png", encoded(Image.new("RGB", (70, 50), (120, 120, 120)), "PNG"))
    found = status(audit(raw, tmp_path / "audit.csv", SIMILARITY))
    assert sorted((found["s/cats/grey.png"], found["s/cats/greyer.png"])) == ["kept", "near_duplicate"]


def test_adding_photos_moves_none_of_the_old_ones(raw: Path, tmp_path: Path) -> None:
    before = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    for number in range(30):
        put(raw, f"new/cats/{number}.jpg", encoded(blobs(5000 + number), "JPEG"))
        put(raw, f"new/dogs/{number}.jpg", encoded(blobs(6000 + number), "JPEG"))
        # Better versions of old photos: they must not push the old ones out.
        put(raw, f"new/cats/better{number}.bmp", encoded(blobs(number), "BMP"))
    after = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    assert {(photo.path, photo.side) for photo in before} < {(photo.path, photo.side) for photo in after}
    assert len(after) == len(before) + 60


def test_no_photo_has_a_copy_on_another_side(raw: Path, tmp_path: Path) -> None:
    for number in range(30):
        put(raw, f"copy/cats/{number}.jpg", encoded(blobs(number).resize((150, 150)), "JPEG", quality=70))
    photos = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    assert Counter(photo.label for photo in photos) == {"cats": 30, "dogs": 30}


def test_the_side_follows_from_the_content_not_the_name(raw: Path, tmp_path: Path) -> None:
    before = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    shutil.move(raw / "s", raw / "renamed")
    (tmp_path / "audit.csv").unlink()
    after = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    assert {(p.sha256, p.side) for p in before} == {(p.sha256, p.side) for p in after}
    assert splitting.split_digest(before) == splitting.split_digest(after)
    assert splitting.read(tmp_path / "split.csv") == after


def test_each_photo_is_listed_and_counted_in_its_collection(raw: Path, tmp_path: Path) -> None:
    for number in range(20):
        put(raw, f"t/dogs/{number}.jpg", encoded(blobs(5000 + number), "JPEG"))
    rows = audit(raw, tmp_path / "audit.csv", SIMILARITY)
    photos = split(rows, tmp_path / "split.csv", 0.6, 0.2)
    assert all(photo.path.startswith(f"{photo.collection}/") for photo in splitting.read(tmp_path / "split.csv"))
    found = splitting.summary(photos)
    assert sum(found["collections"]["t"][name]["dogs"] for name in SIDES) == 20
    assert found["collections"]["t"]["train"]["cats"] == 0
    for name in SIDES:
        assert found[name]["dogs"] == sum(found["collections"][one][name]["dogs"] for one in "st")


def test_a_split_of_an_earlier_version_says_what_to_run(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("path,label,side,sha256\ns/cats/1.jpg,cats,train,00\n")
    with pytest.raises(StageError, match="`collection`; run `catsdogs split` again"):
        splitting.read(tmp_path / "split.csv")


def test_shares_are_met_on_average() -> None:
    import hashlib

    sides = Counter(side(hashlib.sha256(str(n).encode()).hexdigest(), 0.8, 0.1) for n in range(20_000))
    assert [round(sides[name] / 20_000, 2) for name in SIDES] == [0.8, 0.1, 0.1]


def test_the_digest_of_the_data_set_notices_a_changed_label(raw: Path, tmp_path: Path) -> None:
    rows = audit(raw, tmp_path / "audit.csv", SIMILARITY)
    moved = [replace(rows[0], label="dogs"), *rows[1:]]
    assert dataset_digest(rows) != dataset_digest(moved)
    assert dataset_digest(rows) == dataset_digest(list(reversed(rows)))


def test_a_folder_without_photos(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="run `catsdogs fetch` first"):
        audit(tmp_path / "raw", tmp_path / "audit.csv", SIMILARITY)


def test_one_class_alone_is_refused(raw: Path, tmp_path: Path) -> None:
    for path in (raw / "s/dogs").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(StageError, match=r"30 cats and 0 dogs are usable of 60 files \(left out: 30 corrupt\)"):
        audit(raw, tmp_path / "audit.csv", SIMILARITY)
    assert not (tmp_path / "audit.csv").exists()


@pytest.mark.parametrize("left", [2, 3])
def test_a_class_needs_a_photo_for_each_side(raw: Path, tmp_path: Path, left: int) -> None:
    for number in range(left, 30):
        (raw / f"s/cats/{number}.jpg").unlink()
    if left == 3:
        assert summary(audit(raw, tmp_path / "audit.csv", SIMILARITY))["kept"] == {"cats": 3, "dogs": 30}
    else:
        with pytest.raises(StageError, match="training, validation and test need at least 3 of each"):
            audit(raw, tmp_path / "audit.csv", SIMILARITY)


def test_an_audit_that_refuses_keeps_the_one_before(raw: Path, tmp_path: Path) -> None:
    audit(raw, tmp_path / "audit.csv", SIMILARITY)
    before = (tmp_path / "audit.csv").read_bytes()
    shutil.rmtree(raw / "s/dogs")
    with pytest.raises(StageError, match="0 dogs"):
        audit(raw, tmp_path / "audit.csv", SIMILARITY)
    assert (tmp_path / "audit.csv").read_bytes() == before


def test_too_few_photos_to_split(raw: Path, tmp_path: Path) -> None:
    rows = audit(raw, tmp_path / "audit.csv", SIMILARITY)
    with pytest.raises(StageError, match="too few to split"):
        split([row for row in rows if row.path.endswith("/1.jpg")], tmp_path / "split.csv", 0.8, 0.1)
    assert not (tmp_path / "split.csv").exists()


def test_prepared_pictures_are_what_the_service_would_see(raw: Path, tmp_path: Path) -> None:
    photos = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    prepare(photos, raw, tmp_path / "prepared")
    assert len(list((tmp_path / "prepared").glob("*/*/*.webp"))) == 60
    for photo in photos[::7]:
        prepared = tmp_path / "prepared" / photo.side / photo.label / f"{photo.sha256[:20]}.webp"
        decoded = decode((raw / photo.path).read_bytes())
        with Image.open(prepared) as picture:
            assert picture.size[0] == picture.size[1] == min(SIDE, max(decoded.size))
            assert (np.asarray(picture) == decoded.square(picture.size[0])).all()


def test_two_runs_at_once_do_not_write_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = f"from training.stage import *\nwith whole_directory(Path({str(out)!r})) as aside:\n    pass"
    with whole_directory(out) as aside:
        (aside / "file").touch()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
        assert f"process {os.getpid()} is already writing {out}" in done.stderr
    assert [path.name for path in out.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_photo_that_vanished_leaves_the_old_pictures_alone(raw: Path, tmp_path: Path) -> None:
    photos = split(audit(raw, tmp_path / "audit.csv", SIMILARITY), tmp_path / "split.csv", 0.6, 0.2)
    prepare(photos, raw, tmp_path / "prepared")
    (raw / photos[0].path).unlink()
    with pytest.raises(StageError, match="run `catsdogs audit` again"):
        prepare(photos, raw, tmp_path / "prepared")
    assert len(list((tmp_path / "prepared").glob("*/*/*.webp"))) == 60
