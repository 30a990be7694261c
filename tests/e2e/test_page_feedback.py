"""Right or wrong: what a person says of an answer, and the tally of it all."""

import json

from playwright.sync_api import Page, Route, expect

from tests.e2e.conftest import CAT
from tests.serving.conftest import Running


def told(service: Running, actual: str) -> float:
    return service.metric(f'catsdogs_feedback_total{{actual="{actual}",predicted="cats"}}')


def test_right_and_wrong_reach_the_service_and_can_be_changed(page: Page, service: Running) -> None:
    before = told(service, "cats"), told(service, "dogs")
    page.set_input_files("#choose", [CAT, CAT])
    first, second = page.locator(".card").all()
    right, wrong = first.get_by_role("button", name="Right"), first.get_by_role("button", name="Wrong")
    right.click()
    expect(first.locator(".thanks")).to_have_text("Thank you.")
    expect(right).to_have_attribute("aria-pressed", "true")
    expect(wrong).to_have_attribute("aria-pressed", "false")
    assert (told(service, "cats"), told(service, "dogs")) == (before[0] + 1, before[1])
    expect(page.locator("#tally .checked")).to_have_text("1 of 1 answer right, you say")

    right.click()  # again says nothing new
    wrong.click()
    expect(first.locator(".thanks")).to_have_text("Thank you. So it is a dog.")
    expect(wrong).to_have_attribute("aria-pressed", "true")
    expect(right).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#tally .checked")).to_have_text("0 of 1 answer right, you say")
    assert told(service, "dogs") == before[1] + 1

    second.get_by_role("button", name="Right").click()
    expect(page.locator("#tally .checked")).to_have_text("1 of 2 answers right, you say")
    assert told(service, "cats") == before[0] + 2


def test_of_an_unsure_one_both_animals_are_offered_and_nothing_was_right_or_wrong(page: Page, service: Running) -> None:
    unsure = service.predict(CAT.read_bytes()).json() | {"verdict": "unsure", "unsure_because": "close_call"}
    page.route("**/predict?*", lambda route: route.fulfill(json=unsure))
    page.set_input_files("#choose", CAT)
    expect(page.locator(".card h2")).to_have_text("I’m unsure")
    page.unroute("**/predict?*")
    page.set_input_files("#choose", CAT)
    with page.expect_request("**/feedback") as asked:
        page.get_by_role("button", name="It’s a dog").click()
    assert json.loads(asked.value.post_data or "")["label"] == "dogs"
    expect(page.locator(".thanks").last).to_have_text("Thank you.")
    expect(page.get_by_role("button", name="It’s a dog")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#tally")).to_contain_text("1 unsure")
    expect(page.locator("#tally")).to_contain_text("1 cat")
    expect(page.locator("#tally .checked")).to_have_text("Say below what I got right.")


def test_a_photo_of_neither_or_both_can_be_said_to_be_one(page: Page, service: Running) -> None:
    before = told(service, "neither"), told(service, "both")
    page.set_input_files("#choose", [CAT, CAT])
    first, second = page.locator(".card").all()
    first.get_by_role("button", name="Neither").click()
    expect(first.locator(".thanks")).to_have_text("Thank you. So it is neither.")
    second.get_by_role("button", name="Both").click()
    expect(second.locator(".thanks")).to_have_text("Thank you. So it is both.")
    expect(page.locator("#tally .checked")).to_have_text("0 of 2 answers right, you say")
    expect(page.locator("#tally").get_by_role("button", name="2 wrong")).to_be_enabled()
    assert (told(service, "neither"), told(service, "both")) == (before[0] + 1, before[1] + 1)


def test_feedback_that_was_not_noted_says_so_and_can_be_given_again(page: Page) -> None:
    page.set_input_files("#choose", CAT)
    right = page.get_by_role("button", name="Right")
    page.route("**/feedback", lambda route: route.abort())
    right.click()
    expect(page.locator(".thanks")).to_have_text("Not noted. The service cannot be reached. Is it still running?")
    expect(right).to_have_attribute("aria-pressed", "false")
    page.unroute("**/feedback")

    def with_an_id_unknown(route: Route) -> None:
        route.continue_(post_data=json.dumps({"id": "never given", "label": "cats"}))

    page.route("**/feedback", with_an_id_unknown)
    right.click()
    expect(page.locator(".thanks")).to_have_text("Not noted. This service did not answer for this photo.")
    page.unroute("**/feedback")
    right.click()
    expect(page.locator(".thanks")).to_have_text("Thank you.")
    expect(right).to_have_attribute("aria-pressed", "true")


def test_of_two_clicks_the_second_counts_also_while_the_first_is_on_its_way(page: Page) -> None:
    sent: list[str] = []

    def tell(route: Route) -> None:
        sent.append(json.loads(route.request.post_data or "")["label"])
        if len(sent) == 1:
            page.get_by_role("button", name="Right: cat.jpg").click()
        route.fulfill(json={"id": "", "label": sent[-1], "predicted_label": "cats", "correct": sent[-1] == "cats"})

    page.route("**/feedback", tell)
    page.set_input_files("#choose", CAT)
    page.get_by_role("button", name="Wrong: cat.jpg").click()
    expect(page.get_by_role("button", name="Right: cat.jpg")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Wrong: cat.jpg")).to_have_attribute("aria-pressed", "false")
    assert sent == ["dogs", "cats"]
