"""Labelled photos through a real service, and what it knows afterwards."""

import csv
import hashlib
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from ops import collect as collecting
from ops import served
from ops.cli import collect as command
from ops.collect import CollectError
from ops.served import ServedError
from serving.http import auth
from shared import journal
from shared.contract import Histogram, Reference
from shared.intervals import wilson
from tests.conftest import ROOT, draw_photos
from tests.serving.conftest import Start
from tests.waiting import until


def test_photos_are_found_at_any_depth_by_the_nearest_folder_s_name(tmp_path: Path) -> None:
    for name in ("Cat/1.jpg", "deep/er/dogs/2.jpg", "cats/of/my/DOG/3.jpg", "neither/4.jpg", "5.jpg", "Dog.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with ExitStack() as opened:
        found = {
            photo.name.removeprefix(f"{tmp_path}/"): photo.label for photo in collecting.find_photos(tmp_path, opened)
        }
        assert found == {"Cat/1.jpg": "cats", "deep/er/dogs/2.jpg": "dogs", "cats/of/my/DOG/3.jpg": "dogs"}
        assert [photo.label for photo in collecting.find_photos(tmp_path / "Cat", opened)] == ["cats"]


def test_a_zip_file_is_as_good_as_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("PetImages/Cat/1.jpg", b"one")
        archive.writestr("PetImages/Dog/1.jpg", b"two")
        archive.writestr("PetImages/readme.txt", b"three")
    with ExitStack() as opened:
        found = collecting.find_photos(tmp_path / "photos.zip", opened)
        assert [(photo.label, photo.read()) for photo in found] == [("cats", b"one"), ("dogs", b"two")]


def test_a_sample_has_cats_and_dogs_in_their_proportion_and_is_the_same_each_time(tmp_path: Path) -> None:
    for name, count in (("Cat", 30), ("Dog", 90)):
        (tmp_path / name).mkdir()
        for number in range(count):
            (tmp_path / name / f"{number}.jpg").write_bytes(b"x")
    with ExitStack() as opened:
        photos = collecting.find_photos(tmp_path, opened)
    some = collecting.sample(photos, 40)
    assert [photo.label for photo in some].count("cats") == 10
    assert len({photo.name for photo in some}) == 40
    assert some == collecting.sample(photos, 40)
    assert some != collecting.sample(photos, 40, seed=1)
    assert collecting.sample(photos, 1000) == photos


def test_every_photo_is_predicted_and_told_and_the_files_say_what_came_of_it(start: Start, tmp_path: Path) -> None:
    server = start(journal=str(tmp_path / "journal"))
    photos = draw_photos(tmp_path / "photos", 10)
    (photos / "PetImages" / "Cat" / "broken.jpg").write_bytes(b"no picture")
    url = f"http://127.0.0.1:{server.port}"
    for name in ("out.csv", "out.jsonl"):
        done = CliRunner().invoke(command, [str(photos), "--url", url, "--out", str(tmp_path / name)])
        assert done.exit_code == 0, done.output
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [json.loads(line)["sha256"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        row["sha256"] for row in rows
    ]
    assert len(rows) == 21
    (refused,) = [row for row in rows if row["refused"]]
    assert (refused["refused"], refused["predicted"]) == ("unsupported_format", "")
    assert refused["sha256"] == hashlib.sha256(b"no picture").hexdigest()
    right = wilson(sum(row["predicted"] == row["true"] for row in rows), 20)
    assert f"{right.value:.2%} ({right.low:.2%} to {right.high:.2%}) of 20 photos" in done.output
    assert "refused         1" in done.output
    answered = [row for row in rows if row["verdict"] in ("cats", "dogs")]
    assert server.metric("catsdogs_live_feedback") == len(answered)
    until(lambda: server.metric("catsdogs_journal_lines_total") == 80)
    assert len(list(journal.read(journal.gather([tmp_path / "journal"])))) == 80


def test_accuracy_below_what_was_asked_for_is_exit_1(start: Start, tmp_path: Path) -> None:
    server = start()
    cat = (ROOT / "tests/cat.jpg").read_bytes()
    for name in ("Cat", "Dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "chelsea.jpg").write_bytes(cat)
    url = f"http://127.0.0.1:{server.port}"
    for at_least, code in ((0.5, 0), (0.51, 1)):
        done = CliRunner().invoke(command, [str(tmp_path / "photos"), "--url", url, "--at-least", str(at_least)])
        assert done.exit_code == code
    assert "fewer than 51.00% of the 2 photos are right" in done.output


def test_what_is_refused_is_not_right_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collecting, "CONNECTIONS", 1)  # so that the stand-in's answers come in their order
    photos = draw_photos(tmp_path, 2)
    unknown = b'{"code": "unsupported_format"}'
    with fake((200, {}, ANSWER), (200, {}, b"{}"), (415, {}, unknown)) as (url, _):
        done = CliRunner().invoke(command, [str(photos), "--url", url, "--at-least", "0.3"])
    assert done.exit_code == 1
    assert "fewer than 30.00% of the 4 photos are right" in done.output


def test_a_candidate_that_refuses_nearly_all_is_below_its_test() -> None:
    right = collecting.CollectedPhoto(sha256="", true="cats", predicted="cats", verdict="cats")
    found = collecting.outcome([right] + [collecting.CollectedPhoto(sha256="", true="cats", refused="not_ready")] * 39)
    nothing = Histogram(edges=(0.0, 1.0), counts=(1,))
    reference = Reference(confidence=nothing, brightness=nothing, familiarity=nothing)
    model = served.Served(version="v", reference=reference, test=served.TestResult(wilson(995, 1000)))
    below = collecting.below_test(found, model)
    assert below is not None
    assert "39 refused" in below


def test_a_service_that_wants_a_key_is_given_it(start: Start, tmp_path: Path) -> None:
    key, digest = auth.make()
    server = start(api_keys=digest)
    photos = draw_photos(tmp_path / "photos", 1)
    url = f"http://127.0.0.1:{server.port}"
    assert CliRunner().invoke(command, [str(photos), "--url", url, "--key", key]).exit_code == 0
    assert CliRunner().invoke(command, [str(photos), "--url", url], env={"CATSDOGS_KEY": key}).exit_code == 0
    done = CliRunner().invoke(command, [str(photos), "--url", url])
    assert done.exit_code == 2
    assert "the service requires an API key" in done.output
    assert served.from_url(url, key).version == server.service.model.contract.version
    with pytest.raises(ServedError, match="status 401"):
        served.from_url(url, None)


def test_it_runs_as_a_module(start: Start, tmp_path: Path) -> None:
    server = start()
    photos = draw_photos(tmp_path / "photos", 3)
    done = subprocess.run(
        [sys.executable, "-m", "ops", "collect", photos, "--url", f"http://127.0.0.1:{server.port}", "--limit", "4"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 4 photos" in done.stdout


def test_what_cannot_be_done_is_one_line_and_exit_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.zip").write_bytes(b"no zip")
    draw_photos(tmp_path / "photos", 1)
    for source, words in (("missing", "neither"), ("no.zip", "neither"), ("empty", "no photos in folders named")):
        done = CliRunner().invoke(command, [str(tmp_path / source)])
        assert done.exit_code == 2
        assert words in done.output


@contextmanager
def fake(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[str]]]:
    """A stand-in for a service in trouble: gives these answers in turn, then the last for ever."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY = (503, {"Retry-After": "0"}, b'{"code": "overloaded"}')
ANSWER = json.dumps(
    {"id": "x", "predicted_label": "cats", "verdict": "cats", "probabilities": {"cats": 0.9, "dogs": 0.1}}
).encode()


async def test_a_busy_service_is_asked_again_when_it_says(tmp_path: Path) -> None:
    with ExitStack() as opened, fake(BUSY, BUSY, (200, {}, ANSWER), BUSY, (200, {}, b"{}")) as (url, asked):
        photos = collecting.find_photos(draw_photos(tmp_path, 1), opened)[:1]
        (row,) = await collecting.collect(photos, url, None)
        assert (row.predicted, row.probability) == ("cats", 0.9)
        assert asked == ["/predict"] * 3 + ["/feedback"] * 2


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"code": "foreign_origin", "detail": "pages of other origins may not"}', "pages of other origins may not"),
        (b"<h1>Blocked by\n the proxy</h1>", "<h1>Blocked by the proxy</h1>"),
        (b"", "without a reason"),
    ],
)
def test_what_is_forbidden_is_said_in_the_server_s_words(tmp_path: Path, body: bytes, said: str) -> None:
    photos = draw_photos(tmp_path, 1)
    with fake((403, {}, body)) as (url, _):
        done = CliRunner().invoke(command, [str(photos), "--url", url])
    assert done.exit_code == 2
    assert f"forbidden, {said}" in " ".join(done.output.split())
    assert "key" not in done.output


def test_feedback_that_is_not_taken_is_counted_and_said(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path, 1)
    with fake((200, {}, ANSWER), (404, {}, b"{}")) as (url, asked):
        done = CliRunner().invoke(command, [str(photos), "--url", url, "--limit", "1", "--out", str(tmp_path / "out")])
    assert done.exit_code == 0
    assert asked == ["/predict", "/feedback"]
    assert "not accepted for 1" in done.output
    assert json.loads((tmp_path / "out").read_text())["told"] is False


def test_a_service_that_answers_nothing_is_below_any_bar(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path, 1)
    with fake((415, {}, b'{"code": "unsupported_format"}')) as (url, _):
        done = CliRunner().invoke(command, [str(photos), "--url", url, "--at-least", "0"])
    assert done.exit_code == 1
    assert "none of 2 photos was answered" in done.output


def test_an_address_that_is_none_is_said_without_its_secrets(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path, 1)
    done = CliRunner().invoke(command, [str(photos), "--url", "http://ann:s3cret/x@127.0.0.1:9"])
    assert done.exit_code == 2
    assert "http://***@127.0.0.1:9: not a URL" in done.output
    assert "s3cret" not in done.output


async def test_a_service_that_stays_busy_or_wants_a_key_ends_it_with_words(tmp_path: Path) -> None:
    for answer, words in (
        (BUSY, "overloaded, 8 times"),
        ((401, {}, b"{}"), "API key"),
        ((503, {"Retry-After": "0"}, b"not json"), "status 503"),
    ):
        with ExitStack() as opened, fake(answer) as (url, _):
            photos = collecting.find_photos(draw_photos(tmp_path / words, 1), opened)[:1]
            with pytest.raises(CollectError, match=words) as raised:
                await collecting.collect(photos, url.replace("://", "://ann:s3cret@"), "key")
            assert str(raised.value).startswith("http://***@127.0.0.1:")
