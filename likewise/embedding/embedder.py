"""Embedder: text in, vectors out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from likewise.embedding.batching import Batcher
from likewise.embedding.cache import Cache, Cached, CacheLookup, TenantCache, VectorOrigin
from likewise.embedding.caches.opening import open_cache
from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.formats import refuse_dimensions, shortened
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Counts, Lane, Matrix, ProviderFactory, Role, estimated_tokens, refuse_unreadable
from likewise.embedding.queue import (
    INTERACTIVE_TOKENS,
    InFlight,
    Outcome,
    QueuedText,
    all_or_faults,
    outcomes,
)
from likewise.embedding.serving import EmbeddingModels
from likewise.embedding.space import PROBE_TEXTS
from likewise.embedding.splitting import SplitOptions, Splitter, TextSpan
from likewise.errors import Invalid
from likewise.observe.steps import EmbedStep
from likewise.settings import Settings


@dataclass(frozen=True)
class Embedded:
    """Vectors and counts of n texts, in order.

    `vectors` float32 (n, d) of unit length; `tokens` read (special ones included), `truncated` tokens cut off and
    `chars_read` int32 (n,); `cached` bool (n,); `cost` in US dollars. `estimated`: some tokens were not counted.
    """

    vectors: Matrix
    tokens: Counts
    truncated: Counts
    chars_read: Counts
    cached: npt.NDArray[np.bool_]
    cost: float
    model: str
    space: str
    numerics: str
    estimated: bool = False


@dataclass(frozen=True)
class _Call:
    """The arguments of one call of `Embedder.embed`, checked."""

    tenant: int
    spec: ModelSpec
    texts: Sequence[str]
    role: Role
    lane: Lane
    use_cache: bool
    dimensions: int | None
    batch_size: int | None
    since: int


class Embedder(EmbeddingModels):
    """The conductor: check, cache, merge, queue, embed.

    `cache` replaces the settings' own; `ledger` keeps what was used of models of any sort in this process.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        providers: Mapping[str, ProviderFactory] | None = None,
        cache: Cache | None = None,
        wait_for_models: bool = False,
    ) -> None:
        super().__init__(settings, providers, wait_for_models=wait_for_models)
        self.ledger = Ledger()
        own = open_cache(settings) if cache is None else cache
        self._cache = TenantCache(own, shared=settings.cache_scope == "shared")
        self._splitter = Splitter()
        self._in_flight = InFlight()

    async def start(self) -> None:
        """Begin to load the default model in the background; absent weights are no error, they are waited for."""
        self._handle(None).begin(fetch=True)
        self._cache.cache.start()

    async def close(self) -> None:
        """Fail what waits and let the models go."""
        await self._pool.close()
        await self._cache.cache.close()

    async def embed(
        self,
        tenant: int,
        texts: Sequence[str],
        *,
        model: str | None = None,
        role: Role = "document",
        lane: Lane | None = None,
        use_cache: bool = True,
        dimensions: int | None = None,
        batch_size: int | None = None,
    ) -> Embedded:
        """Embed texts. Cancelling is safe at any time.

        Args:
            lane: `bulk` gives way to `interactive`; by default few tokens are interactive.
            dimensions: only so many numbers of each vector, the first, for models that are made for it.
            batch_size: the most texts that go to a remote model in one call.

        Raises:
            Invalid: names the texts that are blank, longer than 200,000 characters, or (code `text_failed`) that the
                model cannot embed.
            ModelUnavailable, Overloaded: try again later.
        """
        spec = self._catalogue.resolve(model)
        refuse_unreadable(texts)
        if batch_size is not None and batch_size < 1:
            raise Invalid.at("/batch_size", "This must be at least 1.", "out_of_range")
        lane = lane or _lane_of(texts)
        with (
            EmbedStep(spec.name, role, lane) as step,
            self._pool.handle(spec).held(),
            self._cache.watched() as since,
        ):
            call = _Call(tenant, spec, texts, role, lane, use_cache, dimensions, batch_size, since)
            return step.done(await self._embed(call))

    async def _embed(self, call: _Call) -> Embedded:
        """Take what is cached, share what is in flight, queue the rest, and answer in order."""
        provider, batcher = await self._pool.handle(call.spec).ready()
        if call.dimensions is not None:
            refuse_dimensions(call.spec.name, provider.dimension, call.dimensions, matryoshka=call.spec.matryoshka)
        origin = VectorOrigin(provider.space, provider.numerics, provider.dimension)
        lookup = self._cache.lookup(call.tenant, call.texts, call.role, origin, since=call.since)
        cached = await self._cache.get(lookup) if call.use_cache else {}
        made, ours = (
            await self._make(call, lookup, cached, batcher) if len(cached) < len(lookup.digest_of) else ({}, [])
        )
        rows = cached | all_or_faults(lookup.keys, made)
        paid = sum(rows[key].tokens for key in ours)
        return self._answer(
            call, origin, [rows[key] for key in lookup.keys], [key in cached for key in lookup.keys], paid
        )

    async def _make(
        self, call: _Call, lookup: CacheLookup, cached: Mapping[bytes, Cached], batcher: Batcher
    ) -> tuple[Mapping[bytes, Outcome], list[bytes]]:
        """Embed the texts that are not cached, or share those in flight; also return the keys of our own."""
        missing = {key: text for key, text in zip(lookup.keys, call.texts, strict=True) if key not in cached}
        shared = self._in_flight.of(missing) if call.use_cache else {}
        ours = self._queue(call, {key: text for key, text in missing.items() if key not in shared}, batcher)
        items = shared | ours
        for item in items.values():
            item.waiters += 1
        for item in shared.values() if call.lane == "interactive" else ():
            batcher.promote(item)
        try:
            made = await outcomes(items)
            if call.use_cache:
                # The caller that brought a text that was left behind does not cache it any more.
                keep = [key for key, item in items.items() if key in ours or item.left_behind]
                await self._cache.put(lookup, {key: row for key in keep if isinstance(row := made[key], Cached)})
        finally:
            for item in items.values():
                item.leave()
            for key, item in ours.items():
                self._in_flight.leave_behind(key, item)
        return made, list(ours)

    def _queue(self, call: _Call, texts: Mapping[bytes, str], batcher: Batcher) -> dict[bytes, QueuedText]:
        """Queue texts for the model; a call that wants its texts made anew shares them with nobody."""
        # It outlives the call, so it may not hold the call's texts.
        charge = partial(self._charge, call.tenant, call.spec)
        queued = batcher.submit(list(texts.values()), call.role, call.lane, max_texts=call.batch_size, charge=charge)
        items = dict(zip(texts, queued, strict=True))
        if call.use_cache:
            for key, item in items.items():
                self._in_flight.add(key, item)
        return items

    def _charge(self, tenant: int, spec: ModelSpec, row: Cached) -> None:
        cost = cost_of(row.tokens, spec.price_per_1k_tokens)
        self.ledger.generated(tenant, spec.name, row.tokens, row.truncated, estimated=row.estimated, cost=cost)

    def _answer(
        self, call: _Call, origin: VectorOrigin, rows: Sequence[Cached], cached: Sequence[bool], paid: int
    ) -> Embedded:
        """Put the rows together, count them, and shorten the vectors if that is asked for."""
        vectors = np.stack([row.vector for row in rows]) if rows else np.empty((0, origin.dimension), np.float32)
        tokens = np.array([row.tokens for row in rows], np.int32)
        space, price = origin.space, call.spec.price_per_1k_tokens
        if call.dimensions is not None and call.dimensions != origin.dimension:
            vectors, space = shortened(vectors, space, call.dimensions)
        avoided = cost_of(int(tokens.sum()) - paid, price)
        self.ledger.answered(call.tenant, call.spec.name, len(rows), sum(cached), avoided)
        return Embedded(
            vectors=vectors,
            tokens=tokens,
            truncated=np.array([row.truncated for row in rows], np.int32),
            chars_read=np.array([row.chars_read for row in rows], np.int32),
            cached=np.array(cached, np.bool_),
            cost=cost_of(paid, price),
            model=call.spec.name,
            space=space,
            numerics=origin.numerics,
            estimated=any(row.estimated for row in rows),
        )

    async def forget(
        self, tenant: int, text_hashes: Sequence[bytes], *, at_once: bool = False, origin: VectorOrigin | None = None
    ) -> None:
        """Remove texts of a tenant from the caches; calls that embed them at this moment do not put them back.

        With a cache that all tenants share they are forgotten for all.

        Args:
            text_hashes: the SHA-256 of each text.
            at_once: whether to wait until Redis has them no more, as far as it is well.
            origin: the origin of their vectors, for a process that has not had that model.
        """
        await self._cache.forget(tenant, text_hashes, at_once=at_once, origin=origin)

    async def forget_all(self) -> None:
        """Remove everything from this process's memory, as texts that were to be forgotten may have been missed."""
        await self._cache.forget_all()

    async def lengths(self, texts: Sequence[str], model: str | None = None) -> list[int]:
        """Count the tokens of each text as a document, special ones included, to compare with `max_tokens`."""
        refuse_unreadable(texts)
        async with self._handle(model).in_service() as (provider, _):
            return await provider.lengths(texts)

    async def split(self, text: str, model: str | None = None, *, options: SplitOptions) -> list[TextSpan]:
        """Split a text into parts that the model reads whole; errors are those of `Splitter.split`."""
        refuse_unreadable([text])
        async with self._handle(model).in_service() as (provider, _):
            return await self._splitter.split(provider, text, options)

    async def probe(self, model: str | None = None) -> Matrix:
        """Embed PROBE_TEXTS anew, as float32 (8, d)."""
        async with self._handle(model).in_service() as (_, batcher):
            items = batcher.submit(PROBE_TEXTS, "document", "interactive")
            try:
                made = await outcomes({str(place).encode(): item for place, item in enumerate(items)})
            finally:
                for item in items:
                    item.leave()
        return np.stack([row.vector for row in all_or_faults(list(made), made).values()])

    @property
    def caches(self) -> bool:
        """True if vectors are remembered."""
        return self._settings.cache_bytes > 0 or self._settings.redis_url is not None

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds in this process's memory."""
        return self._cache.cache.memory_bytes

    @property
    def cache_fault(self) -> str | None:
        """The reason for which the cache, or a part of it, is left out at present."""
        return self._cache.cache.fault


def _lane_of(texts: Sequence[str]) -> Lane:
    return "bulk" if sum(map(estimated_tokens, texts)) > INTERACTIVE_TOKENS else "interactive"
