"""Remote models behind a server, and a server as the remote model of another."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import pytest

import likewise
from likewise.backoff import Backoff
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.providers.openai import RemoteProvider, load
from likewise.embedding.remote.errors import RequestRefused
from likewise.embedding.remote.limits import RetryPolicy
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import FakeProvider, ScriptedReply, Upstream
from tests.patience import until
from tests.server.conftest import calling

KEY = "sk-canary-of-a-key"
QUICK = RetryPolicy(between=Backoff(0.01, 0.02), rest=Backoff(0.1, 0.2))


def spec_at(url: str, model: str = "minilm-l6-v2") -> ModelSpec:
    """A model of 384 dimensions at an address."""
    endpoint = Endpoint(url, model, KEY, "THEIR_KEY")
    return ModelSpec("far", "far", 384, 256, architecture="remote", own=True, endpoint=endpoint)


# A server as the remote model of another


@pytest.fixture
async def far(address: str) -> AsyncIterator[RemoteProvider]:
    """A provider whose model is served by the other Likewise."""
    provider = load(spec_at(f"{address}/v1"), QUICK)
    yield provider
    await provider.close()


async def test_another_likewise_embeds(far: RemoteProvider) -> None:
    # Given texts, one of them longer than the model reads
    texts = ["the pump fails", "a", "word " * 300, "the pump fails", "Die Pumpe fällt aus 🙂"]
    here = await FakeProvider().embed(texts, "document")
    # When the other one embeds them
    made = await far.embed(texts, "document")
    # Then they have its vectors, and what it counted
    assert np.allclose(made.vectors, here.vectors, atol=1e-6)
    assert made.tokens.sum() == here.tokens.sum()
    assert made.truncated.tolist() == here.truncated.tolist()
    assert ((made.chars_read < [len(text) for text in texts]) == (here.truncated > 0)).all()
    assert not made.estimated


async def test_what_another_likewise_refuses_is_the_texts_fault(far: RemoteProvider) -> None:
    with pytest.raises(RequestRefused):
        await far.embed(["good", "  "], "document")
    assert far.fault is None


async def test_a_model_that_another_likewise_does_not_have(address: str) -> None:
    provider = load(spec_at(f"{address}/v1", model="of-nobody"), QUICK)
    with pytest.raises(likewise.errors.ModelUnavailable) as away:
        await provider.embed(["a"], "document")
    assert away.value.code == "provider_model_missing"
    await provider.close()


# A server with a remote model


def embedder_at(settings: Settings, url: str) -> Embedder:
    """An embedder whose default model is at an address."""
    return Embedder(settings, providers={settings.model: lambda _: load(spec_at(url), QUICK)})


@asynccontextmanager
async def serving(settings: Settings, url: str, *, to_all: bool) -> AsyncIterator[tuple[Likewise, httpx2.AsyncClient]]:
    """A Likewise with that model and a client of it; `to_all`: its server is not only for those on this machine."""
    open_to = settings.model_copy(update={"auth": ("keys",)}) if to_all else settings
    async with (
        likewise.open(settings, embedder=embedder_at(settings, url)) as lw,
        calling(lw, open_to) as client,
    ):
        yield lw, client


@pytest.mark.parametrize("to_all", [True, False])
async def test_callers_over_the_network_learn_no_address(shared_settings: Settings, to_all: bool) -> None:
    async with (
        Upstream(384).running() as upstream,
        serving(shared_settings, upstream.url, to_all=to_all) as (_, client),
    ):
        # Given a provider that refuses the key
        upstream.always = ScriptedReply(401, KEY.encode())
        # When texts are sent, on every way
        answers = [
            await client.post("/embed/text", json={"text": "red fox"}),
            await client.post("/v1/embeddings", json={"input": "red fox"}),
            await client.get("/readyz"),
            await client.get("/metrics"),
        ]
        # Then it is said what to mend, and where only to those who can
        assert [answer.status_code for answer in answers] == [503, 503, 200, 200]
        assert "THEIR_KEY" in answers[0].text
        assert "THEIR_KEY" in answers[1].text
        assert "THEIR_KEY" in answers[2].json()["parts"]["model"]
        assert [upstream.url in answer.text for answer in answers] == [not to_all, not to_all, False, False]
        assert not any(KEY in answer.text for answer in answers)
        assert 'likewise_provider_open{model="far"} 1.0' in answers[3].text
        assert 'likewise_provider_requests_total{model="far",outcome="refused"}' in answers[3].text


@pytest.mark.parametrize("to_all", [True, False])
async def test_a_model_that_never_came_shows_no_address(shared_settings: Settings, to_all: bool) -> None:
    # Given an address that is none
    wrong = "http://inside.example:port"
    async with serving(shared_settings, wrong, to_all=to_all) as (lw, client):
        # When it is asked how the model is
        await client.post("/embed/text", json={"text": "red fox"})
        told = (await client.get("/readyz")).json()["parts"]["model"]
        # Then callers over the network learn what is wrong, and those who run it learn where
        assert "The base URL of far is none" in told
        assert ("inside.example" in told) == (not to_all)
        assert "inside.example" in str((await lw.health()).model)


async def test_an_outage_loses_nothing(settings: Settings) -> None:
    async with (
        Upstream(384).running() as upstream,
        likewise.open(settings, embedder=embedder_at(settings, upstream.url)) as lw,
    ):
        # Given a provider that fails
        upstream.always = ScriptedReply(503)
        outage = lw.collection("outage")
        # When records are stored and searched
        await outage.add([{"id": f"{place}", "text": f"the pump {place} fails"} for place in range(20)], wait=False)
        found = await outage.search("pump 7")
        # Then words find them
        assert found.degraded
        assert found.hits[0].id == "7"
        # And when it is back, meaning does
        upstream.always = None
        await lw.wait_until_embedded("outage")

        async def whole() -> bool:
            return not (await outage.search("pump 7")).degraded

        await until(whole)
        assert (await outage.stats())["failed"] == 0
