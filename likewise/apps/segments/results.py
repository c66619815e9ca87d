"""Answers of segments, to those who store and to those who search them; and the results of their jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from likewise.apps.jobs.service import JobResult
from likewise.apps.segments import rows
from likewise.apps.segments.kind import METADATA, OWN
from likewise.db import collections, lookups
from likewise.db.jobs import Job
from likewise.db.lookups import StoredRecord
from likewise.db.transaction import Tx
from likewise.errors import NotFound
from likewise.search.hits import RecordHit

UuidText = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
AcceptedStatus = Annotated[str, Field(json_schema_extra={"enum": ["PENDING", "RUNNING", "SUCCEEDED"]})]


@dataclass(frozen=True)
class EmbedAnswer:
    """A segment that is stored, and the job that says when it can be found."""

    job_id: UUID
    asset_id: str
    segment_id: str
    point_id: UuidText
    status: AcceptedStatus


@dataclass(frozen=True)
class EmbedBatchAnswer:
    """Segments that are stored, and the one job that says when they can be found."""

    job_id: UUID
    asset_id: str
    total: int
    status: AcceptedStatus


@dataclass(frozen=True)
class PartAnswer:
    """The place of a segment in the text, in characters (code points) from 0."""

    segment_id: str
    start: int
    end: int


@dataclass(frozen=True)
class DocumentAnswer(EmbedBatchAnswer):
    """The stored segments of a document with their places in it, and the job that says when they can be found."""

    segments: Sequence[PartAnswer]


@dataclass(frozen=True)
class SegmentHitAnswer:
    """One segment. `score` is the cosine in mode dense, and otherwise orders the results of one search."""

    point_id: UuidText
    score: float
    payload: dict[str, Any]
    similarity: float | None


@dataclass(frozen=True)
class SegmentSearchAnswer:
    """Segments, best first. `total` counts them."""

    results: list[SegmentHitAnswer]
    query_model: str
    query_model_ver: str
    total: int


@dataclass(frozen=True)
class SearchJobAnswer:
    """The job whose result is what the search answers."""

    job_id: UUID
    status: AcceptedStatus


def search_in_job(collection: str, hits: Sequence[RecordHit], model: str, model_ver: str) -> dict[str, Any]:
    """Return what a search's job keeps: which records, with which text, and how near; what they say stays with them."""
    records = [[one.record.pk, one.record.content, one.score, one.similarity] for one in hits]
    return {
        "query_model": model,
        "query_model_ver": model_ver,
        "hits": {"collection": collection, "records": records},
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
    return asdict(SegmentSearchAnswer(results, kept["query_model"], kept["query_model_ver"], len(results)))


def segment_hit(record: StoredRecord, score: float, similarity: float | None, org: str) -> SegmentHitAnswer:
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
    return SegmentHitAnswer(record.payload["point_id"], score, payload, similarity)


def embed_result(job: Job) -> Mapping[str, Any]:
    """Return what a job came to: that of one segment tells of its text, that of a batch counts."""
    if "point_id" in job.result:
        return job.result
    known = {name: job.result[name] for name in ("model", "model_ver") if name in job.result}
    failed = [{"segment_id": one.item, "code": one.code} for one in job.failures]
    return {**known, "total": job.total, "succeeded": job.done, "failed": failed}


EMBED_RESULT = JobResult(listed=embed_result)
SEARCH_RESULT = JobResult(in_full=rehydrate)
