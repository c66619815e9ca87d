"""Writing of segments: one function that finds out what is there, stores the rest and starts the job."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from uuid import UUID, uuid4

from likewise.apps.segments import rows
from likewise.apps.segments.documents import NewSegment
from likewise.apps.segments.kind import point_id, record_id
from likewise.apps.segments.rows import StoredPart
from likewise.db import jobs, records
from likewise.db.failures import Contended
from likewise.db.records import PreparedRecord, WriteOutcome
from likewise.embedding.models import ModelSpec
from likewise.ingest.unit_of_work import UnitOfWork
from likewise.kind import NewRecord

# The kind of the jobs that wait for the vectors of segments.
EMBED = "embed"
# A job that a repetition may be answered with. PENDING here is one that runs, too.
GOOD = ("PENDING", "SUCCEEDED")
# What a payload says of a segment beside its metadata.
MODALITY = "text"


@dataclass(frozen=True)
class Labels:
    """The owner, asset and model of segments, and the caller's version of the model."""

    tenant: str
    asset_id: str
    spec: ModelSpec
    model_ver: str

    def point_id(self, segment_id: str) -> str:
        """Return the id that callers know a segment by."""
        return point_id(self.tenant, self.asset_id, segment_id, self.spec.hub_id, self.model_ver)


@dataclass(frozen=True)
class SegmentWrite:
    """Segments of one request on their way into the collection of their model.

    `about_one` says whether the job is about one segment, and tells of its text; `is_document` whether these are the
    parts of a whole document, so that parts which it does not have any more go.
    """

    labels: Labels
    segments: Sequence[NewSegment]
    about_one: bool = False
    is_document: bool = False
    job: UUID = field(default_factory=uuid4)

    @cached_property
    def segment_of(self) -> Mapping[str, NewSegment]:
        """The segments by the ids of their records."""
        return {str(record_id(self.labels.asset_id, one.segment_id)): one for one in self.segments}

    @property
    def records(self) -> list[NewRecord]:
        """The segments as records."""
        return [
            NewRecord(id_, segment.text, self._payload(segment), parent=self.labels.asset_id)
            for id_, segment in self.segment_of.items()
        ]

    async def store(self, unit: UnitOfWork) -> tuple[UUID, str]:
        """Store the segments, and start their job unless an old one stored just these; the job, and how far it is."""
        ids = [one.id for one in unit.records]
        held = await rows.hold(unit.tx, unit.collection.id, ids, [UUID(one).int for one in ids])
        old = await _old_job(unit, held)
        job = old or self.job
        diff = await unit.compare([_with_job(one, str(job)) for one in unit.records])
        leaving = await rows.beyond(unit.tx, unit.collection.id, self.labels.asset_id, ids) if self.is_document else []
        outcome = await unit.write(diff, for_job=True, leaving=leaving)
        if old is None:
            items = {segment.segment_id: outcome.content_of[id_] for id_, segment in self.segment_of.items()}
            await unit.start_job(job, EMBED, items, result=self._known(unit.records))
        else:
            _refuse_to_guess(outcome, held)
        return job, (await jobs.states(unit.tx, [job]))[job]

    def _known(self, prepared: Sequence[PreparedRecord]) -> Mapping[str, Any]:
        """Return the part of the job's result that is known from the beginning."""
        known = {"model": self.labels.spec.hub_id, "model_ver": self.labels.model_ver}
        if not self.about_one:
            return known
        [record] = prepared
        text = {"text_len": len(record.text), "text_hash": record.text_hash.hex()}
        return {**known, "point_id": record.payload["point_id"], **text}

    def _payload(self, segment: NewSegment) -> dict[str, Any]:
        return {
            "point_id": self.labels.point_id(segment.segment_id),
            "segment_id": segment.segment_id,
            "modality": MODALITY,
            "model": self.labels.spec.hub_id,
            "model_ver": self.labels.model_ver,
            "metadata": segment.metadata,
        }


async def _old_job(unit: UnitOfWork, held: Mapping[str, StoredPart]) -> UUID | None:
    """The one job that stored all of these texts, if it is live or has succeeded."""
    if not all(_is_unchanged(one, held.get(one.id)) for one in unit.records):
        return None
    found = {UUID(one.payload["job_id"]) for one in held.values()}
    if len(found) > 1:
        return None
    return next((job for job, state in (await jobs.states(unit.tx, list(found))).items() if state in GOOD), None)


def _is_unchanged(record: PreparedRecord, held: StoredPart | None) -> bool:
    """Return whether a segment holds this text, and of this version of the model; its metadata may differ."""
    if held is None or held.failed or held.text_hash != record.text_hash:
        return False
    return bool(held.payload["point_id"] == record.payload["point_id"])


def _refuse_to_guess(outcome: WriteOutcome, held: Mapping[str, StoredPart]) -> None:
    """A segment may have been deleted since it was found: its text waits anew, unknown to the old job."""
    for id_, one in held.items():
        if outcome.outcome_of[id_] == "created" or outcome.content_of[id_] != one.content:
            raise Contended("40001", "records")


def _with_job(record: PreparedRecord, job: str) -> PreparedRecord:
    payload = {**record.payload, "job_id": job}
    return replace(record, payload=payload, payload_json=records.payload_json(payload))
