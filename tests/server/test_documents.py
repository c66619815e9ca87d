"""Documents to split, beside everything else that a server does."""

import asyncio
from typing import Any

import httpx2

import likewise
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.patience import until
from tests.server.conftest import BASE
from tests.server.test_rerank import leaving

URL = "/vectors/documents"
COLD = "the pump fails when it is cold. "


async def test_documents_that_wait_keep_no_text_from_being_embedded(shared_settings: Settings) -> None:
    # Given a model that does not come to an end with a document, and as many others as are let in
    provider = FakeProvider(gate=asyncio.Event())
    embedder = Embedder(shared_settings, providers={shared_settings.model: lambda spec: provider})
    async with likewise.open(shared_settings, embedder=embedder, worker=False) as lw:
        transport = httpx2.ASGITransport(create_app(lw, shared_settings))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            waiting = [
                asyncio.create_task(client.post(URL, json={"asset_id": "a", "text": COLD * 9})) for _ in range(64)
            ]
            await until(lambda: len(provider.splits) == 1)
            # When one more comes, and a text to embed
            refused = await client.post(URL, json={"asset_id": "a", "text": COLD})
            embedding = asyncio.create_task(client.post("/v1/embeddings", json={"input": COLD}))
            await until(lambda: bool(provider.calls))
            assert provider.gate is not None
            provider.gate.set()
            # Then the document alone is refused
            assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
            assert (await embedding).status_code == 200
            assert {(await one).status_code for one in waiting} <= {200, 202}


async def test_who_leaves_before_its_document_is_split_leaves_the_queue(shared_settings: Settings) -> None:
    # Given a document that is being split
    provider = FakeProvider(gate=asyncio.Event())
    embedder = Embedder(shared_settings, providers={shared_settings.model: lambda spec: provider})
    async with likewise.open(shared_settings, embedder=embedder, worker=False) as lw:
        transport = httpx2.ASGITransport(create_app(lw, shared_settings))
        async with httpx2.AsyncClient(transport=transport, base_url=BASE) as client:
            first = asyncio.create_task(client.post(URL, json={"asset_id": "first", "text": COLD}))
            await until(lambda: len(provider.splits) == 1)
            # When the caller of the next one leaves
            await leaving(client, URL, {"asset_id": "left", "text": COLD * 2}, lambda: _waiting(embedder) == 2)
            # Then only the first one waits
            assert _waiting(embedder) == 1
            assert provider.gate is not None
            provider.gate.set()
            assert (await first).status_code == 202
            # And nothing came of the other
            assert (await client.delete("/vectors/asset/left")).status_code == 404
        assert provider.splits == [len(COLD)]


async def test_overlap_is_measured_by_what_the_model_reads(client: httpx2.AsyncClient) -> None:
    for asked, words in (({"max_tokens": 1_000}, "half of the 256 tokens"), ({"max_tokens": 32}, "half of max_tokens")):
        body: dict[str, Any] = {"asset_id": "a", "text": COLD, "overlap": 200, **asked}
        refused = await client.post(URL, json=body)
        assert refused.status_code == 422
        (fault,) = refused.json()["errors"]
        assert (fault["pointer"], fault["code"]) == ("/overlap", "out_of_range")
        assert words in fault["message"]


def _waiting(embedder: Embedder) -> int:
    """How many documents of up to two sentences wait, or are being split."""
    return int(embedder._splitter._budget._held > 0) + int(embedder._splitter._budget._held > len(COLD) // 4 + 1)
