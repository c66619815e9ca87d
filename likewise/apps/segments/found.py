"""What is found of segments, as their callers see it."""

from dataclasses import dataclass, field
from typing import Any

from likewise.apps.segments.kind import METADATA, OWN
from likewise.db.lookups import StoredRecord


@dataclass(frozen=True)
class SegmentHit:
    """One segment that was found. `score` is the cosine in mode dense, and orders the hits of any other."""

    point_id: str
    score: float
    payload: dict[str, Any]
    similarity: float | None


@dataclass(frozen=True)
class SegmentsFound:
    """Segments, best first, and the model that made the query's vector; `total` counts the results."""

    results: list[SegmentHit] = field(default_factory=list)
    query_model: str = ""
    query_model_ver: str = ""
    total: int = 0


def hit_of(record: StoredRecord, score: float, similarity: float | None, org: str) -> SegmentHit:
    """A hit with what its vector's row says of the text; a record that waits has nothing there."""
    own = {name: record.payload.get(name) for name in OWN}
    metadata = record.payload.get(METADATA) or {}
    payload = {
        **metadata,
        "org_id": org,
        "asset_id": record.parent,
        **own,
        "text_len": record.chars,
        "truncated_len": record.chars_read,
        "tokens": record.tokens,
        METADATA: metadata,
    }
    return SegmentHit(record.payload["point_id"], score, payload, similarity)
