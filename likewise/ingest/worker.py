"""Worker: waiting contents become vectors. Claim, embed with no transaction open, write what is still ours."""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import timedelta

import numpy as np

from likewise.backoff import Backoff, Breaker
from likewise.db import collections, jobs, waiting
from likewise.db.collections import Generation
from likewise.db.failures import CollectionGone
from likewise.db.pool import Pool
from likewise.db.waiting import QueueEntry, WaitingText
from likewise.embedding.cache import text_digest
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.provider import Lane
from likewise.errors import DatabaseUnavailable, LikewiseError, ModelUnavailable, Overloaded, SealBroken, Unavailable
from likewise.ingest.claims import Claim, through_outage
from likewise.ingest.model_rotation import ModelRotation
from likewise.ingest.notifications import WakeSignal
from likewise.observe.logs import get_logger
from likewise.observe.metrics import WORKER_LEASES_LOST
from likewise.observe.steps import WorkerStep, contents_became
from likewise.sealing import Sealing, about_content
from likewise.stopping import stop, to_its_end
from likewise.vectors.admission import Admission
from likewise.vectors.store import TextReading, VectorStore

LEASE = timedelta(seconds=60)
# A text that has failed by itself so often is given up.
TRIES = 3
# One claim: enough to fill batches of neighbours of similar length, little enough to be done well within a lease.
CLAIM_SIZE = 512
# One claim is written while the next is in the model.
CLAIMS_AT_ONCE = 2
# A generation is left alone for so long after its model failed or was refused.
MODEL_AGAIN = Backoff(1.0, 30.0)
# An eighth of what may wait for the model by default (4 characters a token), so that no claim fills its queue.
PART_CHARS = 1_000_000
POLL_SECONDS = 1.0
SWEEP_SECONDS = 1.0
# Entries that are tried by themselves take turns with the others.
ALONE_A_STEP = 16
WAIT_SECONDS = 30.0
# Of one who waits for vectors.
LOOK_AGAIN = Backoff(0.01, 0.2)

log = get_logger(__name__)


class Worker:
    """Embeds what waits, for any tenant. Any number of them may run, here or on other machines."""

    def __init__(
        self,
        pool: Pool,
        embedder: Embedder,
        admission: Admission,
        store: VectorStore,
        wake_signal: WakeSignal,
        sealing: Sealing,
        *,
        lease: timedelta = LEASE,
        tries: int = TRIES,
        claim_size: int = CLAIM_SIZE,
    ) -> None:
        self._pool = pool
        self._embedder = embedder
        self._admission = admission
        self._store = store
        self._wake_signal = wake_signal
        self._sealing = sealing
        self._lease = lease
        self._tries = tries
        self._claim_size = claim_size
        self._last_tenant = 0
        self._resting: dict[int, Breaker[LikewiseError]] = {}
        self._models = ModelRotation(embedder)
        self._turns = asyncio.Semaphore(CLAIMS_AT_ONCE)
        self._one_alone = asyncio.Lock()

    async def run(self) -> None:
        """Work until cancelled; a database or a model that is away is waited for."""
        tasks = [asyncio.create_task(self._keep_working()) for _ in range(CLAIMS_AT_ONCE)]
        tasks.append(asyncio.create_task(self._sweep()))
        try:
            await asyncio.gather(*tasks)
        finally:
            await stop(tasks)

    async def _keep_working(self) -> None:
        while True:
            try:
                busy = await self.step()
            except DatabaseUnavailable:
                busy = False
            except LikewiseError as error:
                log.error("worker_failed", code=error.code, reason=error.detail)
                busy = False
            if not busy:
                await self._wake_signal.wait(POLL_SECONDS)

    async def step(self) -> bool:
        """Claim once from the queue, and try some entries by themselves; False if nothing could be done."""
        models = await self._models.in_service(await waiting.models(self._pool))
        if not models:
            return False
        busy = await self._claim_and_work(models, alone=False)
        for _ in range(ALONE_A_STEP):
            if not await self._claim_and_work(models, alone=True):
                break
            busy = True
        return busy

    async def embed_now(self, tenant: int, generation: int, contents: Sequence[int]) -> None:
        """Embed just these contents, or wait for the worker that has them.

        Raises:
            ModelUnavailable: they are stored, and the model did not come in time.
        """
        deadline: float | None = None
        for pause in LOOK_AGAIN.pauses():
            claim = Claim(self._pool, self._lease)
            async with claim.given_back():
                async with self._pool.tenant(tenant) as tx:
                    left = await waiting.still_waiting(tx, generation, contents)
                    ours = await waiting.claim_these(tx, generation, left, claim.id, self._lease) if left else []
                    found = await collections.generation(tx, generation)
                if not left or found is None:
                    return
                if ours:
                    await self._embed_ours(tenant, generation, ours, claim)
            await self._check_model(found[0].model)
            # From when the model is there: a program may have waited for minutes while it was fetched.
            now = asyncio.get_running_loop().time()
            deadline = deadline or now + WAIT_SECONDS
            if now > deadline:
                raise ModelUnavailable(
                    "The records are stored; their vectors did not come in time.", code="vectors_late"
                )
            await asyncio.sleep(pause)

    async def _embed_ours(self, tenant: int, generation: int, ours: Sequence[int], claim: Claim) -> None:
        try:
            async with claim.renewed([tenant]):
                await self._work_on(tenant, generation, ours, claim, "interactive")
        except (ModelUnavailable, Overloaded) as error:
            await claim.release(tenant, generation, ours)
            contents_became("released", len(ours))
            raise _stored(error) from None

    async def _check_model(self, model: str) -> None:
        try:
            await self._embedder.opened(model)
        except ModelUnavailable as error:
            raise _stored(error) from None

    async def _claim_and_work(self, models: Sequence[str], *, alone: bool) -> bool:
        claim = Claim(self._pool, self._lease)
        async with claim.given_back():
            entries = await to_its_end(
                waiting.claim(
                    self._pool,
                    models,
                    claim.id,
                    lease=self._lease,
                    max_entries=self._claim_size,
                    after_tenant=self._last_tenant,
                    alone=alone,
                    resting=[one for one, breaker in self._resting.items() if not breaker.allows()],
                )
            )
            if not entries:
                return False
            self._last_tenant = _last_in_turn(entries, self._last_tenant)
            worked = False
            turn = self._nobody_beside() if alone else self._turns
            async with claim.renewed({entry.tenant for entry in entries}), turn:
                with WorkerStep(len(entries), [entry.request_id for entry in entries]):
                    for (tenant, generation), contents in _grouped(entries).items():
                        worked |= await self._work_or_rest(tenant, generation, contents, claim)
        return worked

    @contextlib.asynccontextmanager
    async def _nobody_beside(self) -> AsyncIterator[None]:
        """The turns of all claims: a text that may kill the process takes no others with it."""
        async with self._one_alone, contextlib.AsyncExitStack() as turns:
            for _ in range(CLAIMS_AT_ONCE):
                await turns.enter_async_context(self._turns)
            yield

    async def _work_or_rest(self, tenant: int, generation: int, contents: Sequence[int], claim: Claim) -> bool:
        """Work on one generation's share of a claim; one that fails rests, and does not keep the others from theirs."""
        try:
            await self._work_on(tenant, generation, contents, claim)
        except DatabaseUnavailable:
            raise
        except LikewiseError as error:
            breaker = self._resting.setdefault(generation, Breaker(MODEL_AGAIN))
            breaker.failed(error)
            log.warning(
                "generation_rests", generation=generation, code=error.code, reason=error.detail, seconds=breaker.pause
            )
            await claim.release(tenant, generation, contents)
            contents_became("released", len(contents))
            return False
        self._resting.pop(generation, None)
        return True

    async def _work_on(
        self, tenant: int, generation: int, contents: Sequence[int], claim: Claim, lane: Lane = "bulk"
    ) -> None:
        """One generation's share of a claim: embed, then finish, release or set aside."""
        try:
            async with self._pool.tenant(tenant) as tx:
                found = await collections.generation(tx, generation)
                held = await waiting.texts(tx, contents)
                if any(one.text is None and one.sealed is None for one in held):
                    await waiting.drop_textless(tx, generation, contents, claim.id)
            if found is None or not held:
                return
            admitted = await self._admission.admit(tenant, found[0])
            texts = await self._opened(tenant, admitted, held, claim)
            for part in _parts(texts):
                await self._embed_and_finish(tenant, admitted, part, claim, lane)
        except CollectionGone:
            # The generation's table went with its collection: the claim is lost, and so is its reason.
            return

    async def _opened(
        self, tenant: int, generation: Generation, held: Sequence[WaitingText], claim: Claim
    ) -> dict[int, str]:
        """The texts, those that waited sealed opened; one that does not open is a fault of its own."""
        texts = {}
        for one in held:
            try:
                if one.text is not None:
                    texts[one.content] = one.text
                elif one.sealed is not None:
                    about = about_content(tenant, one.collection, one.text_hash)
                    texts[one.content] = self._sealing.unseal(one.sealed, about)
            except SealBroken as error:
                await self._set_aside(tenant, generation, [one.content], claim, error)
        return texts

    async def _embed_and_finish(
        self, tenant: int, generation: Generation, texts: Mapping[int, str], claim: Claim, lane: Lane
    ) -> None:
        contents, model = sorted(texts), generation.model
        read = [texts[one] for one in contents]
        try:
            embedded = await self._embedder.embed(tenant, read, model=model, role="document", lane=lane, use_cache=True)
        except Unavailable:
            raise
        except LikewiseError as error:
            if len(contents) == 1:
                await self._set_aside(tenant, generation, contents, claim, error)
                return
            # Some text among them fails by itself; each gets a try of its own.
            for content in contents:
                await self._embed_and_finish(tenant, generation, {content: texts[content]}, claim, lane)
            return
        if lost := await self._finish(tenant, generation, contents, embedded, claim):
            # Deleted, as far as we know; the cache is to know nothing of them, however late the news of it came.
            await self._embedder.forget(tenant, [text_digest(texts[one]) for one in lost])

    async def _finish(
        self, tenant: int, generation: Generation, contents: Sequence[int], embedded: Embedded, claim: Claim
    ) -> list[int]:
        """Write the vectors of those contents that are still ours; returns the others."""
        place = {content: at for at, content in enumerate(contents)}

        async def once() -> list[int]:
            async with self._pool.tenant(tenant) as tx:
                taken = await waiting.take(tx, generation.id, contents, claim.id)
                if not taken:
                    return []
                rows = [place[content] for content in taken]
                readings = [
                    TextReading(int(embedded.tokens[at]), int(embedded.truncated[at]), int(embedded.chars_read[at]))
                    for at in rows
                ]
                await self._store.upsert(tx, generation, taken, np.asarray(embedded.vectors)[rows], readings)
                await waiting.let_go(tx, taken)
                if generation.state == "active":
                    await jobs.settle(tx, generation.id, taken)
            return taken

        taken = set(await through_outage(once, self._lease))
        lost = [one for one in contents if one not in taken]
        contents_became("embedded", len(taken))
        contents_became("lost", len(lost))
        if lost:
            log.debug("texts_lost", generation=generation.id, contents=len(lost))
        return lost

    async def _set_aside(
        self, tenant: int, generation: Generation, contents: Sequence[int], claim: Claim, error: LikewiseError
    ) -> None:
        log.warning("text_failed", generation=generation.id, code=error.code)
        contents_became("failed", len(contents))
        await claim.set_aside(tenant, generation.id, contents, error.code, self._tries)

    async def _sweep(self) -> None:
        while True:
            with contextlib.suppress(LikewiseError):
                WORKER_LEASES_LOST.inc(await waiting.sweep(self._pool, self._tries))
            await asyncio.sleep(min(SWEEP_SECONDS, self._lease.total_seconds()))


def _stored(error: LikewiseError) -> ModelUnavailable:
    """Return the error for a writer who waits for vectors that do not come."""
    stored = "The records are stored and wait for their vectors."
    public_detail = error.public_detail and f"{stored} {error.public_detail}"
    return ModelUnavailable(f"{stored} {error.detail}", public_detail=public_detail)


def _parts(texts: Mapping[int, str]) -> Iterator[dict[int, str]]:
    """The texts in portions of at most PART_CHARS, so that long ones do not fill the model's queue at once."""
    part: dict[int, str] = {}
    chars = 0
    for content, text in texts.items():
        if part and chars + len(text) > PART_CHARS:
            yield part
            part, chars = {}, 0
        part[content] = text
        chars += len(text)
    if part:
        yield part


def _last_in_turn(entries: Sequence[QueueEntry], after: int) -> int:
    """The tenant that comes last on the way round from the one after `after`."""
    return max((entry.tenant for entry in entries), key=lambda tenant: (tenant <= after, tenant))


def _grouped(entries: Sequence[QueueEntry]) -> dict[tuple[int, int], list[int]]:
    """The contents of each tenant's generation."""
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for entry in entries:
        groups[entry.tenant, entry.generation].append(entry.content)
    return groups
