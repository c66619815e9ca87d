"""`POST /v1/rerank`: in the shape of Cohere's and Jina's clients, with their habits and with bad inputs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.library import Likewise
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider, ScriptedReply, ThrowawayPostgres, Upstream
from tests.patience import until
from tests.search.rerankers import BERT, at, expected
from tests.server.conftest import calling

URL = "/v1/rerank"
SETTINGS = {"reranker": str(BERT), "precision": "f32"}
QUERY, DOCUMENTS = "silver engine", ["winter in the garden", "the engine is of silver", "a letter"]


def asking(**fields: Any) -> dict[str, Any]:
    return {"query": QUERY, "documents": DOCUMENTS, **fields}


async def answered(client: httpx2.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await client.post(URL, json=asking(**fields))
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def refused(client: httpx2.AsyncClient, status: int, **fields: Any) -> dict[str, Any]:
    answer = await client.post(URL, json=asking(**fields))
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


async def test_scores_are_those_of_transformers(client: httpx2.AsyncClient) -> None:
    pairs, _, scores, lengths = expected("bert")
    query, text = pairs[5]
    body = await answered(client, query=query, documents=[text, "stone"])
    found = {one["index"]: one["relevance_score"] for one in body["results"]}
    assert found[0] == pytest.approx(float(scores[5]), abs=1e-5)
    assert body["usage"]["total_tokens"] > int(lengths[5])


async def test_the_shape_of_the_answer(client: httpx2.AsyncClient) -> None:
    body = await answered(client)
    assert set(body) == {"id", "model", "results", "usage", "meta"}
    assert [set(one) for one in body["results"]] == [{"index", "relevance_score"}] * 3
    assert sorted(one["index"] for one in body["results"]) == [0, 1, 2]
    scores = [one["relevance_score"] for one in body["results"]]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    tokens = body["usage"]["total_tokens"]
    assert body["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert body["meta"] == {"tokens": {"input_tokens": tokens}}
    assert body["model"] == str(BERT)
    assert (await answered(client))["id"] != body["id"]


async def test_documents_may_be_objects_and_come_back(client: httpx2.AsyncClient) -> None:
    mixed = [{"text": DOCUMENTS[0], "title": "ignored"}, *DOCUMENTS[1:]]
    body = await answered(client, documents=mixed, return_documents=True, top_n=2)
    assert len(body["results"]) == 2
    for one in body["results"]:
        assert one["document"] == {"text": DOCUMENTS[one["index"]]}


async def test_null_is_absent_and_more_than_all_is_all(client: httpx2.AsyncClient) -> None:
    plain = await answered(client)
    nulls = await answered(client, top_n=None, return_documents=None, model=None)
    assert nulls["results"] == plain["results"]
    assert (await answered(client, top_n=100.0, max_chunks_per_doc=3))["results"] == plain["results"]


async def test_equal_scores_are_in_the_order_of_the_request(client: httpx2.AsyncClient) -> None:
    body = await answered(client, documents=["stone", "letter", "stone", "stone"])
    stones = [one["index"] for one in body["results"] if one["index"] != 1]
    assert stones == [0, 2, 3]


async def test_what_is_cut_off_is_counted(client: httpx2.AsyncClient) -> None:
    answer = await client.post(URL, json=asking(documents=["stone " * 100, "stone"]))
    assert answer.headers["x-likewise-truncated"] == "1"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"query": None}, "query", "wrong_type"),
        ({"query": ""}, "query", "blank"),
        ({"query": " \n"}, "query", "blank"),
        ({"query": ["a"]}, "query", "wrong_type"),
        ({"query": "x" * 200_001}, None, "too_large"),
        ({"documents": None}, "documents", "wrong_type"),
        ({"documents": "a"}, "documents", "wrong_type"),
        ({"documents": []}, "documents", "too_short"),
        ({"documents": ["a"] * 1_001}, "documents", "too_long"),
        ({"documents": ["a", " "]}, "documents.1", "blank"),
        ({"documents": ["a", 3]}, "documents.1", "wrong_type"),
        ({"documents": ["a", None]}, "documents.1", "wrong_type"),
        ({"documents": ["a", ["b"]]}, "documents.1", "wrong_type"),
        ({"documents": [{"text": ""}]}, "documents.0.text", "blank"),
        ({"documents": [{"title": "a"}]}, "documents.0.text", "required"),
        ({"top_n": 0}, "top_n", "out_of_range"),
        ({"top_n": "3"}, "top_n", "wrong_type"),
        ({"top_n": 1.5}, "top_n", "wrong_type"),
        ({"return_documents": "yes"}, "return_documents", "wrong_type"),
        ({"model": 3}, "model", "wrong_type"),
    ],
)
async def test_bad_fields_are_named(
    client: httpx2.AsyncClient, fields: dict[str, Any], param: str | None, code: str
) -> None:
    error = await refused(client, 413 if code == "too_large" else 400, **fields)
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"query": "a"}', b'{"query": "a", "documents": ["\xff"]}'])
async def test_bad_bodies_are_refused(client: httpx2.AsyncClient, body: bytes) -> None:
    answer = await client.post(URL, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("model", ["", "minilm-l6-v2", "../../etc/passwd", "https://example.org/x", "x" * 10_000])
async def test_an_unknown_model_is_not_there(client: httpx2.AsyncClient, model: str) -> None:
    error = await refused(client, 404, model=model)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert not model or model not in error["message"]


async def test_lone_surrogates_and_nul_are_texts(client: httpx2.AsyncClient) -> None:
    content = b'{"query": "a\\ud800", "documents": ["\\u0000", "\\udc00", "e\\u0301"]}'
    answer = await client.post(URL, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    assert len(answer.json()["results"]) == 3


async def test_usage_has_it_and_the_counts_of_vectors_have_not(client: httpx2.AsyncClient) -> None:
    before = (await client.get("/embed/metrics")).json()["metrics"]
    tokens = (await answered(client))["usage"]["total_tokens"]
    usage = {one["model"]: one for one in (await client.get("/api/v1/usage")).json()["usage"]}
    assert usage[str(BERT)]["tokens"] >= tokens
    assert usage[str(BERT)]["texts"] == usage[str(BERT)]["generated"] >= len(DOCUMENTS)
    assert (await client.get("/embed/metrics")).json()["metrics"] == before


async def test_metrics_and_health_have_it(client: httpx2.AsyncClient) -> None:
    await answered(client)
    page = (await client.get("/metrics")).text
    assert f'likewise_rerank_requests_total{{model="{BERT}",outcome="ok"}}' in page
    assert f'likewise_model_state{{model="{BERT}",state="ready"}} 1.0' in page
    assert (await client.get("/readyz")).json()["parts"]["reranker"] is None


async def test_a_reranked_search_over_http(client: httpx2.AsyncClient) -> None:
    url = "/api/v1/collections/notes/search"
    answer = await client.post(url, json={"query": "pump", "rerank": True, "explain": True})
    assert answer.status_code == 200, answer.text
    assert answer.json()["cursor"] is None
    assert answer.json()["explanation"]["rerank"]["texts"] == 1
    body = (await client.post(URL, json={"query": "pump", "documents": ["the pump fails when it is cold"]})).json()
    assert answer.json()["hits"][0]["score"] == pytest.approx(body["results"][0]["relevance_score"], abs=1e-6)
    for rerank in (None, False):
        plain = await client.post(url, json={"query": "pump", "rerank": rerank, "explain": True})
        assert "rerank" not in plain.json()["explanation"]
    wrong = await client.post(url, json={"query": "pump", "rerank": "yes"})
    assert [one["pointer"] for one in wrong.json()["errors"]] == ["/rerank"]


@pytest.fixture
async def opened(postgres: ThrowawayPostgres, tmp_path: Path) -> AsyncIterator[Any]:
    """Opens a Likewise with other settings."""
    async with postgres.database() as urls, AsyncExitStack() as stack:
        usual = load_settings(
            data_dir=tmp_path / "data", database_url=urls.owner, database_serving_url=urls.serving, offline=True
        )

        async def opener(**changes: Any) -> tuple[Likewise, httpx2.AsyncClient]:
            settings: Settings = usual.model_copy(update=changes)
            embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
            lw = await stack.enter_async_context(likewise.open(settings, embedder=embedder))
            return lw, await stack.enter_async_context(calling(lw))

        yield opener


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as running:
        yield running


async def test_without_a_reranker_it_says_how_to_have_one(opened: Any) -> None:
    lw, client = await opened()
    await lw.collection("notes").add([{"id": "a", "text": "the pump fails"}])
    answer = await client.post(URL, json=asking())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "reranker_missing")
    assert "LIKEWISE_RERANKER" in answer.json()["error"]["message"]
    assert "retry-after" in answer.headers
    found = await client.post("/api/v1/collections/notes/search", json={"query": "pump", "rerank": True})
    assert (found.status_code, found.json()["code"]) == (503, "reranker_missing")
    assert "reranker" not in (await client.get("/readyz")).json()["parts"]


async def test_an_absent_one_leaves_the_server_at_work(opened: Any) -> None:
    _, client = await opened(reranker="ms-marco-MiniLM-L-6-v2")
    error = await refused(client, 503)
    assert error["code"] == "weights_absent"
    assert "likewise models pull ms-marco-MiniLM-L-6-v2" in error["message"]
    ready = (await client.get("/readyz")).json()
    assert ready["status"] == "degraded"
    assert "ms-marco-MiniLM-L-6-v2 is absent" in ready["parts"]["reranker"]


async def test_one_at_an_address(opened: Any, upstream: Upstream, tmp_path: Path) -> None:
    _, client = await opened(**at(tmp_path, upstream.url))
    body = await answered(client)
    assert (body["results"][0]["index"], body["model"]) == (1, "theirs")
    assert (await answered(client, model="theirs"))["results"] == body["results"]


async def test_texts_of_a_refusal_are_nobodys(opened: Any, upstream: Upstream, tmp_path: Path) -> None:
    _, client = await opened(**at(tmp_path, upstream.url))
    upstream.always = ScriptedReply.of({"error": "canary of theirs"}, 400)
    error = await refused(client, 400, documents=["canary of a text"])
    assert (error["code"], error["param"]) == ("text_failed", None)
    assert "canary" not in str(error)


async def test_the_quota_counts_query_and_documents(opened: Any, upstream: Upstream, tmp_path: Path) -> None:
    _, client = await opened(**at(tmp_path, upstream.url), quota_tokens_per_minute=40)
    # What is refused for its model takes nothing.
    assert (await client.post(URL, json=asking(model="none"))).status_code == 404
    await answered(client)
    await answered(client)
    assert (await refused(client, 429))["code"] == "quota_exceeded"
    assert (await refused(client, 413, documents=["stone " * 100]))["code"] == "larger_than_quota"


async def test_a_full_queue_refuses_at_once(opened: Any, upstream: Upstream, tmp_path: Path) -> None:
    upstream.gate = asyncio.Event()
    _, client = await opened(**at(tmp_path, upstream.url), queue_tokens=1_000)
    first = asyncio.create_task(client.post(URL, json=asking(documents=["stone " * 650])))
    await until(lambda: upstream.under_way == 1)
    answer = await client.post(URL, json=asking())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
    assert int(answer.headers["retry-after"]) >= 1
    upstream.gate.set()
    assert (await first).status_code == 200


async def test_who_leaves_leaves_no_work(opened: Any, upstream: Upstream, tmp_path: Path) -> None:
    # Given a request whose texts go one at a time, and searches; and a reranker that does not answer
    upstream.gate = asyncio.Event()
    reranker = at(tmp_path, upstream.url, texts_per_request=1, requests_at_once=1)
    lw, client = await opened(**reranker, segments_keep_text=True)
    await lw.collection("notes").add([{"id": str(place), "text": f"the pump {place} fails"} for place in range(9)])
    document = {"asset_id": "manual", "text": "The pump fails when it is cold. " * 20, "max_tokens": 16}
    await client.post("/vectors/documents", json=document)
    await lw.wait_until_embedded("segments:minilm-l6-v2")
    asked: list[tuple[str, dict[str, Any]]] = [
        (URL, asking(documents=DOCUMENTS * 30)),
        ("/api/v1/collections/notes/search", {"query": "pump", "rerank": True}),
        ("/vectors/search", {"query_text": "pump", "rerank": True}),
    ]
    for url, body in asked:
        before = len(upstream.asked)
        # When its caller leaves while a call is under way
        await leaving(client, url, body, lambda before=before: len(upstream.asked) > before)
        # Then no other of its calls follows, and its room is free
        await until(lambda: lw.embedder.budget._held == 0)
        assert len(upstream.asked) == before + 1
    upstream.gate.set()
    await answered(client)


async def leaving(client: httpx2.AsyncClient, url: str, body: dict[str, Any], when: Any) -> None:
    """A request through the application itself, whose client is gone once `when` is so."""
    transport = client._transport
    assert isinstance(transport, httpx2.ASGITransport)
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": orjson.dumps(body), "more_body": False}
        await until(when)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": url, "raw_path": url.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    await transport.app(scope, receive, send)  # type: ignore[arg-type]


async def test_a_name_that_is_none_is_not_found_where_there_is_no_reranker(opened: Any) -> None:
    _, client = await opened()
    error = await refused(client, 404, model="rerank-v3.5")
    assert (error["code"], error["param"]) == ("model_not_found", "model")
