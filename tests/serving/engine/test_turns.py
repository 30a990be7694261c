import threading
import time

from serving.engine.turns import Turns


def taken(turns: Turns[str]) -> list[str]:
    turns.end(1)
    items = []
    while (item := turns.get()) is not None:
        items.append(item)
    return items


def test_one_item_each_is_first_come_first_served() -> None:
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.put(name, name)
    assert taken(turns) == ["a", "b", "c"]


def test_owners_take_turns_and_each_keeps_its_order() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        turns.put(item, item[0])
    assert taken(turns) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_who_comes_late_waits_for_one_item_of_each_other_owner() -> None:
    turns: Turns[str] = Turns()
    for number in range(64):
        turns.put(f"batch {number}", "batch")
    assert turns.get() == "batch 0"
    turns.put("single", "single")
    assert [turns.get(), turns.get()] == ["batch 1", "single"]


def test_an_item_with_a_head_start_goes_before_those_that_came_no_longer_before_it() -> None:
    turns: Turns[str] = Turns()
    turns.put("long ago", "a")
    time.sleep(0.3)
    for name in "bc":
        turns.put(name, name)
    turns.put("large", "d", head_start=0.2)
    turns.put("larger", "e", head_start=0.25)
    assert taken(turns) == ["long ago", "larger", "large", "b", "c"]


def test_only_the_first_turn_of_an_owner_has_a_head_start() -> None:
    turns: Turns[str] = Turns()
    for item in ("a1", "a2", "a3"):
        turns.put(item, "a", head_start=10)
    turns.put("b1", "b")
    turns.put("b2", "b")
    assert taken(turns) == ["a1", "b1", "a2", "b2", "a3"]


def test_no_item_is_lost_or_given_twice_among_threads() -> None:
    turns: Turns[int] = Turns()
    found: list[int] = []

    def take() -> None:
        while (item := turns.get()) is not None:
            found.append(item)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5000):
        turns.put(number, number % 7)
    turns.end(len(threads))
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(5000))
