import pytest

from serving.settings import PREFIX, SHIPPED_MODEL, Settings, SettingsError, from_environment
from tests.conftest import ROOT


def test_defaults_serve_the_model_that_ships() -> None:
    settings = from_environment({})
    assert settings == Settings()
    assert settings.model_path == SHIPPED_MODEL


def test_the_environment_is_read_and_typed() -> None:
    settings = from_environment(
        {"CATSDOGS_PORT": "9000", "CATSDOGS_DEADLINE_SECONDS": "2.5", "CATSDOGS_MODEL": "/m.onnx"}
    )
    assert (settings.port, settings.deadline_seconds, str(settings.model_path)) == (9000, 2.5, "/m.onnx")


def test_the_command_line_wins() -> None:
    assert from_environment({"CATSDOGS_PORT": "9000"}, port=9001, host=None) == Settings(port=9001)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "http"), ("PORT", "70000"), ("MAX_PIXELS", "0"), ("DEADLINE_SECONDS", "-1"), ("LOG_LEVEL", "loud")],
)
def test_an_impossible_value_names_the_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^CATSDOGS_{name}: "):
        from_environment({PREFIX + name: value})


def test_the_readme_s_table_has_every_setting_and_its_default() -> None:
    readme = (ROOT / "README.md").read_text()
    for name, default in zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True):
        cell = f"`{default}`" if default != "" else "the shipped file"
        assert f"| `{PREFIX}{name.upper()}` | {cell} |" in readme
