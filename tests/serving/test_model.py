from pathlib import Path

import msgspec
import onnx
import pytest

from serving import model as models
from serving.model import Model, ModelRefusedError
from shared import contract
from shared.exam import Exam


def rewritten(shipped: Path, out: Path, **fields: object) -> Path:
    """The shipped file with another contract."""
    original = Model(shipped).contract
    file = onnx.load(shipped)
    text = contract.dumps(msgspec.structs.replace(original, **fields))
    onnx.helper.set_model_props(file, {contract.METADATA_KEY: text})
    onnx.save(file, out)
    return out


def test_the_shipped_file_loads_and_passes(shipped: Path) -> None:
    assert models.load(shipped).contract.precision == "fp32"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="No such file"):
        models.load(tmp_path / "none.onnx")


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x07" * 100])
def test_what_is_no_model(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with pytest.raises(ModelRefusedError, match="not a model"):
        models.load(tmp_path / "m.onnx")


def test_a_truncated_model(shipped: Path, tmp_path: Path) -> None:
    data = shipped.read_bytes()
    (tmp_path / "m.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelRefusedError):
        models.load(tmp_path / "m.onnx")


def test_a_model_without_contract(shipped: Path, tmp_path: Path) -> None:
    file = onnx.load(shipped)
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match="no contract"):
        models.load(tmp_path / "m.onnx")


def test_a_model_for_other_pixels(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="another procedure"):
        models.load(rewritten(shipped, tmp_path / "m.onnx", pixels="0" * 64))


def test_a_model_that_answers_otherwise_than_it_did_fails_its_exam(shipped: Path, tmp_path: Path) -> None:
    file = onnx.load(shipped)
    names = {tensor.name: tensor for tensor in file.graph.initializer}
    head = next(name for name in names if name.endswith("head.weight"))
    weights = onnx.numpy_helper.to_array(names[head])
    names[head].CopyFrom(onnx.numpy_helper.from_array(-weights, head))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match="fails its exam"):
        models.load(tmp_path / "m.onnx")


def test_a_model_without_exam_is_refused(shipped: Path, tmp_path: Path) -> None:
    path = rewritten(shipped, tmp_path / "m.onnx", exam=Exam(questions=(), tolerance=1.0))
    with pytest.raises(ModelRefusedError, match="no questions"):
        models.load(path)
