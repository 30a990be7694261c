"""Samples in moto's S3, where the extra `samples` is installed."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from serving import cli
from serving.settings import Settings
from serving.telemetry.samples import Samples
from shared import stores
from shared.pixels import pixels
from shared.samples import SUFFIX, TOMBSTONE
from tests.conftest import ROOT
from tests.serving.conftest import Start
from tests.serving.telemetry.test_samples import nothing_to_decode, written
from tests.waiting import until

pytest.importorskip("obstore")
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

CAT = (ROOT / "tests/cat.jpg").read_bytes()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an S3 that has a bucket ``pictures``; the environment names it, as for every tool of S3."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "not-a-secret",
        "AWS_SECRET_ACCESS_KEY": "not-a-secret",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()  # all servers of a process share what they keep
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="pictures")
    yield client
    client.close()
    server.stop()


def test_samples_may_lie_in_a_bucket(s3: Any, start: Start) -> None:
    server = start(samples="s3://pictures/some/samples", sample="random:1")
    ids = [server.predict(CAT).json()["id"] for _ in range(3)]
    written(server, 3)

    def names() -> set[str]:
        return {found["Key"] for found in s3.list_objects_v2(Bucket="pictures")["Contents"]}

    assert names() == {f"some/samples/{id_}{SUFFIX}" for id_ in ids}
    file = s3.get_object(Bucket="pictures", Key=f"some/samples/{ids[0]}{SUFFIX}")["Body"].read()
    assert (pixels(file) == pixels(CAT)).all()
    store, name = stores.opened("s3://pictures/some/samples"), ids[0] + SUFFIX
    assert (store.get(name), store.get(name, 100), store.get(name, 10**6)) == (file, file[:100], file)
    with pytest.raises(FileNotFoundError):
        store.get("nobodys")
    for said in ("deleted", "there was no sample"):
        done = CliRunner().invoke(cli.forget, ["--samples", "s3://pictures/some/samples", ids[0]])
        assert f"{ids[0]}  {said}" in done.output
    again = Samples(Settings(samples="s3://pictures/some/samples", samples_count=1), nothing_to_decode)
    again.start()
    until(lambda: again.stored == 1)
    again.close()
    assert names() == {f"some/samples/{ids[0]}{TOMBSTONE}", f"some/samples/{max(ids[1:])}{SUFFIX}"}


def test_a_bucket_that_is_not_there_is_said_and_keeps_nobody_from_an_answer(s3: Any, start: Start) -> None:
    server = start(samples="s3://nobodys/samples", sample="random:1")
    assert server.predict(CAT).status_code == 200
    until(lambda: server.metric("catsdogs_samples_failing") == 1)
    done = CliRunner().invoke(cli.forget, ["--samples", "s3://nobodys/samples", "0" * 54])
    assert done.exit_code == 1
    assert re.search("Error: s3://nobodys/samples: .", done.output)
