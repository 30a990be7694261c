"""JSON bodies of every shape, and of none."""

import base64
import json

import httpx
from hypothesis import given
from hypothesis import strategies as st

from serving.ids import FORM
from serving.messages import MAX_BATCH
from tests.fuzz import examples
from tests.fuzz.test_damaged_pictures import GOOD, assert_documented
from tests.serving.conftest import Running

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PICTURE = base64.b64encode(GOOD["JPEG grey"]).decode()
DATA = st.sampled_from([PICTURE, PICTURE[:-4], PICTURE + "=", "", "=", "aGk=", "aGk", "a-_=", "a\n=="]) | ANYTHING
IMAGES = ANYTHING | st.fixed_dictionaries(
    {}, optional={"data": DATA, "id": st.text(max_size=210) | ANYTHING, "other": ANYTHING}
)
BATCHES = st.fixed_dictionaries({"images": st.lists(IMAGES, max_size=4)}) | ANYTHING
FEEDBACKS = (
    st.fixed_dictionaries({}, optional={"id": st.text(max_size=210) | ANYTHING, "label": st.just("cats") | ANYTHING})
    | ANYTHING
)
# What `json.dumps` does not write: duplicate keys, lone surrogates, numbers beyond all bounds, other encodings, depth.
ODD = [
    b'{"images": [], "images": 7}',
    b'{"images": [{"data": "aGk=", "data": 7}]}',
    b'{"images": [{"data": "aGk=", "id": "\\ud800"}]}',
    b'{"images": [{"data": "aGk=", "id": "\\udc00\\ud800"}]}',
    b'{"images": [{"data": "aGk=", "id": "\xed\xa0\x80"}]}',
    b'{"images": [{"data": "aGk=", "id": "\xff"}]}',
    b'{"images": [{"data": "aGk=", "id": "\\u0000"}]}',
    b'{"images": [{"data": "\\u0061GkAA=="}]}',
    b'{"images": [{"data": ' + b"9" * 10_000 + b"}]}",
    b'{"images": [], "x": 1e999999999}',
    b'{"images": [], "x": -' + b"0" * 1000 + b"}",
    b'{"images": [], "x": ' + b"9" * 100_000 + b"}",
    b'{"images": NaN}',
    b'{"id": "\\ud800", "label": "cats"}',
    b'{"id": "x", "id": "y", "label": "cats", "label": 3}',
    b'{"id": 1e400, "label": "dogs"}',
    b'{"id": "x", "label": "DOGS"}',
    '{"images": []}'.encode("utf-16"),
    b"\xef\xbb\xbf" + b'{"images": []}',
    b'{"images": [' + b'{"data": "aGk="},' * 64 + b"]}",
    b'{"images": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b'{"id": ' + b'{"a":' * 10_000,
    b"",
    b" ",
    b"null",
    b'"',
]


def post(server: Running, path: str, body: bytes) -> httpx.Response:
    answer = server.http.post(path, content=body, headers={"content-type": "application/json"})
    if answer.status_code == 200:
        assert answer.headers["content-type"] == "application/json"
    else:
        assert_documented(answer)
        assert answer.json()["code"] in ("malformed_request", "unknown_prediction", "body_too_large")
    return answer


def test_odd_json_is_answered_as_documented(server: Running) -> None:
    for body in ODD:
        for path in ("/predict/batch", "/feedback"):
            post(server, path, body)


@examples(300)
@given(BATCHES)
def test_any_batch_is_answered_in_order_or_refused_whole(server: Running, batch: object) -> None:
    answer = post(server, "/predict/batch", json.dumps(batch).encode())
    if answer.status_code == 200:
        assert isinstance(batch, dict)
        results = answer.json()["results"]
        assert len(results) == len(batch["images"]) <= MAX_BATCH
        for sent, result in zip(batch["images"], results, strict=True):
            assert "predicted_label" in result or 400 <= result["error"]["status"] < 500
            assert "error" in result or result.get("client_id") == sent.get("id")
            assert "error" in result or FORM.fullmatch(result["id"])


@examples(200)
@given(FEEDBACKS)
def test_any_feedback_is_refused_unless_it_is_about_a_prediction(server: Running, feedback: object) -> None:
    assert post(server, "/feedback", json.dumps(feedback).encode()).status_code in (400, 404)


@examples(200)
@given(st.binary(max_size=300) | BATCHES.map(lambda batch: json.dumps(batch).encode()[:-1]))
def test_bytes_that_are_no_json_are_refused(server: Running, body: bytes) -> None:
    for path in ("/predict/batch", "/feedback"):
        post(server, path, b"{" + body)


@examples(40)
@given(st.integers(1, 2 * MAX_BATCH))
def test_a_batch_has_so_many_pictures_and_no_more(server: Running, count: int) -> None:
    body = json.dumps({"images": [{"data": "aGk="}] * count}).encode()
    assert post(server, "/predict/batch", body).status_code == (200 if count <= MAX_BATCH else 400)


def test_the_server_is_none_the_worse(server: Running) -> None:
    assert server.predict().status_code == 200
