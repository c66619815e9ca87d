"""Models behind an OpenAI-compatible `/embeddings`: OpenAI, Azure, vLLM, TEI, Ollama, another Likewise."""

from collections.abc import Sequence

import numpy as np

from likewise.cleaning import cleaned
from likewise.embedding.endpoint import Endpoint
from likewise.embedding.facts import prefixes
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Counts, ProviderResult, Role
from likewise.embedding.providers.openai_answers import Answer, OtherDimension, most_bytes, read
from likewise.embedding.queue import CHARS_PER_TOKEN, estimated_tokens
from likewise.embedding.remote.backoff import Backoff
from likewise.embedding.remote.client import RemoteCalls
from likewise.embedding.remote.errors import RequestRefused, Trouble
from likewise.embedding.space import space_of_address
from likewise.embedding.splitting import Span, spans_by_characters

# At 4 characters each: OpenAI takes 300,000 tokens in a request, and some scripts have one for each character.
REQUEST_TOKENS = 60_000
# Tokens of a prompt of the server's own for each text; beyond that its count is not believed, for somebody pays by it.
AROUND = 512


def load(spec: ModelSpec, backoff: Backoff | None = None) -> "RemoteProvider":
    """The provider of a remote model. Asks nobody yet; ModelUnavailable if its key or its address is missing."""
    assert spec.endpoint is not None, "a model without an address runs here"
    return RemoteProvider(spec, spec.endpoint, backoff or Backoff())


class RemoteProvider:
    """One remote model."""

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, backoff: Backoff) -> None:
        self._prefixes = prefixes(spec)
        self.space = space_of_address(endpoint.base_url, endpoint.model, spec.dimension, self._prefixes)
        self.numerics = "remote"
        self.dimension = spec.dimension
        self.max_tokens = spec.max_tokens
        self.capacity = Capacity(
            REQUEST_TOKENS, endpoint.texts, endpoint.calls, backoff.seconds(endpoint.seconds), remote=True
        )
        self._spec = spec
        self._model = endpoint.model
        self._calls = RemoteCalls(spec, endpoint, backoff, "/embeddings")
        # Whether it takes `encoding_format`; None until it has taken it, or a request without it.
        self._knows_base64: bool | None = None

    @property
    def fault(self) -> str | None:
        """Why it is left alone, without its address."""
        return self._calls.fault

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts; errors are those of `RemoteCalls.patiently`."""
        if not texts:
            return _result(texts, texts, Answer(np.empty((0, self.dimension), np.float32), np.empty(0, np.int32), None))
        sent = [self._prefixes[role] + cleaned(text) for text in texts]
        return _result(texts, sent, await self._calls.patiently(lambda: self._ask(sent), len(sent)))

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """About how many tokens each text has: nobody here knows the model's tokenizer."""
        return [estimated_tokens(text) for text in texts]

    async def split(self, text: str, most: int, overlap: int) -> list[Span]:
        """The parts of a text by its characters, 4 a token."""
        room = max(1, min(most, self.max_tokens) - len(self._prefixes["document"]) // CHARS_PER_TOKEN)
        return await spans_by_characters(text, room, overlap)

    async def close(self) -> None:
        """End its connections."""
        await self._calls.close()

    async def _ask(self, sent: Sequence[str]) -> Answer:
        """One try. A server that does not know `encoding_format` and says so is asked without it, from then on."""
        in_base64 = self._knows_base64 is not False
        try:
            answer = await self._post(sent, in_base64=in_base64)
        except RequestRefused:
            # Once it has taken it, only a text that stands alone is worth a second request.
            if self._knows_base64 is False or (self._knows_base64 and len(sent) > 1):
                raise
            answer = await self._post(sent, in_base64=False)
            in_base64 = False
        self._knows_base64 = in_base64
        return answer

    async def _post(self, sent: Sequence[str], *, in_base64: bool) -> Answer:
        asked = {"model": self._model, "input": sent, **({"encoding_format": "base64"} if in_base64 else {})}
        return await self._calls.post(
            asked, len(sent), most_bytes(len(sent), self.dimension), lambda body: self._read(body, len(sent))
        )

    def _read(self, body: bytes, count: int) -> Answer:
        try:
            return read(body, count, self.dimension)
        except OtherDimension as other:
            words = f"answers with {other.dimension} numbers a vector and not with {self.dimension}"
            raise Trouble(self._spec, "provider_dimension", words) from None


def _result(texts: Sequence[str], sent: Sequence[str], answer: Answer) -> ProviderResult:
    counted = answer.tokens if answer.tokens is not None and answer.tokens <= _most_tokens(sent) else None
    tokens = _apportioned(counted, sent)
    return ProviderResult(
        vectors=answer.vectors,
        tokens=tokens,
        truncated=answer.truncated,
        chars_read=_chars_read(texts, tokens, answer.truncated),
        estimated=counted is None,
    )


def _most_tokens(sent: Sequence[str]) -> int:
    """What texts can have at most: a token for each byte, and what a server may put around them."""
    return sum(len(text.encode()) + AROUND for text in sent)


def _apportioned(total: int | None, sent: Sequence[str]) -> Counts:
    """Tokens of each text: the provider's sum by their characters, or a guess by these."""
    if total is None:
        return np.array([estimated_tokens(text) for text in sent], np.int32)
    ends = np.cumsum([len(text) for text in sent]).tolist()
    bounds = [0, *(total * end // ends[-1] for end in ends)]
    return np.diff(np.array(bounds, np.int64)).astype(np.int32)


def _chars_read(texts: Sequence[str], tokens: Counts, truncated: Counts) -> Counts:
    """All of them, but where tokens were cut off: the share of those that were read, as nobody tells where that was."""
    counts = zip(texts, tokens.tolist(), truncated.tolist(), strict=True)
    return np.array(
        [min(len(text) * read // (read + cut), len(text) - 1) if cut else len(text) for text, read, cut in counts],
        np.int32,
    )
