import re

from serving.ids import Ids


def test_ids_differ_within_a_process_and_between_them() -> None:
    one, other = Ids(), Ids()
    made = [ids.new() for ids in (one, other) for _ in range(10_000)]
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32}", each) for each in made)


def test_an_id_says_nothing_of_the_next() -> None:
    bits = [int(Ids().new(), 16) ^ int(Ids().new(), 16) for _ in range(200)]
    ones = sum(each.bit_count() for each in bits) / (200 * 128)
    assert 0.48 < ones < 0.52
