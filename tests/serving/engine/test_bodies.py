"""The JSON of inference requests, taken apart: what it asks for and where its pictures are."""

import json
from typing import Any

import numpy as np
import pytest

from serving.engine.bodies import unpack
from serving.engine.wire import Flags, Inference, Output
from shared.pixels import SIZE

PIXELS = bytes(number % 256 for number in range(2 * SIZE * SIZE * 3))


def image(datatype: str, shape: list[int], **rest: object) -> dict[str, Any]:
    return {"name": "image", "datatype": datatype, "shape": shape, **rest}


FILE = image("BYTES", [1], data=["x"])


def asked(*inputs: object, **rest: object) -> tuple[Inference, bytes]:
    """What a lane makes of a request, and the request."""
    body = json.dumps({"inputs": inputs, **rest}).encode()
    found = unpack(body, Flags.INFER)
    assert isinstance(found, Inference)
    return found, body


@pytest.mark.parametrize(("shape", "data"), [([2], ["YWJj", "ZA=="]), ([2, 1], [["YWJj"], ["ZA=="]])])
def test_files_are_found_where_they_are(shape: list[int], data: list[object]) -> None:
    found, body = asked(image("BYTES", shape, data=data), id="mine")
    assert [body[item.start : item.end] for item in found.items] == [b'"YWJj"', b'"ZA=="']
    assert (found.id, found.datatype, found.count) == ("mine", "BYTES", 2)


@pytest.mark.parametrize("width", [1, 3, SIZE * 3])
def test_numbers_are_pixels_however_they_are_nested(width: int) -> None:
    rows = [list(PIXELS[start : start + width]) for start in range(0, len(PIXELS), width)]
    found, _ = asked(image("UINT8", [2, SIZE, SIZE, 3], data=[rows]))
    assert found.pixels == PIXELS
    flat, _ = asked(image("UINT8", [2, SIZE, SIZE, 3], data=list(PIXELS)))
    assert flat.pixels == PIXELS


def test_pixels_behind_the_json_are_taken_as_they_are() -> None:
    picture = unpack(PIXELS[: SIZE * SIZE * 3], Flags.PIXELS)
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.tobytes() == PIXELS[: SIZE * SIZE * 3]


def test_outputs_are_those_that_are_named_each_in_the_form_that_is_asked_for() -> None:
    assert [output.name for output in asked(FILE)[0].outputs] == ["probabilities", "familiarity", "verdict"]
    wanted = [{"name": "verdict", "parameters": {"binary_data": False}}, {"name": "familiarity"}]
    found, _ = asked(FILE, outputs=wanted, parameters={"binary_data_output": True, "other": 1})
    assert found.outputs == [Output("verdict", False), Output("familiarity", True)]


HOSTILE = {
    "no input": ([], "one input 'image', not none"),
    "another input": ([{**FILE, "name": "photo"}], "not 'photo'"),
    "two inputs": ([FILE] * 2, "one input"),
    "another datatype": ([image("FP32", [1, 224, 224, 3], data=[0])], "Invalid enum value 'FP32'"),
    "no shape": ([image("BYTES", [], data=[])], "from 1 to 64"),
    "a negative shape": ([image("BYTES", [-1], data=["x"])], "from 1 to 64"),
    "a huge shape": ([image("BYTES", [2**62], data=["x"])], "from 1 to 64"),
    "a shape beyond all numbers": ([image("BYTES", [10**400], data=["x"])], "shape"),
    "65 pictures": ([image("BYTES", [65], data=["x"] * 65)], "from 1 to 64"),
    "another size": ([image("UINT8", [1, 2, 2, 3], data=[0] * 12)], "[1, 224, 224, 3]"),
    "no data": ([image("BYTES", [1])], "needs data"),
    "data elsewhere": ([image("BYTES", [1], parameters={"shared_memory_region": "x"})], "needs data"),
    "data nowhere": ([image("BYTES", [1], parameters={"binary_data_size": 4})], "Inference-Header-Content-Length"),
    "more strings": ([image("BYTES", [1], data=["x"] * 2)], "2 strings, not 1"),
    "strings without end": ([image("BYTES", [1], data=["x"] * 200_000)], "more strings"),
    "fewer numbers": ([image("UINT8", [1, 224, 224, 3], data=[0] * 9)], "9 numbers, not 150,528"),
    "numbers above 255": ([image("UINT8", [1, 224, 224, 3], data=[256] * 150_528)], "range(0, 256)"),
    "fractions": ([image("UINT8", [1, 224, 224, 3], data=[0.5] * 150_528)], "Expected `int`"),
    "numbers without end": ([image("UINT8", [1, 224, 224, 3], data=[0] * 2_000_000)], "more numbers than 150,528"),
    "brackets in a string": ([image("UINT8", [1, 224, 224, 3], data=["[1]"])], "Expected `int`"),
    "ragged": ([image("UINT8", [1, 224, 224, 3], data=[[[[1, 2, 3], [1]]]])], ""),
    "data that is no list": ([image("BYTES", [1], data={"x": 1})], "Expected `array`"),
    "objects without end": ([image("BYTES", [1], data=[{}] * 5000)], "too many objects"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_request_is_malformed(case: str) -> None:
    inputs, reason = HOSTILE[case]
    # Whatever a lane makes a refusal of.
    with pytest.raises((ValueError, RecursionError)) as error:
        asked(*inputs)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ([{"name": "mood"}], "no output 'mood'; there are probabilities"),
        ([{"name": "verdict"}] * 2, "an output is named twice"),
        ([{"name": "verdict", "parameters": {"classification": 1}}], "not supported"),
        ([{"name": "verdict", "parameters": {"shared_memory_region": "x"}}], "not supported"),
    ],
)
def test_outputs_that_are_none_are_refused(wanted: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        asked(FILE, outputs=wanted)
