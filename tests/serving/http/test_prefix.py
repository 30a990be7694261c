"""The prefix of a proxy is removed, wherever it comes from; nothing else is made of it."""

import pytest

from serving.http.auth import make
from serving.settings import SettingsError, from_environment
from tests.serving.conftest import Running, Start


@pytest.mark.parametrize("prefix", ["/cats", "/cats/", "/a/b.c"])
def test_a_forwarded_prefix_is_removed_if_it_is_there(server: Running, prefix: str) -> None:
    headers = {"x-forwarded-prefix": prefix}
    bare = prefix.rstrip("/")
    assert server.http.get(f"{bare}/health", headers=headers).status_code == 200
    assert server.http.get("/health", headers=headers).status_code == 200
    answer = server.http.get(bare, headers=headers)
    assert (answer.status_code, answer.headers["location"]) == (307, f"{bare}/")
    assert "script-src" in server.http.get(f"{bare}/", headers=headers).headers["content-security-policy"]


@pytest.mark.parametrize("prefix", ["//evil.example", "evil.example", "/a\\b", "/a?b", "/ä", "/", "", "/a//b"])
def test_another_prefix_is_ignored(server: Running, prefix: str) -> None:
    headers = {b"x-forwarded-prefix": prefix.encode()}
    assert server.http.get("/health", headers=headers).status_code == 200
    assert "location" not in server.http.get(f"{server.http.base_url}//evil.example", headers=headers).headers


def test_a_prefix_opens_no_door(start: Start) -> None:
    server = start(api_keys=make()[1])
    for prefix in ("/health", "/model", "/v2/health/live"):
        answer = server.http.get(f"{prefix}/model", headers={"x-forwarded-prefix": prefix})
        assert answer.status_code == 401
    assert server.http.get("/health").status_code == 200


def test_the_setting_wins_over_the_header(start: Start) -> None:
    server = start(wait_ready=False, root_path="/cats/")
    assert server.http.get("/cats/health").status_code == 200
    assert server.http.get("/dogs/health", headers={"x-forwarded-prefix": "/dogs"}).status_code == 404


@pytest.mark.parametrize("value", ["cats", "//evil.example", "/a b", "https://x/y"])
def test_a_setting_that_is_no_path_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match="CATSDOGS_ROOT_PATH"):
        from_environment({"CATSDOGS_ROOT_PATH": value})
