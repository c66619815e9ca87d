"""How segments come into the rows: one transaction that finds out what is there, stores the rest and starts the job."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from likewise.apps.segments.accepted import EMBED
from likewise.apps.segments.documents import NewSegment
from likewise.apps.segments.points import point_id, record_id
from likewise.db import jobs, records, segments
from likewise.db.failures import Contended
from likewise.db.records import PreparedRecord, WriteOutcome
from likewise.db.segments import StoredPart
from likewise.db.transaction import Tx
from likewise.kind import NewRecord
from likewise.observe.request_id import REQUEST_ID

# A job that a repetition may be answered with. PENDING here is one that runs, too.
GOOD = ("PENDING", "SUCCEEDED")
# What a payload says of a segment beside its metadata.
MODALITY = "text"


@dataclass(frozen=True)
class Labels:
    """Whose segments these are, of what, and of which model: its id on the hub, and the caller's version of it."""

    tenant: str
    asset_id: str
    model: str
    model_ver: str


class Storing:
    """One request's segments on their way into a collection.

    `resolve`, `before_commit` and, for the parts of a document, `leaving` are for the Writer, which runs them again
    when its transaction is tried again.

    Args:
        stored: told in the transaction which job answers for the segments, and how far that is.
        one: whether the job is about one segment, and tells of its text.
    """

    def __init__(
        self,
        labels: Labels,
        of: Sequence[NewSegment],
        stored: Callable[[Tx, UUID, str], Awaitable[None]],
        *,
        one: bool = False,
    ) -> None:
        self.labels = labels
        self.segments = of
        self.collection = 0
        self.generation = 0
        self._job = uuid4()
        self._old: UUID | None = None
        self._held: Mapping[str, StoredPart] = {}
        self._stored = stored
        self._one = one
        ids = [record_id(labels.asset_id, segment.segment_id) for segment in of]
        self._places = [one.int for one in ids]
        self._segment_of = {str(id_): segment for id_, segment in zip(ids, of, strict=True)}
        self._prepared: dict[str, PreparedRecord] = {}

    @property
    def records(self) -> list[NewRecord]:
        """The segments as records."""
        return [
            NewRecord(id_, segment.text, self._payload(segment), parent=self.labels.asset_id)
            for id_, segment in self._segment_of.items()
        ]

    async def resolve(self, tx: Tx, prepared: Sequence[PreparedRecord]) -> list[PreparedRecord]:
        """The records with the job that answers for them: the old one if it stored just these texts."""
        self._held = await segments.hold(tx, self.collection, [one.id for one in prepared], self._places)
        self._old = await self._old_job(tx, prepared)
        self._prepared = {one.id: one for one in prepared}
        job = str(self._old or self._job)
        return [_with_job(one, job) for one in prepared]

    async def before_commit(self, tx: Tx, written: WriteOutcome) -> None:
        """Start the job, unless the old one answers."""
        if self._old is not None:
            self._refuse_to_guess(written)
        else:
            await self._start(tx, written)
        job = self._old or self._job
        await self._stored(tx, job, (await jobs.states(tx, [job]))[job])

    async def leaving(self, tx: Tx) -> list[tuple[int, int]]:
        """The records of parts that the document does not have any more."""
        return await segments.beyond(tx, self.collection, self.labels.asset_id, list(self._segment_of))

    async def _old_job(self, tx: Tx, prepared: Sequence[PreparedRecord]) -> UUID | None:
        """The one job that stored all of these texts, if it is live or has succeeded."""
        if not all(self._is_unchanged(one) for one in prepared):
            return None
        found = {UUID(self._held[one.id].payload["job_id"]) for one in prepared}
        if len(found) > 1:
            return None
        return next((job for job, state in (await jobs.states(tx, list(found))).items() if state in GOOD), None)

    def _is_unchanged(self, record: PreparedRecord) -> bool:
        """Whether a segment holds this text, and of this version of the model; what is said beside it may differ."""
        held = self._held.get(record.id)
        if held is None or held.failed or held.text_hash != record.text_hash:
            return False
        return bool(held.payload["point_id"] == record.payload["point_id"])

    def _refuse_to_guess(self, written: WriteOutcome) -> None:
        """A segment may have been deleted since it was found: its text waits anew, unknown to the old job."""
        for id_, held in self._held.items():
            if written.outcome_of[id_] == "created" or written.content_of[id_] != held.content:
                raise Contended("40001", "records")

    async def _start(self, tx: Tx, written: WriteOutcome) -> None:
        items = {segment.segment_id: written.content_of[id_] for id_, segment in self._segment_of.items()}
        known: dict[str, Any] = {"model": self.labels.model, "model_ver": self.labels.model_ver}
        if self._one:
            [(id_, prepared)] = self._prepared.items()
            known |= {
                "point_id": self._point(self._segment_of[id_]),
                "text_len": len(prepared.text),
                "text_hash": prepared.text_hash.hex(),
            }
        await jobs.start(tx, self._job, EMBED, self.generation, items, result=known, request_id=REQUEST_ID.get())

    def _point(self, segment: NewSegment) -> str:
        labels = self.labels
        return point_id(labels.tenant, labels.asset_id, segment.segment_id, labels.model, labels.model_ver)

    def _payload(self, segment: NewSegment) -> dict[str, Any]:
        return {
            "point_id": self._point(segment),
            "segment_id": segment.segment_id,
            "modality": MODALITY,
            "model": self.labels.model,
            "model_ver": self.labels.model_ver,
            "metadata": segment.metadata,
        }


def _with_job(record: PreparedRecord, job: str) -> PreparedRecord:
    payload = {**record.payload, "job_id": job}
    return replace(record, payload=payload, payload_json=records.payload_json(payload))
