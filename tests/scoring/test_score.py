import asyncio
import csv
import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from scoring import manifest, sources
from scoring.errors import ScoreError
from scoring.score import Scorer, Shard
from serving import local
from serving.cli import predict
from serving.engine.lane import Zygote
from serving.engine.wire import PLAIN
from serving.errors import CODES
from serving.settings import Settings
from tests.conftest import blobs, encoded
from tests.fuzz.bombs import COSTLY
from tests.scoring.conftest import refused, results, scored, state
from tests.serving.engine import hostile
from tests.waiting import until


def test_a_picture_is_a_row_and_what_is_none_is_a_row_with_the_api_s_error(pictures: Path, tmp_path: Path) -> None:
    result = scored(pictures, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert {row["key"] for row in found.rows} == {"a.jpg", "b.png", "more/a.jpg", "notes.txt"}
    assert found.errors() == {"notes.txt": "unsupported_format"}
    (row,) = [row for row in found.rows if row["key"] == "b.png"]
    assert (row["size"], row["width"], row["height"]) == ((pictures / "b.png").stat().st_size, 320, 240)
    assert row["cats"] + row["dogs"] == pytest.approx(1)
    assert row["label"] == max(("cats", "dogs"), key=lambda label: row[label])
    assert row["verdict"] in ("cats", "dogs", "unsure")
    assert 0 < row["brightness"] < 1
    assert row["milliseconds"] > 0
    assert "evidence" not in row
    assert "4  pictures" in result.stdout
    assert "1  unsupported_format" in result.stdout


def test_its_answers_are_those_of_predict(pictures: Path, tmp_path: Path) -> None:
    scored(pictures, "--out", tmp_path / "out")
    rows = {str(pictures / row["key"]): row for row in results(tmp_path / "out").rows}
    told = CliRunner().invoke(predict, ["--json", *map(str, sorted(pictures.rglob("a.jpg")))])
    answers = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(answers) == 2
    for answer in answers:
        row = rows[answer["client_id"]]
        assert (row["verdict"], row["unsure_because"]) == (answer["verdict"], answer["unsure_because"])
        assert row["cats"] == pytest.approx(answer["probabilities"]["cats"], abs=1e-4)
        assert row["familiarity"] == pytest.approx(answer["familiarity"], abs=1e-4)


def test_a_last_file_sums_up(pictures: Path, tmp_path: Path) -> None:
    scored(pictures, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    summary = found.summary
    assert summary["pictures"] == 4
    assert summary["errors"] == {"unsupported_format": 1}
    assert sum(summary["verdicts"].values()) == 3
    assert summary["bytes"] == sum(path.stat().st_size for path in pictures.rglob("*.*"))
    assert summary["digest"].startswith(found.shards[0].parent.name.split("-")[1])
    assert summary["pictures_per_second"] > 0


def test_a_second_run_writes_nothing(pictures: Path, tmp_path: Path) -> None:
    first = scored(pictures, "--out", tmp_path / "out")
    before = state(tmp_path / "out")
    assert scored(pictures, "--out", tmp_path / "out").stdout == first.stdout
    assert state(tmp_path / "out") == before


def test_shards_that_are_there_are_not_done_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "SHARD", 2)
    scored(pictures, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert len(found.shards) == 2
    kept, lost = found.shards
    before = state(kept.parent)[kept]
    lost.unlink()
    (kept.parent / "_summary.json").unlink()
    scored(pictures, "--out", tmp_path / "out")
    assert results(tmp_path / "out").shards == [kept, lost]
    assert state(kept.parent)[kept] == before


def test_a_manifest_takes_the_place_of_its_source(pictures: Path, tmp_path: Path) -> None:
    scored(pictures, "--out", tmp_path / "out")
    (listed,) = (tmp_path / "out").glob("manifest-*.parquet")
    (pictures / "later.jpg").write_bytes(b"not listed")
    scored(listed, "--out", tmp_path / "again")
    assert {row["key"] for row in results(tmp_path / "again").rows} == {"a.jpg", "b.png", "more/a.jpg", "notes.txt"}


def test_what_changes_in_the_source_makes_another_result(pictures: Path, tmp_path: Path) -> None:
    scored(pictures, "--out", tmp_path / "out")
    os.utime(pictures / "a.jpg", (1, 1))
    scored(pictures, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*/_summary.json"))) == 2


def test_hostile_files_cost_a_row_each(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATSDOGS_MAX_BODY_BYTES", "1000000")
    (pictures / "empty.jpg").touch()
    (pictures / "cut.jpg").write_bytes((pictures / "a.jpg").read_bytes()[:900])
    (pictures / "large.jpg").write_bytes(bytes(1_000_001))
    (pictures / "gone.jpg").symlink_to(tmp_path / "gone")
    scored(pictures, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert len(found.rows) == 8
    errors = found.errors()
    assert errors.pop("gone.jpg") == "unreadable"
    assert errors == {
        "empty.jpg": "undecodable_image", "cut.jpg": "undecodable_image", "large.jpg": "body_too_large",
        "notes.txt": "unsupported_format",
    }  # fmt: skip
    assert set(errors.values()) <= CODES.keys()


def test_a_picture_that_takes_too_much_work_costs_its_row_alone(pictures: Path, tmp_path: Path) -> None:
    (pictures / "bomb.jpg").write_bytes(COSTLY["JPEG, 20,000 progressive scans"]())
    scored(pictures, "--out", tmp_path / "out")
    found = results(tmp_path / "out")
    assert found.errors() == {"bomb.jpg": "too_costly", "notes.txt": "unsupported_format"}
    assert len(found.rows) == 5


async def test_a_picture_that_crashes_its_lane_is_tried_again_and_then_costs_its_row_alone(tmp_path: Path) -> None:
    names = ["crash", "echo 0.1", "fail", "exit 3", "echo 0.2"]
    for number, name in enumerate(names):
        (tmp_path / str(number)).write_bytes(name.encode())
    source = sources.opened(str(tmp_path))
    done: list[Shard] = []
    async with local.lanes(Settings(deadline_seconds=60), Zygote(hostile.__name__)) as lanes:
        scorer = Scorer(lanes, source, 1000, PLAIN, done.append)
        await scorer.run(iter([Shard(0, list(source.entries()))]))
    (shard,) = done
    found = [row.error or row.familiarity for row in shard.in_order()]
    assert found == ["not_ready", 0.1, "not_ready", "not_ready", 0.2]
    assert scorer.tally.done == 5
    assert scorer.tally.errors == {"not_ready": 3}


async def test_lanes_that_cannot_be_started_any_more_end_the_run_not_the_pictures(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).write_bytes(b"sleep 0.2")
    source = sources.opened(str(tmp_path))
    done: list[Shard] = []
    async with local.lanes(Settings(deadline_seconds=60), Zygote(hostile.__name__)) as lanes:
        scorer = Scorer(lanes, source, 1000, PLAIN, done.append)
        run = asyncio.create_task(scorer.run(iter([Shard(0, list(source.entries()))])))
        await asyncio.to_thread(until, lambda: scorer.tally.done)
        lanes.zygote.kill()
        with pytest.raises(ScoreError, match="has ended"):
            await run
    assert not done


def test_an_archive(pictures: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(pictures / "a.jpg", "x/a.jpg")
    scored(tmp_path / "photos.zip", "--out", tmp_path / "out")
    assert [row["key"] for row in results(tmp_path / "out").rows] == ["x/a.jpg"]


def test_rows_can_be_printed_in_the_order_of_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    names = [f'{number:03},"\n.jpg' for number in range(70)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(encoded(blobs(number, (40, 30)), "JPEG") if number % 9 else b"broken")
    rows = list(csv.DictReader(io.StringIO(scored(folder, "--csv").stdout)))
    assert [row["key"] for row in rows] == names
    assert rows[0]["error"] == "unsupported_format"
    printed = [json.loads(line) for line in scored(folder, "--json").stdout.splitlines()]
    assert [row["key"] for row in printed] == names
    assert float(rows[1]["cats"]) == printed[1]["cats"]


def test_the_evidence_can_be_kept(pictures: Path, tmp_path: Path) -> None:
    scored(pictures, "--out", tmp_path / "out", "--explain")
    by_key = {row["key"]: row["evidence"] for row in results(tmp_path / "out").rows}
    assert [len(line) for line in by_key["a.jpg"]] == [7] * 7
    assert by_key["notes.txt"] is None
    printed = [json.loads(line) for line in scored(pictures, "--json", "--explain").stdout.splitlines()]
    assert {row["key"]: row["evidence"] for row in printed} == by_key
    # Rows with evidence and rows without are two results.
    scored(pictures, "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*/_summary.json"))) == 2


def test_what_cannot_be_done_is_said_in_a_line(pictures: Path, tmp_path: Path) -> None:
    assert "give one of --out, --csv and --json" in refused(pictures)
    assert "no such file or folder" in refused(tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "its files would be scored as well" in refused(pictures, "--out", pictures / "out")
    assert "not a model" in refused(pictures, "--out", tmp_path / "out", "--model", pictures / "a.jpg")
    (tmp_path / "empty").mkdir()
    assert "no pictures" in refused(tmp_path / "empty", "--out", tmp_path / "out")


def test_an_address_of_an_unknown_store_is_refused_with_those_there_are(pictures: Path, tmp_path: Path) -> None:
    assert "results go to a folder or to s3://, gs://, az://" in refused(pictures, "--out", "ftp://host/scores")
    assert "stores are s3://, gs://, az://" in refused("ftp://host/photos", "--out", tmp_path / "scores")


def test_a_secret_in_an_address_is_not_said(pictures: Path, tmp_path: Path) -> None:
    address = "https://ann:s3cret@127.0.0.1:9/x?token=s3cret"
    unknown = address.replace("https", "other")
    for said in (refused(unknown, "--out", tmp_path / "out"), refused(pictures, "--out", address)):
        assert "://***@127.0.0.1:9/x?***: " in said
        assert "s3cret" not in said


def test_other_limits_are_another_job(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CATSDOGS_MAX_BODY_BYTES", "100")
    scored(pictures, "--out", tmp_path / "out")
    monkeypatch.delenv("CATSDOGS_MAX_BODY_BYTES")
    assert "body_too_large" not in scored(pictures, "--out", tmp_path / "out").stdout


def test_lists_that_name_the_same_files_in_two_folders_are_two_jobs(pictures: Path, tmp_path: Path) -> None:
    for name, other in (("first", "a.jpg"), ("second", "b.png")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes((pictures / other).read_bytes())
        (tmp_path / name / "list.csv").write_text("path\nx.jpg\n")
        scored(tmp_path / name / "list.csv", "--out", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*/*.parquet"))) == 2


def test_a_job_s_folder_may_have_other_tables(pictures: Path, tmp_path: Path) -> None:
    first = scored(pictures, "--out", tmp_path / "out")
    (folder,) = (path for path in (tmp_path / "out").iterdir() if path.is_dir())
    (folder / "part-0.parquet").write_bytes(b"mine")
    assert scored(pictures, "--out", tmp_path / "out").stdout == first.stdout
    (folder / "_summary.json").unlink()
    assert scored(pictures, "--out", tmp_path / "out").stdout.splitlines()[1:] == first.stdout.splitlines()[1:]


@pytest.mark.parametrize("form", [("--csv",), ("--out", "out")])
def test_nothing_to_score_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no pictures" in refused("empty", *form)
    assert "is empty" in refused("", *form)
