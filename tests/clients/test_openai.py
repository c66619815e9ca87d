"""OpenAI's own client, sync and async, with nothing changed but the address."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Sequence

import httpx
import numpy as np
import pytest
from live_server import SHORTENED, LiveServer
from openai import APITimeoutError, AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from texts import INVOICES, PARAPHRASE, PUMP, TEXTS, cosine

MODEL = "all-MiniLM-L6-v2"
# What the default model has embedded of long requests, among the server's metrics.
IN_BULK = re.compile(r'^likewise_model_texts_total\{lane="bulk",model="minilm-l6-v2"\} (\S+)$', re.MULTILINE)


def much(name: str, texts: int = 2_048) -> list[str]:
    """Long texts that nobody else has: some seconds of work for as many as a request may have.

    A hundred of them wait until all that came before are done.
    """
    return [f"{name} {number} {PUMP} " * 30 for number in range(texts)]


@pytest.fixture
async def asynchronous(server: LiveServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.api, api_key="none") as client:
        yield client


def rows(numbers: Sequence[Sequence[float]]) -> np.ndarray:
    """Vectors as the server has them."""
    return np.array(numbers, dtype=np.float32)


def test_one_text(client: OpenAI) -> None:
    # When
    answer = client.embeddings.create(model=MODEL, input=PUMP)
    # Then
    assert (answer.object, answer.model, len(answer.data)) == ("list", MODEL, 1)
    assert (answer.data[0].object, answer.data[0].index, len(answer.data[0].embedding)) == ("embedding", 0, 384)
    assert np.linalg.norm(answer.data[0].embedding) == pytest.approx(1.0, abs=1e-5)
    # Seven words, each a token, and the two that BERT reads around them.
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (9, 9)


def test_what_means_the_same_is_more_alike(vectors: np.ndarray) -> None:
    pump, paraphrase, invoices = vectors
    assert cosine(pump, paraphrase) > 0.6 > 0.2 > cosine(pump, invoices)


def test_base64_which_the_client_asks_for_by_itself_is_the_same_as_numbers(client: OpenAI) -> None:
    # Given
    texts = list(TEXTS)
    # When
    by_default = client.embeddings.create(model=MODEL, input=texts)
    numbers = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    raw = client.embeddings.create(model=MODEL, input=texts, encoding_format="base64")
    # Then to the last bit, for the second and third are from the cache
    assert isinstance(raw.data[0].embedding, str)
    decoded = [np.frombuffer(base64.b64decode(row.embedding), "<f4") for row in raw.data]
    expected = rows([row.embedding for row in numbers.data])
    assert np.array_equal(rows([row.embedding for row in by_default.data]), expected)
    assert np.array_equal(np.stack(decoded), expected)


def test_null_is_as_if_absent_and_what_is_unknown_is_ignored(client: OpenAI) -> None:
    # When a program hands on options that nobody set, and some of other servers
    answer = client.embeddings.create(
        model=MODEL,
        input=[PUMP],
        encoding_format=None,
        dimensions=None,
        user="somebody",
        extra_body={"input_type": "query", "truncate": "END"},
    )
    # Then
    assert len(answer.data[0].embedding) == 384


def test_as_many_texts_as_openai_takes_in_their_order(client: OpenAI) -> None:
    # Given
    texts = [f"the price of number {number}" for number in range(2_048)]
    # When
    answer = client.embeddings.create(model=MODEL, input=texts)
    # Then
    assert [row.index for row in answer.data] == list(range(2_048))
    made = rows([row.embedding for row in answer.data])
    assert len(np.unique(made, axis=0)) == 2_048
    for place in (0, 1, 1_023, 2_047):
        alone = client.embeddings.create(model=MODEL, input=texts[place]).data[0].embedding
        assert np.array_equal(made[place], rows([alone])[0])


def test_one_text_more_is_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input=["a"] * 2_049)
    assert (refused.value.param, refused.value.code) == ("input", "too_long")


def test_headers_say_what_was_cached_and_cut_and_which_request_it_was(client: OpenAI) -> None:
    # Given
    long = "a sentence that is said again and again, " * 100
    texts = [long, "something that nobody has asked for yet"]
    client.embeddings.create(model=MODEL, input=long)
    # When
    answer = client.embeddings.with_raw_response.create(model=MODEL, input=texts)
    # Then
    assert (answer.headers["x-likewise-cached"], answer.headers["x-likewise-truncated"]) == ("1", "1")
    assert answer.request_id
    cut = [(row.model_extra or {}).get("truncated_tokens") for row in answer.parse().data]
    assert cut[0] > 500
    assert cut[1] is None


def test_fewer_dimensions_of_a_model_that_is_made_for_it(client: OpenAI) -> None:
    # When
    short = client.embeddings.create(model=SHORTENED, input=list(TEXTS), dimensions=128)
    whole = client.embeddings.create(model=SHORTENED, input=list(TEXTS))
    # Then it is the beginning, at unit length
    made = rows([row.embedding for row in short.data])
    begin = rows([row.embedding for row in whole.data])[:, :128]
    assert made.shape == (3, 128)
    assert np.allclose(made, begin / np.linalg.norm(begin, axis=1, keepdims=True), atol=1e-6)


def test_fewer_dimensions_of_another_model_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="cannot be shortened") as refused:
        client.embeddings.create(model=MODEL, input=PUMP, dimensions=128)
    assert refused.value.param == "dimensions"


def test_models(client: OpenAI) -> None:
    # When
    models = list(client.models.list())
    # Then
    assert [model.id for model in models] == ["minilm-l6-v2", SHORTENED]
    extra = models[0].model_extra or {}
    assert (models[0].object, extra["dimensions"], extra["max_input_tokens"]) == ("model", 384, 256)
    for name in ("minilm-l6-v2", MODEL, "sentence-transformers/all-MiniLM-L6-v2"):
        assert client.models.retrieve(name).id == name


def test_a_model_that_is_not_here(client: OpenAI) -> None:
    for ask in (
        lambda: client.embeddings.create(model="text-embedding-3-small", input=PUMP),
        lambda: client.models.retrieve("text-embedding-3-small"),
        lambda: client.models.retrieve("somebody/else"),
    ):
        with pytest.raises(NotFoundError) as refused:
            ask()
        assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


def test_texts_that_are_none(client: OpenAI) -> None:
    for given, param, code in (
        ("", "input", "blank"),
        ([PUMP, " \n"], "input.1", "blank"),
        ([], "input", "too_short"),
        ([[101, 102]], "input", "token_ids"),
        ([101, 102], "input", "token_ids"),
    ):
        with pytest.raises(BadRequestError) as refused:
            client.embeddings.create(model=MODEL, input=given)
        assert (refused.value.param, refused.value.code) == (param, code)
        assert refused.value.type == "invalid_request_error"


def test_what_is_not_embedding_is_not_here(client: OpenAI) -> None:
    with pytest.raises(NotFoundError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": PUMP}])
    assert refused.value.code == "not_found"


def test_who_does_not_wait_leaves_the_server_to_others(client: OpenAI) -> None:
    # When
    texts, once = much("timeout"), client.with_options(max_retries=0)
    with pytest.raises(APITimeoutError):
        once.with_options(timeout=0.5).embeddings.create(model=MODEL, input=texts)
    # Then others are answered, and nobody embedded the rest meanwhile
    assert once.embeddings.create(model=MODEL, input="is anybody there?").data
    once.embeddings.create(model=MODEL, input=much("after the timeout", 100))
    last = once.embeddings.with_raw_response.create(model=MODEL, input=texts[-1])
    assert last.headers["x-likewise-cached"] == "0"


async def test_the_asynchronous_client(asynchronous: AsyncOpenAI, vectors: np.ndarray) -> None:
    # When
    many = [asynchronous.embeddings.create(model=MODEL, input=text) for text in TEXTS]
    together = await asynchronous.embeddings.create(model=MODEL, input=list(TEXTS))
    # Then
    for answers in ([answer.data[0] for answer in await asyncio.gather(*many)], together.data):
        assert np.allclose(rows([row.embedding for row in answers]), vectors, atol=1e-6)
    assert [model.id async for model in asynchronous.models.list()] == ["minilm-l6-v2", SHORTENED]
    with pytest.raises(NotFoundError):
        await asynchronous.embeddings.create(model="nowhere", input=PUMP)


async def test_a_request_that_is_cancelled(asynchronous: AsyncOpenAI, server: LiveServer) -> None:
    # Given a request that the server is at work on
    texts, before = much("cancelled"), await in_bulk(server)
    asking = asyncio.create_task(asynchronous.embeddings.create(model=MODEL, input=texts))
    while await in_bulk(server) == before:
        await asyncio.sleep(0.05)
    # When
    asking.cancel()
    # Then
    with pytest.raises(asyncio.CancelledError):
        await asking
    answers = await asyncio.gather(
        *(asynchronous.embeddings.create(model=MODEL, input=text) for text in (PARAPHRASE, INVOICES))
    )
    assert [len(answer.data) for answer in answers] == [1, 1]
    # And nobody embedded the rest meanwhile
    await asynchronous.embeddings.create(model=MODEL, input=much("after the cancelled", 100))
    last = await asynchronous.embeddings.with_raw_response.create(model=MODEL, input=texts[-1])
    assert last.headers["x-likewise-cached"] == "0"


async def in_bulk(server: LiveServer) -> float:
    """How many texts of long requests the server has embedded."""
    async with httpx.AsyncClient() as web:
        told = IN_BULK.search((await web.get(f"{server.url}/metrics")).text)
    return float(told[1]) if told else 0.0
