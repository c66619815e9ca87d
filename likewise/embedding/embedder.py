"""Embedder: text in, vectors out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from likewise.embedding.batching import Batcher
from likewise.embedding.cache import Cache, Cached, CacheLookup, TenantCache, VectorOrigin
from likewise.embedding.caches.opening import open_cache
from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.files import weights
from likewise.embedding.formats import refuse_dimensions, shortened
from likewise.embedding.loading import EMBEDDING, ModelHandle, ModelPool, ModelState
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import MOCK, Catalogue, ModelSpec, size_fault
from likewise.embedding.provider import Counts, Lane, Matrix, Provider, ProviderFactory, Role, refuse_unreadable
from likewise.embedding.providers import mock
from likewise.embedding.queue import InFlight, Outcome, QueueBudget, QueuedText, all_or_faults, lane_of, outcomes
from likewise.embedding.space import PROBE_TEXTS
from likewise.embedding.splitting import SplitOptions, Splitter, TextSpan
from likewise.errors import Invalid, ModelUnavailable
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
class OpenModel:
    """A model in service."""

    spec: ModelSpec
    space: str
    numerics: str
    dimension: int
    max_tokens: int


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


class Embedder:
    """The conductor: check, cache, merge, queue, embed.

    Each model that the settings allow is loaded when it is first asked for. Belongs to one event loop. `providers`
    replaces the local ones by model name, for tests, and `cache` the settings' own; `ledger` keeps what was used of
    models of any sort in this process, which share `budget` and `memory`. With `wait_for_models` callers wait for a
    model that is being fetched or loaded, and fail only if that fails; without it they are told to come again.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        providers: Mapping[str, ProviderFactory] | None = None,
        cache: Cache | None = None,
        wait_for_models: bool = False,
    ) -> None:
        self._settings = settings
        self._catalogue = Catalogue(settings)
        self.wait_for_models = wait_for_models
        self.budget = QueueBudget(settings.queue_tokens)
        self.memory = ModelMemory(settings, keep=self._catalogue.specs()[0].name)
        made_up: dict[str, ProviderFactory] = {MOCK.name: mock.load} if settings.enable_mock else {}
        self._pool: ModelPool[Provider, Batcher] = ModelPool(
            settings, EMBEDDING, self.budget, self.memory,
            factories=made_up | dict(providers or {}), wait_for_models=wait_for_models,
        )  # fmt: skip
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
        lane = lane or lane_of(texts)
        with (
            EmbedStep(spec.name, role, lane) as step,
            self._pool.handle(spec).held(),
            self._cache.watched() as since,
        ):
            call = _Call(tenant, spec, texts, role, lane, use_cache, dimensions, batch_size, since)
            made = await self._embed(call)
            step.done(len(made.tokens), int(made.tokens.sum()), int(made.cached.sum()))
            return made

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

    async def opened(self, model: str | None = None, *, patience: float | None = None) -> OpenModel:
        """Return the model in service, loaded if need be; ModelUnavailable if that fails, or takes too many seconds."""
        spec = self._catalogue.resolve(model)
        provider, _ = await self._pool.handle(spec).ready(patience)
        return OpenModel(
            replace(spec, dimension=provider.dimension, max_tokens=provider.max_tokens),
            provider.space, provider.numerics, provider.dimension, provider.max_tokens,
        )  # fmt: skip

    async def dimension(self, spec: ModelSpec) -> int:
        """Return the dimension of the vectors of a new collection.

        ModelUnavailable if nobody knows, or if the settings want another size of the default model: its folder may have
        come after the start, which looks at that as well.
        """
        dimension = spec.dimension or (await self.opened(spec.name)).dimension
        if fault := size_fault(spec, dimension, self._settings):
            raise ModelUnavailable(fault, code="vector_size")
        return dimension

    def spec(self, model: str | None = None) -> ModelSpec:
        """Return the row of a model, which is not loaded by that.

        Invalid if it is not allowed; ModelUnavailable if only its files could tell its dimension, and they are absent.
        """
        spec = self.known(model)
        if not spec.dimension:
            raise weights.absent(spec, self._settings)
        return spec

    def known(self, model: str | None = None) -> ModelSpec:
        """Return the row of a model, of dimension 0 if its files are absent and nobody knows it."""
        return self._as_loaded(self._catalogue.named(model))

    def models(self) -> list[ModelSpec]:
        """Return the row of each allowed model, the default first."""
        return [self._as_loaded(spec) for spec in self._catalogue.specs()]

    def space(self, name: str) -> str | None:
        """Return the space of the model of this short name; None before it is loaded."""
        loaded = self._pool.loaded(name)
        return loaded.space if loaded else None

    def is_ready(self, model: str | None = None) -> bool:
        """Return whether texts can be embedded now, without waiting for the model to load."""
        return self._pool.loaded(self._catalogue.resolve(model).name) is not None

    def states(self) -> list[ModelState]:
        """Return the state of each allowed model, the default first."""
        return [self._pool.state(spec, self._catalogue.runtime) for spec in self._catalogue.specs()]

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

    def _handle(self, model: str | None) -> ModelHandle[Provider, Batcher]:
        return self._pool.handle(self._catalogue.resolve(model))

    def _as_loaded(self, spec: ModelSpec) -> ModelSpec:
        loaded = self._pool.loaded(spec.name)
        return replace(spec, dimension=loaded.dimension, max_tokens=loaded.max_tokens) if loaded else spec
