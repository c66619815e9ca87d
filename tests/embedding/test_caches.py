"""Keys and the memory cache."""

import asyncio
import itertools
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest

from likewise.embedding.cache import OVERHEAD, Cached, cache_key
from likewise.embedding.caches.memory import MemoryCache
from likewise.embedding.caches.opening import open_cache
from likewise.errors import SettingsError
from likewise.settings import load_settings


def row(value: float = 1.0, dimension: int = 384) -> Cached:
    return Cached(np.full(dimension, value, np.float32), 3, 0, 7)


def test_every_part_of_a_key_counts() -> None:
    parts: list[tuple[Any, ...]] = [
        (1, 2, None),
        ("a", "ab"),
        ("bc", "c"),
        ("query", "document"),
        (384, 38),
        ("4", "text"),
    ]
    keys = [cache_key(*chosen) for chosen in itertools.product(*parts)]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 32 for key in keys)
    assert cache_key(None, "s", "n", "query", 3, "\ud800") != cache_key(None, "s", "n", "query", 3, "\ud801")


async def test_what_was_used_least_lately_goes_first() -> None:
    size = 384 * 4 + OVERHEAD
    cache = MemoryCache(3 * size)
    await cache.put_many({b"a": row(), b"b": row(), b"c": row()})
    await cache.get_many([b"a"])
    await cache.put_many({b"d": row()})
    found = await cache.get_many([b"a", b"b", b"c", b"d"])
    assert [item is not None for item in found] == [True, False, True, True]
    assert cache.memory_bytes == 3 * size


async def test_the_same_key_twice_is_held_once_and_deleted_ones_are_gone() -> None:
    cache = MemoryCache(10_000)
    await cache.put_many({b"a": row(1.0)})
    await cache.put_many({b"a": row(2.0)})
    assert len(cache) == 1
    found = (await cache.get_many([b"a"]))[0]
    assert found is not None
    assert found.vector[0] == 2.0
    await cache.delete_many([b"a", b"never there"])
    assert (len(cache), cache.memory_bytes) == (0, 0)


async def test_nothing_is_held_in_no_room_or_beyond_it() -> None:
    off, small = MemoryCache(0), MemoryCache(1_000)
    await off.put_many({b"a": row()})
    await small.put_many({b"a": row()})
    assert (len(off), len(small)) == (0, 0)


def test_its_estimate_of_bytes_is_about_right() -> None:
    tracemalloc.start()
    cache = MemoryCache(100 * 2**20)
    asyncio.run(cache.put_many({bytes([place // 256, place % 256]) * 16: row() for place in range(2_000)}))
    real = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.8 < real / cache.memory_bytes < 1.2


@pytest.mark.parametrize(
    "url",
    [
        "xyzzy",
        "xyzzy://127.0.0.1",
        "https://127.0.0.1/xyzzy",
        "redis://:xyzzy@127.0.0.1:port",
        "redis://:xyzzy@127.0.0.1:99999",
        "redis://:xyzzy@127.0.0.1?no_such_option=1",
        "redis://:xyzzy@127.0.0.1?socket_timeout=soon",
        "redis://:xyzzy@[::1",
        "unix+cluster:///xyzzy",
        "redis+cluster://:xyzzy@",
        "redis+cluster://:xyzzy@127.0.0.1/3",
        "redis+cluster://:xyzzy@127.0.0.1?no_such_option=1",
    ],
)
async def test_a_url_that_cannot_be_read_names_its_setting_and_not_its_value(url: str) -> None:
    with pytest.raises(SettingsError, match="LIKEWISE_REDIS_URL is not") as refused:
        open_cache(load_settings(redis_url=url))
    assert "xyzzy" not in str(refused.value)
    assert refused.value.__context__ is None or refused.value.__suppress_context__
    assert "xyzzy" not in repr(load_settings(redis_url=url))


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1",
        "redis://user:p%40ss@127.0.0.1:6380/2",
        "rediss://127.0.0.1?ssl_cert_reqs=none",
        "unix:///run/redis.sock?db=1",
        "redis+cluster://user:pass@127.0.0.1:7000",
        "rediss+cluster://127.0.0.1:7000",
        # Would answer text where vectors are wanted; ours wins.
        "redis://127.0.0.1?decode_responses=true&max_connections=1000",
    ],
)
async def test_urls_of_every_kind_are_taken_and_nothing_is_connected_to(url: str) -> None:
    cache = open_cache(load_settings(redis_url=url))
    assert cache.fault is None
    await cache.close()


def test_a_missing_extra_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    ours = "likewise.embedding.caches.redis"
    for name in [name for name in sys.modules if name == ours or name.startswith(f"{ours}.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(SettingsError, match=r"redis needs an extra: pip install 'likewise\[redis\]'"):
        open_cache(load_settings(redis_url="redis://127.0.0.1"))
