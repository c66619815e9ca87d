"""Rerankers behind a `/rerank`: Cohere, Jina, vLLM, Infinity, another Likewise, or Text Embeddings Inference (TEI)."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from likewise.cleaning import cleaned
from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.provider import Capacity
from likewise.embedding.remote.client import ProviderClient
from likewise.embedding.remote.errors import RequestFails, RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy
from likewise.embedding.texts import estimated_tokens
from likewise.search.reranker import Scored
from likewise.search.rerankers.answers import Answer, most_bytes, read

# At 4 characters each; as many as go in a request for vectors.
REQUEST_TOKENS = 60_000
# Tokens of a prompt of the server's own for each text; beyond that its count is not believed, for somebody pays by it.
AROUND = 512
# What every reranker can score. Two texts: who answers with one score to any number shows it.
PLAIN = ("Which animal jumps?", ["The quick brown fox jumps over the lazy dog.", "Invoices are sent monthly."])


def load(spec: ModelSpec, policy: RetryPolicy | None = None) -> "RemoteReranker":
    """The reranker at an address. Asks nobody yet; ModelUnavailable if its key or its address is missing."""
    assert spec.endpoint is not None, "a model without an address runs here"
    return RemoteReranker(spec, spec.endpoint, policy or RetryPolicy())


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
        """Why it is left alone, without its address."""
        return self._client.fault

    async def score(self, query: str, texts: Sequence[str]) -> Scored:
        """The scores of its answer, and its count of tokens; errors are those of `ProviderClient.retried`.

        RequestRefused also for texts that it fails on while it does others.
        """
        if not texts:
            return _scored("", [], Answer(np.empty(0, np.float32), None))
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
        """Whether what failed was the texts' own fault; ModelUnavailable if the reranker is away."""
        query, texts = PLAIN
        try:
            await self._client.once(lambda: self._ask(query, texts[: self._endpoint.texts]))
        except (RequestRefused, WrongAnswer):
            return False
        return True

    async def _ask(self, query: str, texts: Sequence[str]) -> Answer:
        asked: Mapping[str, Any] = {"query": query, self._endpoint.texts_named: texts}
        if self._endpoint.texts_named == "documents":
            asked = {"model": self._endpoint.model, **asked}
        return await self._client.post(asked, len(texts), most_bytes(texts), lambda body: read(body, len(texts)))


def _scored(query: str, texts: Sequence[str], answer: Answer) -> Scored:
    guessed = np.array([estimated_tokens(query) + estimated_tokens(text) for text in texts], np.int64)
    most = sum(len(query.encode()) + len(text.encode()) + AROUND for text in texts)
    counted = answer.tokens if answer.tokens is not None and answer.tokens <= most else None
    tokens = guessed if counted is None else np.diff(counted * np.cumsum([0, *guessed]) // guessed.sum())
    return Scored(answer.scores, tokens.astype(np.int32), np.zeros(len(texts), np.int32), counted is None)
