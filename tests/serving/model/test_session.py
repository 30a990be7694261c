"""Which files may answer, and which of two does."""

import json
import logging
import os
import shutil
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from serving import cli
from serving.model import session as models
from serving.model.session import ModelRefusedError
from serving.settings import SHIPPED_INT8
from shared import contract
from shared.exam import Exam
from shared.pixels import decode
from shared.second_look import AGAIN, INPUT, Outputs
from tests.serving.conftest import PHOTO, Start


def rewritten(shipped: Path, out: Path, **fields: object) -> Path:
    """The shipped file with another contract."""
    original = models.load(shipped).contract
    file = onnx.load(shipped)
    text = contract.dumps(msgspec.structs.replace(original, **fields))
    onnx.helper.set_model_props(file, {contract.METADATA_KEY: text})
    onnx.save(file, out)
    return out


def pair(shipped: Path, folder: Path, *, int8_wrong: bool, fp32_wrong: bool = False) -> Path:
    """An "int8" file and the fp32 file beside it, each with a golden answer that it gives or that is ``wrong``."""
    exam = models.load(shipped).contract.exam
    first, *others = exam.questions
    turned = msgspec.structs.replace(first, probabilities=first.probabilities[::-1])
    exams = {False: exam, True: msgspec.structs.replace(exam, questions=(turned, *others))}
    rewritten(shipped, folder / "m.fp32.onnx", version="v-fp32", exam=exams[fp32_wrong])
    return rewritten(shipped, folder / "m.int8.onnx", version="v-int8", precision="int8", exam=exams[int8_wrong])


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


def test_a_model_of_an_earlier_schema_is_refused_for_that(shipped: Path, tmp_path: Path) -> None:
    file = onnx.load(shipped)
    promise = json.loads(file.metadata_props[0].value)
    del promise["second_look"]
    onnx.helper.set_model_props(file, {contract.METADATA_KEY: json.dumps(promise | {"schema": 1})})
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match="its contract has schema 1; this service reads 2"):
        models.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(("branch", "look"), [("else_branch", ""), ("then_branch", "second look's ")])
def test_a_model_that_answers_otherwise_than_it_did_fails_its_exam(
    shipped: Path, tmp_path: Path, branch: str, look: str
) -> None:
    file = onnx.load(shipped)
    (graph,) = (attribute.g for attribute in file.graph.node[0].attribute if attribute.name == branch)
    convolution = next(tensor for tensor in graph.initializer if len(tensor.dims) == 4)
    weights = onnx.numpy_helper.to_array(convolution)
    convolution.CopyFrom(onnx.numpy_helper.from_array(-weights, convolution.name))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match="fails its exam") as refused:
        models.load(tmp_path / "m.onnx")
    assert f"{look}probabilities off by" in str(refused.value)


def test_a_model_without_exam_is_refused(shipped: Path, tmp_path: Path) -> None:
    path = rewritten(shipped, tmp_path / "m.onnx", exam=Exam(questions=(), tolerance=1.0))
    with pytest.raises(ModelRefusedError, match="no questions"):
        models.load(path)


@pytest.mark.parametrize("lost", [INPUT, AGAIN])
def test_a_graph_with_another_input_is_refused(shipped: Path, tmp_path: Path, lost: str) -> None:
    file = onnx.load(shipped)
    next(entry for entry in file.graph.input if entry.name == lost).name = "photo"
    (choice,) = file.graph.node
    for graph in (file.graph, *(attribute.g for attribute in choice.attribute)):
        for node in graph.node:
            node.input[:] = ["photo" if name == lost else name for name in node.input]
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match=f"cannot be run: .*{lost}"):
        models.load(tmp_path / "m.onnx")


@pytest.mark.parametrize("lost", Outputs._fields)
def test_a_graph_that_lacks_an_output_is_refused(shipped: Path, tmp_path: Path, lost: str) -> None:
    file = onnx.load(shipped)
    file.graph.output.remove(next(entry for entry in file.graph.output if entry.name == lost))
    onnx.save(file, tmp_path / "m.onnx")
    with pytest.raises(ModelRefusedError, match=f"cannot be run: .*{lost}"):
        models.load(tmp_path / "m.onnx")


def test_a_second_look_of_another_size_than_the_exam_s_is_refused(shipped: Path, tmp_path: Path) -> None:
    how = msgspec.structs.replace(models.load(shipped).contract.second_look, side=64)
    with pytest.raises(ModelRefusedError, match=r"fails its exam: .*second look's|cannot be run"):
        models.load(rewritten(shipped, tmp_path / "m.onnx", second_look=how))


def test_on_all_cores_the_model_answers_the_same() -> None:
    model = models.load(SHIPPED_INT8)
    model.widen(2)
    narrow, wide = (model.look(decode(PHOTO), alone=alone) for alone in (False, True))
    assert narrow.again == wide.again
    assert np.allclose(narrow.outputs.probabilities, wide.outputs.probabilities, atol=1e-4)


def test_a_file_that_has_changed_since_is_not_taken_for_all_cores(shipped: Path, tmp_path: Path) -> None:
    model = models.load(Path(shutil.copy(SHIPPED_INT8, tmp_path / "m.onnx")))
    (tmp_path / "m.onnx").write_bytes(shipped.read_bytes())
    with pytest.raises(ModelRefusedError, match=r"m\.onnx: it has changed since it was loaded"):
        model.widen(2)
    narrow, alone = (model.look(decode(PHOTO), alone=alone) for alone in (False, True))
    assert np.array_equal(narrow.outputs.probabilities, alone.outputs.probabilities)


def test_all_cores_get_the_file_that_was_loaded_whatever_is_at_its_path_now(tmp_path: Path) -> None:
    model = models.load(Path(shutil.copy(SHIPPED_INT8, tmp_path / "m.onnx")))
    (tmp_path / "m.onnx").unlink()
    os.mkfifo(tmp_path / "m.onnx")
    model.widen(2)


def test_the_bytes_of_a_file_are_not_kept() -> None:
    model = models.load(SHIPPED_INT8)
    size = SHIPPED_INT8.stat().st_size
    found = [*vars(model).values(), *vars(model.network._session).values()]
    assert not [each for each in found if isinstance(each, bytes) and len(each) == size]


def test_an_int8_file_that_passes_answers_itself(shipped: Path, tmp_path: Path) -> None:
    model = models.load(pair(shipped, tmp_path, int8_wrong=False))
    assert (model.contract.precision, model.file, model.fallback) == ("int8", "m.int8.onnx", None)


def test_an_int8_file_that_fails_gives_way_to_the_fp32_file_beside_it(shipped: Path, tmp_path: Path) -> None:
    model = models.load(pair(shipped, tmp_path, int8_wrong=True))
    assert (model.contract.precision, model.file) == ("fp32", "m.fp32.onnx")
    assert model.fallback is not None
    assert model.fallback.startswith("the model v-int8 fails its exam: ")


def test_a_pair_that_fails_in_both_precisions_is_refused_with_both_reasons(shipped: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match=r"v-int8 fails its exam: .*; fallback: .*v-fp32 fails its exam"):
        models.load(pair(shipped, tmp_path, int8_wrong=True, fp32_wrong=True))


def test_an_int8_file_that_fails_alone_is_refused_and_says_what_was_missing(shipped: Path, tmp_path: Path) -> None:
    path = pair(shipped, tmp_path, int8_wrong=True)
    (tmp_path / "m.fp32.onnx").unlink()
    with pytest.raises(ModelRefusedError, match=r"v-int8 fails its exam: .*m\.fp32\.onnx: No such file"):
        models.load(path)
    with pytest.raises(ModelRefusedError, match=r"^the model v-int8 fails its exam: ") as refused:
        models.load(path.rename(tmp_path / "named-otherwise.onnx"))
    assert "in its place" not in str(refused.value)


def test_a_file_that_is_fp32_has_no_stand_in_whatever_its_name(shipped: Path, tmp_path: Path) -> None:
    pair(shipped, tmp_path, int8_wrong=False, fp32_wrong=True)
    (tmp_path / "m.fp32.onnx").rename(tmp_path / "m.int8.onnx")
    (tmp_path / "m.fp32.onnx").write_bytes(shipped.read_bytes())
    with pytest.raises(ModelRefusedError, match="v-fp32 fails its exam"):
        models.load(tmp_path / "m.int8.onnx")


def test_a_service_on_its_stand_in_says_so(
    shipped: Path, tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    path = pair(shipped, tmp_path, int8_wrong=True)
    with caplog.at_level(logging.INFO):
        server = start(model=str(path))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.message == "the fp32 model serves because the int8 model failed its exam"
    fields = warning.__dict__["fields"]
    assert (fields["model"], fields["model_file"]) == ("v-fp32", "m.fp32.onnx")
    assert "v-int8 fails its exam" in fields["reason"]
    served = server.http.get("/model").json()
    assert (served["version"], served["precision"], served["file"]) == ("v-fp32", "fp32", "m.fp32.onnx")
    assert served["fallback"] == fields["reason"]
    assert server.predict().json()["model"] == "v-fp32"
    assert 'precision="fp32",version="v-fp32"} 1' in server.http.get("/metrics").text
    assert (server.metric("catsdogs_model_fallback"), server.metric("catsdogs_ready")) == (1, 1)


def test_the_command_line_has_the_same_stand_in_and_says_so(shipped: Path, tmp_path: Path) -> None:
    path = pair(shipped, tmp_path, int8_wrong=True)
    (tmp_path / "photo.jpg").write_bytes(PHOTO)
    result = CliRunner().invoke(cli.main, ["predict", "--json", "--model", str(path), str(tmp_path / "photo.jpg")])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] == "v-fp32"
    assert result.stderr.startswith("m.fp32.onnx answers in place of m.int8.onnx: the model v-int8 fails its exam: ")
