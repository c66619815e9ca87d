"""Models behind an OpenAI-compatible `/embeddings`: OpenAI, Azure, vLLM, TEI, Ollama, another Likewise."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from likewise.cleaning import cleaned
from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.provider import Capacity, Counts, Matrix, ProviderResult, Role, estimated_tokens, prefixes
from likewise.embedding.remote.client import ProviderClient
from likewise.embedding.remote.errors import ProviderError, RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy
from likewise.embedding.space import space_of_address
from likewise.embedding.splitting import TextSpan, spans_by_characters

# At 4 characters each: OpenAI takes 300,000 tokens in a request, and some scripts have one for each character.
REQUEST_TOKENS = 60_000
# Tokens of a prompt of the server's own for each text; beyond that its count is not believed, for somebody pays by it.
AROUND = 512
# More tokens than this are no count of anybody's texts.
MAX_TOKENS = 2**31 - 1
# A number as text has up to 24 characters, and a comma; then the rest of a text, and of an answer.
NUMBER_BYTES, ITEM_BYTES, ANSWER_BYTES = 32, 1_024, 64 * 2**10

Numbers = npt.NDArray[np.float64]


class OtherDimension(WrongAnswer):
    """All vectors have one dimension, and it is not the model's."""

    def __init__(self, dimension: int) -> None:
        super().__init__(f"its vectors have {dimension} numbers")
        self.dimension = dimension


@dataclass(frozen=True)
class ProviderAnswer:
    """The answer for n texts, in their order.

    `vectors` float32 (n, d) of unit length; `truncated` int32 (n,), the tokens that were cut off of each; `tokens`,
    those that were read of all together, None if nobody counted them.
    """

    vectors: Matrix
    truncated: Counts
    tokens: int | None


def load(spec: ModelSpec, policy: RetryPolicy | None = None) -> "RemoteProvider":
    """Return the provider of a remote model, not asked yet; ModelUnavailable if its key or address is missing."""
    assert spec.endpoint is not None, "a model without an address runs here"
    return RemoteProvider(spec, spec.endpoint, policy or RetryPolicy())


class RemoteProvider:
    """One remote model."""

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, policy: RetryPolicy) -> None:
        self._prefixes = prefixes(spec)
        self.space = space_of_address(endpoint.base_url, endpoint.model, spec.dimension, self._prefixes)
        self.numerics = "remote"
        self.dimension = spec.dimension
        self.max_tokens = spec.max_tokens
        self.capacity = Capacity(
            REQUEST_TOKENS, endpoint.texts, endpoint.calls, policy.seconds(endpoint.seconds), remote=True
        )
        self._spec = spec
        self._model = endpoint.model
        self._client = ProviderClient(spec, endpoint, policy, "/embeddings")
        # Whether it takes `encoding_format`; None until it has taken it, or a request without it.
        self._knows_base64: bool | None = None

    @property
    def fault(self) -> str | None:
        """The reason for which it is left alone, without its address."""
        return self._client.fault

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """Embed texts in order; errors are those of `ProviderClient.retried`."""
        if not texts:
            return _result(
                texts, texts, ProviderAnswer(np.empty((0, self.dimension), np.float32), np.empty(0, np.int32), None)
            )
        sent = [self._prefixes[role] + cleaned(text) for text in texts]
        return _result(texts, sent, await self._client.retried(lambda: self._ask(sent), len(sent)))

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Estimate the tokens of each text: the model's tokenizer is not known here."""
        return [estimated_tokens(text) for text in texts]

    async def split(self, text: str, max_tokens: int, overlap: int) -> list[TextSpan]:
        """Split a text by its characters, 4 a token."""
        limit = min(max_tokens, self.max_tokens)
        return await spans_by_characters(text, limit, overlap, self._prefixes["document"])

    async def close(self) -> None:
        """End its connections."""
        await self._client.close()

    async def _ask(self, sent: Sequence[str]) -> ProviderAnswer:
        """Try once. A server that does not know `encoding_format` and says so is asked without it, from then on."""
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

    async def _post(self, sent: Sequence[str], *, in_base64: bool) -> ProviderAnswer:
        asked = {"model": self._model, "input": sent, **({"encoding_format": "base64"} if in_base64 else {})}
        return await self._client.post(
            asked, len(sent), max_answer_bytes(len(sent), self.dimension), lambda body: self._read(body, len(sent))
        )

    def _read(self, body: bytes, count: int) -> ProviderAnswer:
        try:
            return read_answer(body, count, self.dimension)
        except OtherDimension as other:
            words = f"answers with {other.dimension} numbers a vector and not with {self.dimension}"
            raise ProviderError(self._spec, "provider_dimension", words) from None


def _result(texts: Sequence[str], sent: Sequence[str], answer: ProviderAnswer) -> ProviderResult:
    counted = answer.tokens if answer.tokens is not None and answer.tokens <= _max_tokens(sent) else None
    tokens = _apportioned(counted, sent)
    return ProviderResult(
        vectors=answer.vectors,
        tokens=tokens,
        truncated=answer.truncated,
        chars_read=_chars_read(texts, tokens, answer.truncated),
        estimated=counted is None,
    )


def _max_tokens(sent: Sequence[str]) -> int:
    """Return the most tokens that texts can have: one for each byte, and those that a server may put around them."""
    return sum(len(text.encode()) + AROUND for text in sent)


def _apportioned(total: int | None, sent: Sequence[str]) -> Counts:
    """Share the provider's sum of tokens out by the texts' characters, or estimate the tokens by these."""
    if total is None:
        return np.array([estimated_tokens(text) for text in sent], np.int32)
    ends = np.cumsum([len(text) for text in sent]).tolist()
    bounds = [0, *(total * end // ends[-1] for end in ends)]
    return np.diff(np.array(bounds, np.int64)).astype(np.int32)


def _chars_read(texts: Sequence[str], tokens: Counts, truncated: Counts) -> Counts:
    """Return the characters that were read: a share where tokens were cut off, as no server says where."""
    counts = zip(texts, tokens.tolist(), truncated.tolist(), strict=True)
    return np.array(
        [min(len(text) * read // (read + cut), len(text) - 1) if cut else len(text) for text, read, cut in counts],
        np.int32,
    )


def max_answer_bytes(count: int, dimension: int) -> int:
    """Return the most bytes that the vectors of so many texts take, however they are written."""
    return ANSWER_BYTES + count * (ITEM_BYTES + dimension * NUMBER_BYTES)


def read_answer(body: bytes, count: int, dimension: int) -> ProviderAnswer:
    """Read the answer for so many texts; WrongAnswer if any of them has no vector of so many finite numbers."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise WrongAnswer("it is no JSON") from None
    items = _in_order(answer, count)
    return ProviderAnswer(_vectors(items, dimension), _truncated(items), _tokens(answer))


def _in_order(answer: Any, count: int) -> list[Mapping[str, Any]]:
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise WrongAnswer("it has no list of vectors")
    if len(data) != count:
        raise WrongAnswer(f"it has {len(data)} vectors for {count} texts")
    by_index = {item["index"]: item for item in data if _is_count(item.get("index"), count - 1)}
    if len(by_index) != count:
        raise WrongAnswer("its vectors do not have one index each")
    return [by_index[index] for index in range(count)]


def _vectors(items: Sequence[Mapping[str, Any]], dimension: int) -> Matrix:
    rows = [_numbers(item.get("embedding")) for item in items]
    lengths = {len(row) for row in rows}
    if lengths != {dimension}:
        raise OtherDimension(*lengths) if len(lengths) == 1 and 0 not in lengths else WrongAnswer("vectors differ")
    vectors = np.stack(rows)
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise WrongAnswer("one of its vectors is zero, or not finite")
    return np.asarray(vectors / norms, np.float32)


def _numbers(written: Any) -> Numbers:
    if isinstance(written, str):
        try:
            return np.frombuffer(base64.b64decode(written, validate=True), "<f4").astype(np.float64)
        except (binascii.Error, ValueError):
            raise WrongAnswer("one of its vectors is no base64 of numbers") from None
    try:
        numbers = np.array(written)
    except ValueError:
        raise WrongAnswer("one of its vectors is no list") from None
    if numbers.ndim != 1 or numbers.dtype.kind not in "fiu":
        raise WrongAnswer("one of its vectors is no list of numbers")
    return numbers.astype(np.float64)


def _truncated(items: Sequence[Mapping[str, Any]]) -> Counts:
    """Read the tokens that were cut off from the answer of another Likewise."""
    cut = [item.get("truncated_tokens") for item in items]
    return np.array([one if _is_count(one) else 0 for one in cut], np.int32)


def _tokens(answer: Mapping[str, Any]) -> int | None:
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None
    counted: list[Any] = [usage.get(name) for name in ("prompt_tokens", "total_tokens")]
    # No text has none: a server that answers 0 has not counted.
    return next((tokens for tokens in counted if _is_count(tokens) and tokens), None)


def _is_count(value: Any, maximum: int = MAX_TOKENS) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= maximum
