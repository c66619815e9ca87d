"""Requests and answers of the routes of `collections`."""

import re
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    RootModel,
    WithJsonSchema,
    field_validator,
    model_validator,
    with_config,
)
from pydantic.json_schema import SkipJsonSchema

from likewise.apps.checking import RequestModel, wrong
from likewise.apps.fields import AS_WHOLE_NUMBER, KEY_PATTERN, MAX_ITEMS, MAX_LIMIT, CheckedPayload, Label, Moment, Text
from likewise.db.lookups import RecordFields
from likewise.kind import NewRecord, Policy
from likewise.search.options import Mode, RecordQuestion, SearchOptions, SearchRequest, TextQuestion

MAX_INDEXED = 32

NAME = r"^[a-z][a-z0-9-]{0,62}$"
NAME_IN_WORDS = (
    "A collection's name has lower-case letters a to z, digits and hyphens, begins with a letter, "
    "and has at most 63 characters."
)
# The apps' own collections are named `app:model`.
NAME_IN_PATH = re.compile(r"[a-z][a-z0-9-]{0,62}(:[A-Za-z0-9._-]{1,128})?")

VectorState = Literal["ready", "waiting", "failed", "skipped"]

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,127}")


def _collection_name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise wrong("invalid_value", NAME_IN_WORDS)
    return value


def _later(value: object) -> object:
    if value is not None:
        raise wrong("not_supported", "This version does not do that yet; leave the field out.")
    return value


# A field of the full API that is known by name and refused.
Later = Annotated[SkipJsonSchema[None], BeforeValidator(_later)]


class RecordIn(RequestModel):
    """One record: its id, the text that is searched, and what else is known about it."""

    id: Label
    text: Text
    payload: CheckedPayload = Field(default_factory=dict)
    parent: Label | None = None
    status: Label | None = None
    occurred_at: Moment | None = None

    def to_record(self) -> NewRecord:
        """The record for the service."""
        return NewRecord(self.id, self.text, self.payload, self.parent, self.status, self.occurred_at)


class RecordsIn(RequestModel):
    """Records to store, all or none of them. A bare list is taken too."""

    records: list[RecordIn] = Field(max_length=MAX_ITEMS)


class RecordsBody(RootModel[RecordsIn | Annotated[list[RecordIn], Field(max_length=MAX_ITEMS)]]):
    """Records to store, all or none of them."""


class PolicyIn(RequestModel):
    """The policy of a collection: its treatment of texts."""

    keep_text: bool = True
    keep_terms: bool = True
    on_long: Literal["truncate", "refuse"] = "truncate"
    indexed: list[Annotated[str, Field(json_schema_extra={"pattern": KEY_PATTERN})]] = Field(
        default_factory=list, max_length=MAX_INDEXED, json_schema_extra={"uniqueItems": True}
    )
    retention_days: Later = None

    @field_validator("on_long", mode="before")
    @classmethod
    def _not_split(cls, value: object) -> object:
        if value == "split":
            raise wrong("not_supported", "This version does not split long texts; use truncate or refuse.")
        return value

    @field_validator("indexed")
    @classmethod
    def _field_names(cls, value: list[str]) -> list[str]:
        if not all(_FIELD.fullmatch(name) for name in value) or len(set(value)) < len(value):
            raise wrong("invalid_value", "These must be different names of payload fields: letters, digits and _ . -")
        return value

    def to_policy(self) -> Policy:
        """The policy for the service."""
        return Policy(self.keep_text, self.keep_terms, self.on_long, tuple(self.indexed))


class CollectionIn(RequestModel):
    """A collection to make."""

    name: Annotated[str, AfterValidator(_collection_name)] = Field(json_schema_extra={"pattern": NAME})
    model: str | None = Field(None, min_length=1, max_length=256)
    policy: PolicyIn | None = None


_OPTIONS = frozenset(field.name for field in fields(SearchOptions))


class SearchFields(RequestModel):
    """The options that searches of all apps take."""

    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), AS_WHOLE_NUMBER] = 10
    filters: dict[str, Any] | None = None
    mode: Mode = "hybrid"
    threshold: float | None = Field(None, ge=-1, le=1, allow_inf_nan=False, description="Least cosine similarity.")
    group_by: Annotated[str, Field(json_schema_extra={"pattern": KEY_PATTERN})] | None = Field(
        None, max_length=128, description="A field of which every value has one hit, its best."
    )
    rerank: bool | None = Field(
        None,
        description="Whether the reranker puts the first hits in order, 50 at least, where texts are kept. "
        "There is one page then.",
    )

    def options(self) -> dict[str, Any]:
        """Return the fields of SearchOptions that were given."""
        return {name: value for name, value in self if name in _OPTIONS and value is not None}


class SearchIn(SearchFields):
    """A search: `query` in words, or `like` for the neighbours of a record."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [{"required": [one], "properties": {one: {"type": "string"}}} for one in ("query", "like")]
        }
    )

    query: Text | None = None
    like: Label | None = None
    cursor: str | None = Field(None, max_length=512, description="`cursor` of the page before, to depth 1,000.")
    explain: bool = Field(False, description="Whether the answer also says what was done and how long each step took.")

    def to_request(self, offset: int = 0) -> SearchRequest:
        """Return the request for the service, which passes over `offset` hits."""
        question = RecordQuestion(self.like) if self.like is not None else TextQuestion(self.query or "")
        return SearchRequest(question, SearchOptions(**self.options()), offset)

    @model_validator(mode="after")
    def _one_question(self) -> "SearchIn":
        if (self.query is None) == (self.like is None):
            raise wrong("one_of", "Give either query or like.")
        return self


class PageQuery(BaseModel):
    """The part of a list to answer."""

    model_config = {"extra": "forbid"}

    limit: int = Field(10, ge=1, le=MAX_LIMIT)
    cursor: str | SkipJsonSchema[None] = Field(None, max_length=512, description="`cursor` of the page before.")


# The fields of a policy are all there.
@with_config(ConfigDict(json_schema_serialization_defaults_required=True))
@dataclass(frozen=True)
class CollectionAnswer:
    """A collection."""

    name: str
    kind: str
    model: str
    dimension: int
    policy: Policy
    created_at: datetime


class CollectionsAnswer(BaseModel):
    """A page of collections by name; `cursor` leads to the next and is null on the last."""

    collections: list[CollectionAnswer]
    cursor: str | None


@dataclass(frozen=True)
class RecordView(RecordFields):
    """A record as callers see it; `vector` says how far its text is."""

    vector: VectorState
    truncated_tokens: Annotated[
        int | None, Field(description="Tokens cut off its end before it was embedded; null until then.")
    ]


@dataclass(frozen=True)
class HitAnswer:
    """A record that was found: its rank score (with `rerank` the reranker's), its cosine similarity, and how."""

    id: str
    score: float
    similarity: float | None
    lexical_score: float | None
    found_by: Annotated[
        tuple[str, ...], WithJsonSchema({"type": "array", "items": {"type": "string", "enum": ["dense", "lexical"]}})
    ]
    group: Annotated[Any, Field(description="The value of the field that hits are grouped by.")]
    record: RecordView


@dataclass(frozen=True)
class SearchAnswer:
    """Hits, best first; `degraded` names the parts that were away, as `model` when only words were searched."""

    hits: list[HitAnswer]
    model: str
    took_ms: float
    degraded: tuple[str, ...]
    cursor: Annotated[str | None, Field(description="Leads to the next page; null where there is none.")]
    explanation: Annotated[dict[str, Any] | None, Field(description="With `explain`: each step with its milliseconds.")]


class StatsAnswer(BaseModel):
    """Counts of a collection, by its rows."""

    records: int
    contents: int
    vectors: int
    waiting: int
    failed: int
    model: str
    dimension: int
    index: Literal["exact", "building", "hnsw"]
