"""Embedder: text in, vectors out."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt

from likewise.embedding.batching import Batcher
from likewise.embedding.cache import Cache, Cached, cache_keys, text_digest
from likewise.embedding.caches.opening import open_cache
from likewise.embedding.costs import Ledger, cost_of
from likewise.embedding.files import weights
from likewise.embedding.forgotten import Forgotten, Since
from likewise.embedding.in_flight import InFlight
from likewise.embedding.loading import EMBEDDING, ModelState, Slot
from likewise.embedding.memory import ModelMemory
from likewise.embedding.models import MOCK, Catalogue, ModelSpec, size_fault
from likewise.embedding.outcomes import all_or_faults, outcomes
from likewise.embedding.probe import PROBE_TEXTS
from likewise.embedding.provider import Counts, Lane, Matrix, Provider, ProviderFactory, Role
from likewise.embedding.providers import mock
from likewise.embedding.queue import INTERACTIVE_TOKENS, QueueBudget, Waiting, estimated_tokens
from likewise.embedding.shortening import refuse_dimensions, shortened
from likewise.embedding.splitter import Cut, Splitter
from likewise.embedding.splitting import Span
from likewise.embedding.texts import refuse_unreadable
from likewise.errors import Invalid, LikewiseError, ModelUnavailable, NotSupported
from likewise.observe.steps import EmbedStep
from likewise.settings import Settings

ROLES: tuple[Role, ...] = get_args(Role)
# Texts that are forgotten at a time, and how long Redis is waited for, over all of them.
FORGET_BATCH, FORGET_SECONDS = 1_000, 5.0


@dataclass(frozen=True)
class Embedded:
    """What became of n texts, in their order.

    `vectors` float32 (n, d) of unit length; `tokens` read (special ones included), `truncated` tokens cut off and
    `chars_read` int32 (n,); `cached` bool (n,); `cost` in US dollars. `estimated`: of some, nobody counted the tokens.
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
class Maker:
    """What decides a text's vector, beside the text and its role."""

    space: str
    numerics: str
    dimension: int

    def keys(self, owner: int | None, role: Role, text_digests: Sequence[bytes]) -> list[bytes]:
        """The cache's keys of texts."""
        return cache_keys(owner, self.space, self.numerics, role, self.dimension, text_digests)


@dataclass(frozen=True)
class OpenModel:
    """A model in service."""

    spec: ModelSpec
    space: str
    numerics: str
    dimension: int
    max_tokens: int


class Embedder:
    """The conductor: check, cache, merge, queue, embed.

    Belongs to one event loop. `providers` replaces the local ones by model name, for tests. What used and what may wait
    for models of any sort in this process is in its `ledger`, `budget` and `memory`. With `wait_for_models` callers
    wait for a model that is being fetched or loaded, the whole of it, and fail only if that fails; without it they are
    told to come again.
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
        self.wait_for_models = wait_for_models
        self._catalogue = Catalogue(settings)
        made_up: dict[str, ProviderFactory] = {MOCK.name: mock.load} if settings.enable_mock else {}
        self._providers = made_up | dict(providers or {})
        self._cache = open_cache(settings) if cache is None else cache
        self.ledger = Ledger()
        self.budget = QueueBudget(settings.queue_tokens)
        self.memory = ModelMemory(settings, keep=self._catalogue.specs()[0].name)
        self._slots: dict[str, Slot[Provider, Batcher]] = {}
        self._splitter = Splitter()
        self._in_flight = InFlight()
        self._forgotten = Forgotten()
        # What vectors of this process were made by: the cache may have them long after their model was let go.
        self._makers: set[Maker] = set()

    async def start(self) -> None:
        """Begin to load the default model in the background; absent weights are no error, they are waited for."""
        self._slot(self._catalogue.resolve(None)).begin(fetch=True)
        self._cache.start()

    async def close(self) -> None:
        """Fail what waits and let the models go."""
        await asyncio.gather(*(slot.close() for slot in self._slots.values()))
        await self._cache.close()

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
        """The texts' vectors.

        Args:
            lane: `bulk` gives way to `interactive`; by default that is what few tokens are.
            dimensions: the first so many numbers of each vector, for models that are made for it.
            batch_size: how many texts go to a remote model in one call.

        Raises:
            Invalid: names the texts that are blank, longer than 200,000 characters, or (code `text_failed`) that the
                model cannot embed.
            ModelUnavailable, Overloaded: try again later.

        Cancelling is safe at any time.
        """
        spec = self._catalogue.resolve(model)
        refuse_unreadable(texts)
        if batch_size is not None and batch_size < 1:
            raise Invalid.at("/batch_size", "This must be at least 1.", "out_of_range")
        lane = lane or _lane_of(texts)
        with EmbedStep(spec.name, role, lane) as step, self._slot(spec).held(), self._forgotten.watched() as since:
            asked = _Asked(tenant, spec, texts, role, lane, use_cache, dimensions, batch_size, since)
            return step.done(await self._embed(asked))

    async def forget(
        self, tenant: int, text_hashes: Sequence[bytes], *, at_once: bool = False, maker: "Maker | None" = None
    ) -> None:
        """Remove texts of a tenant from the caches; who embeds them at this moment does not put them back.

        With a cache that all tenants share they are forgotten for all.

        Args:
            text_hashes: the SHA-256 of each text.
            at_once: whether to wait until Redis has them no more, as far as it is well.
            maker: what made their vectors, for a process that has not had that model.
        """
        owner = self._owner(tenant)
        self._forgotten.add(owner, text_hashes)
        makers = self._makers if maker is None else self._makers | {maker}
        ends = time.monotonic() + FORGET_SECONDS
        for start in range(0, len(text_hashes) if makers else 0, FORGET_BATCH):
            part = text_hashes[start : start + FORGET_BATCH]
            keys = [key for one in makers for role in ROLES for key in one.keys(owner, role, part)]
            await self._cache.delete_many(keys, at_once=at_once and time.monotonic() < ends)
            # The keys of a thousand texts take some milliseconds.
            await asyncio.sleep(0)

    async def forget_all(self) -> None:
        """Remove everything from this process's memory: what was to be forgotten may have been missed."""
        self._forgotten.add_all()
        await self._cache.clear()

    async def _embed(self, asked: "_Asked") -> Embedded:
        spec, texts, role = asked.spec, asked.texts, asked.role
        provider, batcher = await self._slot(spec).ready()
        wanted, whole = asked.dimensions, provider.dimension
        refuse_dimensions(spec.name, whole, wanted, matryoshka=spec.matryoshka)
        maker = Maker(provider.space, provider.numerics, whole)
        self._makers.add(maker)
        digests = [text_digest(text) for text in texts]
        keys = maker.keys(self._owner(asked.tenant), role, digests)
        digest_of = dict(zip(keys, digests, strict=True))
        known = await self._known(keys, digest_of, asked, whole) if asked.use_cache else {}
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        made, ours = await self._make(fresh, digest_of, batcher, asked) if fresh else ({}, [])
        rows = known | all_or_faults(keys, made)
        paid = sum(rows[key].tokens for key in ours)
        answered = _answer(provider, spec, [rows[key] for key in keys], [key in known for key in keys])
        if wanted is not None and wanted != whole:
            vectors, space = shortened(answered.vectors, provider.space, wanted)
            answered = replace(answered, vectors=vectors, space=space)
        avoided = cost_of(int(answered.tokens.sum()) - paid, spec.price_per_1k_tokens)
        self.ledger.answered(asked.tenant, spec.name, len(texts), int(answered.cached.sum()), avoided)
        return replace(answered, cost=cost_of(paid, spec.price_per_1k_tokens))

    async def opened(self, model: str | None = None, *, patience: float | None = None) -> OpenModel:
        """The model in service, loaded if need be; ModelUnavailable if it cannot be now, or not in so many seconds."""
        spec = self._catalogue.resolve(model)
        provider, _ = await self._slot(spec).ready(patience)
        return OpenModel(
            replace(spec, dimension=provider.dimension, max_tokens=provider.max_tokens),
            provider.space, provider.numerics, provider.dimension, provider.max_tokens,
        )  # fmt: skip

    async def dimension(self, spec: ModelSpec) -> int:
        """How many numbers the vectors of a new collection have.

        ModelUnavailable if nobody knows, or if the settings want another size of the default model: its folder may have
        come after the start, which looks at that as well.
        """
        dimension = spec.dimension or (await self.opened(spec.name)).dimension
        if fault := size_fault(spec, dimension, self._settings):
            raise ModelUnavailable(fault, code="vector_size")
        return dimension

    def spec(self, model: str | None = None) -> ModelSpec:
        """What is known of a model without loading it.

        Invalid if it is not allowed; ModelUnavailable if only its files could say, and they are absent.
        """
        spec = self.known(model)
        if not spec.dimension:
            raise weights.absent(spec, self._settings)
        return spec

    def known(self, model: str | None = None) -> ModelSpec:
        """The same, of dimension 0 if its files are absent and nobody knows."""
        return self._as_loaded(self._catalogue.named(model))

    def models(self) -> list[ModelSpec]:
        """What is known of each allowed model, the default first."""
        return [self._as_loaded(spec) for spec in self._catalogue.specs()]

    def space(self, name: str) -> str | None:
        """The space of the vectors of the model of this short name; None before it is loaded."""
        slot = self._slots.get(name)
        return slot.provider.space if slot is not None and slot.provider is not None else None

    def _as_loaded(self, spec: ModelSpec) -> ModelSpec:
        slot = self._slots.get(spec.name)
        if slot is None or slot.provider is None:
            return spec
        return replace(spec, dimension=slot.provider.dimension, max_tokens=slot.provider.max_tokens)

    @property
    def caches(self) -> bool:
        """Whether vectors are remembered."""
        return self._settings.cache_bytes > 0 or self._settings.redis_url is not None

    @property
    def cache_bytes(self) -> int:
        """What the cache holds in this process's memory."""
        return self._cache.memory_bytes

    @property
    def cache_fault(self) -> str | None:
        """Why the cache, or a part of it, is left out at present."""
        return self._cache.fault

    def is_ready(self, model: str | None = None) -> bool:
        """Whether texts can be embedded now, without waiting for the model to load."""
        slot = self._slots.get(self._catalogue.resolve(model).name)
        return slot is not None and slot.provider is not None

    def states(self) -> list[ModelState]:
        """How it stands with each allowed model, the default first."""
        return [self._state(spec) for spec in self._catalogue.specs()]

    async def lengths(self, texts: Sequence[str], model: str | None = None) -> list[int]:
        """Tokens of each text as a document, special ones included, to compare with `max_tokens`."""
        refuse_unreadable(texts)
        slot = self._slot(self._catalogue.resolve(model))
        with slot.held():
            provider, _ = await slot.ready()
            return await provider.lengths(texts)

    async def split(self, text: str, model: str | None = None, *, cut: Cut) -> list[Span]:
        """Where the parts of a text begin and end that the model reads whole; errors are those of `Splitter.split`."""
        refuse_unreadable([text])
        slot = self._slot(self._catalogue.resolve(model))
        with slot.held():
            provider, _ = await slot.ready()
            return await self._splitter.split(provider, text, cut)

    async def probe(self, model: str | None = None) -> Matrix:
        """The vectors of PROBE_TEXTS, float32 (8, d), made anew."""
        slot = self._slot(self._catalogue.resolve(model))
        with slot.held():
            _, batcher = await slot.ready()
            items = batcher.submit(PROBE_TEXTS, "document", "interactive")
            try:
                made = await outcomes({str(place).encode(): item for place, item in enumerate(items)})
            finally:
                for item in items:
                    item.leave()
        return np.stack([row.vector for row in all_or_faults(list(made), made).values()])

    def _slot(self, spec: ModelSpec) -> Slot[Provider, Batcher]:
        if spec.name not in self._slots:
            factory = self._providers.get(spec.name)
            self._slots[spec.name] = Slot(
                spec,
                self._settings,
                self.budget,
                self.memory,
                EMBEDDING,
                factory,
                wait_for_models=self.wait_for_models,
            )
        return self._slots[spec.name]

    def _state(self, spec: ModelSpec) -> ModelState:
        if spec.name in self._slots:
            return self._slots[spec.name].state
        if spec.endpoint is not None:
            return ModelState(spec.name, "present")
        try:
            self._catalogue.runtime(spec)
        except NotSupported as error:
            return ModelState(spec.name, "failed", error.detail)
        if spec.name in self._providers or weights.locate(spec, self._settings) is not None:
            return ModelState(spec.name, "present")
        return ModelState(spec.name, "absent", weights.absent(spec, self._settings).detail)

    async def _known(
        self, keys: Sequence[bytes], digest_of: Mapping[bytes, bytes], asked: "_Asked", dimension: int
    ) -> dict[bytes, Cached]:
        found = await self._cache.get_many(keys)
        if gone := self._gone(digest_of, asked):
            # What came from Redis meanwhile is in memory since.
            await self._cache.delete_many(list(gone))
        # Whoever may write to a shared cache may put vectors of another length there.
        return {key: row for key, row in zip(keys, found, strict=True) if row and len(row.vector) == dimension}

    async def _make(
        self, fresh: Mapping[bytes, str], digest_of: Mapping[bytes, bytes], batcher: Batcher, asked: "_Asked"
    ) -> tuple[dict[bytes, Cached | LikewiseError], list[bytes]]:
        """Embed what is new, once; what another request already embeds is waited for. Also the keys that are ours."""
        shared = self._in_flight.of(fresh) if asked.use_cache else {}
        ours = self._queued({key: text for key, text in fresh.items() if key not in shared}, batcher, asked)
        items = {**shared, **ours}
        for item in items.values():
            item.waiters += 1
            if asked.lane == "interactive":
                batcher.promote(item)
        try:
            made = await outcomes(items)
            if asked.use_cache:
                # Whoever brought a text that was left behind does not keep it any more.
                gone = self._gone(digest_of, asked)
                keep = [key for key, item in items.items() if (key in ours or item.left_behind) and key not in gone]
                await self._cache.put_many({key: row for key in keep if isinstance(row := made[key], Cached)})
        finally:
            for item in items.values():
                item.leave()
            for key, item in ours.items():
                self._in_flight.leave_behind(key, item)
        return made, list(ours)

    def _gone(self, digest_of: Mapping[bytes, bytes], asked: "_Asked") -> set[bytes]:
        """The keys of texts that were forgotten since somebody asked for these."""
        gone = self._forgotten.among(self._owner(asked.tenant), digest_of.values(), asked.since)
        return {key for key, digest in digest_of.items() if digest in gone} if gone else set()

    def _owner(self, tenant: int) -> int | None:
        """Whose a vector is in the cache; None: everybody's."""
        return tenant if self._settings.cache_scope == "tenant" else None

    def _queued(self, new: Mapping[bytes, str], batcher: Batcher, asked: "_Asked") -> dict[bytes, Waiting]:
        """Places in the queue. Who asks for a text to be made anew shares it with nobody."""
        charge = partial(self._charge, asked.tenant, asked.spec)
        texts = list(new.values())
        queued = batcher.submit(texts, asked.role, asked.lane, most=asked.batch_size, charge=charge)
        items = dict(zip(new, queued, strict=True))
        if asked.use_cache:
            for key, item in items.items():
                self._in_flight.add(key, item)
        return items

    def _charge(self, tenant: int, spec: ModelSpec, row: Cached) -> None:
        cost = cost_of(row.tokens, spec.price_per_1k_tokens)
        self.ledger.generated(tenant, spec.name, row.tokens, row.truncated, estimated=row.estimated, cost=cost)


@dataclass(frozen=True)
class _Asked:
    """One call of `Embedder.embed`, checked."""

    tenant: int
    spec: ModelSpec
    texts: Sequence[str]
    role: Role
    lane: Lane
    use_cache: bool
    dimensions: int | None
    batch_size: int | None
    since: Since


def _lane_of(texts: Sequence[str]) -> Lane:
    return "bulk" if sum(map(estimated_tokens, texts)) > INTERACTIVE_TOKENS else "interactive"


def _answer(provider: Provider, spec: ModelSpec, rows: Sequence[Cached], cached: Sequence[bool]) -> Embedded:
    return Embedded(
        vectors=np.stack([row.vector for row in rows]) if rows else np.empty((0, provider.dimension), np.float32),
        tokens=np.array([row.tokens for row in rows], np.int32),
        truncated=np.array([row.truncated for row in rows], np.int32),
        chars_read=np.array([row.chars_read for row in rows], np.int32),
        cached=np.array(cached, np.bool_),
        cost=0.0,
        model=spec.name,
        space=provider.space,
        numerics=provider.numerics,
        estimated=any(row.estimated for row in rows),
    )
