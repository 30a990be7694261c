"""The Open Inference Protocol: unmodified clients get the answers of /predict, and whatever else is sent is refused."""

import base64
import json
import struct
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.messages import MAX_BATCH
from shared.pixels import SIZE, pixels
from tests.conftest import blobs, encoded
from tests.fuzz import examples
from tests.serving.conftest import PHOTO, Running
from tests.waiting import until

URL = "/v2/models/cats-dogs/infer"
COUNTED = f'http_requests_total{{method="POST",route="{URL}",status="200"}}'
HEADER = "inference-header-content-length"
FILES = [PHOTO, encoded(blobs(7), "PNG"), encoded(blobs(8), "WEBP")]
# Lossless and of the network's size, so that its pixels are those that /predict sees.
SMALL = [encoded(blobs(seed, (SIZE, SIZE)), "PNG") for seed in range(3)]
PIXELS = np.stack([pixels(data) for data in SMALL])


def expected(server: Running, files: list[bytes]) -> tuple[list[float], list[float], list[str]]:
    """What /predict answers, as the protocol's three outputs."""
    answers = [server.predict(data).json() for data in files]
    pairs = [answer["probabilities"][label] for answer in answers for label in ("cats", "dogs")]
    return pairs, [answer["familiarity"] for answer in answers], [answer["verdict"] for answer in answers]


def image(datatype: str, shape: list[int], **rest: object) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": shape, **rest}


def ask(server: Running, *inputs: object, **rest: object) -> httpx.Response:
    return server.http.post(URL, json={"inputs": inputs, **rest})


def ask_binary(server: Running, request: object, tensor: bytes, length: str | None = None) -> httpx.Response:
    head = json.dumps(request).encode()
    return server.http.post(URL, content=head + tensor, headers={HEADER: length or str(len(head))})


def strings(files: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(data)) + data for data in files)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def outputs(answer: httpx.Response) -> tuple[Any, ...]:
    found = {tensor["name"]: tensor["data"] for tensor in answer.json()["outputs"]}
    assert list(found) == ["probabilities", "familiarity", "verdict"]
    return tuple(found.values())


def assert_refused(answer: httpx.Response, reason: str, code: str = "malformed_request") -> None:
    problem = answer.json()
    assert (problem["code"], problem["error"]) == (code, problem["detail"])
    assert answer.headers["content-type"] == "application/problem+json"
    assert reason in problem["detail"]


def as_float32(values: list[float]) -> list[float]:
    return np.array(values, np.float32).tolist()  # type: ignore[no-any-return]


def check_triton(server: Running, result: Any, files: list[bytes]) -> None:
    pairs, familiarity, verdicts = expected(server, files)
    assert result.as_numpy("probabilities").shape == (len(files), 2)
    assert result.as_numpy("probabilities").ravel().tolist() == as_float32(pairs)
    assert result.as_numpy("familiarity").tolist() == as_float32(familiarity)
    assert [text if isinstance(text, str) else text.decode() for text in result.as_numpy("verdict")] == verdicts


def triton_inputs(module: Any, binary: bool) -> list[tuple[Any, list[bytes]]]:
    as_files = module.InferInput("image", [len(FILES)], "BYTES")
    as_files.set_data_from_numpy(np.array(FILES if binary else list(map(b64, FILES)), object), binary_data=binary)
    as_pixels = module.InferInput("image", list(PIXELS.shape), "UINT8")
    as_pixels.set_data_from_numpy(PIXELS, binary_data=binary)
    return [(as_files, FILES), (as_pixels, SMALL)]


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_tritonclient_gets_the_answers_of_predict(server: Running, compression: str | None, binary: bool) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        for given_input, files in triton_inputs(triton, binary):
            result = client.infer(
                "cats-dogs",
                [given_input],
                request_id="mine",
                request_compression_algorithm=compression,
                response_compression_algorithm=compression,
            )
            check_triton(server, result, files)
            assert result.get_response()["id"] == "mine"
        wanted = [triton.InferRequestedOutput("verdict", binary_data=False), triton.InferRequestedOutput("familiarity")]
        result = client.infer("cats-dogs", [triton_inputs(triton, binary)[0][0]], outputs=wanted)
        assert result.as_numpy("verdict").tolist() == expected(server, FILES)[2]
        assert result.as_numpy("familiarity").tolist() == as_float32(expected(server, FILES)[1])
        assert result.as_numpy("probabilities") is None


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
async def test_its_asynchronous_client_does_too(server: Running, compression: str | None) -> None:
    triton = pytest.importorskip("tritonclient.http.aio")
    async with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert await client.is_server_live() and await client.is_server_ready()
        for given_input, files in triton_inputs(triton, binary=True):
            result = await client.infer("cats-dogs", [given_input], request_compression_algorithm=compression)
            check_triton(server, result, files)


def test_tritonclient_hears_what_the_server_is_and_why_a_request_is_refused(server: Running) -> None:
    triton = pytest.importorskip("tritonclient.http")
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("cats-dogs")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        described = client.get_model_metadata("cats-dogs")
        assert {tensor["datatype"] for tensor in described["inputs"]} == {"BYTES", "UINT8"}
        assert [tensor["name"] for tensor in described["outputs"]] == ["probabilities", "familiarity", "verdict"]
        assert not client.is_model_ready("mice")
        bad = triton.InferInput("image", [1], "BYTES")
        bad.set_data_from_numpy(np.array([b"no picture"], object))
        with pytest.raises(triton.InferenceServerException, match="picture 0: not a picture"):
            client.infer("cats-dogs", [bad])
        with pytest.raises(triton.InferenceServerException, match="nothing at this address"):
            client.infer("mice", [bad])


# What `kserve` 0.21.0 sends, recorded, as it needs older versions of what the tests and training need.
def kserve(**rest: object) -> dict[str, object]:
    tensor = {"name": "image", "shape": [3], "datatype": "BYTES", **rest}
    return {"id": "1", "model_name": "cats-dogs", "inputs": [tensor]}


def test_kserve_s_requests_get_the_answers_of_predict(server: Running) -> None:
    wanted = expected(server, FILES)
    tensor = strings(FILES)
    assert outputs(ask_binary(server, kserve(parameters={"binary_data_size": len(tensor)}), tensor)) == wanted
    inline = kserve(data=list(map(b64, FILES)))
    assert outputs(server.http.post(URL, json=inline)) == wanted
    assert outputs(ask_binary(server, inline, b"")) == wanted  # with the length of all of it


def test_health_says_both_words_that_clients_read(server: Running) -> None:
    assert server.http.get("/v2/health/live").json()["live"] is True
    for path in ("/v2/health/ready", "/v2/models/cats-dogs/ready"):
        assert server.http.get(path).json() == {"live": True, "ready": True}


@pytest.mark.parametrize("nested", [True, False])
def test_json_may_be_nested_or_flat(server: Running, nested: bool) -> None:
    data = PIXELS.tolist() if nested else PIXELS.ravel().tolist()
    assert outputs(ask(server, image("UINT8", list(PIXELS.shape), data=data))) == expected(server, SMALL)
    texts = [[b64(data)] for data in FILES] if nested else list(map(b64, FILES))
    shape = [len(FILES), 1] if nested else [len(FILES)]
    assert outputs(ask(server, image("BYTES", shape, data=texts))) == expected(server, FILES)


def test_a_request_of_the_largest_size_counts_as_so_many_predictions(server: Running) -> None:
    before = server.metric(COUNTED)
    stages = server.metric('catsdogs_prediction_stage_seconds_count{stage="infer"}')
    answer = ask_binary(
        server,
        {
            "inputs": [
                image("UINT8", [MAX_BATCH, SIZE, SIZE, 3], parameters={"binary_data_size": MAX_BATCH * SIZE**2 * 3})
            ]
        },
        bytes(MAX_BATCH * SIZE**2 * 3),
    )
    assert len(outputs(answer)[2]) == MAX_BATCH
    assert server.metric('catsdogs_prediction_stage_seconds_count{stage="infer"}') == stages + MAX_BATCH
    until(lambda: server.metric(COUNTED) == before + 1)


def test_a_bad_picture_has_the_request_refused_with_its_number(server: Running) -> None:
    answer = ask(server, image("BYTES", [2], data=[b64(PHOTO), b64(b"no picture")]))
    assert_refused(answer, "picture 1: not a picture", "unsupported_format")
    assert_refused(ask(server, image("BYTES", [2], data=[b64(PHOTO), 7])), "picture 1: Expected `str`")


def test_what_is_no_request_is_malformed(server: Running) -> None:
    assert_refused(ask(server), "one input 'image', not none")
    assert_refused(ask(server, image("UINT8", [1, 224, 224, 3], data=[256] * 150_528)), "range(0, 256)")
    assert_refused(ask(server, image("BYTES", [1], data=[b64(PHOTO)]), outputs=[{"name": "mood"}]), "no output 'mood'")


TENSOR = strings([PHOTO])
ONE = {"inputs": [image("BYTES", [1], parameters={"binary_data_size": len(TENSOR)})]}


@pytest.mark.parametrize("length", ["-1", "0", "+5", "1", "70000", "9" * 5000, "1e3", "0x10", "", "½", "five"])
def test_a_hostile_length_of_the_json_is_refused(server: Running, length: str) -> None:
    head = json.dumps(ONE).encode()
    answer = server.http.post(URL, content=head + TENSOR, headers={HEADER.encode(): length.encode()})
    assert_refused(answer, "")


@pytest.mark.parametrize(
    ("request_", "tensor"),
    [
        (ONE, TENSOR[:-1]),
        (ONE, TENSOR + b"x"),
        (ONE, b"\xff" * len(TENSOR)),
        (ONE, struct.pack("<I", 2**32 - 1) + TENSOR[4:]),
        (ONE, struct.pack("<I", len(PHOTO) - 1) + TENSOR[4:]),
        ({"inputs": [image("BYTES", [2], parameters={"binary_data_size": len(TENSOR)})]}, TENSOR),
        ({"inputs": [image("BYTES", [1], parameters={"binary_data_size": -1})]}, TENSOR),
        ({"inputs": [image("BYTES", [1], parameters={"binary_data_size": 2**70})]}, TENSOR),
        ({"inputs": [image("BYTES", [1], parameters={"binary_data_size": 3})]}, b"abc"),
        ({"inputs": [image("UINT8", [1, 224, 224, 3], parameters={"binary_data_size": 9})]}, bytes(9)),
        ({"inputs": [image("BYTES", [1], data=["x"])]}, TENSOR),
    ],
)
def test_a_tensor_that_is_not_what_the_json_says_is_refused(server: Running, request_: object, tensor: bytes) -> None:
    assert_refused(ask_binary(server, request_, tensor), "")
    assert ask_binary(server, ONE, TENSOR).status_code == 200


NUMBERS = st.sampled_from([0, 1, -1, 3, 224, 2**31, 2**63, 1.5]) | st.none()
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["image", "IMAGE", "", None]),
        "datatype": st.sampled_from(["BYTES", "UINT8", "FP32", 7]),
        "shape": st.lists(NUMBERS, max_size=5) | st.just([1]) | st.just([1, 224, 224, 3]),
        "data": st.lists(st.just(b64(PHOTO)) | NUMBERS, max_size=3) | NUMBERS,
        "parameters": st.dictionaries(
            st.sampled_from(["binary_data_size", "binary_data"]), NUMBERS | st.just(len(TENSOR))
        ),
    },
)


@examples(200)
@given(
    st.lists(TENSORS, max_size=2),
    st.sampled_from([b"", TENSOR, b"\x04\x00\x00\x00abcd"]),
    st.none() | st.integers(-2, 300),
    st.booleans(),
)
def test_whatever_is_sent_is_answered_or_refused(
    server: Running, inputs: list[object], tensor: bytes, shift: int | None, exact: bool
) -> None:
    head = json.dumps({"inputs": inputs}).encode()
    headers = {} if shift is None else {HEADER: str(len(head) if exact else shift)}
    answer = server.http.post(URL, content=head + tensor, headers=headers)
    if answer.status_code == 200:
        assert len(outputs(answer)[2]) == 1
    else:
        assert 400 <= answer.status_code < 500
        assert answer.json()["error"] == answer.json()["detail"]


def test_errors_have_the_field_of_the_protocol_only_where_the_protocol_is(server: Running) -> None:
    for path, method in (("/v2", "POST"), ("/v2/nothing", "GET"), (URL, "GET")):
        assert "error" in server.http.request(method, path).json()
    assert "error" in server.http.post(URL, headers={"origin": "https://evil.example"}).json()
    for path in ("/v2x", "/predict"):
        assert "error" not in server.http.get(path).json()


def test_an_id_comes_back_and_none_does_not(server: Running) -> None:
    tensor = image("BYTES", [1], data=[b64(PHOTO)])
    assert ask(server, tensor, id="mine").json()["id"] == "mine"
    assert "id" not in ask(server, tensor).json()
    assert_refused(ask(server, tensor, id="x" * 201), "length <= 200")
    assert msgspec.json.decode(ask(server, tensor).content)["model_name"] == "cats-dogs"
