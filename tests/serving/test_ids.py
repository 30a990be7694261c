import re
from datetime import UTC, datetime, timedelta

import pytest

from serving.ids import FORM, Ids, PredictionIds, recorded
from shared.contract import Label

KEY = "a key of sixteen"


def test_ids_differ_within_a_process_and_between_them() -> None:
    one, other = Ids(), Ids()
    made = [ids.new() for ids in (one, other) for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_an_id_says_nothing_of_the_next() -> None:
    bits = [int(Ids().new(), 16) ^ int(Ids().new(), 16) for _ in range(200)]
    ones = sum(each.bit_count() for each in bits) / (200 * 128)
    assert 0.48 < ones < 0.52


@pytest.mark.parametrize("label", ["cats", "dogs"])
@pytest.mark.parametrize("unsure", [False, True])
def test_a_prediction_s_id_says_what_was_answered_to_all_with_the_key(label: Label, unsure: bool) -> None:
    id_ = PredictionIds(KEY).new(label, "unsure" if unsure else label, "2026.11.27-lite0")
    assert FORM.fullmatch(id_)
    assert len(id_) <= 60
    said = PredictionIds(KEY).read(id_)
    assert said is not None
    assert (said.label, said.unsure) == (label, unsure)
    assert abs(said.time - datetime.now(UTC)) < timedelta(minutes=5)
    assert said == recorded(id_)
    later = PredictionIds(KEY).read(PredictionIds(KEY).new(label, "unsure", "2026.11.28-lite0"))
    assert later is not None
    assert later.model != said.model


def test_ids_of_replicas_that_share_a_key_differ() -> None:
    replicas = [PredictionIds(KEY) for _ in range(3)]
    made = [ids.new("cats", "cats", "m") for ids in replicas for _ in range(5_000)]
    assert len(set(made)) == len(made)


def test_ids_name_the_process_that_made_them_where_the_edge_looks() -> None:
    one, other = PredictionIds(KEY), PredictionIds(KEY)
    assert {one.new("cats", "cats", "m")[8:12] for _ in range(3)} == {one.replica} != {other.replica}


def test_an_id_with_any_bit_changed_written_another_way_or_of_another_key_is_not_known() -> None:
    ids = PredictionIds(KEY)
    id_ = ids.new("cats", "cats", "m")
    changed = [f"{int(id_, 16) ^ 1 << bit:0{len(id_)}x}" for bit in range(4 * len(id_))]
    written = [
        id_.upper(),
        f"{id_} ",
        f" {id_}",
        f"{id_}\n",
        f"{id_[:2]} {id_[2:]}",
        f"{id_}00",
        id_[:-2],
        "",
        "é" * 54,
    ]
    for wrong in (*changed, *written):
        assert ids.read(wrong) is None
    assert PredictionIds(KEY + "!").read(id_) is None
    assert PredictionIds("").read(PredictionIds("").new("cats", "cats", "m")) is None, "random keys differ"


def test_ids_sort_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = PredictionIds(KEY)
    made = []
    for seconds in (1_764_000_000, 1_764_000_001, 1_900_000_000):
        monkeypatch.setattr("time.time", lambda seconds=seconds: seconds + 0.5)
        made.append(ids.new("dogs", "dogs", "m"))
    assert made == sorted(made)


def test_an_id_of_0_1_says_nothing() -> None:
    assert recorded("0123456789abcdef" * 2) is None
