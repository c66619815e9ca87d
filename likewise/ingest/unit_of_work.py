"""UnitOfWork: all that one write does in its transaction, for a function that reads from top to bottom."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from likewise.db import deletions, jobs, records
from likewise.db.collections import CollectionRow
from likewise.db.contents import PreparedContent
from likewise.db.deletions import DeletionQuery, GoneContent
from likewise.db.records import BatchDiff, PreparedRecord, StoragePolicy, WriteOutcome
from likewise.db.text_key import TextKeys
from likewise.db.transaction import Tx
from likewise.ingest.batch_index import BatchIndex
from likewise.observe.logs import REQUEST_ID
from likewise.stopping import stop

# A batch of so many characters takes long enough to analyse (10 ms) that other requests should not wait for it.
LARGE_BATCH = 20_000


class AnswerStore(Protocol):
    """Keeps what a request is answered, so that a repetition of the request is answered the same."""

    async def save(self, tx: Tx, answer: Any) -> None:
        """Keep an answer if and only if the transaction is committed."""
        ...


@dataclass(frozen=True)
class Target:
    """A tenant's collection, and the lane that its new texts wait in; equal where writes may share a transaction."""

    tenant: int
    number: int
    lane: int
    collection: CollectionRow = field(compare=False)
    storage: StoragePolicy = field(compare=False)


@dataclass
class UnitOfWork:
    """One try of a write. All that it does is committed together; what follows the commit is the writer's.

    `tx` is for reads, and for rows that belong to the same transaction; `records` is the prepared batch, in the order
    of its ids. With `alone` the collection's other writers wait meanwhile.
    """

    tx: Tx
    target: Target
    records: Sequence[PreparedRecord]
    alone: bool
    index: BatchIndex
    text_keys: TextKeys
    answers: AnswerStore | None
    outcome: WriteOutcome | None = None
    gone: list[GoneContent] = field(default_factory=list)

    @property
    def collection(self) -> CollectionRow:
        """The collection that is written."""
        return self.target.collection

    async def compare(self, batch: Sequence[PreparedRecord]) -> BatchDiff:
        """Take the collection's lock, and see what of a batch is there already.

        Raises:
            CollectionGone: the collection was dropped.
        """
        if self.target.storage.seal is not None:
            await self.text_keys.hold(self.tx)
        several = self.target.storage.several
        return await records.compare(self.tx, self.collection.id, batch, several=several, alone=self.alone)

    async def write(
        self, diff: BatchDiff, *, for_job: bool = False, leaving: Sequence[tuple[int, int]] = ()
    ) -> WriteOutcome:
        """Store what is new or different of the batch, with its search terms and the queue's entries; once in a unit.

        Args:
            for_job: whether `start_job` follows.
            leaving: (record, content) of records that are deleted beside it.
        """
        number, storage = self.collection.id, self.target.storage
        # Postgres stores the records while this process reads their words and makes their vectors.
        learning = asyncio.create_task(self._learn(diff.contents))
        try:
            outcome = await records.write(
                self.tx, number, diff, storage, lane=self.target.lane, for_job=for_job, leaving=leaving
            )
            await learning
        finally:
            await stop([learning])
        if outcome.new_contents:
            await self.index.write(self.tx, outcome.new_contents)
        self.outcome = outcome
        self.gone.extend(outcome.gone)
        return outcome

    async def delete(self, query: DeletionQuery) -> int:
        """Delete the records that a query finds at the moment that they go; returns how many."""
        views = self.target.storage.views
        deletion = await deletions.delete(self.tx, self.collection.id, query, views=views, alone=self.alone)
        self.gone.extend(deletion.gone)
        return deletion.records

    async def start_job(self, job: UUID, kind: str, items: Mapping[str, int], *, result: Mapping[str, Any]) -> None:
        """Start a job on contents that were written for it, by the names that it reports; see `jobs.start`."""
        generation = self.collection.active.id
        await jobs.start(self.tx, job, kind, generation, items, result=result, request_id=REQUEST_ID.get())

    async def save(self, answer: Any) -> None:
        """Keep what the request will be answered, if it is one that may be repeated."""
        if self.answers is not None:
            await self.answers.save(self.tx, answer)

    async def _learn(self, contents: Sequence[PreparedContent]) -> None:
        if sum(len(one.text or "") for one in contents) > LARGE_BATCH or any(one.vector for one in contents):
            await asyncio.to_thread(self.index.learn, contents)
        else:
            self.index.learn(contents)


async def store(unit: UnitOfWork) -> WriteOutcome:
    """Store a batch, and nothing else."""
    return await unit.write(await unit.compare(unit.records))
