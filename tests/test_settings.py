"""Settings: read once, refused by name, never shown."""

from pathlib import Path

import pytest

from likewise.errors import SettingsError
from likewise.settings import default_data_dir, load_settings


def test_an_unknown_setting_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_DATABSE_URL", "postgresql://secret@host/db")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert "LIKEWISE_DATABSE_URL" in refused.value.detail
    assert "secret" not in refused.value.detail


def test_an_unknown_setting_in_a_file_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("LIKEWISE_PORT=9000\nOTHER=1\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().port == 9000
    (tmp_path / ".env").write_text("LIKEWISE_PROT=9000\n")
    with pytest.raises(SettingsError, match="LIKEWISE_PROT"):
        load_settings()


def test_a_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"\.env"):
        load_settings()


def test_an_empty_setting_is_an_absent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_DATA_DIR", "")
    monkeypatch.setenv("LIKEWISE_PORT", "")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    settings = load_settings()
    assert settings.data_dir == default_data_dir()
    assert settings.data_dir != Path.cwd()
    assert settings.port == 8080


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "abc-canary"), ("PORT", "70000"), ("AUTH", "canary"), ("PRECISION", "f16-canary"), ("THREADS", "-1")],
)
def test_a_wrong_value_is_refused_by_name_and_not_shown(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"LIKEWISE_{name}", value)
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert f"LIKEWISE_{name}" in refused.value.detail
    assert "canary" not in refused.value.detail


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_MODELS_ALLOWED", "bge-small, minilm-l12-v2,")
    assert load_settings().models_allowed == ("bge-small", "minilm-l12-v2")


def test_paths_are_absolute_and_know_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIKEWISE_DATA_DIR", "~/somewhere")
    assert load_settings().data_dir == Path.home() / "somewhere"
    assert load_settings().models_folder == Path.home() / "somewhere" / "models"


def test_serving_without_authentication_stays_on_loopback() -> None:
    load_settings(host="127.0.0.1").require_safe_address()
    for host in ("0.0.0.0", "10.0.0.1", "example.org", "::"):
        with pytest.raises(SettingsError, match="loopback"):
            load_settings(host=host).require_safe_address()
