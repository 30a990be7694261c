from pathlib import Path

from click.testing import CliRunner

from tests.conftest import draw_photos
from tests.training.conftest import write_params
from training import cli, report


def test_a_collection_s_row_has_its_terms_and_its_photos_from_fetch_to_the_sides(
    in_folder: Path, tmp_path: Path
) -> None:
    photos = draw_photos(tmp_path / "photos", 30)
    (photos / "PetImages/Cat/empty.jpg").write_bytes(b"")
    dogs = tmp_path / "dogs"
    dogs.mkdir()
    (photos / "PetImages/Dog/0.jpg").rename(dogs / "1.jpg")
    stated = {"source": str(dogs), "licence": "CC0", "origin": "https://example.org"}
    write_params(in_folder, fetch={"source": [str(photos), stated]})
    assert report.collections() == []
    for stage in (cli.fetch, cli.audit, cli.split):
        assert CliRunner().invoke(stage, []).exit_code == 0
    one, two = report.collections()
    assert (one["name"], one["licence"], one["origin"]) == ("photos", "not stated", "not stated")
    assert (two["name"], two["licence"], two["origin"]) == ("dogs", "CC0", "https://example.org")
    assert (one["photos"]["fetched"], one["photos"]["kept"]) == ({"cats": 31, "dogs": 29}, {"cats": 30, "dogs": 29})
    assert (two["photos"]["fetched"], two["photos"]["kept"]) == ({"cats": 0, "dogs": 1}, {"cats": 0, "dogs": 1})
    for row in (one, two):
        sides = [row["photos"][side] for side in ("train", "val", "test")]
        assert {label: sum(side[label] for side in sides) for label in ("cats", "dogs")} == row["photos"]["kept"]
