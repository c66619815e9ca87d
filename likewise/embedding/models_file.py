"""LIKEWISE_MODELS_FILE: models of one's own, a row each."""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BaseModel, Field, StrictInt, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from likewise.embedding.runtimes import ModelRuntime
from likewise.errors import SettingsError
from likewise.settings import ENV_FILE, PREFIX, Settings

FILE = f"{PREFIX}MODELS_FILE"
# One of the model's names may be in a path of ours, and in messages.
NAME = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$"


def _http_url(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s?#@\x00-\x20\x7f]+", url) or not _has_host(url):
        words = "it must be an address of http:// or https://, without a user, a query or a fragment"
        raise PydanticCustomError("url", words)
    return url.rstrip("/")


def _has_host(url: str) -> bool:
    try:
        # Reading the port refuses one that there cannot be.
        return bool(urlsplit(url).hostname) and urlsplit(url).port != 0
    except ValueError:
        return False


# Fields of one kind of models only.
_OF_VECTORS = frozenset({"dimension", "query_prefix", "document_prefix", "matryoshka", "runtime"})
_OF_RERANKERS = frozenset({"texts_named"})

HttpUrl = Annotated[str, AfterValidator(_http_url)]


class ModelRow(BaseModel, extra="forbid", frozen=True):
    """One `[[model]]` of the file: a folder on this machine, or a remote model at an OpenAI-compatible address.

    Of `kind` reranker it is a cross-encoder, or what is served at a `/rerank`. Text in the place of a number is a
    mistake, even if it reads like one.
    """

    name: str = Field(pattern=NAME)
    kind: Literal["embedding", "reranker"] = "embedding"
    folder: Path | None = None
    base_url: HttpUrl | None = None
    model: str | None = Field(None, min_length=1, max_length=512)
    key_variable: str | None = Field(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    api_version: str | None = Field(None, pattern=r"^[A-Za-z0-9.-]+$")
    dimension: StrictInt = Field(0, ge=1, le=16_000)
    max_tokens: StrictInt = Field(8_191, ge=1, le=10_000_000)
    query_prefix: str = ""
    document_prefix: str = ""
    price_per_1k_tokens: float = Field(0.0, ge=0, allow_inf_nan=False)
    matryoshka: bool = False
    runtime: ModelRuntime | None = None
    texts_per_request: StrictInt = Field(100, ge=1, le=2_048)
    requests_at_once: StrictInt = Field(8, ge=1, le=256)
    texts_named: Literal["documents", "texts"] = "documents"

    @field_validator("folder")
    @classmethod
    def _absolute(cls, folder: Path | None) -> Path | None:
        return None if folder is None else folder.expanduser().absolute()

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.folder is None) == (self.base_url is None):
            raise PydanticCustomError("place", "it needs either a `folder` or a `base_url`")
        if self.base_url is not None and self.kind == "embedding" and "dimension" not in self.model_fields_set:
            raise PydanticCustomError("dimension", "a remote model needs its `dimension`")
        return self

    @model_validator(mode="after")
    def _has_what_its_kind_has(self) -> Self:
        others = _OF_VECTORS if self.kind == "reranker" else _OF_RERANKERS
        if given := sorted(others & self.model_fields_set):
            raise PydanticCustomError("kind", f"a model of kind {self.kind} has no `{given[0]}`")
        return self

    def key(self) -> str | None:
        """Return the key, from the environment or `.env`; None if none is named, or there is none."""
        if self.key_variable is None:
            return None
        return os.environ.get(self.key_variable) or dotenv_values(ENV_FILE).get(self.key_variable) or None


class _File(BaseModel, extra="forbid"):
    model: list[ModelRow] = []

    @field_validator("model")
    @classmethod
    def _different_names(cls, rows: list[ModelRow]) -> list[ModelRow]:
        if len({row.name for row in rows}) < len(rows):
            raise PydanticCustomError("names", "two models have the same name")
        return rows


def read(settings: Settings) -> list[ModelRow]:
    """Read the rows of the file that the settings name, if they name one; SettingsError says what is wrong in it."""
    if settings.models_file is None:
        return []
    try:
        return _File.model_validate(_parsed(settings.models_file)).model
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"{FILE}: {place or 'the file'}: {first['msg']}.") from None


def _parsed(path: Path) -> Mapping[str, Any]:
    try:
        if path.exists() and not path.is_file():
            # A FIFO would be waited on for ever.
            raise SettingsError(f"{FILE} names something that is not a regular file.")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{FILE} is no TOML: {error}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{FILE} names a file that is not text in UTF-8.") from None
    except OSError as error:
        raise SettingsError(f"{FILE} cannot be read: {error.strerror}. Fix the path or unset it.") from None
