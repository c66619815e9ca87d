"""Requests and answers of the routes of `segments`."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, Field

from likewise.apps.body import OldRequest
from likewise.apps.collections.schemas import SearchFields
from likewise.apps.fields import AS_WHOLE_NUMBER, MAX_ITEMS, MAX_LIMIT, CheckedPayload, Label, Text
from likewise.apps.segments.documents import MIN_TOKENS, NewSegment
from likewise.apps.segments.search import SegmentQuery
from likewise.search.options import Mode

_MODEL = "One that `GET /embed/models` lists; the default if absent."
_MODEL_VER = "The caller's name for the model's version; LIKEWISE_MODEL_VER if absent."

Model = Annotated[str | None, Field(description=_MODEL)]
ModelVer = Annotated[Label | None, Field(description=_MODEL_VER)]
# As everywhere on these routes, null is the same as absent.
Metadata = Annotated[CheckedPayload | None, Field(description="What filters find, and hits give back.")]


class SegmentIn(OldRequest):
    """One segment of an asset."""

    segment_id: Label
    text: Text
    metadata: Metadata = None

    def to_segment(self) -> NewSegment:
        """The segment for the service."""
        return NewSegment(self.segment_id, self.text, self.metadata or {})


class SegmentEmbedIn(SegmentIn):
    """A segment to store and embed."""

    asset_id: Label
    model: Model = None
    model_ver: ModelVer = None


class SegmentBatchIn(OldRequest):
    """Segments of one asset to store and embed, all or none."""

    asset_id: Label
    segments: list[SegmentIn] = Field(min_length=1, max_length=MAX_ITEMS)
    model: Model = None
    model_ver: ModelVer = None


class SegmentDocumentIn(OldRequest):
    """A text to split into segments."""

    asset_id: Label
    text: Text
    metadata: Metadata = None
    model: Model = None
    model_ver: ModelVer = None
    max_tokens: Annotated[int, Field(ge=MIN_TOKENS), AS_WHOLE_NUMBER] | None = Field(
        None, description="Of a segment; what the model reads if absent, and at most that."
    )
    overlap: Annotated[int, Field(ge=0), AS_WHOLE_NUMBER] | None = Field(
        None,
        description="Tokens at most that a segment shares with the one before; an eighth of max_tokens if absent.",
    )


class SegmentSearchIn(SearchFields, OldRequest):
    """A search among the segments of one model."""

    query_text: Text
    asset_id: Label | None = None
    segment_id: Label | None = None
    model: Model = None
    limit: Annotated[int, Field(ge=1, le=MAX_LIMIT), AS_WHOLE_NUMBER] | None = 10  # type: ignore[assignment]
    mode: Mode | None = "dense"  # type: ignore[assignment]

    def to_query(self) -> SegmentQuery:
        """Return the question for the service."""
        return SegmentQuery(self.query_text, self.asset_id, self.segment_id, self.model, **self.options())


AcceptedStatus = Literal["PENDING", "RUNNING", "SUCCEEDED"]


class EmbedAnswer(BaseModel):
    """A segment that is stored, and the job that says when it can be found."""

    job_id: UUID
    asset_id: str
    segment_id: str
    point_id: UUID
    status: AcceptedStatus


class EmbedBatchAnswer(BaseModel):
    """Segments that are stored, and the one job that says when they can be found."""

    job_id: UUID
    asset_id: str
    total: int
    status: AcceptedStatus


class PartAnswer(BaseModel):
    """The place of a segment in the text, in characters (code points) from 0."""

    segment_id: str
    start: int
    end: int


class DocumentAnswer(EmbedBatchAnswer):
    """The stored segments of a document with their places in it, and the job that says when they can be found."""

    segments: list[PartAnswer]


class SegmentHitAnswer(BaseModel):
    """One segment. `score` is the cosine in mode dense, and otherwise orders the results of one search."""

    point_id: UUID
    score: float
    payload: dict[str, Any]
    similarity: float | None


class SegmentSearchAnswer(BaseModel):
    """Segments, best first. `total` counts them."""

    results: list[SegmentHitAnswer]
    query_model: str
    query_model_ver: str
    total: int


class SearchJobAnswer(BaseModel):
    """The job whose result is what the search answers."""

    job_id: UUID
    status: AcceptedStatus
