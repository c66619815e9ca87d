"""The embedder, the adapter and the cache as Python objects, under the names of the systems that they replace."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis as redis_package

from likewise.apps.embed import (
    MODEL_REGISTRY,
    BatchEmbeddingResult,
    EmbedderService,
    EmbeddingAdapter,
    EmbeddingCache,
    EmbeddingModelConfig,
    EmbeddingProvider,
    EmbeddingResult,
    get_adapter,
    get_embedder_service,
    validate_adapter_dimension,
)
from likewise.apps.embed.cache import url_of
from likewise.errors import Invalid, ModelUnavailable, SettingsError
from likewise.settings import Settings
from likewise.testing import FakeProvider
from likewise.testing.redis import RedisProcess

SMALL = "text-embedding-3-small"


def service(settings: Settings, *arguments: Any, **named: Any) -> EmbedderService:
    providers = {settings.model: lambda _: FakeProvider(), SMALL: lambda _: FakeProvider(1536)}
    return EmbedderService(*arguments, settings=settings, providers=providers, **named)


async def test_a_text_a_query_and_a_batch(settings: Settings) -> None:
    async with service(settings, "all-MiniLM-L6-v2") as embedder:
        # When each is embedded
        one = await embedder.embed_text("the pump fails")
        query = await embedder.embed_query("the pump fails")
        batch = await embedder.embed_batch(["the pump fails", "new here", "new here"], batch_size=2)
    # Then they have what the routes answer
    assert isinstance(one, EmbeddingResult)
    assert isinstance(batch, BatchEmbeddingResult)
    assert (one.dimension, one.model, one.cached, one.cost, one.tokens) == (384, "all-MiniLM-L6-v2", False, 0.0, 5)
    assert np.linalg.norm(one.embedding) == pytest.approx(1)
    assert (query.cached, query.embedding) == (False, one.embedding)
    assert batch.embeddings[0] == one.embedding
    assert (batch.total_embeddings, batch.cached_count, batch.tokens) == (3, 1, [5, 4, 4])


async def test_any_model_of_the_registry_may_be_named_and_costs_its_price(settings: Settings) -> None:
    async with service(settings, openai_api_key="sk-none") as embedder:
        made = [await embedder.embed_text("one two", model=SMALL) for _ in range(2)]
        configs = {config.name: config for config in embedder.get_available_models()}
    assert [one.cost for one in made] == [pytest.approx(4 * 0.00002 / 1000), 0.0]
    assert configs["all-MiniLM-L6-v2"] == EmbeddingModelConfig(
        "all-MiniLM-L6-v2", EmbeddingProvider.LOCAL, 384, 32, 256, 0.0
    )
    assert (configs[SMALL].provider, configs[SMALL].max_batch_size) == (EmbeddingProvider.OPENAI, 100)
    assert set(configs) >= {spec.bare_name for spec in MODEL_REGISTRY.values()}


async def test_metrics_count_since_the_last_reset(settings: Settings) -> None:
    async with service(settings) as embedder:
        await embedder.embed_text("counted before", model=SMALL)
        embedder.reset_metrics()
        await embedder.embed_batch(["counted before", "one two", "one two"], model=SMALL)
        told = embedder.get_metrics()
    assert told == {
        "total_embeddings_generated": 1,
        "cache_hits": 1,
        "cache_misses": 2,
        "cache_hit_rate": pytest.approx(1 / 3),
        "total_cost_usd": pytest.approx(4 * 0.00002 / 1000),
        "cost_saved_usd": pytest.approx(8 * 0.00002 / 1000),
        "models_loaded": [SMALL],
    }


async def test_without_caching_nothing_is_remembered(settings: Settings) -> None:
    async with service(settings, enable_caching=False) as embedder:
        made = [await embedder.embed_text("again and again") for _ in range(2)]
    assert [one.cached for one in made] == [False, False]


async def test_a_client_of_redis_says_where_vectors_are_kept(settings: Settings, redis: RedisProcess) -> None:
    # Given a client of a Redis, as a program has it
    client = redis_package.Redis.from_url(redis.url)
    async with service(settings, redis_client=client) as first:
        await first.embed_text("shared between processes")
    # When another service is opened on it: the text is known there
    async with service(settings, redis_client=client) as second:
        assert (await second.embed_text("shared between processes")).cached
    client.close()


@pytest.mark.parametrize(
    ("made_for", "url"),
    [
        ("redis://localhost:6379/2", "redis://localhost:6379/2"),
        ("redis://me:p%40ss@[::1]:6400/0", "redis://me:p%40ss@[::1]:6400/0"),
        ("rediss://h:6380/0?ssl_cert_reqs=none", "rediss://h:6380/0?ssl_cert_reqs=none"),
        ("unix:///tmp/redis.sock?db=3", "unix:///tmp/redis.sock?db=3"),
    ],
)
def test_a_client_is_known_by_its_address(made_for: str, url: str) -> None:
    assert url_of(redis_package.Redis.from_url(made_for)) == url


def test_what_is_no_client_of_one_redis_is_refused(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="redis_client"):
        EmbedderService(settings=settings, redis_client=object())


async def test_errors_are_the_embedder_s(settings: Settings) -> None:
    async with service(settings) as embedder:
        with pytest.raises(Invalid):
            await embedder.embed_text(" ")
        with pytest.raises(Invalid):
            await embedder.embed_batch(["fine", ""])
        with pytest.raises(Invalid):
            await embedder.embed_text("x", model="nothing-like-it")
        for size in (0, -1):
            with pytest.raises(Invalid):
                await embedder.embed_batch(["fine"], batch_size=size)
    for ttl in (-1, 1.5, "5"):
        with pytest.raises(SettingsError, match="ttl"):
            EmbeddingCache(ttl=ttl, settings=settings)


@pytest.fixture
async def new_process(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> AsyncIterator[None]:
    """As in a process that has made no service and no adapter yet; what the test makes is let go of after it."""
    monkeypatch.setenv("LIKEWISE_DATA_DIR", str(settings.data_dir))
    for the_one in (get_embedder_service, get_adapter):
        the_one.cache_clear()
    yield
    if get_embedder_service.cache_info().currsize:
        await get_embedder_service().close()
    if get_adapter.cache_info().currsize:
        get_adapter().close()
    for the_one in (get_embedder_service, get_adapter):
        the_one.cache_clear()


@pytest.mark.usefixtures("new_process")
def test_there_is_one_service_of_a_process() -> None:
    assert get_embedder_service() is get_embedder_service()


async def test_the_cache_keeps_what_it_is_given_by_text_and_model(settings: Settings, redis: RedisProcess) -> None:
    client = redis_package.Redis.from_url(redis.url)
    cache = EmbeddingCache(client, ttl=60, settings=settings)
    # When vectors are set
    await cache.set("a", "m", [0.5, 1.5])
    await cache.set_batch({"b": [1.0, 2.0], "c": [3.0, 4.0]}, "m")
    # Then they are found by the same text and model alone
    assert await cache.get("a", "m") == [0.5, 1.5]
    assert await cache.get("a", "other") is None
    assert await cache.get_batch(["c", "nothing", "b"], "m") == [[3.0, 4.0], None, [1.0, 2.0]]
    for wrong in ([], [float("nan")], [[1.0]], ["a"], [[1.0], [1.0, 2.0]]):
        with pytest.raises(Invalid):
            await cache.set("a", "m", wrong)
    await cache.close()
    # And by another process
    other = EmbeddingCache(client, settings=settings)
    assert await other.get("b", "m") == [1.0, 2.0]
    await other.close()
    client.close()


def test_an_adapter_is_called_like_a_function(settings: Settings) -> None:
    # Given an adapter, in a program without a loop
    adapter = EmbeddingAdapter(settings, providers={settings.model: lambda _: FakeProvider()})
    expected = asyncio.run(FakeProvider().embed(["a pump", "a valve"], "document")).vectors
    # When several threads use it
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(adapter.embed(["a pump", "a valve"]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Then each has the vectors
    assert all(np.allclose(vectors, expected, atol=1e-7) for vectors in found)
    assert len(found) == 4
    assert (adapter.name, adapter.dim, adapter.max_seq_len) == ("sentence-transformers/all-MiniLM-L6-v2", 384, 256)
    # And a dimension that is not the model's is told with its mend
    validate_adapter_dimension(384, adapter)
    with pytest.raises(SettingsError) as refused:
        validate_adapter_dimension(768, adapter)
    assert refused.value.detail == (
        "Embedding dimension mismatch: 'sentence-transformers/all-MiniLM-L6-v2' makes 384-dimensional vectors but "
        "LIKEWISE_VECTOR_SIZE=768. Set LIKEWISE_VECTOR_SIZE=384, or remove it."
    )
    adapter.close()
    adapter.close()


@pytest.mark.usefixtures("new_process")
def test_an_adapter_without_its_model_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"MODEL": "bge-small", "OFFLINE": "true"}.items():
        monkeypatch.setenv(f"LIKEWISE_{name}", value)
    with pytest.raises(ModelUnavailable, match="bge-small"):
        get_adapter()
