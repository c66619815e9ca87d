"""Rerankers behind a `/rerank`: Cohere, Jina, vLLM, Infinity, another Likewise, or Text Embeddings Inference (TEI)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from likewise.cleaning import cleaned
from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.provider import Capacity, Vector, estimated_tokens
from likewise.embedding.remote.client import ProviderClient
from likewise.embedding.remote.errors import RequestFails, RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy
from likewise.search.reranker import RerankerScores

# At 4 characters each; as many as go in a request for vectors.
REQUEST_TOKENS = 60_000
# Tokens of a prompt of the server's own for each text; beyond that its count is not believed, for somebody pays by it.
AROUND = 512
# What every reranker can score. Two texts: who answers with one score to any number shows it.
PLAIN = ("Which animal jumps?", ["The quick brown fox jumps over the lazy dog.", "Invoices are sent monthly."])
# More tokens than this are no count of anybody's texts.
MAX_TOKENS = 2**31 - 1
# What there is of a text besides its own words, and of an answer.
ITEM_BYTES, ANSWER_BYTES = 512, 64 * 2**10
# A character of JSON has up to six bytes for each of UTF-8.
ESCAPED = 6


def load(spec: ModelSpec, policy: RetryPolicy | None = None) -> "RemoteReranker":
    """The reranker at an address. Asks nobody yet; ModelUnavailable if its key or its address is missing."""
    assert spec.endpoint is not None, "a model without an address runs here"
    return RemoteReranker(spec, spec.endpoint, policy or RetryPolicy())


@dataclass(frozen=True)
class RerankReply:
    """Scores float32 (n,) of 0 to 1 in the order of the texts, and the tokens read, None if nobody counted them."""

    scores: Vector
    tokens: int | None


class RemoteReranker:
    """One remote reranker."""

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, policy: RetryPolicy) -> None:
        self.numerics = "remote"
        self.max_tokens = spec.max_tokens
        seconds = policy.seconds(endpoint.seconds)
        self.capacity = Capacity(REQUEST_TOKENS, endpoint.texts, endpoint.calls, seconds, remote=True)
        self._endpoint = endpoint
        self._client = ProviderClient(spec, endpoint, policy, "/rerank")

    @property
    def fault(self) -> str | None:
        """The reason for which it is left alone, without its address."""
        return self._client.fault

    async def score(self, query: str, texts: Sequence[str]) -> RerankerScores:
        """The scores of its answer, and its count of tokens; errors are those of `ProviderClient.retried`.

        RequestRefused also for texts that it fails on while it does others.
        """
        if not texts:
            return _scored("", [], RerankReply(np.empty(0, np.float32), None))
        asked, sent = cleaned(query), [cleaned(text) for text in texts]
        try:
            return _scored(asked, sent, await self._client.retried(lambda: self._ask(asked, sent), 1 + len(sent)))
        except (RequestFails, WrongAnswer) as failed:
            # What breaks on one caller's texts may not close the reranker for all others.
            if await self._answers_plainly():
                raise RequestRefused(f"it scores plain texts, but not these: {failed}") from None
            raise

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()

    async def _answers_plainly(self) -> bool:
        """True if the texts themselves were at fault; ModelUnavailable if the reranker is away."""
        query, texts = PLAIN
        try:
            await self._client.once(lambda: self._ask(query, texts[: self._endpoint.texts]))
        except (RequestRefused, WrongAnswer):
            return False
        return True

    async def _ask(self, query: str, texts: Sequence[str]) -> RerankReply:
        asked: Mapping[str, Any] = {"query": query, self._endpoint.texts_named: texts}
        if self._endpoint.texts_named == "documents":
            asked = {"model": self._endpoint.model, **asked}
        return await self._client.post(asked, len(texts), max_bytes(texts), lambda body: read_answer(body, len(texts)))


def _scored(query: str, texts: Sequence[str], answer: RerankReply) -> RerankerScores:
    guessed = np.array([estimated_tokens(query) + estimated_tokens(text) for text in texts], np.int64)
    maximum = sum(len(query.encode()) + len(text.encode()) + AROUND for text in texts)
    counted = answer.tokens if answer.tokens is not None and answer.tokens <= maximum else None
    tokens = guessed if counted is None else np.diff(counted * np.cumsum([0, *guessed]) // guessed.sum())
    return RerankerScores(answer.scores, tokens.astype(np.int32), np.zeros(len(texts), np.int32), counted is None)


def max_bytes(texts: Sequence[str]) -> int:
    """Return the size of the largest answer, with the texts in it, as some servers have it."""
    return ANSWER_BYTES + sum(ITEM_BYTES + ESCAPED * len(text.encode()) for text in texts)


def read_answer(body: bytes, count: int) -> RerankReply:
    """The answer for so many texts; WrongAnswer if any of them has no score of 0 to 1."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswer("it is no JSON") from None
    # TEI answers the bare list.
    results = answer.get("results") if isinstance(answer, dict) else answer
    if not isinstance(results, list) or not all(isinstance(item, dict) for item in results):
        raise WrongAnswer("it has no list of results")
    if len(results) != count:
        raise WrongAnswer(f"it has {len(results)} results for {count} texts")
    by_index = {item["index"]: _score(item) for item in results if _is_count(item.get("index"), count - 1)}
    if len(by_index) != count:
        raise WrongAnswer("its results do not have one index each")
    scores = np.array([by_index[index] for index in range(count)], np.float32)
    return RerankReply(scores, _tokens(answer) if isinstance(answer, dict) else None)


def _score(item: Mapping[str, Any]) -> float:
    score = item.get("relevance_score", item.get("score"))
    if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
        raise WrongAnswer("one of its scores is no finite number")
    if not 0 <= score <= 1:
        raise WrongAnswer("one of its scores is not between 0 and 1")
    return float(score)


def _tokens(answer: Mapping[str, Any]) -> int | None:
    """Read the count of tokens as Jina and vLLM write it, or Cohere."""
    usage, meta = answer.get("usage"), answer.get("meta")
    of_meta = meta.get("tokens") if isinstance(meta, dict) else None
    counts = [usage.get("total_tokens")] if isinstance(usage, dict) else []
    counts += [of_meta.get("input_tokens")] if isinstance(of_meta, dict) else []
    # No pair has none: those who answer 0 have not counted.
    return next((tokens for tokens in counts if _is_count(tokens) and tokens), None)


def _is_count(value: Any, maximum: int = MAX_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum
