"""Redis slow, away, full, killed or full of rubbish: the embedder goes on without it, and comes back to it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import pytest

from likewise.embedding.cache import Cached
from likewise.embedding.caches import traffic
from likewise.embedding.caches.redis import ANSWER_SECONDS, PREFIX, packed
from likewise.embedding.embedder import Embedder
from likewise.observe import logs, metrics
from likewise.settings import Settings
from likewise.testing import FakeProvider
from likewise.testing.redis import PATIENT_SECONDS, RedisProcess, SlowWay, patient_cache
from tests.patience import until

Make = Callable[..., Embedder]

# What Redis knows, where one text would not be enough.
THERE = [f"there {number}" for number in range(10)]
MANY = [f"text {number}" for number in range(40)]


@pytest.fixture
async def make(settings: Settings) -> AsyncIterator[Make]:
    """Makes embedders on a Redis, each as in a process of its own; they are closed at the end."""
    made: list[Embedder] = []

    def with_redis(url: str, provider: FakeProvider | None = None, **options: Any) -> Embedder:
        chosen = settings.model_copy(update={"redis_url": url, **options})
        one = provider or FakeProvider(16)
        made.append(Embedder(chosen, providers={settings.model: lambda spec: one}))
        return made[-1]

    yield with_redis
    await asyncio.gather(*(one.close() for one in made))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes is waited for, by every cache that settings name."""
    monkeypatch.setattr("likewise.embedding.caches.redis.ANSWER_SECONDS", PATIENT_SECONDS)


@pytest.fixture
def forgiving(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers are late, the next question is asked."""
    monkeypatch.setattr(traffic, "MAX_LATE", 10**9)


@asynccontextmanager
async def a_redis(*options: str) -> AsyncIterator[RedisProcess]:
    async with RedisProcess(options).running() as server:
        yield server


async def keys_of(server: RedisProcess) -> list[bytes]:
    async with server.client() as client:
        return [key async for key in client.scan_iter(count=1_000)]


async def until_redis_has(server: RedisProcess, count: int) -> None:
    await until(lambda: _has(server, count))


async def _has(server: RedisProcess, count: int) -> bool:
    return bool(await server.execute("DBSIZE") == count)


def errors(kind: str) -> float:
    """How often a cache of this process was no help, for this reason."""
    return metrics.REGISTRY.get_sample_value("likewise_cache_errors_total", {"kind": kind}) or 0.0


async def known(embedder: Embedder, texts: list[str]) -> list[bool]:
    return [bool(one) for one in (await embedder.embed(1, texts)).cached]


async def found_again(embedder: Embedder) -> None:
    """Until what only Redis knows comes from there; on a busy machine not every answer is in time."""
    await until(lambda: embedder.cache_fault is None)
    assert any([(await known(embedder, [text]))[0] for text in THERE])


# Shared


async def test_another_process_finds_what_the_first_one_put(redis: RedisProcess, make: Make, patient: None) -> None:
    # Given
    first = await make(redis.url).embed(1, ["red fox", "blue whale", "red fox"])
    await until_redis_has(redis, 2)
    # When
    provider = FakeProvider(16)
    second = await make(redis.url, provider).embed(1, ["blue whale", "grey owl", "red fox"])
    # Then
    assert second.cached.tolist() == [True, False, True]
    assert provider.texts == ["grey owl"]
    assert np.array_equal(second.vectors[[2, 0]], first.vectors[:2])
    assert second.tokens.tolist() == [4, 4, 4]


async def test_memory_is_asked_first_and_learns_from_redis(redis: RedisProcess, make: Make, patient: None) -> None:
    # Given
    await make(redis.url).embed(1, ["red fox"])
    await until_redis_has(redis, 1)
    embedder = make(redis.url)
    assert await known(embedder, ["red fox"]) == [True]
    # When
    await redis.execute("FLUSHALL")
    # Then
    assert await known(embedder, ["red fox"]) == [True]


async def test_redis_has_digests_and_numbers_only(redis: RedisProcess, make: Make) -> None:
    # When
    await make(redis.url).embed(1, ["xyzzy canary text", "xyzzy another"], model="minilm-l6-v2")
    await until_redis_has(redis, 2)
    # Then
    found = await keys_of(redis)
    assert all(key.startswith(PREFIX) and len(key) == len(PREFIX) + 32 for key in found)
    async with redis.client() as client:
        values = await client.mget(found)
    assert not any(word in part for part in [*found, *values] for word in (b"xyzzy", b"canary", b"minilm"))


async def test_a_tenant_is_not_told_what_another_put(redis: RedisProcess, make: Make, patient: None) -> None:
    await make(redis.url).embed(1, ["secret plan"])
    await until_redis_has(redis, 1)
    assert (await make(redis.url).embed(2, ["secret plan"])).cached.tolist() == [False]


async def test_what_redis_keeps_expires_when_the_settings_say(redis: RedisProcess, make: Make, patient: None) -> None:
    # Given
    await make(redis.url, cache_seconds=1_000).embed(1, ["for a while"])
    await until_redis_has(redis, 1)
    (limited,) = await keys_of(redis)
    assert 900 < await redis.execute("TTL", limited) <= 1_000
    # When its time is over, which is not waited for
    await redis.execute("PEXPIRE", limited, 1)
    await until_redis_has(redis, 0)
    # Then it is made anew
    assert await known(make(redis.url), ["for a while"]) == [False]


async def test_it_keeps_without_limit_what_the_settings_give_none(redis: RedisProcess, make: Make) -> None:
    await make(redis.url, cache_seconds=0).embed(1, ["for good"])
    await until_redis_has(redis, 1)
    (unlimited,) = await keys_of(redis)
    assert await redis.execute("TTL", unlimited) == -1


async def test_redis_alone_remembers_where_memory_keeps_none(redis: RedisProcess, make: Make, patient: None) -> None:
    embedder = make(redis.url, cache_bytes=0)
    assert await known(embedder, ["red fox"]) == [False]
    assert await known(embedder, ["red fox"]) == [True]
    await until_redis_has(redis, 1)
    assert await known(embedder, ["red fox"]) == [True]
    await until(lambda: embedder.cache_bytes == 0)


# Rubbish


def _flipped(value: bytes, place: int) -> bytes:
    return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]


def _with_vector(key: bytes, numbers: list[float]) -> bytes:
    return packed(key, Cached(np.array(numbers, np.float32), 3, 0, 3))


RUBBISH: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "empty": lambda key, value, other: b"",
    "text": lambda key, value, other: b"rubbish",
    "cut": lambda key, value, other: value[:-1],
    "cut to its head": lambda key, value, other: value[:21],
    "longer": lambda key, value, other: value + b"\0",
    "a version to come": lambda key, value, other: b"lwv9" + value[4:],
    "flipped in the head": lambda key, value, other: _flipped(value, 9),
    "flipped in the vector": lambda key, value, other: _flipped(value, 40),
    "flipped in the check": lambda key, value, other: _flipped(value, len(value) - 1),
    "another key's": lambda key, value, other: other,
    "of another dimension": lambda key, value, other: _with_vector(key, [1.0] + [0.0] * 7),
    "without numbers": lambda key, value, other: _with_vector(key, []),
    "not a number": lambda key, value, other: _with_vector(key, [float("nan")] * 16),
    "infinite": lambda key, value, other: _with_vector(key, [float("inf")] + [0.0] * 15),
}


@pytest.mark.parametrize("kind", RUBBISH)
async def test_rubbish_is_not_served_and_is_mended(redis: RedisProcess, make: Make, patient: None, kind: str) -> None:
    # Given: under our key something that is not what we put
    right = await make(redis.url).embed(1, ["one"])
    await until_redis_has(redis, 1)
    (name,) = await keys_of(redis)
    await make(redis.url).embed(1, ["other"])
    await until_redis_has(redis, 2)
    (other,) = set(await keys_of(redis)) - {name}
    spoilt = RUBBISH[kind](
        name.removeprefix(PREFIX), await redis.execute("GET", name), await redis.execute("GET", other)
    )
    await redis.execute("SET", name, spoilt)
    # When
    embedder = make(redis.url)
    got = await embedder.embed(1, ["one"])
    # Then
    assert got.cached.tolist() == [False]
    assert np.array_equal(got.vectors, right.vectors)
    assert embedder.cache_fault is None
    await until(lambda: _differs(redis, name, spoilt))
    assert await known(make(redis.url), ["one"]) == [True]


async def _differs(server: RedisProcess, key: bytes, value: bytes) -> bool:
    return bool(await server.execute("GET", key) != value)


async def test_a_value_of_another_type_is_not_served(redis: RedisProcess, make: Make, patient: None) -> None:
    await make(redis.url).embed(1, ["one"])
    await until_redis_has(redis, 1)
    (name,) = await keys_of(redis)
    await redis.execute("DEL", name)
    await redis.execute("LPUSH", name, "rubbish")
    assert await known(make(redis.url), ["one"]) == [False]


# Away


async def test_without_redis_at_the_start_all_works_and_it_is_found_later(make: Make, redis_program: str) -> None:
    # Given: nobody listens yet
    server = RedisProcess()
    embedder = make(server.url)
    assert await known(embedder, ["one"]) == [False]
    await until(lambda: embedder.cache_fault is not None)
    assert "cannot be reached" in str(embedder.cache_fault)
    assert await known(embedder, ["one", "two"]) == [True, False]
    # When
    async with server.running():
        # Then: what was made meanwhile is written as well
        await until(lambda: embedder.cache_fault is None)
        await until_redis_has(server, 2)


async def test_however_many_requests_meet_an_outage_the_next_look_is_soon() -> None:
    # Given a store that is away
    async def look() -> None:
        raise ConnectionError

    circuit = traffic.StoreCircuit(look, lambda _: "away", ANSWER_SECONDS)
    # When many questions that are under way fail, some of them late
    for _ in range(50):
        circuit.failed(ConnectionError())
        circuit.late()
    # Then it is looked at again as soon as after one
    assert (circuit.fault, circuit._breaker.pause) == ("away", traffic.LOOK_AGAIN.first)


async def test_killed_and_restarted_under_load_it_harms_no_request(make: Make, redis_program: str) -> None:
    # Given: eight callers who ask without a pause, for texts known and unknown
    async with a_redis() as server:
        embedder, right = make(server.url, cache_bytes=5_000), make("redis://127.0.0.1:1/0")
        wanted = {f"text {number}": (await right.embed(1, [f"text {number}"])).vectors[0] for number in range(60)}
        asked, stop = 0, asyncio.Event()

        async def caller(start: int) -> None:
            nonlocal asked
            place = start
            while not stop.is_set():
                texts = [f"text {(place + step) % 60}" for step in range(3)]
                got = await embedder.embed(1, texts)
                assert all(np.array_equal(got.vectors[at], wanted[text]) for at, text in enumerate(texts))
                asked, place = asked + 1, place + 1
                # What memory knows is answered without a pause, in which nothing else would be done.
                await asyncio.sleep(0)

        callers = [asyncio.create_task(caller(7 * number)) for number in range(8)]
        await until(lambda: _has(server, 60))
        # When: it is killed, twice stopped, and comes back each time
        for fault in ("kill", "pause", "pause"):
            before = asked
            if fault == "kill":
                await server.kill()
            else:
                server.pause()
            await until(lambda: embedder.cache_fault is not None)
            await until(lambda floor=before: asked > floor + 50)  # type: ignore[misc]
            if fault == "kill":
                await server.start()
            else:
                server.resume()
            await until(lambda: embedder.cache_fault is None)
        stop.set()
        # Then: every answer was right, and it is used again
        await asyncio.gather(*callers)
        await server.execute("FLUSHALL")
        await make(server.url).embed(1, THERE)
        await until(lambda: _has_at_least(server, len(THERE)))
        await found_again(make(server.url))


async def _has_at_least(server: RedisProcess, count: int) -> bool:
    return bool(await server.execute("DBSIZE") >= count)


async def test_a_redis_that_is_silent_is_left_out_and_taken_back(make: Make, redis_program: str) -> None:
    async with a_redis() as server:
        # Given
        first = make(server.url)
        await first.embed(1, THERE)
        await until_redis_has(server, len(THERE))
        embedder = make(server.url)
        await until(lambda: embedder.cache_fault is None)
        # When
        server.pause()
        for number in range(traffic.MAX_LATE):
            assert await known(embedder, [f"unknown {number}"]) == [False]
        # Then
        await until(lambda: embedder.cache_fault is not None)
        assert "in time" in str(embedder.cache_fault)
        server.resume()
        await found_again(embedder)


async def test_one_late_answer_does_not_leave_it_out(make: Make, redis_program: str) -> None:
    async with a_redis() as server, SlowWay(server.port, 0.0).running() as way:
        embedder = make(way.url, cache_bytes=0)
        await embedder.embed(1, ["one"])
        await until_redis_has(server, 1)
        # When
        way.seconds = 0.1
        await embedder.embed(1, ["two"])
        way.seconds = 0.0
        # Then
        assert embedder.cache_fault is None


async def test_a_slow_redis_is_left_out_until_it_is_quick(make: Make, redis_program: str) -> None:
    async with a_redis() as server, SlowWay(server.port, 0.0).running() as way:
        # Given
        await make(way.url).embed(1, THERE)
        await until_redis_has(server, len(THERE))
        embedder = make(way.url)
        # When
        way.seconds = 0.1
        for number in range(traffic.MAX_LATE + 1):
            await embedder.embed(1, [f"unknown {number}"])
        await until(lambda: embedder.cache_fault is not None)
        way.seconds = 0.0
        # Then
        await found_again(embedder)


async def test_a_late_answer_is_nobody_elses(make: Make, redis_program: str, forgiving: None) -> None:
    """Answers that come after their callers have left are never taken for those of the next."""
    async with a_redis() as server, SlowWay(server.port, 0.0).running() as way:
        # Given
        first = await make(way.url).embed(1, MANY)
        await until_redis_has(server, len(MANY))
        embedder = make(way.url, cache_bytes=0)
        late, rubbish = errors("slow"), errors("rubbish")
        # When: every second answer is late, and comes while others are asked for
        while errors("slow") < late + 100:
            for number, text in enumerate(MANY):
                way.seconds = 0.03 * (number % 2)
                got = await embedder.embed(1, [text])
                # Then
                assert np.array_equal(got.vectors[0], first.vectors[number])
        way.seconds = 0.0
        await _all_is_known_and_nothing_was_rubbish(embedder, rubbish)


async def test_a_caller_who_leaves_harms_nobody(make: Make, redis_program: str, forgiving: None) -> None:
    """Neither one who asks at the same moment, nor the next one, who may get the same connection."""
    async with a_redis() as server, SlowWay(server.port, 0.005).running() as way:
        # Given
        first = await make(way.url).embed(1, MANY)
        await until_redis_has(server, len(MANY))
        embedder = make(way.url, cache_bytes=0)
        rubbish = errors("rubbish")
        for number, text in enumerate(MANY):
            # When
            leaving = asyncio.create_task(embedder.embed(1, [MANY[number - 1]]))
            await asyncio.sleep(0.001 * (number % 5))
            leaving.cancel()
            if number % 2:
                await asyncio.wait([leaving])
            got = await embedder.embed(1, [text])
            # Then
            assert np.array_equal(got.vectors[0], first.vectors[number])
            await asyncio.gather(leaving, return_exceptions=True)
        way.seconds = 0.0
        await _all_is_known_and_nothing_was_rubbish(embedder, rubbish)


async def _all_is_known_and_nothing_was_rubbish(embedder: Embedder, rubbish: float) -> None:
    """An answer to another's question is not served in any case: it is seen as rubbish, and the vector made anew."""
    for text in MANY:
        await until(lambda wanted=text: _knows(embedder, wanted))  # type: ignore[misc]
    assert errors("rubbish") == rubbish


async def test_a_busy_process_does_not_take_redis_for_slow(
    redis: RedisProcess, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a deadline that is shorter than each turn of a loop that is busy
    monkeypatch.setattr("likewise.embedding.caches.redis.ANSWER_SECONDS", 0.1)
    embedder = make(redis.url, cache_bytes=0)
    texts = THERE[: traffic.MAX_LATE + 1]
    await embedder.embed(1, texts)
    await until_redis_has(redis, len(texts))
    await until(lambda: embedder.cache_fault is None and embedder.cache_bytes == 0)
    late = errors("slow")
    busy = asyncio.create_task(_hold_the_loop(0.2))
    # When
    try:
        hits = [await known(embedder, [text]) for text in texts]
    finally:
        busy.cancel()
    # Then: with a bare deadline none would be known
    assert all(hit == [True] for hit in hits)
    assert (embedder.cache_fault, errors("slow")) == (None, late)


async def _hold_the_loop(seconds: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        end = loop.time() + seconds
        while loop.time() < end:
            pass
        await asyncio.sleep(0)


# Full, and not allowed


async def test_a_full_redis_is_read_and_written_again_when_there_is_room(
    make: Make, redis_program: str, patient: None
) -> None:
    async with a_redis() as server:
        # Given
        await make(server.url).embed(1, ["one"])
        await until_redis_has(server, 1)
        await server.execute("CONFIG", "SET", "maxmemory", "1")
        # When
        embedder = make(server.url)
        assert (await embedder.embed(1, ["one", "two"])).cached.tolist() == [True, False]
        # Then: it says so, goes on reading, and tries again
        await until(lambda: embedder.cache_fault is not None)
        assert "full" in str(embedder.cache_fault)
        other = make(server.url)
        await until(lambda: _knows(other, "one"))
        await server.execute("CONFIG", "SET", "maxmemory", "0")
        await until_redis_has(server, 2)
        await until(lambda: embedder.cache_fault is None)


async def _knows(embedder: Embedder, text: str) -> bool:
    return (await known(embedder, [text]))[0]


async def test_a_redis_with_little_room_never_fails_a_request(make: Make, redis_program: str) -> None:
    async with a_redis("--maxmemory", "2mb", "--maxmemory-policy", "noeviction") as server:
        embedder = make(server.url, FakeProvider(1_024))
        for start in range(0, 2_000, 200):
            got = await embedder.embed(1, [f"text {number}" for number in range(start, start + 200)])
            assert got.vectors.shape == (200, 1_024)
        await until(lambda: "full" in str(embedder.cache_fault))


async def test_what_does_not_fit_among_what_waits_is_dropped(
    make: Make, redis_program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likewise.embedding.caches.traffic.MAX_BYTES", 10_000)
    server = RedisProcess()
    embedder = make(server.url, cache_bytes=0)
    await embedder.embed(1, [f"text {number}" for number in range(100)])
    assert 0 < embedder.cache_bytes <= 10_000
    async with server.running():
        await until(lambda: _has_at_least(server, 1))
        await until(lambda: embedder.cache_bytes == 0)
        assert await server.execute("DBSIZE") < 100


async def test_a_deletion_is_never_dropped(redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a vector in Redis, and a process in which nothing more fits among what waits
    row = Cached(np.ones(384, np.float32), 3, 0, 3)
    kept, forgotten, again = (bytes([number]) * 32 for number in range(3))
    async with AsyncExitStack() as stack:
        first = patient_cache(redis.url, seconds=0)
        stack.push_async_callback(first.close)
        await first.put_many(dict.fromkeys((kept, forgotten, again), row))
        assert await first.flush(10) == 0
        monkeypatch.setattr("likewise.embedding.caches.traffic.MAX_BYTES", 10_000)
        full = patient_cache(redis.url, seconds=0)
        stack.push_async_callback(full.close)
        await full.put_many({bytes([number]) * 32: row for number in range(100, 110)})
        assert full.dropped == 5
        # When two are to be forgotten, of which one is to be remembered anew and does not fit
        await full.delete_many([forgotten, again])
        await full.put_many({again: row})
        # Then this process has neither from now on, and Redis has neither a moment later
        assert full.dropped == 6
        assert await full.get_many([forgotten, again]) == [None, None]
        assert await full.flush(10) == 0
        found = await first.get_many([kept, forgotten, again])
        assert [one is not None for one in found] == [True, False, False]


@pytest.mark.parametrize("rights", ["+@all -mget", "+@all -set"])
async def test_a_user_without_the_rights_is_told_of(make: Make, redis_program: str, rights: str) -> None:
    async with a_redis() as server:
        await server.execute("ACL", "SETUSER", "likewise", "on", ">hunter2", "~*", *rights.split())
        url = server.url.replace("redis://", "redis://likewise:hunter2@")
        embedder = make(url)
        assert await known(embedder, ["one"]) == [False]
        await until(lambda: embedder.cache_fault is not None)
        assert "rights" in str(embedder.cache_fault)


async def test_a_user_needs_no_more_rights_than_the_page_says(make: Make, redis_program: str, patient: None) -> None:
    async with a_redis() as server:
        await server.execute(*"ACL SETUSER likewise on >hunter2 ~likewise:vector:* +mget +set +del".split())
        url = server.url.replace("redis://", "redis://likewise:hunter2@")
        await make(url).embed(1, ["one"])
        await until_redis_has(server, 1)
        embedder = make(url)
        assert await known(embedder, ["one"]) == [True]
        assert embedder.cache_fault is None


async def test_a_wrong_password_is_told_of_and_is_in_no_line(make: Make, redis_program: str) -> None:
    stream = io.StringIO()
    logs.configure("debug", stream)
    async with a_redis() as server:
        await server.execute("CONFIG", "SET", "requirepass", "right")
        embedder = make(server.url.replace("redis://", "redis://:xyzzy-wrong@"))
        assert await known(embedder, ["one"]) == [False]
        await until(lambda: embedder.cache_fault is not None)
        assert "password" in str(embedder.cache_fault)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line["reason"]) for line in lines if line["event"] == "cache_away"] == [
        ("cache_away", "refused")
    ]
    assert "xyzzy" not in stream.getvalue()


async def test_what_waits_is_written_when_it_closes(
    redis: RedisProcess, make: Make, patient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("likewise.embedding.caches.redis.CLOSE_SECONDS", PATIENT_SECONDS)
    embedder = make(redis.url)
    await embedder.embed(1, [f"text {number}" for number in range(500)])
    await embedder.close()
    assert await redis.execute("DBSIZE") == 500
