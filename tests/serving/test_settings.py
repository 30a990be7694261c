import re
from pathlib import Path

import pytest

from serving import settings
from serving.settings import PREFIX, SHIPPED_INT8, SHIPPED_MODEL, Settings, SettingsError, from_environment, unknown
from tests.conftest import ROOT


def test_defaults_are_the_settings_of_an_empty_environment() -> None:
    assert from_environment({}) == Settings()


def test_the_int8_file_is_served_where_it_ships_and_another_where_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8 = tmp_path / "cats-dogs.int8.onnx"
    monkeypatch.setattr(settings, "SHIPPED_INT8", int8)
    assert Settings().model_path == SHIPPED_MODEL
    int8.write_bytes(b"")
    assert Settings().model_path == int8
    assert Settings(model="/m.fp32.onnx").model_path == Path("/m.fp32.onnx")


def test_the_two_files_that_ship_lie_side_by_side_so_that_one_can_stand_in_for_the_other() -> None:
    assert SHIPPED_MODEL.is_file()
    assert SHIPPED_INT8.with_name(SHIPPED_INT8.name.replace(".int8.", ".fp32.")) == SHIPPED_MODEL


def test_the_environment_is_read_and_typed() -> None:
    read = from_environment({"CATSDOGS_PORT": "9000", "CATSDOGS_DEADLINE_SECONDS": "2.5", "CATSDOGS_MODEL": "/m.onnx"})
    assert (read.port, read.deadline_seconds, str(read.model_path)) == (9000, 2.5, "/m.onnx")


def test_the_command_line_wins() -> None:
    assert from_environment({"CATSDOGS_PORT": "9000"}, port=9001, host=None) == Settings(port=9001)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "http", "whole numbers from 0 up to 65535"),
        ("PORT", "70000", "whole numbers from 0 up to 65535"),
        ("MAX_PIXELS", "0", "whole numbers from 1 up to 1000000000000"),
        ("MAX_DECODE_BYTES", "36893488147419103232", "whole numbers from 0 up to 1000000000000"),
        ("SAMPLES_DAYS", "inf", "numbers above 0 up to 36500"),
        ("HOST", "", "addresses and names of this machine, and 0.0.0.0 for all"),
        ("DEADLINE_SECONDS", "-1", "numbers above 0 up to 3600"),
        ("DEADLINE_SECONDS", "inf", "numbers above 0 up to 3600"),
        ("BODY_SECONDS", "nan", "numbers above 0 up to 3600"),
        ("DRAIN_DELAY_SECONDS", "1e9", "numbers from 0 up to 3600"),
        ("WATCH_SECONDS", "Infinity", "numbers from 0 up to 86400"),
        ("LOG_LEVEL", "loud", "debug, error, info, warning"),
        ("ROOT_PATH", "cats", "paths such as /cats"),
    ],
)
def test_a_value_that_is_not_allowed_is_said_with_what_is(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as error:
        from_environment({PREFIX + name: value})
    assert str(error.value) == f"CATSDOGS_{name} is {value!r}; allowed are {allowed}"


def test_a_secret_in_a_value_is_not_said() -> None:
    with pytest.raises(SettingsError, match=r"'https://\*\*\*@app\.example'"):
        from_environment({"CATSDOGS_ORIGINS": "https://ann:s3cret@app.example"})


def test_values_are_read_in_any_case() -> None:
    read = from_environment({"CATSDOGS_LOG_LEVEL": "Warning", "CATSDOGS_ORIGINS": "HTTPS://App.Example"})
    assert (read.log_level, read.origins) == ("warning", "HTTPS://App.Example")


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("CATSDOGS_PROT", "CATSDOGS_PROT is no setting and has no effect; did you mean CATSDOGS_PORT?"),
        ("CATSDOGS_QUEUE_MAX", "CATSDOGS_QUEUE_MAX is no setting and has no effect; did you mean CATSDOGS_MAX_QUEUE?"),
        ("catsdogs_port", "catsdogs_port is no setting and has no effect; did you mean CATSDOGS_PORT?"),
        ("CATSDOGS_WORKERS_123", "CATSDOGS_WORKERS_123 is no setting and has no effect"),
    ],
)
def test_a_variable_that_is_no_setting_is_said_with_the_nearest(variable: str, said: str) -> None:
    assert unknown({variable: "1", "CATSDOGS_PORT": "1", "CATSDOGS_KEY": "k", "PATH": "/bin"}) == [said]


def test_every_variable_of_this_project_is_a_setting_or_known_to_be_none() -> None:
    files = [ROOT / "compose.yaml", ROOT / "Makefile", *(ROOT / "ops").glob("*.*"), *(ROOT / "docs").glob("*.md")]
    named = {name for file in files for name in re.findall(r"\bCATSDOGS_[A-Z_]*[A-Z]\b", file.read_text())}
    assert "CATSDOGS_IMAGE" in named
    assert unknown(dict.fromkeys(named, "")) == []


@pytest.mark.parametrize("value", ["unsure", "disputed,unsure", "random:1", "random:.5,disputed", "random:0.001"])
def test_what_is_kept_may_be_any_of_three(value: str) -> None:
    assert from_environment({PREFIX + "SAMPLE": value}).sample == value


@pytest.mark.parametrize("value", ["", "sure", "unsure,", "unsure disputed", "random", "random:2", "random:-1"])
def test_what_is_kept_must_be_named_right(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^CATSDOGS_SAMPLE is .*random:0\.01"):
        from_environment({PREFIX + "SAMPLE": value})


def test_samples_in_a_bucket_need_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda _: None)
    assert from_environment({PREFIX + "SAMPLES": "samples"}).samples == "samples"
    with pytest.raises(SettingsError, match=r"a bucket needs obstore: .*\[samples\]"):
        from_environment({PREFIX + "SAMPLES": "s3://bucket/samples"})


def test_a_key_that_can_be_guessed_is_refused_and_not_repeated() -> None:
    for key in ("", "brief"):
        with pytest.raises(SettingsError, match=r"^CATSDOGS_ID_KEY is invalid; ") as refused:
            from_environment({PREFIX + "ID_KEY": key})
        assert "brief" not in str(refused.value)


def test_the_page_of_settings_has_each_of_them_its_default_and_no_other() -> None:
    page = (ROOT / "docs/settings.md").read_text()
    rows = set()
    for name, default in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        cell = f"`{default}`" if default != "" else "the shipped file" if name == "model" else "none"
        rows.add((PREFIX + name.upper(), cell))
    assert set(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE)) == rows
