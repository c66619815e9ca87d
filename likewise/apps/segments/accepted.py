"""What is answered to those who store segments."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from likewise.apps.segments.documents import Part


@dataclass(frozen=True)
class Accepted:
    """A segment that is stored, and the job that says when it can be found."""

    job_id: UUID
    asset_id: str
    segment_id: str
    point_id: str
    status: str


@dataclass(frozen=True)
class AcceptedBatch:
    """So many segments of an asset that are stored, and the one job that says when they can be found."""

    job_id: UUID
    asset_id: str
    total: int
    status: str


@dataclass(frozen=True)
class AcceptedDocument(AcceptedBatch):
    """The same, with where each segment lies in the document."""

    segments: Sequence[Part] = ()
