from typing import Any

import msgspec
import numpy as np
import pytest

from serving.messages import ModelInService
from serving.model.session import load
from shared import contract
from shared.contract import Contract, ContractError


@pytest.fixture(scope="module")
def shipped_contract(shipped: "object") -> Contract:
    return load(shipped).contract  # type: ignore[arg-type]


def changed(original: Contract, **fields: object) -> dict[str, str]:
    return {contract.METADATA_KEY: contract.dumps(msgspec.structs.replace(original, **fields))}


def test_a_contract_survives_the_file(shipped_contract: Contract) -> None:
    assert contract.loads({contract.METADATA_KEY: contract.dumps(shipped_contract)}) == shipped_contract


def test_the_shipped_file_says_where_it_came_from_and_how_good_it_is(shipped_contract: Contract) -> None:
    assert shipped_contract.test is not None
    assert shipped_contract.test.accuracy.value >= 0.99
    assert sum(map(sum, shipped_contract.test.confusion)) == shipped_contract.test.pictures
    assert len(shipped_contract.provenance.dataset_digest) == len(shipped_contract.provenance.split_digest) == 64
    assert len(shipped_contract.exam.questions) >= 12
    assert (
        sum(shipped_contract.reference.familiarity.counts) == sum(shipped_contract.reference.brightness.counts) > 1000
    )


def test_what_production_met_is_said_where_it_was_measured_and_absent_otherwise(shipped_contract: Contract) -> None:
    measured = msgspec.structs.replace(shipped_contract, hard=shipped_contract.test)
    for document, said in ((shipped_contract, set()), (measured, {"hard"})):
        answer = ModelInService(**msgspec.structs.asdict(document), file="model.onnx", fallback=None)
        for told in (msgspec.json.encode(answer), contract.dumps(document)):
            assert {"production", "hard"} & msgspec.json.decode(told, type=dict[str, Any]).keys() == said
        assert contract.loads({contract.METADATA_KEY: contract.dumps(document)}) == document


def test_a_file_without_contract_is_refused() -> None:
    with pytest.raises(ContractError, match="no contract"):
        contract.loads({})


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": "one"}', "\x00"])
def test_a_malformed_contract_is_refused(text: str) -> None:
    with pytest.raises(ContractError, match="cannot be read"):
        contract.loads({contract.METADATA_KEY: text})


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"schema": 3}, "schema 3"),
        ({"classes": ("dogs", "cats")}, "apart"),
        ({"pixels": "0" * 64}, "another procedure"),
        ({"version": 'v"} 1\ncatsdogs_live_accuracy 1'}, "cannot be read"),
        ({"version": "v1\n"}, "cannot be read"),
        ({"version": ""}, "cannot be read"),
        ({"architecture": "a\\"}, "cannot be read"),
    ],
)
def test_a_contract_that_this_code_cannot_keep_is_refused(
    shipped_contract: Contract, fields: dict[str, object], reason: str
) -> None:
    with pytest.raises(ContractError, match=reason):
        contract.loads(changed(shipped_contract, **fields))


@pytest.mark.parametrize(
    ("dogs", "familiarity", "expected"),
    [
        (0.99, 0.9, ("dogs", "dogs", None)),
        (0.01, 0.9, ("cats", "cats", None)),
        (0.80, 0.9, ("dogs", "unsure", "close_call")),
        (0.99, 0.2, ("dogs", "unsure", "unfamiliar")),
        (0.80, 0.2, ("dogs", "unsure", "unfamiliar")),
        (0.90, 0.5, ("dogs", "dogs", None)),
    ],
)
def test_verdicts(
    shipped_contract: Contract, dogs: float, familiarity: float, expected: tuple[str, str, str | None]
) -> None:
    unsure = contract.Unsure(close_call=float(np.float32(0.9)), unfamiliar=0.5)
    judge = msgspec.structs.replace(shipped_contract, unsure=unsure).judge
    assert judge(np.array([1 - dogs, dogs], np.float32).tolist(), familiarity) == expected
