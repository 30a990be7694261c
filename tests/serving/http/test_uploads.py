"""Bodies as clients send them: forms, pictures as they are, compressed; and what an error says of a wrong one."""

import base64
import gzip
import socket
import zlib
from collections.abc import Callable

import httpx
import pytest

from serving.messages import MAX_BATCH
from tests.conftest import blobs, encoded
from tests.serving.conftest import PHOTO, Running, Start
from tests.serving.http.test_errors import FORM, assert_problem, form, part

PICTURES = [encoded(blobs(seed), "PNG") for seed in range(3)]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlib.compress,
}


def raw(server: Running, content: bytes, path: str = "/predict", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.http.post(path, content=content, headers=named)


def probabilities(answer: httpx.Response) -> dict[str, float]:
    found: dict[str, float] = answer.json()["probabilities"]
    return found


@pytest.mark.parametrize("kind", ["image/jpeg", "Image/X-Whatever; a=b", "application/octet-stream", ""])
def test_the_body_may_be_the_picture(server: Running, kind: str) -> None:
    assert probabilities(raw(server, PHOTO, content_type=kind)) == probabilities(server.predict())
    assert raw(server, PHOTO, "/explain", content_type=kind).content == server.explain().content


def test_a_batch_may_be_a_form_and_its_answers_are_those_of_single_requests_in_order(server: Running) -> None:
    sent = [PICTURES[0], b"no picture", *PICTURES[1:]]
    fields = [("comment", ("", b"mine")), *(("file", (f"{number}.png", data)) for number, data in enumerate(sent))]
    answer = server.http.post("/predict/batch?explain=true", files=fields)
    first, bad, *rest = answer.json()["results"]
    assert bad["error"]["code"] == "unsupported_format"
    for data, result in zip(PICTURES, [first, *rest], strict=True):
        assert result["probabilities"] == probabilities(server.predict(data))
        assert "evidence" in result


@pytest.mark.parametrize("items", [b'{"data":""},' * 1001, b"0," * 100_001])
def test_a_batch_of_far_too_many_pictures_is_refused_while_it_arrives(server: Running, items: bytes) -> None:
    head = b"POST /predict/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    base = server.http.base_url
    with socket.create_connection((base.host, base.port or 80)) as client, client.makefile("rb") as answer:
        client.sendall(head + b'Content-Length: 60000000\r\n\r\n{"images":[' + items)
        assert answer.readline().split()[1] == b"400"
        assert b"a batch has at most 64 pictures" in answer.read()


def test_base64_in_a_form_of_several_costs_its_own_result_only(server: Running) -> None:
    sent = [base64.b64encode(PHOTO), PHOTO]
    bad, good = server.http.post("/predict/batch", files=[("file", data) for data in sent]).json()["results"]
    assert "has base64" in bad["error"]["detail"]
    assert good["verdict"]


@pytest.mark.parametrize("count", [MAX_BATCH, MAX_BATCH + 1])
def test_a_form_has_up_to_64_pictures(server: Running, count: int) -> None:
    answer = server.http.post("/predict/batch", files=[("file", ("f", PICTURES[0]))] * count)
    if count == MAX_BATCH:
        assert len(answer.json()["results"]) == MAX_BATCH
    else:
        assert_problem(answer, "malformed_request")
        assert "more than 64" in answer.json()["detail"]


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_compressed_body_is_what_it_was(server: Running, encoding: str) -> None:
    compress, expected = COMPRESS[encoding], probabilities(server.predict())
    sent = {"content_encoding": encoding}
    assert probabilities(raw(server, compress(form(PHOTO)), content_type=FORM, **sent)) == expected
    # Large, and of pieces that are full to the last byte.
    picture = encoded(blobs(4).resize((700, 700)), "BMP")
    expected = probabilities(server.predict(picture))
    assert probabilities(raw(server, compress(picture), content_type="image/bmp", **sent)) == expected
    batch = b'{"images": [{"data": "%s"}]}' % base64.b64encode(PHOTO)
    assert raw(server, compress(batch), "/predict/batch", **sent).json()["results"][0]["verdict"]
    feedback = b'{"id": "%s", "label": "Cats"}' % server.predict().json()["id"].encode()
    assert raw(server, compress(feedback), "/feedback", **sent).json()["label"] == "cats"


@pytest.mark.parametrize("size", [131_072, 262_144])
def test_a_body_that_fills_its_last_piece_is_complete(server: Running, size: int) -> None:
    picture = PHOTO + bytes(size - len(PHOTO))
    assert raw(server, gzip.compress(picture), content_type="image/jpeg", content_encoding="gzip").status_code == 200


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (gzip.compress(PHOTO)[:-9], "incomplete"),
        (b"", "incomplete"),
        (gzip.compress(PHOTO) + b"x", "goes on after its end"),
        (gzip.compress(PHOTO) * 2, "goes on after its end"),
        (PHOTO, "invalid gzip data"),
    ],
)
def test_what_is_not_well_compressed_is_malformed(server: Running, body: bytes, reason: str) -> None:
    answer = raw(server, body, content_type="image/jpeg", content_encoding="gzip")
    assert_problem(answer, "malformed_request")
    assert reason in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "compress", "\xff"])
def test_another_compression_is_refused_by_name(server: Running, encoding: str) -> None:
    header = {b"content-encoding": encoding.encode("latin-1")}
    answer = server.http.post("/predict", content=PHOTO, headers=header)
    assert_problem(answer, "unsupported_encoding")
    assert "Content-Encoding" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/predict", "/explain", "/predict/batch", "/feedback"])
def test_a_bomb_is_refused_and_takes_no_memory(server: Running, path: str) -> None:
    bomb = gzip.compress(bytes(400_000_000), 1)
    before = server.metric("process_resident_memory_bytes")
    for _ in range(3):
        assert_problem(raw(server, bomb, path, content_type="image/bmp", content_encoding="gzip"), "body_too_large")
    assert server.metric("process_resident_memory_bytes") - before < 40e6
    assert server.metric("catsdogs_body_bytes") == 0


def test_what_inflates_to_nothing_has_a_limit_too(start: Start) -> None:
    server = start(max_body_bytes=100_000)
    # Empty blocks, without end.
    nothing = zlib.compressobj().flush(zlib.Z_FULL_FLUSH) + b"\x00\x00\x00\xff\xff" * 1_000_000

    def pieces() -> object:
        yield from (nothing[start : start + 60_000] for start in range(0, len(nothing), 60_000))

    answer = server.http.post("/predict", content=pieces(), headers={"content-encoding": "deflate"})  # type: ignore[arg-type]
    assert_problem(answer, "body_too_large")


@pytest.mark.parametrize(
    ("content", "kind", "hint"),
    [
        (form(PHOTO), "multipart/form-data", "no boundary"),
        (part("photo") + part("ä" + "x" * 99) + b"--x--\r\n", FORM, "it has 'photo', '"),
        (form(base64.b64encode(PHOTO)), FORM, "has base64"),
        (form(b"data:image/png;base64," + base64.b64encode(PICTURES[0])), FORM, "has base64"),
        (form(PHOTO).replace(PHOTO, b"cat.jpg").replace(b'; filename="f"', b""), FORM, "-F file=@PATH"),
        (PHOTO, "text/plain", "or the picture itself"),
    ],
    ids=["no boundary", "another field", "base64", "a data URI", "no @", "another type"],
)
def test_a_wrong_form_is_told_what_is_wrong_with_it(server: Running, content: bytes, kind: str, hint: str) -> None:
    answer = raw(server, content, content_type=kind)
    assert_problem(answer, "malformed_request")
    assert hint in answer.json()["detail"]
    assert len(answer.json()["detail"]) < 250


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_base64_of_every_format_is_recognised_and_no_picture_is_taken_for_it(server: Running, name: str) -> None:
    picture = encoded(blobs(1), name)
    assert server.predict(picture).status_code == 200
    assert "has base64" in server.predict(base64.b64encode(picture)).json()["detail"]
    assert "has base64" in server.predict(base64.urlsafe_b64encode(picture)).json()["detail"]


def test_a_picture_needs_no_file_name(server: Running) -> None:
    body = form(PHOTO).replace(b'; filename="f"', b"")
    assert raw(server, body, content_type=FORM).status_code == 200
