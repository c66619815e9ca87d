"""Models behind an OpenAI-compatible `/embeddings`: OpenAI, Azure, vLLM, TEI, Ollama, another Likewise."""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
from semantic_text_splitter import TextSplitter

from likewise.cleaning import cleaned
from likewise.embedding.backoff import Backoff
from likewise.embedding.breaker import Breaker
from likewise.embedding.endpoint import Endpoint
from likewise.embedding.facts import prefixes
from likewise.embedding.models import ModelSpec
from likewise.embedding.pacing import Pace
from likewise.embedding.provider import Capacity, Counts, ProviderResult, Role
from likewise.embedding.providers.openai_answers import Answer, OtherDimension, most_bytes, read
from likewise.embedding.providers.openai_http import EmbeddingsApi, refuse
from likewise.embedding.queue import CHARS_PER_TOKEN, estimated_tokens
from likewise.embedding.space import space_of_address
from likewise.embedding.splitting import Span, spans
from likewise.embedding.trouble import LIMITED, RequestRefused, Trouble, WrongAnswer
from likewise.observe.steps import ProviderRequest

log = logging.getLogger(__name__)

# At 4 characters each: OpenAI takes 300,000 tokens in a request, and some scripts have one for each character.
REQUEST_TOKENS = 60_000
# Reading 1 MB of base64 takes 4 ms, of numbers 8 ms (100 vectors of 3,072 numbers are 1.6 and 6 MB): not in the loop.
LARGE_ANSWER = 500_000
# Tokens of a prompt of the server's own for each text; beyond that its count is not believed, for somebody pays by it.
AROUND = 512


def load(spec: ModelSpec, backoff: Backoff | None = None) -> "RemoteProvider":
    """The provider of a remote model. Asks nobody yet; ModelUnavailable if its key or its address is missing."""
    assert spec.endpoint is not None, "a model without an address runs here"
    return RemoteProvider(spec, spec.endpoint, backoff or Backoff())


class RemoteProvider:
    """One remote model. All of its requests share `endpoint.calls` places, the provider's rate and a breaker."""

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
        self._backoff = backoff
        self._api = EmbeddingsApi(spec, endpoint)
        self._places = asyncio.Semaphore(endpoint.calls)
        self._pace = Pace()
        self._breaker = Breaker(spec.name, backoff)
        # Whether it takes `encoding_format`; None until it has taken it, or a request without it.
        self._knows_base64: bool | None = None

    @property
    def fault(self) -> str | None:
        """Why it is left alone, without its address."""
        trouble = self._breaker.trouble or (self._held() if self._pace.left > self._backoff.asked else None)
        return trouble.in_short if trouble else None

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts.

        Raises:
            ModelUnavailable: the provider is away, wants no more for now, or refuses who asks.
            RequestRefused, WrongAnswer: which may be a text's own fault.
        """
        if not texts:
            return _result(texts, texts, Answer(np.empty((0, self.dimension), np.float32), np.empty(0, np.int32), None))
        sent = [self._prefixes[role] + cleaned(text) for text in texts]
        return _result(texts, sent, await self._with_patience(sent))

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """About how many tokens each text has: nobody here knows the model's tokenizer."""
        return [estimated_tokens(text) for text in texts]

    async def split(self, text: str, most: int, overlap: int) -> list[Span]:
        """The parts of a text by its characters, 4 a token."""
        room = max(1, min(most, self.max_tokens) - len(self._prefixes["document"]) // CHARS_PER_TOKEN)
        splitter = TextSplitter(room * CHARS_PER_TOKEN, min(overlap, room - 1) * CHARS_PER_TOKEN)
        return await asyncio.to_thread(spans, text, splitter)

    async def close(self) -> None:
        """End its connections."""
        await self._api.close()

    async def _with_patience(self, sent: Sequence[str]) -> Answer:
        """Try until it works, or cannot, or has failed too often."""
        failed = 0
        while True:
            try:
                return await self._in_turn(sent)
            except Trouble as trouble:
                failed += 1
                if trouble.of_texts and failed >= self._backoff.tries:
                    raise RequestRefused(f"the provider fails on the request, {failed} times") from None
                if not trouble.heals or failed >= self._backoff.tries:
                    raise
                await self._wait(trouble, failed)

    async def _wait(self, trouble: Trouble, failed: int) -> None:
        """Before the next try. What the provider asks for, or a rate that is used up, is waited for by all."""
        if trouble.asked is not None:
            return
        seconds = self._backoff.wait(failed)
        if trouble.code == LIMITED:
            self._pace.hold(seconds)
        else:
            await asyncio.sleep(seconds)

    async def _in_turn(self, sent: Sequence[str]) -> Answer:
        """One try, when there is a place for it, the provider's rate allows it and the breaker is closed."""
        self._breaker.refuse()
        self._refuse_to_wait()
        async with self._places:
            if not await self._pace.wait(self._backoff.asked):
                raise self._held()
            with self._breaker.trial() as trial:
                try:
                    return await self._ask(sent)
                except Trouble as trouble:
                    # Of many it may be one text's fault; the caller asks again with fewer, and with a plain one.
                    if not (trouble.of_texts and len(sent) > 1):
                        trial.failed(trouble)
                    raise
                except RequestRefused:
                    trial.answered()
                    raise
                except WrongAnswer as wrong:
                    log.warning("the provider of %s answers wrongly: %s", self._spec.name, wrong)
                    if len(sent) == 1:
                        trial.failed(self._wrong(wrong))
                    raise

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
        with ProviderRequest(self._spec.name, len(sent)) as request:
            reply = await self._api.post(sent, most_bytes(len(sent), self.dimension), in_base64=in_base64)
            request.answered(reply.status)
            self._pace.hold(reply.asked or 0.0)
            refuse(reply, self._spec)
            return await self._read(reply.body, len(sent))

    async def _read(self, body: bytes, count: int) -> Answer:
        try:
            if len(body) > LARGE_ANSWER:
                return await asyncio.to_thread(read, body, count, self.dimension)
            return read(body, count, self.dimension)
        except OtherDimension as other:
            words = f"answers with {other.dimension} numbers a vector and not with {self.dimension}"
            raise Trouble(self._spec, "provider_dimension", words) from None

    def _refuse_to_wait(self) -> None:
        if self._pace.left > self._backoff.asked:
            raise self._held()

    def _held(self) -> Trouble:
        words = "takes no more requests for now"
        return Trouble(self._spec, LIMITED, words, asked=self._pace.left, rests="never")

    def _wrong(self, wrong: WrongAnswer) -> Trouble:
        return Trouble(self._spec, "provider_wrong", f"answers wrongly: {wrong}", rests="in_a_row")


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
