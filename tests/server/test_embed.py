"""The embedder's own routes, and OpenAI's."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

import likewise
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Capacity
from likewise.errors import Overloaded
from likewise.library import Likewise
from likewise.server.app import create_app
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.patience import until
from tests.server.conftest import calling

TEXT, BATCH, QUERY, OPENAI = "/embed/text", "/embed/batch", "/embed/query", "/v1/embeddings"
BODIES = {
    TEXT: {"text": "the pump fails"},
    BATCH: {"texts": ["the pump fails"]},
    QUERY: {"query": "the pump fails"},
    OPENAI: {"input": "the pump fails"},
}
JSON = {"content-type": "application/json"}
# What no refusal may repeat.
SECRET = "xyzzy-secret"


@asynccontextmanager
async def with_models(settings: Settings, **providers: FakeProvider) -> AsyncIterator[httpx2.AsyncClient]:
    """A server whose models, by name with `_` for `-`, are these."""
    factories = {name.replace("_", "-"): lambda _, one=one: one for name, one in providers.items()}
    embedder = Embedder(settings, providers=factories)
    async with likewise.open(settings, embedder=embedder) as lw, calling(lw) as client:
        yield client


async def expected(texts: list[str]) -> Any:
    return (await FakeProvider().embed(texts, "document")).vectors


# What is answered


async def test_a_text_has_its_vector_and_is_cached_the_second_time(client: httpx2.AsyncClient) -> None:
    # When the same text is sent twice
    first, second = [(await client.post(TEXT, json={"text": "a cold pump"})).json() for _ in range(2)]
    # Then both answers have its vector, and the second one is the cache's
    assert np.allclose(first["embedding"], (await expected(["a cold pump"]))[0], atol=1e-7)
    assert first["embedding"] == second["embedding"]
    assert (first["cached"], second["cached"]) == (False, True)
    told = {key: value for key, value in first.items() if key not in ("embedding", "space")}
    assert told == {
        "dimension": 384, "model": "all-MiniLM-L6-v2", "cached": False, "cost": 0.0, "tokens": 5, "truncated_tokens": 0,
    }  # fmt: skip
    assert len(first["space"]) == 64


async def test_the_cache_is_not_asked_if_the_caller_says_so(client: httpx2.AsyncClient) -> None:
    for _ in range(2):
        answer = await client.post(TEXT, json={"text": "not to be kept", "use_cache": False})
        assert answer.json()["cached"] is False
    assert (await client.post(TEXT, json={"text": "not to be kept"})).json()["cached"] is False


async def test_many_texts_keep_their_order_and_equal_ones_are_made_once(client: httpx2.AsyncClient) -> None:
    # Given a text that the cache knows
    await client.post(TEXT, json={"text": "known before"})
    # When it comes among others, of which two are equal
    texts = ["brand new", "known before", "twice here", "brand new", "word " * 300]
    answer = (await client.post(BATCH, json={"texts": texts, "batch_size": 2})).json()
    # Then each has its own vector and counts
    assert np.allclose(answer["embeddings"], await expected(texts), atol=1e-7)
    assert (answer["total_embeddings"], answer["cached_count"], answer["dimension"]) == (5, 1, 384)
    assert answer["tokens"] == [4, 4, 4, 4, 256]
    assert answer["truncated_tokens"] == [0, 0, 0, 0, 46]
    assert (answer["model"], answer["total_cost"], answer["format"]) == ("all-MiniLM-L6-v2", 0.0, "float")
    assert "scales" not in answer


async def test_a_query_is_embedded_as_one(settings: Settings) -> None:
    # Given a model that tells queries from documents
    class Prefixing(FakeProvider):
        async def embed(self, texts: Any, role: Any) -> Any:
            return await super().embed([f"{role} {text}" for text in texts], role)

    async with with_models(settings, minilm_l6_v2=Prefixing()) as client:
        # When one text is embedded both ways
        query = (await client.post(QUERY, json={"query": "pump"})).json()
        document = (await client.post(TEXT, json={"text": "pump"})).json()
        like_a_query = (await client.post(TEXT, json={"text": "query: pump"})).json()
    # Then they differ, and no text is taken for the other's
    vectors = [np.array(one["embedding"]) for one in (query, document, like_a_query)]
    assert np.allclose(vectors[0], (await expected(["query pump"]))[0], atol=1e-7)
    assert np.allclose(vectors[1], (await expected(["document pump"]))[0], atol=1e-7)
    assert [one["cached"] for one in (query, document, like_a_query)] == [False] * 3


async def test_int8_times_its_scale_is_about_the_vector(client: httpx2.AsyncClient) -> None:
    texts = [f"text number {number}" for number in range(20)]
    answer = (await client.post(BATCH, json={"texts": texts, "format": "int8"})).json()
    numbers, scales = np.array(answer["embeddings"]), np.array(answer["scales"])
    assert np.abs(numbers).max(axis=1).tolist() == [127] * 20
    assert np.abs(numbers * scales[:, None] - await expected(texts)).max() < scales.max() / 2 + 1e-7


async def test_binary_holds_the_signs(client: httpx2.AsyncClient) -> None:
    texts = [f"text number {number}" for number in range(20)]
    answer = (await client.post(BATCH, json={"texts": texts, "format": "binary"})).json()
    vectors = await expected(texts)
    assert np.array(answer["embeddings"]).shape == (20, 384 // 8)
    bits = np.unpackbits(np.array(answer["embeddings"], np.uint8), axis=1)
    assert np.array_equal(bits.astype(bool), vectors > 0)
    # A vector times its own signs is its length
    signs = np.where(bits, 1, -1) * np.array(answer["scales"])[:, None]
    assert np.allclose((signs * vectors).sum(axis=1), 1)
    assert answer["dimension"] == 384


async def test_base64_is_the_same_vector_as_float(client: httpx2.AsyncClient) -> None:
    asked = {"input": ["a", "b", "a b"], "model": "minilm-l6-v2"}
    as_float = (await client.post(OPENAI, json=asked)).json()
    in_base64 = (await client.post(OPENAI, json=asked | {"encoding_format": "base64"})).json()
    for one, other in zip(as_float["data"], in_base64["data"], strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"], validate=True), "<f4")
        assert np.array_equal(decoded, np.array(one["embedding"], np.float32))
        assert (one["object"], one["index"]) == ("embedding", other["index"])
    assert [one["index"] for one in as_float["data"]] == [0, 1, 2]
    assert (as_float["object"], as_float["usage"]) == ("list", {"prompt_tokens": 10, "total_tokens": 10})


@pytest.mark.parametrize("name", ["minilm-l6-v2", "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2"])
async def test_a_model_may_be_named_in_three_ways(client: httpx2.AsyncClient, name: str) -> None:
    # Whatever it is called, OpenAI's routes answer the name that was asked, and ours its own
    assert (await client.post(OPENAI, json={"input": "x", "model": name})).json()["model"] == name
    assert (await client.get(f"/v1/models/{name}")).json()["id"] == name
    assert (await client.post(TEXT, json={"text": "x", "model": name})).json()["model"] == "all-MiniLM-L6-v2"


async def test_null_and_unknown_fields_count_as_absent(client: httpx2.AsyncClient) -> None:
    body = {"input": "x", "model": None, "encoding_format": None, "dimensions": None, "user": "me", "unknown": [SECRET]}
    answer = await client.post(OPENAI, json=body)
    assert (answer.status_code, answer.json()["model"]) == (200, "all-MiniLM-L6-v2")
    for path, other in BODIES.items():
        nulls = dict.fromkeys(("model", "use_cache", "batch_size", "format"))
        assert (await client.post(path, json={**other, **nulls, "unknown": SECRET})).status_code == 200


async def test_headers_count_what_was_cached_and_cut(client: httpx2.AsyncClient) -> None:
    asked = {"input": ["some long one " * 200, "short and new"]}
    answers = [await client.post(OPENAI, json=asked) for _ in range(2)]
    assert [answer.headers["x-likewise-cached"] for answer in answers] == ["0", "2"]
    assert [answer.headers["x-likewise-truncated"] for answer in answers] == ["1", "1"]
    assert [one.get("truncated_tokens") for one in answers[0].json()["data"]] == [346, None]


async def test_as_many_texts_as_a_request_may_have(client: httpx2.AsyncClient) -> None:
    texts = [f"t{number}" for number in range(2_048)]
    answer = (await client.post(BATCH, json={"texts": texts})).json()
    assert np.allclose(answer["embeddings"][1_999], (await expected(["t1999"]))[0], atol=1e-7)
    assert len((await client.post(OPENAI, json={"input": texts})).json()["data"]) == 2_048


async def test_the_first_numbers_of_a_matryoshka_vector(settings: Settings) -> None:
    # Given a model whose vectors may be shortened, and one whose may not
    allowed = settings.model_copy(update={"models_allowed": ("text-embedding-3-small",)})
    remote = FakeProvider(1536)
    async with with_models(allowed, minilm_l6_v2=FakeProvider(), text_embedding_3_small=remote) as client:
        # When so many are asked for
        asked = {"input": "a text", "model": "text-embedding-3-small"}
        full, short = [
            (await client.post(OPENAI, json=asked | {"dimensions": dimensions})).json()["data"][0]["embedding"]
            for dimensions in (1536, 256)
        ]
        refused = [
            await client.post(OPENAI, json={**asked, **other})
            for other in ({"dimensions": 1537}, {"model": "minilm-l6-v2", "dimensions": 128})
        ]
        native = await client.post(OPENAI, json={"input": "x", "model": "minilm-l6-v2", "dimensions": 384})
    # Then they are the first ones, at unit length, and the model was asked once
    assert np.allclose(short, np.array(full[:256]) / np.linalg.norm(full[:256]), atol=1e-6)
    assert remote.calls == [1]
    assert [answer.status_code for answer in refused] == [400, 400]
    assert [answer.json()["error"]["param"] for answer in refused] == ["dimensions"] * 2
    assert native.status_code == 200


async def test_a_remote_model_has_its_price_and_equal_texts_are_paid_once(settings: Settings) -> None:
    allowed = settings.model_copy(update={"model": "text-embedding-3-small"})
    async with with_models(allowed, text_embedding_3_small=FakeProvider(1536, max_tokens=8191)) as client:
        body = {"texts": ["one two", "three", "one two"]}
        first, second = [(await client.post(BATCH, json=body)).json() for _ in range(2)]
        models = (await client.get("/embed/models")).json()
    assert first["total_cost"] == pytest.approx((4 + 3) * 0.00002 / 1000)
    assert (first["cached_count"], second["cached_count"], second["total_cost"]) == (0, 3, 0.0)
    assert models["default"] == "text-embedding-3-small"
    assert models["models"][0].items() >= {
        "name": "text-embedding-3-small", "provider": "openai", "dimension": 1536, "max_batch_size": 100,
        "max_input_length": 8191, "cost_per_1k_tokens": 0.00002,
    }.items()  # fmt: skip


async def test_the_models_that_there_are(client: httpx2.AsyncClient) -> None:
    ours, openai = (await client.get("/embed/models")).json(), (await client.get("/v1/models")).json()
    assert ours["default"] == ours["models"][0]["name"] == "all-MiniLM-L6-v2"
    assert ours["models"][0].items() >= {
        "provider": "local", "dimension": 384, "max_batch_size": 32, "max_input_length": 256, "cost_per_1k_tokens": 0.0,
    }.items()  # fmt: skip
    assert (openai["object"], openai["data"][0]["id"]) == ("list", "minilm-l6-v2")
    space = (await client.post(TEXT, json={"text": "x"})).json()["space"]
    assert openai["data"][0].items() >= {
        "object": "model", "owned_by": "sentence-transformers", "dimensions": 384, "max_input_tokens": 256,
        "provider": "local", "space": space,
    }.items()  # fmt: skip


async def test_health_says_how_the_embedder_is(client: httpx2.AsyncClient, settings: Settings, tmp_path: Path) -> None:
    await client.post(TEXT, json={"text": "x"})
    assert (await client.get("/embed/health")).json() == {
        "status": "healthy", "service": "embedder", "default_model": "all-MiniLM-L6-v2", "caching_enabled": True,
        "models_loaded": ["all-MiniLM-L6-v2"],
    }  # fmt: skip
    # And of one whose model is away, without a cache
    away = settings.model_copy(update={"models_dir": tmp_path, "offline": True, "cache_bytes": 0, "model": "bge-small"})
    async with likewise.open(away) as lw, calling(lw) as other:
        assert (await other.post(TEXT, json={"text": "x"})).status_code == 503
        answer = await other.get("/embed/health")
    assert answer.json() == {
        "status": "degraded", "service": "embedder", "default_model": "bge-small-en-v1.5", "caching_enabled": False,
        "models_loaded": [],
    }  # fmt: skip


# What is refused


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        (None, "input", "wrong_type"),
        (7, "input", "wrong_type"),
        (True, "input", "wrong_type"),
        ({SECRET: 1}, "input", "wrong_type"),
        ("", "input", "blank"),
        (" \t\n", "input", "blank"),
        ([], "input", "too_short"),
        ([""], "input.0", "blank"),
        ([SECRET, "\u2003"], "input.1", "blank"),
        ([SECRET, 1], "input.1", "wrong_type"),
        ([SECRET, None], "input.1", "wrong_type"),
        ([SECRET, [SECRET]], "input.1", "wrong_type"),
        ([[SECRET]], "input.0", "wrong_type"),
        ([True], "input.0", "wrong_type"),
        (["x"] * 2_049, "input", "too_long"),
        ([1, 2, 3], "input", "token_ids"),
        ([[1, 2], [3]], "input", "token_ids"),
        ("x" * 200_001, "input", "too_long"),
    ],
)
async def test_an_input_that_is_no_text_is_400(lw: Likewise, value: Any, param: str, code: str) -> None:
    async with calling(lw) as client:
        answer = await client.post(OPENAI, json={"input": value})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"
    assert SECRET not in answer.text
    if code == "token_ids":
        assert "check_embedding_ctx_length=False" in error["message"]


@pytest.mark.parametrize(
    ("path", "body", "pointer", "code"),
    [
        (TEXT, {}, "/text", "required"),
        (TEXT, {"text": None}, "/text", "wrong_type"),
        (TEXT, {"text": [SECRET]}, "/text", "wrong_type"),
        (TEXT, {"text": " "}, "/text", "blank"),
        (TEXT, {"text": "x", "use_cache": "yes"}, "/use_cache", "wrong_type"),
        (QUERY, {"query": ""}, "/query", "blank"),
        (QUERY, {"text": SECRET}, "/query", "required"),
        (BATCH, {"texts": SECRET}, "/texts", "wrong_type"),
        (BATCH, {"texts": []}, "/texts", "too_short"),
        (BATCH, {"texts": ["x"] * 2_049}, "/texts", "too_long"),
        (BATCH, {"texts": [SECRET, ""]}, "/texts/1", "blank"),
        (BATCH, {"texts": [SECRET, 1]}, "/texts/1", "wrong_type"),
        (BATCH, {"texts": ["x"], "batch_size": 0}, "/batch_size", "out_of_range"),
        (BATCH, {"texts": ["x"], "batch_size": 2_049}, "/batch_size", "out_of_range"),
        (BATCH, {"texts": ["x"], "format": SECRET}, "/format", "invalid_value"),
    ],
)
async def test_a_field_that_is_wrong_is_422(
    client: httpx2.AsyncClient, path: str, body: Any, pointer: str, code: str
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 422
    assert {fault["pointer"]: fault["code"] for fault in answer.json()["errors"]} == {pointer: code}
    assert SECRET not in answer.text


@pytest.mark.parametrize("dimensions", [0, -1, 1.5, "128", 1e9, 128, True])
async def test_a_wrong_number_of_dimensions_is_400(client: httpx2.AsyncClient, dimensions: Any) -> None:
    answer = await client.post(OPENAI, json={"input": "x", "dimensions": dimensions})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


async def test_a_wrong_encoding_is_400(client: httpx2.AsyncClient) -> None:
    answer = await client.post(OPENAI, json={"input": "x", "encoding_format": "int8"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "encoding_format")


@pytest.mark.parametrize("model", ["", "../../etc/passwd", "https://evil.example/model", "x" * 10_000, "bge-small"])
async def test_a_model_that_the_settings_do_not_allow(client: httpx2.AsyncClient, model: str) -> None:
    answer = await client.post(OPENAI, json={"input": "x", "model": model})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    for path in (TEXT, BATCH, QUERY):
        refused = await client.post(path, json=BODIES[path] | {"model": model})
        assert (refused.status_code, refused.json()["code"]) == (422, "model_not_allowed")
        assert not model or model not in refused.text
    assert (await client.get("/v1/models/nothing-here")).json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"input": "x',
        b"\xef\xbb\xbf{}",
        '{"input": "x"}'.encode("utf-16"),
        b'{"input": "\xff"}',
        b'{"input": NaN}',
        b'{"input": 1e999}',
        b"[" * 50_000,
        b'{"input": ' + b"1" * 5_000 + b"}",
    ],
)
@pytest.mark.parametrize("path", BODIES)
async def test_a_body_that_is_not_json_is_400(client: httpx2.AsyncClient, path: str, body: bytes) -> None:
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    if path == OPENAI:
        assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_no_object_of_plain_json_is_refused(client: httpx2.AsyncClient, path: str) -> None:
    wrong_field = 400 if path == OPENAI else 422
    body = json.dumps(BODIES[path]).encode()
    assert (await client.post(path, content=b"[]", headers=JSON)).status_code == wrong_field
    assert (await client.post(path, content=body, headers={"content-type": "text/plain"})).status_code == 415
    gzipped = await client.post(path, content=body, headers=JSON | {"content-encoding": "gzip"})
    assert gzipped.status_code == 415
    got = await client.get(path)
    assert (got.status_code, got.headers["allow"]) == (405, "POST")
    deep = json.dumps({**BODIES[path], "x": json.loads("[" * 33 + "]" * 33)})
    assert (await client.post(path, content=deep, headers=JSON)).status_code == wrong_field


async def test_too_large_a_body_is_413_in_openai_s_shape(client: httpx2.AsyncClient) -> None:
    answer = await client.post(OPENAI, json={"input": "x" * 70_000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "text",
    ["a" * 200_000, "a\u0301" * 100_000, "_" * 50_000, "\x00", "a\x00b", "\ud800", "\U0001f600" * 1_000, "\u200b", "ﷺ"],
)
async def test_odd_texts_have_a_vector(lw: Likewise, text: str) -> None:
    async with calling(lw) as client:
        answer = await client.post(OPENAI, content=json.dumps({"input": [text, "plain"]}), headers=JSON)
    assert answer.status_code == 200
    vectors = np.array([one["embedding"] for one in answer.json()["data"]])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ({"fail": RuntimeError(SECRET)}, "model_failed"),
        ({"nan": True}, "model_failed"),
        ({"wrong_count": True}, "model_failed"),
        ({"delay": 5.0, "capacity": Capacity(tokens=2_048, seconds=0.05)}, "model_hangs"),
    ],
)
async def test_a_model_in_trouble_is_503_and_never_a_wrong_vector(
    settings: Settings, trouble: dict[str, Any], code: str
) -> None:
    async with with_models(settings, minilm_l6_v2=FakeProvider(**trouble)) as client:
        for path, body in BODIES.items():
            answer = await client.post(path, json=body)
            told = answer.json()["error"] if path == OPENAI else answer.json()
            assert (answer.status_code, told["code"]) == (503, code)
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert SECRET not in answer.text


async def test_a_text_that_the_model_cannot_embed_is_named(settings: Settings) -> None:
    async with with_models(settings, minilm_l6_v2=FakeProvider(poison=lambda text: SECRET in text)) as client:
        texts = ["fine", f"{SECRET} pill", "fine too"]
        ours = await client.post(BATCH, json={"texts": texts})
        openai = await client.post(OPENAI, json={"input": texts})
    assert (ours.status_code, ours.json()["errors"][0]["pointer"]) == (422, "/texts/1")
    assert (openai.status_code, openai.json()["error"]["param"]) == (400, "input.1")
    assert openai.json()["error"]["code"] == "text_failed"
    assert SECRET not in ours.text + openai.text


# At the door


async def test_requests_in_parallel_share_batches(lw: Likewise, provider: FakeProvider) -> None:
    # Given a model that is busy, and many requests at once
    provider.gate = asyncio.Event()
    async with calling(lw) as client:
        asked = [asyncio.create_task(client.post(TEXT, json={"text": f"text {number}"})) for number in range(40)]
        await until(lambda: on_their_way(lw.embedder) == 40)
        # When it goes on
        provider.gate.set()
        answers = await asyncio.gather(*asked)
    # Then those that waited went together
    assert {answer.status_code for answer in answers} == {200}
    assert len(provider.calls) < 10


def on_their_way(embedder: Embedder) -> int:
    """Texts that wait for a model, or are in it."""
    return len(embedder._in_flight._items)


async def test_a_long_request_does_not_hold_up_a_short_one(settings: Settings) -> None:
    # Given a model that takes a while for each call, and a request of as many texts as there may be
    provider = FakeProvider(delay=0.02, capacity=Capacity(tokens=512))
    async with with_models(settings, minilm_l6_v2=provider) as client:
        texts = [f"{number} of many words in a long request" for number in range(2_048)]
        long = asyncio.create_task(client.post(BATCH, json={"texts": texts}))
        await until(lambda: len(provider.calls) >= 2)
        # When a short one comes after it
        short = await client.post(TEXT, json={"text": "in a hurry"})
        # Then it is answered long before the other, whose calls are short ones
        assert short.status_code == 200
        assert not long.done()
        assert len(provider.calls) < 10
        assert (await long).status_code == 200
    assert max(provider.calls) < 100


async def test_a_caller_that_leaves_takes_its_texts_out_of_the_queue(settings: Settings) -> None:
    # Given a model that is busy, and a caller whose texts wait
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate, capacity=Capacity(tokens=1, calls=1))
    embedder = Embedder(settings, providers={settings.model: lambda spec: provider})
    async with likewise.open(settings, embedder=embedder, worker=False) as busy:
        app = create_app(busy, settings)
        first = asyncio.create_task(embedder.embed(1, ["busy"]))
        await until(lambda: bool(provider.calls))
        left = asyncio.Event()
        asked = asyncio.create_task(asking(app, {"texts": ["one of mine", "another of mine"]}, left))
        await until(lambda: on_their_way(embedder) == 3)
        # When the caller leaves and the model goes on
        left.set()
        await asked
        gate.set()
        await first
        await embedder.embed(1, ["after it"])
    # Then the model never saw them
    assert provider.texts == ["busy", "after it"]


async def asking(app: Any, body: Any, left: asyncio.Event) -> None:
    """A request to the application by a client that leaves when the event is set."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        raise AssertionError("Nobody is there to be answered.")

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": BATCH, "raw_path": BATCH.encode(), "query_string": b"",
        "headers": headers, "scheme": "http", "http_version": "1.1", "server": ("127.0.0.1", 80), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)


async def test_more_than_may_wait_is_refused_at_once(settings: Settings) -> None:
    # Given a small queue that is full
    small = settings.model_copy(update={"queue_tokens": 1_000})
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    async with with_models(small, minilm_l6_v2=provider) as client:
        waiting = asyncio.create_task(client.post(BATCH, json={"texts": ["word " * 700]}))
        await until(lambda: bool(provider.calls))
        # When more comes
        refused = await client.post(OPENAI, json={"input": "word " * 200})
        gate.set()
        # Then it is told to come back, and what was let in is done
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, Overloaded.code)
        assert int(refused.headers["retry-after"]) >= 1
        assert (await waiting).status_code == 200


async def test_a_quota_holds_for_every_route(settings: Settings) -> None:
    small = settings.model_copy(update={"quota_tokens_per_minute": 10})
    async with with_models(small, minilm_l6_v2=FakeProvider()) as client:
        # What is refused for its model takes nothing from it
        for path, body in BODIES.items():
            assert (await client.post(path, json={**body, "model": "none"})).status_code in (404, 422)
        assert (await client.post(TEXT, json={"text": "x" * 40})).status_code == 200
        for path, body in BODIES.items():
            refused = await client.post(path, json=body)
            assert refused.status_code == 429
            assert int(refused.headers["retry-after"]) >= 1
        assert (await client.post(OPENAI, json={"input": "x"})).json()["error"]["type"] == "rate_limit_error"
