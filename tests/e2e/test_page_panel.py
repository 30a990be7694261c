"""What this model is: the panel says what GET /model says."""

import re
from datetime import datetime

from playwright.sync_api import Page, expect

from tests.serving.conftest import Running


def percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def test_the_panel_says_in_words_what_the_contract_says(page: Page, service: Running) -> None:
    contract = service.http.get("/model").json()
    test, provenance = contract["test"], contract["provenance"]
    page.get_by_role("button", name="What this model is").click()
    panel = page.get_by_role("dialog", name="What this model is")
    created = datetime.fromisoformat(provenance["created"])
    for words in (
        contract["version"],
        contract["precision"],
        contract["file"],
        f"{created:%B} {created.day}, {created.year}",
        f"{percent(test['accuracy']['value'])} right",
        f"of {test['pictures']:,} photos",
        f"between {percent(test['accuracy']['low'])} and {percent(test['accuracy']['high'])}",
        f"Log loss {test['log_loss']:.4f}",
        f"When neither animal gets {percent(contract['unsure']['close_call'])}",
        f"less than {percent(contract['unsure']['unfamiliar'])} familiar",
        provenance["git_commit"][:10],
        provenance["registry"],
        provenance["mlflow_run_id"][:10],
        provenance["dataset_digest"][:10],
    ):
        expect(panel).to_contain_text(re.compile(re.escape(words).replace(r"\ ", r"\s+")))
    cells = panel.locator(".confusion tbody td").all_text_contents()
    assert [int(cell) for cell in cells] == [number for row in test["confusion"] for number in row]
    expect(panel.locator(".warning")).to_be_hidden()
    expect(panel.get_by_role("link", name="All of it, as JSON")).to_have_attribute("href", "model")
    panel.get_by_role("button", name="Close").click()
    expect(panel).to_be_hidden()


def test_what_production_met_is_beside_the_test_side(page: Page, service: Running) -> None:
    contract = service.http.get("/model").json()
    panel = page.get_by_role("dialog")
    page.get_by_role("button", name="What this model is").click()
    expect(panel.locator("[data-fact=version]")).to_have_text(contract["version"])
    expect(panel.locator("[data-fact=production]")).to_be_hidden()
    panel.get_by_role("button", name="Close").click()
    for side, pictures, right in (("production", 1204, 0.968), ("hard", 310, 0.84)):
        contract[side] = contract["test"] | {
            "pictures": pictures,
            "accuracy": {"value": right, "low": 0.8, "high": 0.99},
        }
    page.route("**/model", lambda route: route.fulfill(json=contract))
    page.get_by_role("button", name="What this model is").click()
    expect(panel).to_contain_text("picked by chance: 96.8 % of 1,204 photos right, between 80.0 % and 99.0 %.")
    expect(panel).to_contain_text("or users disputed: 84.0 % of 310 photos right, between 80.0 % and 99.0 %.")


def test_a_fallback_and_a_model_never_measured_are_said(page: Page, service: Running) -> None:
    contract = service.http.get("/model").json()
    contract |= {"fallback": "its answers differ here", "test": None, "precision": "fp32"}
    page.route("**/model", lambda route: route.fulfill(json=contract))
    page.get_by_role("button", name="What this model is").click()
    panel = page.get_by_role("dialog")
    expect(panel.locator(".warning")).to_have_text("In place of the int8 file: its answers differ here")
    expect(panel.locator(".measured")).to_be_hidden()
    expect(panel).to_contain_text("fp32")


def test_a_service_that_is_not_ready_says_so_in_the_panel_and_then_what_it_is(page: Page) -> None:
    problem = {"status": 503, "code": "not_ready", "detail": "the model is being loaded"}
    page.route("**/model", lambda route: route.fulfill(status=503, json=problem))
    page.get_by_role("button", name="What this model is").click()
    panel = page.get_by_role("dialog")
    expect(panel).to_contain_text("still getting ready")
    expect(panel.locator(".facts")).to_be_hidden()
    page.keyboard.press("Escape")
    page.unroute("**/model")
    page.get_by_role("button", name="What this model is").click()
    expect(panel.locator(".facts")).to_be_visible()
    expect(panel.locator(".fault")).to_be_hidden()
