"""The page's server: what it shows first, what it writes down, and whom it answers."""

import threading
from pathlib import Path

import pytest

from shared.pixels import pixels
from shared.samples import SUFFIX, TOMBSTONE
from tests.training.labelling.conftest import Serve, decide, keep, queued
from training.decisions import decisions, read


def lines(ledger: Path) -> list[tuple[str, str, str, str]]:
    return [(line.id, line.label, line.decision, line.who) for line in read(ledger)]


def test_what_tells_most_comes_first_and_what_was_drawn_at_random_last(serve: Serve, folder: Path) -> None:
    keep(folder, "a0-disagreed", "disagreed", sure=0.5)
    order = queued(serve())
    assert order[:5] == ["b1-unsure", "d2-unsure", "c3-unsure", "a4-disputed", "a0-disagreed"]
    assert set(order[5:]) == {"e5-random", "f6-random"}


def test_random_samples_come_in_an_order_that_has_nothing_to_do_with_their_answers(serve: Serve, folder: Path) -> None:
    for number in range(40):
        keep(folder, f"r{number:02}", "random", *(("unsure",) if number < 20 else ()), sure=0.5 + number / 100)
    order = [id_ for id_ in queued(serve()) if id_.startswith("r")]
    assert len(order) == 40
    assert 3 < sum(id_ < "r20" for id_ in order[:20]) < 17


def test_a_decision_is_on_the_disk_with_who_when_and_against_which_model(serve: Serve, ledger: Path) -> None:
    page = serve()
    assert decide(page, "b1-unsure", "cats").status_code == 204
    (line,) = read(ledger)
    assert (line.id, line.label, line.decision, line.who, line.model) == (
        "b1-unsure", "cats", "label", "Anna", "shipped-1"
    )  # fmt: skip
    assert ledger.read_text().splitlines()[1].endswith("Z,shipped-1")
    assert "b1-unsure" not in queued(page)
    assert page.get("/queue").json()["done"] == 1


def test_what_clients_reported_is_no_label(serve: Serve, ledger: Path) -> None:
    page = serve()
    sample = page.get("/samples/a4-disputed/answer").json()
    assert (sample["feedback"], sample["prediction"]["label"]) == ("dogs", "cats")
    assert decisions(ledger) == {}
    assert not any("feedback" in each or "label" in each for each in page.get("/queue").json()["samples"])


def test_undo_appends_a_line_that_takes_back(serve: Serve, ledger: Path) -> None:
    page = serve()
    decide(page, "b1-unsure", "cats")
    assert page.post("/undo", json={"id": "b1-unsure"}).status_code == 204
    assert lines(ledger) == [("b1-unsure", "cats", "label", "Anna"), ("b1-unsure", "cats", "undo", "Anna")]
    assert queued(page)[0] == "b1-unsure"
    assert page.post("/undo", json={"id": "b1-unsure"}).status_code == 409
    decide(page, "b1-unsure", "dogs")
    assert decisions(ledger) == {"b1-unsure": "dogs"}


def test_undo_takes_back_each_label_that_a_person_gave_a_sample(serve: Serve, ledger: Path) -> None:
    """As from two pages, or from one whose answer was lost."""
    page = serve()
    decide(page, "b1-unsure", "cats")
    decide(page, "b1-unsure", "dogs")
    assert page.post("/undo", json={"id": "b1-unsure"}).status_code == 204
    assert decisions(ledger) == {}


def test_the_queue_has_the_latest_decisions_to_take_back(serve: Serve) -> None:
    page = serve()
    for id_, label in (("c3-unsure", "cats"), ("b1-unsure", "dogs"), ("c3-unsure", "both")):
        decide(page, id_, label)
    decide(serve("Ben"), "d2-unsure", "cats")
    assert page.get("/queue").json()["latest"] == [
        {"id": "b1-unsure", "label": "dogs"}, {"id": "c3-unsure", "label": "both"}
    ]  # fmt: skip


def test_nobody_takes_back_what_another_said(serve: Serve, ledger: Path) -> None:
    decide(serve(), "b1-unsure", "cats")
    assert serve("Ben").post("/undo", json={"id": "b1-unsure"}).status_code == 409
    assert decisions(ledger) == {"b1-unsure": "cats"}


def test_disagreements_are_shown_and_settled(serve: Serve, ledger: Path) -> None:
    anna, ben = serve("Anna"), serve("Ben")
    for id_, hers, his in (("b1-unsure", "cats", "dogs"), ("c3-unsure", "both", "both")):
        decide(anna, id_, hers)
        decide(ben, id_, his)
    assert anna.get("/queue").json()["disputed"] == 1
    assert decisions(ledger) == {"c3-unsure": "both"}

    settling = serve("Cleo", settle=True)
    assert settling.get("/queue").json()["samples"] == [
        {"id": "b1-unsure", "said": {"Anna": "cats", "Ben": "dogs"}}
    ]  # fmt: skip
    decide(settling, "b1-unsure", "neither")
    assert lines(ledger)[-1] == ("b1-unsure", "neither", "settle", "Cleo")
    assert decisions(ledger)["b1-unsure"] == "neither"
    assert queued(settling) == []
    settling.post("/undo", json={"id": "b1-unsure"})
    assert queued(settling) == ["b1-unsure"]
    assert settling.post("/undo", json={"id": "b1-unsure"}).status_code == 409


def test_who_settles_does_not_take_back_an_own_label(serve: Serve, ledger: Path) -> None:
    decide(serve("Anna"), "b1-unsure", "cats")
    decide(serve("Ben"), "b1-unsure", "dogs")
    assert serve("Anna", settle=True).post("/undo", json={"id": "b1-unsure"}).status_code == 409


def test_what_others_labelled_comes_after_what_nobody_did(serve: Serve) -> None:
    decide(serve("Anna"), "b1-unsure", "cats")
    assert queued(serve("Ben"))[-1] == "b1-unsure"


def test_two_pages_at_once_lose_no_decision(serve: Serve, folder: Path, ledger: Path) -> None:
    names = [f"g{number:02}" for number in range(30)]
    for name in names:
        keep(folder, name, "random")
    pages = {who: serve(who) for who in ("Anna", "Ben")}

    def work(who: str) -> None:
        for name in names:
            assert decide(pages[who], name, "dogs").status_code == 204

    threads = [threading.Thread(target=work, args=(who,)) for who in pages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines(ledger)) == sorted((name, "dogs", "label", who) for name in names for who in pages)


def test_a_torn_last_line_is_labelled_again(serve: Serve, ledger: Path) -> None:
    page = serve()
    decide(page, "b1-unsure", "cats")
    decide(page, "d2-unsure", "cats")
    ledger.write_bytes(ledger.read_bytes()[:-12])
    assert queued(page)[0] == "d2-unsure"
    decide(page, "d2-unsure", "dogs")
    assert decisions(ledger) == {"b1-unsure": "cats", "d2-unsure": "dogs"}


def test_a_sample_that_is_forgotten_is_not_shown_and_takes_no_label(serve: Serve, folder: Path, ledger: Path) -> None:
    page = serve()
    assert page.get("/samples/b1-unsure/picture").status_code == 200
    (folder / f"b1-unsure{TOMBSTONE}").touch()
    (folder / f"d2-unsure{SUFFIX}").unlink()
    for id_ in ("b1-unsure", "d2-unsure"):
        assert id_ not in queued(page)
        for what in ("picture", "answer", "evidence"):
            assert page.get(f"/samples/{id_}/{what}").status_code == 410
        assert decide(page, id_, "cats").status_code == 410
    assert not ledger.exists()


def test_a_sample_that_comes_later_or_gets_feedback_is_shown(serve: Serve, folder: Path) -> None:
    page = serve()
    queued(page)
    keep(folder, "h0", "unsure", sure=0.5)
    keep(folder, "e5-random", "disputed", sure=0.5, feedback="dogs")
    assert queued(page)[0] == "h0"
    assert queued(page).index("e5-random") < queued(page).index("a4-disputed")


def test_a_file_that_is_no_sample_is_left_out(serve: Serve, folder: Path) -> None:
    (folder / "notes.txt").write_text("of mine")
    (folder / f"photo{SUFFIX}").write_bytes(b"not a picture")
    assert len(queued(serve())) == 6


def test_the_picture_is_the_samples_own_file_and_its_evidence_tells_no_animal(serve: Serve, folder: Path) -> None:
    page = serve()
    file = page.get("/samples/b1-unsure/picture")
    assert file.content == (folder / f"b1-unsure{SUFFIX}").read_bytes()
    assert pixels(file.content).shape == (224, 224, 3)
    rows = page.get("/samples/b1-unsure/evidence").json()
    assert [len(row) for row in rows] == [7] * 7
    values = [value for row in rows for value in row]
    assert (min(values) >= 0, max(values)) == (True, 1)


def test_a_file_that_is_no_model_is_said(serve: Serve, folder: Path) -> None:
    answer = serve(model=folder / f"b1-unsure{SUFFIX}").get("/samples/b1-unsure/evidence")
    assert (answer.status_code, "not a model" in answer.json()["detail"]) == (500, True)


def test_a_ledger_that_cannot_be_written_is_said_and_nothing_is_done(serve: Serve, ledger: Path) -> None:
    page = serve()
    ledger.mkdir()
    answer = decide(page, "b1-unsure", "cats")
    assert (answer.status_code, answer.json()) == (500, {"detail": "Is a directory"})


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/decisions", b"{"),
        ("/decisions", b'{"id": "b1-unsure", "label": "cat"}'),
        ("/decisions", b'{"id": "../samples/b1-unsure", "label": "cats"}'),
        ("/decisions", b'{"id": "b1-unsure\\n", "label": "cats"}'),
        ("/undo", b"\xff"),
    ],
)
def test_a_body_that_is_no_decision_is_refused(serve: Serve, ledger: Path, path: str, body: bytes) -> None:
    assert serve().post(path, content=body).status_code == 400
    assert not ledger.exists()


@pytest.mark.parametrize("path", ["/samples/..%2Fsamples%2Fb1-unsure/picture", "/samples/%00/picture"])
def test_no_other_file_is_served(serve: Serve, path: str) -> None:
    assert serve().get(path).status_code in (404, 410)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:9000"}, 204),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost:9000", "Origin": "http://localhost:9000", "Sec-Fetch-Site": "same-origin"}, 204),
    ],
)
def test_pages_and_names_from_elsewhere_are_refused(
    serve: Serve, ledger: Path, headers: dict[str, str], status: int
) -> None:
    page = serve()
    page.headers.update(headers)
    assert decide(page, "b1-unsure", "cats").status_code == status
    assert ledger.exists() == (status == 204)
    assert (page.get("/samples/b1-unsure/picture").status_code == 200) == (status == 204)


@pytest.mark.parametrize("path", ["/", "/queue", "/assets/label.js", "/samples/b1-unsure/picture", "/nowhere"])
def test_nothing_may_be_loaded_from_elsewhere_or_kept_by_the_browser(serve: Serve, path: str) -> None:
    headers = serve().get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
    assert "http" not in headers["content-security-policy"]
    assert (headers["cache-control"], headers["cross-origin-resource-policy"]) == ("no-store", "same-origin")
