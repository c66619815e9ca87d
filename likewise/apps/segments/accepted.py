"""Answers to those who store segments, and the results of their jobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from likewise.apps.jobs.service import JobResult
from likewise.apps.segments.documents import Part
from likewise.db.jobs import Job

# The kind of the jobs that wait for the vectors of segments.
EMBED = "embed"


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
    """Segments of an asset that are stored, and the one job that says when they can be found."""

    job_id: UUID
    asset_id: str
    total: int
    status: str


@dataclass(frozen=True)
class AcceptedDocument(AcceptedBatch):
    """Segments that a document was split into, with where each lies in it."""

    segments: Sequence[Part] = ()


def embed_result(job: Job) -> Mapping[str, Any]:
    """Return what a job came to: that of one segment tells of its text, that of a batch counts."""
    if "point_id" in job.result:
        return job.result
    known = {name: job.result[name] for name in ("model", "model_ver") if name in job.result}
    failed = [{"segment_id": one.item, "code": one.code} for one in job.failures]
    return {**known, "total": job.total, "succeeded": job.done, "failed": failed}


EMBED_RESULT = JobResult(listed=embed_result)
