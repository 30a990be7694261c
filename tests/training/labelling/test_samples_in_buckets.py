"""Samples to label in moto's S3."""

from pathlib import Path
from typing import Any

import pytest

from shared.samples import SUFFIX, TOMBSTONE
from tests.serving.telemetry.test_samples_in_buckets import s3  # noqa: F401  # a fixture
from training.labelling.samples import Samples


def test_samples_in_a_bucket_are_labelled_as_those_in_a_folder(s3: Any, folder: Path) -> None:  # noqa: F811
    for path in folder.iterdir():
        s3.put_object(Bucket="pictures", Key=f"some/{path.name}", Body=path.read_bytes())
        s3.put_object(Bucket="pictures", Key=f"some/deeper/{path.name}", Body=path.read_bytes())
    s3.put_object(Bucket="pictures", Key=f"some/b1-unsure{TOMBSTONE}", Body=b"")
    there, here = Samples("s3://pictures/some"), Samples(str(folder))
    assert there.listed() == {id_: sample for id_, sample in here.listed().items() if id_ != "b1-unsure"}
    assert there.picture("d2-unsure") == (folder / f"d2-unsure{SUFFIX}").read_bytes()
    assert there.sample("d2-unsure") == here.sample("d2-unsure")
    assert (there.picture("b1-unsure"), there.sample("b1-unsure"), there.picture("x")) == (None, None, None)


def test_a_bucket_that_is_not_there_is_an_error(s3: Any) -> None:  # noqa: F811
    with pytest.raises(OSError):
        Samples("s3://nobodys/samples").listed()
