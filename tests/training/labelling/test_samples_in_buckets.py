"""Samples to label in moto's S3."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.samples import SUFFIX, TOMBSTONE
from tests.serving.telemetry.test_samples_in_buckets import s3  # noqa: F401  # a fixture
from training.decisions import Decision, append
from training.gather import gather
from training.labelling.samples import Samples
from training.params import Gather
from training.stage import StageError


def test_samples_in_a_bucket_are_labelled_as_those_in_a_folder(s3: Any, folder: Path) -> None:  # noqa: F811
    for path in folder.iterdir():
        s3.put_object(Bucket="pictures", Key=f"some/{path.name}", Body=path.read_bytes())
        s3.put_object(Bucket="pictures", Key=f"some/deeper/{path.name}", Body=path.read_bytes())
    s3.put_object(Bucket="pictures", Key=f"some/b1-unsure{TOMBSTONE}", Body=b"")
    s3.put_object(Bucket="pictures", Key="some/empty.png", Body=b"")
    there, here = Samples("s3://pictures/some"), Samples(str(folder))
    assert there.listed() == {id_: sample for id_, sample in here.listed().items() if id_ != "b1-unsure"}
    assert there.picture("d2-unsure") == (folder / f"d2-unsure{SUFFIX}").read_bytes()
    assert there.sample("d2-unsure") == here.sample("d2-unsure")
    assert (there.picture("b1-unsure"), there.sample("b1-unsure"), there.picture("x")) == (None, None, None)


def test_samples_in_a_bucket_are_gathered_as_those_in_a_folder(s3: Any, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    labels = tmp_path / "labels.csv"
    at = datetime(2026, 11, 30, tzinfo=UTC)
    append(labels, [Decision(id_, "cats", "label", "Ada", at, "m") for id_ in ("b1-unsure", "d2-unsure", "empty", "x")])
    for path in folder.iterdir():
        s3.put_object(Bucket="pictures", Key=f"some/{path.name}", Body=path.read_bytes())
    s3.put_object(Bucket="pictures", Key="some/empty.png", Body=b"")
    found = [
        gather(Gather(samples, str(labels)), tmp_path / name, tmp_path / f"{name}.csv")
        for samples, name in (("s3://pictures/some", "there"), (str(folder), "here"))
    ]
    assert found[0].table() == found[1].table()
    assert [row.id for row in found[0].rows] == ["b1-unsure", "d2-unsure"]
    assert (found[0].left_out["broken"], found[0].left_out["missing"]) == (1, 1)
    for wrong in ("s3://nobodys/samples", "s3://pictures/smaples"):
        with pytest.raises(StageError, match=wrong):
            gather(Gather(wrong, str(labels)), tmp_path / "there", tmp_path / "wrong.csv")
    assert len(list((tmp_path / "there").rglob("*.png"))) == 2


def test_a_bucket_that_is_not_there_is_an_error(s3: Any) -> None:  # noqa: F811
    with pytest.raises(OSError):
        Samples("s3://nobodys/samples").listed()
