"""Settings: read once, refused by name, never shown."""

from pathlib import Path
from typing import NoReturn

import pytest

from likewise.embedding.files import weights
from likewise.embedding.models import MODELS
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


SECRET = "canary-of-more-than-thirty-two-bytes"
ISSUER = {
    "jwks_url": "https://issuer.example/jwks",
    "jwt_audience": "likewise",
    "jwt_issuer": "https://issuer.example/",
}


@pytest.mark.parametrize(
    ("chosen", "named", "words"),
    [
        ({"auth": "dev"}, "LIKEWISE_DEV_JWT_SECRET", "openssl rand"),
        ({"auth": "keys,dev"}, "LIKEWISE_DEV_JWT_SECRET", "openssl rand"),
        ({"auth": "dev", "dev_jwt_secret": "canary"}, "LIKEWISE_DEV_JWT_SECRET", "32 bytes"),
        ({"dev_jwt_secret": "canary"}, "LIKEWISE_DEV_JWT_SECRET", "32 bytes"),
        ({"auth": "jwks"}, "LIKEWISE_JWKS_URL", "jwks_uri"),
        ({"auth": "jwks", "jwks_url": "https://issuer.example/jwks"}, "LIKEWISE_JWT_AUDIENCE", "`aud`"),
        ({**ISSUER, "auth": "jwks", "jwt_issuer": None}, "LIKEWISE_JWT_ISSUER", "`iss`"),
        ({**ISSUER, "auth": "dev,jwks", "dev_jwt_secret": SECRET}, "LIKEWISE_AUTH", "any tenant"),
        ({**ISSUER, "auth": "none,jwks"}, "LIKEWISE_AUTH", "none"),
        ({"jwt_default_scopes": "read,admin"}, "LIKEWISE_JWT_DEFAULT_SCOPES", "read"),
        ({"jwt_default_scopes": "none,read"}, "LIKEWISE_JWT_DEFAULT_SCOPES", "none"),
        ({"tenants": "canary"}, "LIKEWISE_TENANTS", "declared"),
    ],
)
def test_what_a_way_needs_is_named(chosen: dict[str, str | None], named: str, words: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(**chosen)
    assert refused.value.detail.startswith(f"{named}: ")
    assert words in refused.value.detail
    assert "canary" not in refused.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "http://issuer.example/jwks", "ftp://issuer.example/jwks", "issuer.example/jwks", "//issuer.example/jwks",
        "https://", "https:///jwks", "https://user:canary@issuer.example/jwks", "https://issuer.example/jwks#a",
        "https://issuer.example/a b", "http://127.0.0.1@issuer.example/", "http://127.0.0.1.issuer.example/",
        "http://localhost.example/", "http://127.0.0.1:80\\@issuer.example/", "http://[::2]/", "http://10.0.0.1/",
        "http://127.0.0.2/", "file:///etc/passwd", "https://issuer.example\n/jwks", "https://issuer.example/jwks\n",
    ],
)  # fmt: skip
def test_keys_come_where_nobody_can_change_them_on_their_way(url: str) -> None:
    with pytest.raises(SettingsError, match=r"LIKEWISE_JWKS_URL.*https://"):
        load_settings(**{**ISSUER, "auth": "jwks", "jwks_url": url})


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example/jwks", "HTTPS://issuer.example", "https://issuer.example:8443/a/b?p=policy",
        "https://[2001:db8::1]/jwks", "http://127.0.0.1:8090/jwks", "http://localhost/jwks", "http://[::1]:80/jwks",
    ],
)  # fmt: skip
def test_an_address_of_keys(url: str) -> None:
    assert load_settings(**{**ISSUER, "auth": "jwks,keys", "jwks_url": url}).asks_who_calls


def test_a_secret_that_nobody_needs_does_no_harm_and_is_not_shown() -> None:
    for way in ("none", "keys", "dev"):
        settings = load_settings(auth=way, dev_jwt_secret=SECRET)
        assert "canary" not in repr(settings)


@pytest.fixture
def nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a name, and without HOME."""

    def no_entry(uid: int) -> NoReturn:
        raise KeyError(uid)

    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME", "LIKEWISE_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.geteuid", lambda: 12_345)
    monkeypatch.setattr("pwd.getpwuid", no_entry)


@pytest.mark.usefixtures("nobody_knows")
def test_a_user_without_a_home_folder_hears_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"no home folder\. Set LIKEWISE_DATA_DIR"):
        load_settings()
    monkeypatch.setenv("LIKEWISE_DATA_DIR", "~/data")
    with pytest.raises(SettingsError, match="LIKEWISE_DATA_DIR: it begins with ~"):
        load_settings()
    # When that is set, then it is enough, also to look for the model
    monkeypatch.setenv("LIKEWISE_DATA_DIR", str(tmp_path))
    settings = load_settings(offline=True)
    assert settings.data_dir == tmp_path
    weights.locate(MODELS[0], settings)
