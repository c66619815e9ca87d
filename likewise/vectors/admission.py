"""Admission: no vector is compared with one of another space."""

import asyncio
import math
import time
from dataclasses import dataclass

import numpy as np

from likewise.db import collections
from likewise.db.collections import Generation
from likewise.db.failures import CollectionGone
from likewise.db.pool import Pool
from likewise.embedding.embedder import Embedder, OpenModel
from likewise.embedding.provider import Matrix
from likewise.errors import ModelUnavailable, Unavailable, WrongModel
from likewise.observe.logs import get_logger

# Between bf16 and f32 of the same weights the least cosine is 0.9998, between other poolings 0.9 and less.
MIN_PROBE_COSINE = 0.995

# A worker with waiting entries asks again within this time, so a refusal stays known for as long as it matters.
REFUSED_SECONDS = 30.0

# A remote model may become another one; until then one answer will do for all generations that come at once.
PROBE_SECONDS = 30.0
# A start waits no longer for a model that is at an address, or loads for long.
START_SECONDS = 10.0

log = get_logger(__name__)


@dataclass(frozen=True)
class _Refusal:
    """A generation closed to a space: for a while it is not tried again, and four times as long it is told of."""

    space: str
    reason: str
    since: float

    def is_younger(self, times: int) -> bool:
        return time.monotonic() < self.since + times * REFUSED_SECONDS


class Admission:
    """A check of each generation once a process, whose answer is remembered."""

    def __init__(self, pool: Pool, embedder: Embedder) -> None:
        self._pool = pool
        self._embedder = embedder
        self._admitted: set[tuple[int, str]] = set()
        self._refused: dict[int, _Refusal] = {}
        self._probes: dict[tuple[str, str, str], tuple[float, Matrix]] = {}
        self._asking = asyncio.Lock()

    @property
    def refused(self) -> dict[int, str]:
        """The generations closed in this process, with the reason; those that nobody asks for are forgotten."""
        return {generation: one.reason for generation, one in self._refused.items() if one.is_younger(4)}

    async def admit(self, tenant: int, generation: Generation) -> Generation:
        """Return the generation as this process may write to it and search it, its model opened.

        Raises:
            ModelUnavailable: the model is away, or it does not make this generation's vectors.
            CollectionGone: the generation went with its collection.
        """
        model = await self._embedder.opened(generation.model)
        if (generation.id, model.space) not in self._admitted:
            # Several that come at once, as workers and searches do at a start, are one question to the model.
            async with self._asking:
                generation = await self._check(tenant, generation, model)
        return generation

    async def check_default_model(self) -> None:
        """Check the default model against stored vectors; one that is away, or loads for long, is not looked at.

        Raises:
            WrongModel: its files have been changed, or none of the vectors that are stored of it are its own.
        """
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._check_default_model()
        except ModelUnavailable as error:
            if error.code == "weights_checksum":
                raise WrongModel(error.detail) from None
        except (TimeoutError, Unavailable):
            # It is looked at again with each generation that wants it.
            return

    async def _check_default_model(self) -> None:
        model = await self._embedder.opened()
        stored = await collections.spaces(self._pool, model.spec.name)
        same = [one for one in stored if one.space == model.space and one.dimension == model.dimension]
        if stored and not same:
            raise WrongModel(
                f"The default model, {model.spec.name}, is not the one that the stored vectors were made with: its "
                "weights, tokenizer or configuration are others. Bring the old files back, or set LIKEWISE_MODEL."
            )
        for one in same:
            least = _least_cosine(await self._probe(model), one.probe)
            if least < MIN_PROBE_COSINE:
                raise WrongModel(
                    f"The default model, {model.spec.name}, reads the probe texts otherwise than when the stored "
                    f"vectors were made (cosine {least:.4f}). Bring back its files and LIKEWISE_PRECISION as they were."
                )

    async def _check(self, tenant: int, generation: Generation, model: OpenModel) -> Generation:
        if (generation.id, model.space) in self._admitted:
            return generation
        refusal = self._refused.get(generation.id)
        if refusal is not None and refusal.space == model.space and refusal.is_younger(1):
            raise ModelUnavailable(refusal.reason, code="model_differs", retry_after=30)
        if generation.space is None:
            generation = await self._adopt(tenant, generation, model)
        reason = await self._difference(generation, model)
        if reason is not None:
            self._probes.clear()
            if generation.id not in self._refused:
                log.error("generation_refused", generation=generation.id, reason=reason)
            self._refused[generation.id] = _Refusal(model.space, reason, time.monotonic())
            raise ModelUnavailable(reason, code="model_differs", retry_after=30)
        self._refused.pop(generation.id, None)
        self._admitted.add((generation.id, model.space))
        return generation

    async def _adopt(self, tenant: int, generation: Generation, model: OpenModel) -> Generation:
        """Record the model that this process, the first to make vectors here, makes them with."""
        probe = await self._probe(model)
        async with self._pool.tenant(tenant) as tx:
            await collections.adopt(tx, generation.id, space=model.space, numerics=model.numerics, probe=probe)
            found = await collections.generation(tx, generation.id)
        if found is None:
            raise CollectionGone
        return found[0]

    async def _probe(self, model: OpenModel) -> Matrix:
        """Return the vectors of PROBE_TEXTS, float32 (8, d), which are made once in a while for all generations."""
        key, now = (model.spec.name, model.space, model.numerics), time.monotonic()
        made_at, probe = self._probes.get(key, (-math.inf, None))
        if probe is None or now - made_at > PROBE_SECONDS:
            probe = await self._embedder.probe(model.spec.name)
            self._probes[key] = now, probe
        return probe

    async def _difference(self, generation: Generation, model: OpenModel) -> str | None:
        if model.dimension != generation.dimension:
            return (
                f"The model now makes {model.dimension}-dimensional vectors and the collection holds "
                f"{generation.dimension}-dimensional ones. Bring the old model back."
            )
        if generation.space != model.space:
            return (
                "The model's weights, tokenizer or configuration are not those that this collection's vectors were "
                "made with. Bring the old files back, or make a new collection."
            )
        if generation.probe is None:
            return None
        probe = await self._probe(model)
        least = _least_cosine(probe, generation.probe)
        if least < MIN_PROBE_COSINE:
            return f"The model reads the probe texts otherwise than when this collection was made (cosine {least:.4f})."
        return None


def _least_cosine(made: Matrix, stored: Matrix) -> float:
    return float(np.min(np.sum(made * stored, axis=1)))
