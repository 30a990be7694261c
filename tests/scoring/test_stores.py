"""Buckets: moto's S3 for the protocol, and a store of our own for what others do on bad days."""

import http.server
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from scoring import sources, stores
from scoring.errors import ScoreError
from scoring.sources import UnreadableError
from scoring.stores import Bucket
from tests.scoring.conftest import refused, scored

# With its body, what a request is answered: method, path, how many came before it.
Answers = Callable[[str, str, int], int]
MISSING = b"<Error><Code>NoSuchKey</Code></Error>"


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Name an S3 in the environment, as for every tool of S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "not-a-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    stores.bucket.cache_clear()


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of moto's S3, which has a bucket ``bucket``."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    use(monkeypatch, endpoint)
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()  # all servers of a process share what they keep
    client = boto3.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="bucket")
    yield client
    client.close()
    server.stop()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Answers], Bucket]]:
    """A bucket whose store answers as it is told, without a body; HEAD and GET of what is missing with 404."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def start(answers: Answers) -> Bucket:
        lock, counts = threading.Lock(), {"PUT": 0, "HEAD": 0, "GET": 0, "POST": 0}

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock:
                    before = counts[self.command]
                    counts[self.command] += 1
                status = answers(self.command, self.path, before)
                body = MISSING
                self.send_response(status)
                self.send_header("ETag", '"1"')
                self.send_header("Last-Modified", "Sun, 29 Nov 2026 00:00:00 GMT")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_PUT = do_HEAD = do_GET = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever).start()
        use(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        return Bucket("s3://bucket")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def objects(s3: Any) -> dict[str, str]:
    return {found["Key"]: str(found["LastModified"]) for found in s3.list_objects_v2(Bucket="bucket")["Contents"]}


def put(s3: Any, folder: Path) -> None:
    for path in folder.rglob("*.*"):
        s3.put_object(Bucket="bucket", Key=f"photos/{path.relative_to(folder)}", Body=path.read_bytes())


def test_a_bucket_is_scored_into_a_bucket_and_a_second_run_writes_nothing(s3: Any, pictures: Path) -> None:
    put(s3, pictures)
    s3.put_object(Bucket="bucket", Key="photos/more/", Body=b"")  # as consoles do
    run = ("s3://bucket/photos", "--out", "s3://bucket/scores")
    first = scored(*run)
    before = objects(s3)
    (name,) = [name for name in before if name.endswith("_summary.json")]
    summary = msgspec.json.decode(s3.get_object(Bucket="bucket", Key=name)["Body"].read())
    assert (summary["pictures"], summary["errors"]) == (4, {"unsupported_format": 1})
    assert len([name for name in before if name.startswith("scores/") and name.endswith(".parquet")]) == 2
    assert scored(*run).stdout == first.stdout
    assert objects(s3) == before
    listed = next(name for name in before if name.startswith("scores/manifest-"))
    assert scored(f"s3://bucket/{listed}", "--out", "s3://bucket/scores").stdout == first.stdout
    assert objects(s3) == before


def test_a_table_may_name_objects(s3: Any, pictures: Path, tmp_path: Path) -> None:
    put(s3, pictures)
    addresses = ["s3://bucket/photos/a.jpg", "s3://bucket/photos/gone.jpg", str(pictures / "b.png")]
    (tmp_path / "addresses.csv").write_text("\n".join(["address", *addresses]))
    printed = [msgspec.json.decode(line) for line in scored(tmp_path / "addresses.csv", "--json").stdout.splitlines()]
    assert [(row["key"], row["error"]) for row in printed] == [
        (addresses[0], None), (addresses[1], "unreadable"), (addresses[2], None),
    ]  # fmt: skip


def test_results_do_not_go_where_the_pictures_are(s3: Any) -> None:
    assert "its files would be scored as well" in refused("s3://bucket", "--out", "s3://bucket/scores")


def test_of_those_who_create_an_object_at_a_time_the_first_succeeds(s3: Any) -> None:
    bucket = Bucket("s3://bucket/scores")
    assert bucket.keeps_the_first()
    assert bucket.create("a", b"1")
    assert not bucket.create("a", b"2")
    assert bucket.get("a") == b"1"
    assert list(objects(s3)) == ["scores/a"], "the probe is left"


def test_a_store_that_lets_all_of_them_succeed_is_told(store: Callable[[Answers], Bucket]) -> None:
    assert not store(lambda *_: 200).keeps_the_first()


def test_what_a_store_refuses_for_the_moment_is_put_again(store: Callable[[Answers], Bucket]) -> None:
    # S3 answers 409 where another request for the key is under way, which may yet fail.
    statuses = [503, 409, 500, 200]
    bucket = store(lambda method, _, before: statuses[before] if method == "PUT" else 404)
    assert bucket.create("a", b"1")


def test_a_store_that_is_down_for_a_while_ends_no_run(
    store: Callable[[Answers], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = timedelta(milliseconds=1)
    monkeypatch.setitem(stores.RETRY, "backoff", {"init_backoff": soon, "max_backoff": soon, "base": 2})
    bucket = store(lambda method, _, before: 200 if method != "PUT" or before == 50 else 503)
    assert bucket.create("a", b"1")


@pytest.mark.parametrize("status", [409, 412])
def test_an_object_that_is_there_is_not_put_again(store: Callable[[Answers], Bucket], status: int) -> None:
    bucket = store(lambda method, *_: status if method == "PUT" else 200)
    assert not bucket.create("a", b"1")


def test_an_object_that_is_refused_as_existing_and_does_not_exist_is_no_success(
    store: Callable[[Answers], Bucket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "CONFLICT_SECONDS", (0,))
    bucket = store(lambda method, *_: 409 if method == "PUT" else 404)
    with pytest.raises(ScoreError, match="refused as existing"):
        bucket.create("a", b"1")


def test_a_store_that_forbids_ends_the_run(store: Callable[[Answers], Bucket], tmp_path: Path) -> None:
    store(lambda *_: 403)
    assert "s3://bucket" in refused("s3://bucket/photos", "--out", tmp_path / "out")


@pytest.fixture
def web() -> Iterator[tuple[str, dict[str, list[Any]]]]:
    """A web server's address, and what it answers to each path, one after the other: a status, or a file."""
    answers: dict[str, list[Any]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            left = answers.get(self.path, [404])
            answer = left.pop(0) if len(left) > 1 else left[0]
            body = answer if isinstance(answer, bytes) else b""
            self.send_response(answer if isinstance(answer, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", answers
        server.shutdown()


def test_a_table_on_the_web_names_files_there(
    web: tuple[str, dict[str, list[Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "WEB_PAUSES", (0, 0))
    address, answers = web
    rows = ["path", "a.jpg", "my%20photo.jpg", "löwe.jpg", f"{address}/x?sig=1/2", "later", "forbidden", "down", "/etc"]
    answers |= {
        "/list/of.csv?version=1/2": ["\n".join(rows).encode()],
        "/list/a.jpg": [b"1"],
        "/list/my%20photo.jpg": [b"2"],
        "/list/l%C3%B6we.jpg": [b"3"],
        "/x?sig=1/2": [b"4"],
        "/list/later": [503, 429, b"5"],
        "/list/forbidden": [403],
        "/list/down": [500],
    }
    source = sources.opened(f"{address}/list/of.csv?version=1/2")
    keys = [entry.key for entry in source.entries()]
    assert keys == rows[1:]
    assert [source.read(key, 1000) for key in keys[:5]] == [b"1", b"2", b"3", b"4", b"5"]
    assert source.read("a.jpg", 0) is None
    for key in keys[5:]:
        with pytest.raises(UnreadableError):
            source.read(key, 1000)
    with pytest.raises(ScoreError, match="404"):
        sources.opened(f"{address}/gone.csv")
    with pytest.raises(ScoreError, match="a source is a table"):
        sources.opened(f"{address}/photos")


@pytest.mark.parametrize("code", [b"AccessDenied", b"InvalidObjectState"])
def test_an_object_that_may_not_be_read_costs_its_row_and_credentials_that_expired_the_run(
    store: Callable[[Answers], Bucket], monkeypatch: pytest.MonkeyPatch, code: bytes
) -> None:
    bucket = store(lambda *_: 403)
    monkeypatch.setitem(globals(), "MISSING", b"<Error><Code>%b</Code></Error>" % code)
    with pytest.raises(PermissionError):
        bucket.get("a")
    monkeypatch.setitem(globals(), "MISSING", b"<Error><Code>ExpiredToken</Code></Error>")
    with pytest.raises(ScoreError):
        bucket.get("a")
    with pytest.raises(FileNotFoundError):
        bucket.get("a//b")


def test_an_address_is_split_into_store_and_key() -> None:
    assert stores.split("s3://bucket/a/b.jpg") == ("s3://bucket", "a/b.jpg")
    assert stores.split("az://account/container/a/b.jpg") == ("az://account/container", "a/b.jpg")
    assert stores.split("gs://bucket") == ("gs://bucket", "")
