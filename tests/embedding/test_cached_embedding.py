"""Whatever the cache knows of a request's texts, each gets its own vector, and the model is asked once for the rest."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

from likewise.embedding.caches.memory import MemoryCache
from likewise.embedding.caches.opening import LayeredCache
from likewise.embedding.caches.redis import RedisCache
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Capacity, Lane, Role
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider
from likewise.testing.redis import RedisProcess, patient_cache

NAMES = [f"text {number} " + "and more " * (number % 5) for number in range(8)]
DIMENSION = 16

Known = Literal["nowhere", "in Redis", "in memory"]


@dataclass(frozen=True)
class Request:
    """One call: who asks, for which texts, and how."""

    tenant: int
    places: list[int]
    role: Role
    lane: Lane
    use_cache: bool

    @property
    def texts(self) -> list[str]:
        return [NAMES[place] for place in self.places]


def requests() -> st.SearchStrategy[Request]:
    return st.builds(
        Request,
        tenant=st.integers(1, 2),
        places=st.lists(st.integers(0, len(NAMES) - 1), max_size=12),
        role=st.sampled_from(["document", "query"]),
        lane=st.sampled_from(["interactive", "bulk"]),
        use_cache=st.booleans(),
    )


@given(
    known=st.dictionaries(
        st.tuples(st.integers(1, 2), st.integers(0, len(NAMES) - 1), st.sampled_from(["document", "query"])),
        st.sampled_from(["nowhere", "in Redis", "in memory"]),
    ),
    asked=st.lists(requests(), min_size=1, max_size=4),
    shared=st.booleans(),
    batch_tokens=st.sampled_from([1, 8, 2_048]),
)
@tries(max_examples=60)
async def test_every_text_gets_its_own_vector_and_what_was_known_is_told(
    redis: RedisProcess,
    known: dict[tuple[int, int, Role], Known],
    asked: list[Request],
    shared: bool,
    batch_tokens: int,
) -> None:
    # Given: some texts known in memory, some only in Redis
    await redis.execute("FLUSHALL")
    settings = load_settings(redis_url=redis.url, cache_scope="shared" if shared else "tenant")
    remembered = await _put_in_redis(redis, settings, known)
    async with _embedder(redis, settings, batch_tokens) as (embedder, provider, _):
        for (tenant, place, role), where in known.items():
            if where == "in memory":
                await embedder.embed(tenant, [NAMES[place]], role=role)
                remembered.add(_known_as(settings, tenant, place, role))
        for request in asked:
            # When
            provider.texts.clear()
            got = await embedder.embed(
                request.tenant, request.texts, role=request.role, lane=request.lane, use_cache=request.use_cache
            )
            # Then
            keys = [_known_as(settings, request.tenant, place, request.role) for place in request.places]
            was_known = [request.use_cache and key in remembered for key in keys]
            assert got.cached.tolist() == was_known
            unknown = {text for text, known_ in zip(request.texts, was_known, strict=True) if not known_}
            assert sorted(provider.texts) == sorted(unknown)
            await _is_right(got.vectors, request.texts)
            if request.use_cache:
                remembered.update(keys)


async def test_requests_at_the_same_time_ask_the_model_once_for_a_text(redis: RedisProcess) -> None:
    async with _embedder(redis, load_settings(redis_url=redis.url), 8) as (embedder, provider, _):
        wanted = [[NAMES[(start + step) % 8] for step in range(4)] for start in range(40)]
        got = await asyncio.gather(*(embedder.embed(1, texts) for texts in wanted))
        for one, texts in zip(got, wanted, strict=True):
            await _is_right(one.vectors, texts)
        assert sorted(provider.texts) == sorted(NAMES)


def _known_as(settings: Settings, tenant: int, place: int, role: Role) -> tuple[int, int, Role]:
    return (0 if settings.cache_scope == "shared" else tenant), place, role


async def _put_in_redis(
    redis: RedisProcess, settings: Settings, known: dict[tuple[int, int, Role], Known]
) -> set[tuple[int, int, Role]]:
    """Let another process put there what is to be there."""
    put = set()
    async with _embedder(redis, settings, 2_048) as (other, _, cache):
        for (tenant, place, role), where in known.items():
            if where == "in Redis":
                await other.embed(tenant, [NAMES[place]], role=role)
                put.add(_known_as(settings, tenant, place, role))
        assert await cache.flush(30) == 0
    return put


@asynccontextmanager
async def _embedder(
    redis: RedisProcess, settings: Settings, batch_tokens: int
) -> AsyncIterator[tuple[Embedder, FakeProvider, RedisCache]]:
    """One that waits for Redis however busy the machine is."""
    cache = patient_cache(redis.url)
    provider = FakeProvider(DIMENSION, capacity=Capacity(tokens=batch_tokens))
    both = LayeredCache(MemoryCache(2**20), cache)
    embedder = Embedder(settings, providers={settings.model: lambda spec: provider}, cache=both)
    try:
        yield embedder, provider, cache
    finally:
        await embedder.close()


async def _is_right(vectors: object, texts: list[str]) -> None:
    made = await FakeProvider(DIMENSION).embed(texts, "document")
    assert np.array_equal(np.asarray(vectors), made.vectors)
