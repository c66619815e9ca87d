"""What everything that remembers vectors does: one line in CACHES adds the next."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from likewise.embedding.cache import Cache, Cached
from likewise.embedding.caches.memory import MemoryCache
from likewise.embedding.caches.opening import LayeredCache
from likewise.embedding.caches.redis import RedisCache
from likewise.testing.redis import RedisProcess, patient_cache, redis_cluster

MIB = 2**20


@dataclass(frozen=True)
class Kind:
    """How a cache is made of the fixture that it needs, if it needs one."""

    make: Callable[[Any], Cache]
    needs: str | None = None


CACHES: dict[str, Kind] = {
    "memory": Kind(lambda _: MemoryCache(64 * MIB)),
    "redis": Kind(lambda server: patient_cache(server.url), "redis"),
    "redis by a socket": Kind(lambda server: patient_cache(server.socket_url), "redis"),
    "redis cluster": Kind(patient_cache, "cluster"),
    "layered": Kind(lambda server: LayeredCache(MemoryCache(64 * MIB), patient_cache(server.url)), "redis"),
    "layered over a small memory": Kind(
        lambda server: LayeredCache(MemoryCache(20_000), patient_cache(server.url)), "redis"
    ),
}


@pytest.fixture(scope="module")
async def members(redis_program: str) -> AsyncIterator[list[RedisProcess]]:
    """The members of a cluster of three."""
    async with redis_cluster(3) as started:
        yield started


@pytest.fixture
async def cluster(members: list[RedisProcess]) -> str:
    """The URL of the cluster, empty."""
    await asyncio.gather(*(member.execute("FLUSHALL") for member in members))
    return members[0].url.replace("redis://", "redis+cluster://")


@pytest.fixture(params=CACHES)
def needed(request: pytest.FixtureRequest) -> tuple[Kind, Any]:
    """One of CACHES and what it needs; the others neither wait for that nor are skipped without it."""
    kind = CACHES[request.param]
    return kind, None if kind.needs is None else request.getfixturevalue(kind.needs)


@pytest.fixture
async def cache(needed: tuple[Kind, Any]) -> AsyncIterator[Cache]:
    """One cache, empty."""
    kind, server = needed
    made = kind.make(server)
    yield made
    await made.close()


async def flush(cache: Cache) -> None:
    """Until nothing waits to be written, so that it is the store that answers."""
    far = cache.far if isinstance(cache, LayeredCache) else cache
    if isinstance(far, RedisCache):
        assert await far.flush(30) == 0


def key(name: object) -> bytes:
    return sha256(str(name).encode()).digest()


def row(name: object, dimension: int = 384) -> Cached:
    numbers = np.random.default_rng(list(key(name))).standard_normal(dimension).astype(np.float32)
    return Cached(numbers / np.linalg.norm(numbers), 7, 2, 41, estimated=len(str(name)) % 2 == 0)


def same(found: Cached | None, wanted: Cached) -> bool:
    """To the last bit."""
    return (
        found is not None
        and found.vector.dtype == np.float32
        and found.vector.tobytes() == wanted.vector.tobytes()
        and (found.tokens, found.truncated, found.chars_read, found.estimated)
        == (wanted.tokens, wanted.truncated, wanted.chars_read, wanted.estimated)
    )


async def test_what_was_put_is_got_in_the_order_of_the_keys(cache: Cache) -> None:
    # Given
    await cache.put_many({key(name): row(name) for name in ("a", "bc", "d")})
    await flush(cache)
    # When
    names = ["d", "never put", "a", "d", "bc"]
    found = await cache.get_many([key(name) for name in names])
    # Then
    assert found[1] is None
    assert all(same(found[place], row(names[place])) for place in (0, 2, 3, 4))


async def test_nothing_is_known_of_an_empty_cache_and_of_no_keys(cache: Cache) -> None:
    assert await cache.get_many([key("a"), key("b")]) == [None, None]
    assert await cache.get_many([]) == []
    await cache.put_many({})
    await cache.delete_many([])


async def test_what_is_put_again_is_what_was_put_last(cache: Cache) -> None:
    await cache.put_many({key("a"): row("first")})
    await cache.put_many({key("a"): row("second", 128)})
    assert same((await cache.get_many([key("a")]))[0], row("second", 128))
    await flush(cache)
    assert same((await cache.get_many([key("a")]))[0], row("second", 128))


async def test_what_is_deleted_is_gone_and_the_rest_stays(cache: Cache) -> None:
    await cache.put_many({key("a"): row("a"), key("b"): row("b")})
    await flush(cache)
    await cache.delete_many([key("a"), key("never put")])
    assert await cache.get_many([key("a")]) == [None]
    await flush(cache)
    first, second = await cache.get_many([key("a"), key("b")])
    assert first is None
    assert same(second, row("b"))


async def test_what_is_deleted_at_once_is_gone_for_those_who_share_it(cache: Cache, needed: tuple[Kind, Any]) -> None:
    # Given
    items = {key(number): row(number, 16) for number in range(500)}
    await cache.put_many(items)
    await flush(cache)
    await cache.put_many({key("not written yet"): row("not written yet")})
    # When
    await cache.delete_many([*items, key("not written yet")], at_once=True)
    # Then
    kind, server = needed
    another = kind.make(server)
    assert await another.get_many([*items, key("not written yet")]) == [None] * 501
    await another.close()


async def test_what_is_cleared_is_not_in_this_process_any_more(cache: Cache, needed: tuple[Kind, Any]) -> None:
    shared = needed[0].needs is not None
    await cache.put_many({key("a"): row("a")})
    await flush(cache)
    await cache.put_many({key("b"): row("b")})
    await cache.clear()
    await flush(cache)
    assert cache.memory_bytes == 0
    found = await cache.get_many([key("b"), key("a")])
    assert [one is not None for one in found] == [False, shared]


@pytest.mark.parametrize("number", [0.0, -0.0, 1e-45, 3.4028235e38, -1.17549435e-38])
async def test_numbers_keep_every_bit(cache: Cache, number: float) -> None:
    item = Cached(np.array([number, 1.0], np.float32), 1, 0, 1)
    await cache.put_many({key("a"): item})
    await flush(cache)
    assert same((await cache.get_many([key("a")]))[0], item)


async def test_thousands_of_keys_at_once(cache: Cache) -> None:
    items = {key(number): row(number, 16) for number in range(3_000)}
    await cache.put_many(items)
    await flush(cache)
    found = await cache.get_many(list(reversed(items)))
    assert all(same(one, items[name]) for one, name in zip(found, reversed(items), strict=True))


async def test_many_callers_each_get_their_own(cache: Cache) -> None:
    # Given
    items = {key(number): row(number, 16) for number in range(200)}
    await cache.put_many(items)
    await flush(cache)
    # When
    keys = list(items)
    found = await asyncio.gather(*(cache.get_many([keys[place], keys[place - 7]]) for place in range(200)))
    # Then
    for place, (first, second) in enumerate(found):
        assert same(first, items[keys[place]])
        assert same(second, items[keys[place - 7]])


async def test_it_says_what_it_holds_and_that_nothing_is_wrong(cache: Cache) -> None:
    assert cache.memory_bytes == 0
    await cache.put_many({key("a"): row("a")})
    assert cache.memory_bytes >= 4 * 384
    assert cache.fault is None
