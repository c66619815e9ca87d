"""Every option, once: name, type, default and a sentence.

The environment (prefix LIKEWISE_), a `.env` file, `--help` and docs/settings.md all come from this table.
"""

import base64
import contextlib
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from likewise.errors import SettingsError
from likewise.machine import home_folder

PREFIX = "LIKEWISE_"
ENV_FILE = ".env"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
# As long as what HMAC-SHA-256 makes (RFC 7518, section 3.2).
MIN_SECRET_BYTES = 32

_HOW_TO_MAKE_ONE = "`openssl rand -hex 32` makes one"
_NEEDED = {
    "dev_jwt_secret": f"LIKEWISE_AUTH=dev signs with it, and there is none; {_HOW_TO_MAKE_ONE}",
    "jwks_url": "LIKEWISE_AUTH=jwks needs the address of the issuer's keys, the `jwks_uri` of its discovery document",
    "jwt_audience": "LIKEWISE_AUTH=jwks needs the name that the issuer gives this server in `aud`",
    "jwt_issuer": "LIKEWISE_AUTH=jwks needs what the issuer calls itself in `iss`, to the letter",
}
_SAFE_URL = re.compile(
    r"(https://[^\s/?#@\\]+|http://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?)([/?][^\s#\\]*)?", re.IGNORECASE
)


def default_data_dir() -> Path:
    """Return the data folder where none is set; root's must be readable by the user that runs Postgres."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return Path("/var/lib/likewise")
    shared = Path(os.environ.get("XDG_DATA_HOME", ""))
    # The XDG specification has relative paths ignored.
    if shared.is_absolute() and sys.platform != "darwin":
        return shared / "likewise"
    home = home_folder()
    if home is None:
        raise SettingsError(
            "There is no place to keep data in: this user has no home folder. "
            "Set LIKEWISE_DATA_DIR to a folder that it may write to."
        )
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share") / "likewise"


class Settings(BaseSettings):
    """The settings, from LIKEWISE_* variables or a `.env` file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, env_ignore_empty=True, extra="ignore", frozen=True
    )

    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="Folder for the embedded Postgres, the models and their compiled forms.",
    )
    database_url: str | None = Field(
        None,
        description="Postgres 15 or newer with pgvector, as the owner that migrates; absent: an embedded Postgres.",
    )
    database_serving_url: str | None = Field(
        None, description="The same database as the role that serves; `likewise db upgrade` makes one if absent."
    )
    database_direct_url: str | None = Field(
        None, description="The same as the serving role without a pooler between, for LISTEN."
    )
    database_connections: int = Field(
        10,
        ge=2,
        le=200,
        description="Connections that one process keeps at most for requests and work; up to four more are for "
        "waiting, maintenance and probes.",
    )
    postgres_bin: Path | None = Field(
        None,
        description="Folder with initdb and postgres for the embedded server; absent: from pip, else the system's.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback needs authentication.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    auth: Annotated[tuple[Literal["none", "keys", "dev", "jwks"], ...], NoDecode] = Field(
        ("none",),
        min_length=1,
        description="Who may call: `none` takes every caller on loopback as one tenant, `keys` asks for an API key, "
        "`jwks` for a JWT of an issuer, `dev` for a JWT that `likewise token` made.",
    )
    dev_jwt_secret: str | None = Field(
        None,
        repr=False,
        validate_default=True,
        description="What `dev` signs its tokens with: at least 32 random bytes. There is no default.",
    )
    jwks_url: str | None = Field(
        None,
        validate_default=True,
        description="Where the issuer of `jwks` publishes its keys: https, or http on this machine's loopback.",
    )
    jwt_audience: str | None = Field(
        None, min_length=1, validate_default=True, description="What `aud` names in the tokens of that issuer."
    )
    jwt_issuer: str | None = Field(
        None, min_length=1, validate_default=True, description="What `iss` is in them, to the letter."
    )
    jwt_tenant_claim: str = Field(
        "org_id",
        min_length=1,
        description="The claim of a JWT that names the tenant; by dots one within another, as `app_metadata.org_id`.",
    )
    jwt_default_scopes: Annotated[tuple[Literal["none", "read", "write"], ...], NoDecode] = Field(
        ("read", "write"),
        min_length=1,
        description="What a JWT allows that names none of the scopes `read`, `write` and `admin`.",
    )
    tenants: Literal["open", "declared"] = Field(
        "open",
        description="Whether a tenant appears with its first valid JWT, or has to be declared by `likewise tenants "
        "add`; one with a key is.",
    )
    quota_tokens_per_minute: int = Field(
        0,
        ge=0,
        description="Tokens (4 characters each) of texts and queries that a tenant may send to one process in a "
        "minute; 0 is without limit.",
    )
    text_key: str | None = Field(
        None,
        repr=False,
        description="Key that texts which are not kept wait encrypted with: 32 random bytes in base64. Absent: the one "
        "in `text.key` in the data folder, which is made at the first start.",
    )
    text_key_next: str | None = Field(
        None,
        repr=False,
        description="The key that `likewise keys rotate-text` puts in place of LIKEWISE_TEXT_KEY; a server that has "
        "both goes on through that without a restart.",
    )
    model: str = Field("minilm-l6-v2", description="The model of new collections and of requests that name none.")
    models_allowed: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models that requests may name, by comma, besides the default."
    )
    models_file: Path | None = Field(
        None,
        description="TOML file with models of your own, each a folder or an OpenAI-compatible address. Requests may "
        "name them.",
    )
    reranker: str | None = Field(
        None,
        min_length=1,
        description="The model that puts texts in the order in which they answer a query: `ms-marco-MiniLM-L-6-v2`, a "
        "folder, or a reranker of LIKEWISE_MODELS_FILE. Absent: none.",
    )
    openai_api_key: str | None = Field(
        None, min_length=1, repr=False, description="Key for the text-embedding models of OpenAI."
    )
    openai_base_url: str = Field(
        "https://api.openai.com/v1",
        pattern=r"^https?://[^\s?#@]+$",
        description="Where those models are served; `/embeddings` is added.",
    )
    provider_seconds: float = Field(
        30.0, gt=0, le=600, description="Time that a remote model has for one try of one request; there are three."
    )
    model_ver: str = Field(
        "v1",
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="Name of the version of the model that segments are stored under, where a request names none.",
    )
    vector_size: int | None = Field(
        None, ge=1, le=100_000, description="Numbers that a vector of the default model must have, or nothing starts."
    )
    enable_mock: bool = Field(
        False, description="Whether `POST /vectors/mock` is there, which stores made-up vectors to try programs with."
    )
    segments_keep_text: bool = Field(
        False, description="Whether collections of segments that are made from now on keep the texts."
    )
    segments_keep_terms: bool = Field(
        False,
        description="Whether collections of segments that are made from now on keep search terms, without which they "
        "are searched by meaning only.",
    )
    models_dir: Path | None = Field(None, description="Folder with model folders; absent: `models` in the data folder.")
    models_bytes: int | None = Field(
        None,
        ge=0,
        description="Memory that loaded local models may take together, in bytes: before another is loaded, those "
        "least recently used are let go, but never the default. Absent: half of this machine's, or of "
        "LIKEWISE_DEVICE's GPU; 0 is without limit.",
    )
    precision: Literal["auto", "f32", "bf16", "int8"] = Field(
        "auto",
        description="Arithmetic of local models; `auto` is bf16 where the processor has it, else f32. `int8` is faster "
        "and finds a little less.",
    )
    device: str = Field(
        "cpu",
        description="Where local models run: `cpu`, or `cuda` or `cuda:1` for an NVIDIA GPU, which needs the extra "
        "`torch`.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads for local models; 0 takes all cores.")
    offline: bool = Field(False, description="Never fetch a model's files from a network.")
    cache_bytes: int = Field(
        128 * 2**20, ge=0, description="Memory for vectors of texts embedded before, in bytes; 0 keeps none."
    )
    redis_url: str | None = Field(
        None,
        min_length=1,
        repr=False,
        description="A Redis through which processes share vectors of texts embedded before: `redis://`, `rediss://`, "
        "`unix://`, or of a cluster `redis+cluster://`, `rediss+cluster://`. Absent: each process remembers its own.",
    )
    cache_seconds: int = Field(
        30 * 86_400,
        ge=0,
        le=3_650 * 86_400,
        description="How long that Redis keeps a vector, in seconds from when it was made; 0 is without limit.",
    )
    cache_scope: Literal["tenant", "shared"] = Field(
        "tenant", description="Whether one tenant may be answered from what another embedded."
    )
    queue_tokens: int = Field(
        2_000_000,
        ge=1_000,
        description="Tokens (4 characters each) that may wait for a model in one process before requests are refused.",
    )
    waiting_tokens: int = Field(
        200_000_000,
        ge=1_000,
        description="Tokens (4 characters each) of stored texts that may wait for their vectors in a model, of all "
        "tenants, before writes are refused; by default some hours of work for a small processor.",
    )
    embed_worker: bool = Field(
        True, description="Whether `serve` also embeds what waits; `false` leaves it to `likewise worker`."
    )
    lease_seconds: float = Field(
        60.0,
        ge=1,
        le=3600,
        description="How long a worker, or a server that runs a request with an Idempotency-Key, may be silent before "
        "others take over what it had begun.",
    )
    text_tries: int = Field(
        3,
        ge=1,
        le=20,
        description="How often a text that a model cannot embed is tried before it is given up; an outage is no try.",
    )
    max_body_bytes: int = Field(16 * 2**20, ge=1_024, description="Largest request body, in bytes.")
    metrics_token: str | None = Field(
        None,
        min_length=16,
        repr=False,
        description="What `GET /metrics` wants as `Authorization: Bearer` where callers need a credential: its numbers "
        "are over all tenants. Absent: it is closed then.",
    )
    max_stream_bytes: int = Field(
        2**30, ge=1_024, description="Largest body of lines (NDJSON), which is stored while it arrives, in bytes."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    shutdown_seconds: float = Field(
        20.0, ge=0, le=3600, description="Time that running requests have to end after SIGTERM."
    )

    @field_validator("auth", "models_allowed", "jwt_default_scopes", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("auth", "jwt_default_scopes")
    @classmethod
    def _none_stands_alone(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "none" in value and len(value) > 1:
            raise PydanticCustomError("combined", "`none` cannot be combined with anything else")
        if "dev" in value and "jwks" in value:
            words = "`dev` cannot be combined with `jwks`: whoever knows its secret could call as any tenant"
            raise PydanticCustomError("combined", words)
        return value

    @field_validator("dev_jwt_secret", "jwks_url", "jwt_audience", "jwt_issuer")
    @classmethod
    def _given_where_needed(cls, value: str | None, info: ValidationInfo) -> str | None:
        way = "dev" if info.field_name == "dev_jwt_secret" else "jwks"
        if value is None and way in info.data.get("auth", ()):
            raise PydanticCustomError("needed", _NEEDED[info.field_name or ""])
        return value

    @field_validator("dev_jwt_secret")
    @classmethod
    def _hard_to_guess(cls, value: str | None) -> str | None:
        if value is not None and len(value.encode()) < MIN_SECRET_BYTES:
            raise PydanticCustomError("short", f"it has less than {MIN_SECRET_BYTES} bytes; {_HOW_TO_MAKE_ONE}")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _nobody_between(cls, value: str | None) -> str | None:
        if value is not None and not _SAFE_URL.fullmatch(value):
            raise PydanticCustomError("url", "it begins with https://, or with http:// on this machine's loopback")
        return value

    @field_validator("text_key", "text_key_next")
    @classmethod
    def _key_of_256_bits(cls, value: str | None) -> str | None:
        with contextlib.suppress(ValueError):
            if value is None or len(base64.b64decode(value, validate=True)) == 32:
                return value
        raise PydanticCustomError("text_key", "it is 32 random bytes in base64, as `openssl rand -base64 32` makes")

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", value):
            raise PydanticCustomError("device", "it is `cpu`, `cuda`, or one GPU of several as in `cuda:1`")
        return value

    @field_validator("data_dir", "models_dir", "models_file", "postgres_bin")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        try:
            return None if value is None else value.expanduser().absolute()
        except RuntimeError:
            raise PydanticCustomError("home", "it begins with ~, and this user has no home folder") from None

    @property
    def models_folder(self) -> Path:
        """The folder in which models are looked for first."""
        return self.models_dir or self.data_dir / "models"

    @property
    def asks_who_calls(self) -> bool:
        """True if callers need a credential."""
        return "none" not in self.auth

    def require_safe_address(self) -> None:
        """Refuse to serve without authentication anywhere but on this machine's loopback."""
        if not self.asks_who_calls and self.host not in LOOPBACK:
            raise SettingsError(
                "LIKEWISE_AUTH=none serves on loopback only, and LIKEWISE_HOST names another address. "
                "Set LIKEWISE_HOST=127.0.0.1, or LIKEWISE_AUTH=keys."
            )


def load_settings(**overrides: object) -> Settings:
    """Read the settings; a wrong or unknown one is a SettingsError that names it and never shows its value."""
    _refuse_unknown([*_names_in_file(), *os.environ])
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "_".join(str(part) for part in first["loc"][:1]).upper()
        raise SettingsError(f"{name}: {first['msg']}.") from None


def _names_in_file() -> Iterable[str]:
    try:
        return dotenv_values(ENV_FILE)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise SettingsError(f"The file .env in this folder cannot be read: {why}. Correct it or remove it.") from None


def _refuse_unknown(names: Iterable[str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise SettingsError(f"{unknown[0]} is not a setting. `likewise doctor --settings` lists those there are.")
