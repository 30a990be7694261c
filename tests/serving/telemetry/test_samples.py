"""Samples: what a service keeps to be learned from, for how long, and how it is forgotten."""

import asyncio
import contextlib
import os
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from PIL import Image

from serving import cli
from serving.engine.wire import PLAIN, Body, Flags
from serving.errors import ProblemError
from serving.ids import PredictionIds
from serving.settings import Settings
from serving.telemetry import samples
from serving.telemetry.samples import MAX_HELD, MAX_UNWRITTEN, Samples, Seen
from shared import stores
from shared.pixels import pixels
from shared.samples import KEYWORD, PIXEL_BYTES, SUFFIX, TOMBSTONE, Sample
from tests.conftest import ROOT, blobs, encoded
from tests.serving.conftest import Running, Start
from tests.shared.test_journal import prediction
from tests.waiting import until

CAT = (ROOT / "tests/cat.jpg").read_bytes()
IDS = PredictionIds("")
OTHER = {"cats": "dogs", "dogs": "cats"}
SEEN = Seen(bytes(PIXEL_BYTES))
Begin = Callable[..., Samples]


async def nothing_to_decode(data: Body, flags: Flags) -> bytes:
    pytest.fail(f"{len(data)} bytes, {flags!r}")


def kept(folder: Path) -> dict[str, Sample]:
    """What is known of each sample, by its id."""
    found = {}
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError), Image.open(path) as image:  # deleted meanwhile
            image.verify()
            found[path.stem] = msgspec.json.decode(image.info[KEYWORD], type=Sample)
    return found


def written(server: Running, count: int) -> None:
    until(lambda: server.metric("catsdogs_samples_written_total") >= count)


def unsure(server: Running) -> tuple[bytes, dict[str, Any]]:
    """A picture that the model is unsure of, and its answer."""
    for seed in range(100):
        data = encoded(blobs(seed), "PNG")
        if (answer := server.predict(data).json())["verdict"] == "unsure":
            return data, answer
    pytest.fail("the model is sure of a hundred pictures of nothing")


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Start what keeps samples; it is closed afterwards."""
    begun: list[Samples] = []

    def start(**settings: object) -> Samples:
        begun.append(Samples(Settings(samples=str(tmp_path), **settings), nothing_to_decode))  # type: ignore[arg-type]
        begun[-1].start()
        return begun[-1]

    yield start
    for each in begun:
        each.close()


def test_every_unsure_or_disputed_one_of_a_stream_is_kept_as_the_network_saw_it(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path), sample="unsure,disputed")
    large = [encoded(blobs(seed, (400, 300)), "BMP") for seed in range(6)]
    assert len(CAT) < PIXEL_BYTES < len(large[0])
    pictures = [CAT, *(encoded(blobs(seed), "JPEG") for seed in range(40)), *large, CAT, CAT]
    expected: dict[str, set[str]] = {}
    sent: dict[str, bytes] = {}

    def told(data: bytes, answer: dict[str, Any], dispute: bool) -> None:
        sent[answer["id"]] = data
        why = {"unsure"} if answer["verdict"] == "unsure" else set()
        if dispute:
            label = OTHER[answer["predicted_label"]]
            assert server.http.post("/feedback", json={"id": answer["id"], "label": label}).status_code == 200
            why |= {"disputed"}
        if why:
            expected[answer["id"]] = why

    for number, data in enumerate(pictures):
        told(data, server.predict(data).json(), dispute=number % 3 == 0)
    images = [{"data": b64encode(data).decode(), "id": "secret.jpg"} for data in pictures]
    results = server.http.post("/predict/batch", json={"images": images}).json()["results"]
    for number, (data, answer) in enumerate(zip(pictures, results, strict=True)):
        told(data, answer, dispute=number % 3 == 1)

    assert {"unsure"} in expected.values()
    assert {"disputed"} in expected.values()
    until(lambda: {id_: set(sample.why) for id_, sample in kept(tmp_path).items()} == expected)
    for id_, sample in kept(tmp_path).items():
        file = (tmp_path / f"{id_}{SUFFIX}").read_bytes()
        assert (pixels(file) == pixels(sent[id_])).all()
        assert b"secret" not in file
        assert sample.prediction.id == id_
        if "disputed" in sample.why:
            assert sample.feedback == OTHER[sample.prediction.label]
    assert server.metric("catsdogs_samples_dropped_total") == 0
    assert server.metric("catsdogs_samples_stored") == len(expected)
    assert server.metric("catsdogs_samples_stored_bytes") == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_of_what_is_sure_and_undisputed_a_random_share_is_kept(start: Start, tmp_path: Path) -> None:
    everything, nothing = (start(samples=str(tmp_path / name), sample=f"random:{name}") for name in ("1", "0.0"))
    ids = [[server.predict(CAT).json()["id"] for _ in range(3)] for server in (everything, nothing)]
    for id_ in (*ids[0], *ids[1]):
        everything.http.post("/feedback", json={"id": id_, "label": "dogs"})
    written(everything, 3)
    assert {id_: sample.why for id_, sample in kept(tmp_path / "1").items()} == dict.fromkeys(ids[0], ("random",))
    assert kept(tmp_path / "0.0") == {}


def test_feedback_that_agrees_is_added_to_what_is_kept_and_keeps_nothing_else(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path), sample="unsure,disputed")
    _, answer = unsure(server)
    sure = server.predict(CAT).json()
    for each in (answer, sure):
        server.http.post("/feedback", json={"id": each["id"], "label": each["predicted_label"]})
    until(lambda: (found := kept(tmp_path).get(answer["id"])) and found.feedback == answer["predicted_label"])
    assert kept(tmp_path)[answer["id"]].why == ("unsure",)
    assert sure["id"] not in kept(tmp_path)


def test_feedback_on_what_waits_to_be_written_takes_no_place_of_its_own(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = begin(sample="unsure,disputed")
    writing, disk, put = threading.Event(), threading.Event(), stores.Folder.put

    def slow(*of: Any) -> None:
        writing.set()
        disk.wait()
        put(*of)

    monkeypatch.setattr(stores.Folder, "put", slow)
    first, *ids = ids_of(*[0] * (MAX_UNWRITTEN + 1))
    started.predicted(prediction(first, verdict="unsure"), SEEN)
    writing.wait()
    for id_ in ids:
        started.predicted(prediction(id_, verdict="unsure"), SEEN)
    for id_ in ids:
        started.told(id_, "dogs")
    disk.set()
    until(lambda: started.written == len(ids) + 1)
    assert started.dropped == 0
    assert {id_ for id_, sample in kept(tmp_path).items() if sample.feedback == "dogs"} == set(ids)


async def test_a_file_that_is_disputed_is_decoded_once_with_all_that_was_said_of_it(tmp_path: Path) -> None:
    asked: list[tuple[Body, Flags]] = []
    decoded = asyncio.Event()

    async def decode(data: Body, flags: Flags) -> bytes:
        asked.append((data, flags))
        await decoded.wait()
        return bytes(SEEN.data)

    store = Samples(Settings(samples=str(tmp_path), sample="disputed,disagreed"), decode)
    (id_,) = ids_of(0)
    store.predicted(prediction(id_), Seen(CAT, PLAIN))
    store.told(id_, "dogs")
    await asyncio.sleep(0)
    store.disagreed(id_)
    store.told(id_, "neither")
    decoded.set()
    await asyncio.sleep(0.01)
    store.told(id_, "both")
    await asyncio.sleep(0.01)
    store.start()
    store.close()
    assert asked == [(CAT, PLAIN)]
    assert kept(tmp_path)[id_] == Sample(why=("disputed", "disagreed"), prediction=prediction(id_), feedback="both")


async def test_a_file_that_no_lane_decodes_is_dropped_and_counted_and_the_next_is_decoded(tmp_path: Path) -> None:
    async def decode(data: Body, flags: Flags) -> bytes:
        if data == b"crash":
            raise ProblemError("not_ready", "the worker crashed on this request; retry")
        return bytes(SEEN.data)

    store = Samples(Settings(samples=str(tmp_path), sample="disputed"), decode)
    store.start()
    first, second = ids_of(0, 0)
    for id_, data in ((first, b"crash"), (second, CAT)):
        store.predicted(prediction(id_), Seen(data, PLAIN))
        store.told(id_, "dogs")
    await store.decode_rest(60)
    assert store.dropped == 1
    assert store.close() == 0
    assert list(kept(tmp_path)) == [second]


async def test_files_are_decoded_one_at_a_time_and_what_is_too_much_may_be_told_again(tmp_path: Path) -> None:
    at_once = []
    lane = asyncio.Semaphore(0)

    async def decode(data: Body, flags: Flags) -> bytes:
        at_once.append(data)
        await lane.acquire()
        at_once.remove(data)
        return bytes(SEEN.data)

    store = Samples(Settings(samples=str(tmp_path), sample="disputed"), decode)
    ids = ids_of(*[0] * (MAX_UNWRITTEN + 1))
    for number, id_ in enumerate(ids):
        store.predicted(prediction(id_), Seen(b"%d" % number, PLAIN))
        store.told(id_, "dogs")
        await asyncio.sleep(0)
    assert at_once == [b"0"]
    assert store.dropped == 1
    for id_ in ids_of(*[0] * MAX_HELD):  # those before are no longer held for feedback
        store.predicted(prediction(id_), Seen(b"", PLAIN))
    store.predicted(prediction(ids[-1]), Seen(b"", PLAIN))
    store.start()
    lane.release()
    while not store.written:  # noqa: ASYNC110 - a thread writes
        await asyncio.sleep(0.01)
    store.told(ids[-1], "dogs")
    for _ in ids:
        lane.release()
    await store.decode_rest(60)
    assert store.close() == 0
    assert set(kept(tmp_path)) == set(ids)
    assert store.dropped == 1


async def test_what_no_lane_decodes_before_the_service_ends_is_counted(tmp_path: Path) -> None:
    async def decode(data: Body, flags: Flags) -> bytes:
        await asyncio.Event().wait()
        pytest.fail("nobody sets it")

    store = Samples(Settings(samples=str(tmp_path), sample="disputed"), decode)
    store.start()
    (id_,) = ids_of(0)
    store.predicted(prediction(id_), Seen(CAT, PLAIN))
    store.told(id_, "dogs")
    await store.decode_rest(0.01)
    assert store.close() == 1
    assert store.dropped == 1


def test_much_feedback_at_once_takes_no_place_of_clients_and_all_of_it_is_kept(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path), sample="disputed", max_queue=2)
    answers = [server.predict(CAT).json() for _ in range(60)]
    for answer in answers:
        said = server.http.post("/feedback", json={"id": answer["id"], "label": OTHER[answer["predicted_label"]]})
        assert said.status_code == 200
        assert server.service.engine.depth <= 1
    assert server.predict(CAT).status_code == 200
    written(server, len(answers))
    assert server.metric("catsdogs_samples_dropped_total") == 0


def test_feedback_that_arrives_while_the_service_drains_keeps_its_picture(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path), sample="disputed")
    ids = [server.predict(CAT).json()["id"] for _ in range(20)]
    said = [msgspec.json.encode({"id": id_, "label": "dogs"}) for id_ in ids]
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in ids]
        for client, body in zip(clients, said, strict=True):
            client.sendall(b"POST /feedback HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:9])
        until(lambda: server.service.budget.granted >= sum(map(len, said)))  # the last one has begun
        server.service.drain()
        for client, body in zip(clients, said, strict=True):
            client.sendall(body[9:])
        for client in clients:
            assert client.recv(12) == b"HTTP/1.1 200"
    until(lambda: set(kept(tmp_path)) == set(ids))


def test_a_picture_waits_for_its_feedback_a_while_and_no_longer(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = begin(sample="disputed")
    ids = ids_of(*[0] * (MAX_HELD + 1))
    for id_ in ids:
        started.predicted(prediction(id_), SEEN)
    started.told(ids[0], "dogs")  # one too many has come since
    started.told(ids[1], "dogs")
    monkeypatch.setattr(samples, "HELD_SECONDS", -1.0)
    started.tidy()
    started.told(ids[2], "dogs")
    started.close()
    assert list(kept(tmp_path)) == [ids[1]]


def ids_of(*ages: float) -> list[str]:
    """Ids of predictions of these ages, in days."""
    with pytest.MonkeyPatch.context() as patch:
        now = time.time()
        made = []
        for age in ages:
            patch.setattr("time.time", lambda age=age: now - 86_400 * age)
            made.append(IDS.new("cats", "unsure", "m"))
    return made


def test_the_caps_hold_at_every_moment_and_the_oldest_go_first(
    begin: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts, put = [], stores.Folder.put

    def count(self: stores.Folder, name: str, data: bytes) -> None:
        put(self, name, data)
        counts.append(len(list(tmp_path.glob(f"*{SUFFIX}"))))

    monkeypatch.setattr(stores.Folder, "put", count)
    (tmp_path / "mine.txt").write_text("not a sample")
    ids = ids_of(*(5 - number / 100 for number in range(60)))
    by_number = begin(sample="unsure", samples_count=7)
    for id_ in ids:
        by_number.predicted(prediction(id_, verdict="unsure"), SEEN)
    until(lambda: by_number.written == 60)
    until(lambda: by_number.stored == 7)
    assert sorted(kept(tmp_path)) == sorted(ids[-7:])
    assert max(counts) == 7
    by_number.close()

    size = (tmp_path / f"{ids[-1]}{SUFFIX}").stat().st_size
    by_bytes = begin(sample="unsure", samples_bytes=3 * size + 10)  # it finds those of the one before
    until(lambda: sorted(kept(tmp_path)) == sorted(ids[-3:]))
    assert by_bytes.stored_bytes == 3 * size
    by_bytes.close()

    (new,) = ids_of(0)
    by_age = begin(sample="unsure", samples_days=4.0)
    by_age.predicted(prediction(new, verdict="unsure"), SEEN)
    until(lambda: list(kept(tmp_path)) == [new])
    assert (tmp_path / "mine.txt").exists()


def test_what_another_replica_wrote_counts_too(begin: Begin, tmp_path: Path) -> None:
    first, second = begin(sample="unsure", samples_count=4), begin(sample="unsure", samples_count=4)
    ids = ids_of(*range(8, 0, -1))
    for started, some in ((first, ids[:4]), (second, ids[4:])):
        for id_ in some:
            started.predicted(prediction(id_, verdict="unsure"), SEEN)
        until(lambda started=started: started.written == 4)  # type: ignore[misc]
    second.tidy()
    until(lambda: sorted(kept(tmp_path)) == sorted(ids[4:]))


def test_what_another_replica_wrote_counts_also_where_something_always_waits(begin: Begin, tmp_path: Path) -> None:
    first, second = begin(sample="unsure"), begin(sample="unsure", samples_count=4)
    ids = ids_of(*range(8, 0, -1))
    for id_ in ids[:7]:
        first.predicted(prediction(id_, verdict="unsure"), SEEN)
    until(lambda: first.written == 7)
    second._look = True  # as `tidy` does, which finds an empty group here
    second.predicted(prediction(ids[7], verdict="unsure"), SEEN)
    until(lambda: sorted(kept(tmp_path)) == sorted(ids[4:]))


def test_when_too_many_wait_samples_are_dropped_and_counted_and_every_picture_answered(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "samples").write_text("a file where the folder should be")
    server = start(samples=str(tmp_path / "samples"), sample="random:1")
    images = [{"data": b64encode(encoded(blobs(1, (32, 32)), "PNG")).decode()}] * 64
    for _ in range(3):
        results = server.http.post("/predict/batch", json={"images": images}).json()["results"]
        assert all("id" in result for result in results)
    until(lambda: server.metric("catsdogs_samples_failing") == 1)
    assert server.metric("catsdogs_samples_dropped_total") > 0
    (tmp_path / "samples").unlink()
    until(lambda: server.metric("catsdogs_samples_failing") == 0)
    assert kept(tmp_path / "samples")


def test_the_event_loop_does_not_wait_for_a_store_that_hangs(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    put = stores.Folder.put

    def hang(self: stores.Folder, name: str, data: bytes) -> None:
        answers.wait()
        put(self, name, data)

    monkeypatch.setattr(stores.Folder, "put", hang)
    server = start(samples=str(tmp_path), sample="random:1")
    assert [server.predict(CAT).status_code for _ in range(3)] == [200] * 3
    assert kept(tmp_path) == {}
    answers.set()
    written(server, 3)


def test_nothing_is_kept_where_it_is_not_asked_for(server: Running) -> None:
    page = server.http.get("/metrics").text
    assert "\ncatsdogs_samples_stored " not in page
    assert "and not kept." in server.http.get("/").text


def test_the_page_says_that_photos_may_be_kept(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path))
    page = server.http.get("/")
    assert "some are kept to train later models" in page.text
    assert "not kept" not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert "script-src 'self'" in page.headers["content-security-policy"]


def test_forgetting_deletes_a_sample_and_keeps_it_from_coming_back(start: Start, tmp_path: Path) -> None:
    server = start(samples=str(tmp_path), sample="unsure,disputed")
    _, answer = unsure(server)
    other = server.predict(CAT).json()
    written(server, 1)
    done = CliRunner().invoke(cli.forget, ["--samples", str(tmp_path), answer["id"], other["id"]])
    assert done.exit_code == 0, done.output
    assert f"{answer['id']}  deleted" in done.output
    assert f"{other['id']}  there was no sample" in done.output
    assert "DVC's cache" in done.output
    for each in (answer, other):  # both are in memory still, and disputed
        server.http.post("/feedback", json={"id": each["id"], "label": OTHER[each["predicted_label"]]})
    last = server.predict(CAT).json()
    server.http.post("/feedback", json={"id": last["id"], "label": OTHER[last["predicted_label"]]})
    until(lambda: last["id"] in kept(tmp_path))
    assert {path.name for path in tmp_path.iterdir() if path.stem in (answer["id"], other["id"])} == {
        answer["id"] + TOMBSTONE,
        other["id"] + TOMBSTONE,
    }


@pytest.mark.parametrize("id_", ["", "../../etc/passwd", "0" * 53, "G" * 54])
def test_what_is_no_id_is_not_forgotten(tmp_path: Path, id_: str) -> None:
    done = CliRunner().invoke(cli.forget, ["--samples", str(tmp_path), id_])
    assert done.exit_code == 2
    assert "not the id of a prediction" in done.output
    assert list(tmp_path.iterdir()) == []


def test_forgetting_in_a_folder_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.forget, ["--samples", str(tmp_path / "smaples"), "0" * 54])
    assert (done.exit_code, "no such folder" in done.output, list(tmp_path.iterdir())) == (2, True, [])


def test_forgetting_needs_to_know_where_samples_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CATSDOGS_SAMPLES", raising=False)
    assert "CATSDOGS_SAMPLES" in CliRunner().invoke(cli.forget, ["0" * 54]).output


def test_half_a_file_that_a_killed_process_left_is_no_sample_and_goes(begin: Begin, tmp_path: Path) -> None:
    old, young = tmp_path / f".old{stores.PART}", tmp_path / f".young{stores.PART}"
    for part in (old, young):
        part.write_bytes(b"half")
    os.utime(old, (0, 0))
    begin(sample="unsure")
    until(lambda: not old.exists())
    assert young.exists(), "another replica may be writing it"
