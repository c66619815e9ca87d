"""Hits among segments as callers see them, and as the job of a search keeps them: without what may leave."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from likewise.apps.jobs.service import JobResult
from likewise.apps.segments import rows
from likewise.apps.segments.kind import METADATA, OWN
from likewise.db import collections, lookups
from likewise.db.jobs import Job
from likewise.db.lookups import StoredRecord
from likewise.db.transaction import Tx
from likewise.errors import NotFound
from likewise.search.hits import RecordHit


@dataclass(frozen=True)
class SegmentHit:
    """One segment that was found. `score` is the cosine in mode dense, and orders the hits of any other."""

    point_id: str
    score: float
    payload: dict[str, Any]
    similarity: float | None


@dataclass(frozen=True)
class SegmentSearchResult:
    """Segments, best first, and the model that made the query's vector; `total` counts the results."""

    results: list[SegmentHit] = field(default_factory=list)
    query_model: str = ""
    query_model_ver: str = ""
    total: int = 0


@dataclass(frozen=True)
class SegmentSearchOutcome:
    """Records that a search of segments found in the collection of a model."""

    collection: str
    query_model: str
    query_model_ver: str
    hits: Sequence[RecordHit] = ()

    def to_result(self, org: str) -> SegmentSearchResult:
        """Return the answer to a caller of the tenant `org`."""
        results = [segment_hit(one.record, one.score, one.similarity, org) for one in self.hits]
        return SegmentSearchResult(results, self.query_model, self.query_model_ver, len(results))

    def to_job(self) -> dict[str, Any]:
        """Return what a job keeps: which records, with which text, and how near; what they say stays with them."""
        hits = [[one.record.pk, one.record.content, one.score, one.similarity] for one in self.hits]
        return {
            "query_model": self.query_model,
            "query_model_ver": self.query_model_ver,
            "hits": {"collection": self.collection, "records": hits},
        }


async def rehydrate(tx: Tx, job: Job) -> dict[str, Any]:
    """Return the answer of a search from what its job keeps: the records that are still there with the same text."""
    kept = job.result
    name, hits = kept["hits"]["collection"], kept["hits"]["records"]
    try:
        collection = await collections.named(tx, name)
    except NotFound:
        hits, there = [], {}
    else:
        there = await lookups.still(tx, collection.id, collection.active.id, [(one[0], one[1]) for one in hits])
    org = await rows.tenant_name(tx)
    results = [segment_hit(there[pk], score, similarity, org) for pk, _, score, similarity in hits if pk in there]
    return asdict(SegmentSearchResult(results, kept["query_model"], kept["query_model_ver"], len(results)))


def segment_hit(record: StoredRecord, score: float, similarity: float | None, org: str) -> SegmentHit:
    """Return a hit with what its vector's row says of the text; a record that waits has nothing there."""
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


SEARCH_RESULT = JobResult(in_full=rehydrate)
