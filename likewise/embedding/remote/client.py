"""All requests to one remote model: their places, its rate, its breaker, and the patience with it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from likewise.embedding.endpoint import Endpoint
from likewise.embedding.models import ModelSpec
from likewise.embedding.remote.backoff import Backoff
from likewise.embedding.remote.breaker import Breaker, Trial
from likewise.embedding.remote.errors import LIMITED, RequestFails, RequestRefused, Trouble, WrongAnswer
from likewise.embedding.remote.http import RemoteApi, refuse
from likewise.embedding.remote.limits import Pace
from likewise.observe.logs import get_logger
from likewise.observe.steps import ProviderRequest

log = get_logger(__name__)

# Reading 1 MB of base64 takes 4 ms, of numbers 8 ms (100 vectors of 3,072 numbers are 1.6 and 6 MB): not in the loop.
LARGE_ANSWER = 500_000

T = TypeVar("T")


class RemoteCalls:
    """Requests to one remote model. They share `endpoint.calls` places, the provider's rate and a breaker.

    `path` is what is added to the endpoint's base URL. Asks nobody yet; ModelUnavailable if the key or the address is
    missing.
    """

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, backoff: Backoff, path: str) -> None:
        self._spec = spec
        self._backoff = backoff
        self._api = RemoteApi(spec, endpoint, path)
        self._places = asyncio.Semaphore(endpoint.calls)
        self._pace = Pace()
        self._breaker = Breaker(spec.name, backoff)

    @property
    def fault(self) -> str | None:
        """Why the provider is left alone, without its address."""
        trouble = self._breaker.trouble or (self._held() if self._pace.left > self._backoff.asked else None)
        return trouble.public_detail if trouble else None

    async def patiently(self, attempt: Callable[[], Awaitable[T]], texts: int) -> T:
        """Try until it works, or cannot, or has failed too often. `attempt` posts so many texts.

        Raises:
            ModelUnavailable: the provider is away, wants no more for now, or refuses who asks.
            RequestRefused, WrongAnswer: which may be a text's own fault.
        """
        failed = 0
        while True:
            try:
                return await self._in_turn(attempt, texts)
            except Trouble as trouble:
                failed += 1
                if trouble.of_texts and failed >= self._backoff.tries:
                    raise RequestFails(f"the provider fails on the request, {failed} times") from None
                if not trouble.heals or failed >= self._backoff.tries:
                    raise
                await self._wait(trouble, failed)

    async def once(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """One try of what any provider can do: if it fails that is the provider's doing. Errors as `patiently`."""
        return await self._in_turn(attempt, 1)

    async def post(self, asked: Mapping[str, Any], texts: int, most_bytes: int, read: Callable[[bytes], T]) -> T:
        """One request, and what `read` makes of its answer; for use in an attempt."""
        with ProviderRequest(self._spec.name, texts) as request:
            reply = await self._api.post(asked, most_bytes)
            request.answered(reply.status)
            self._pace.hold(reply.asked or 0.0)
            refuse(reply, self._spec)
            if len(reply.body) > LARGE_ANSWER:
                return await asyncio.to_thread(read, reply.body)
            return read(reply.body)

    async def close(self) -> None:
        """End the connections."""
        await self._api.close()

    async def _wait(self, trouble: Trouble, failed: int) -> None:
        """Before the next try. What the provider asks for, or a rate that is used up, is waited for by all."""
        if trouble.asked is not None:
            return
        seconds = self._backoff.wait(failed)
        if trouble.code == LIMITED:
            self._pace.hold(seconds)
        else:
            await asyncio.sleep(seconds)

    async def _in_turn(self, attempt: Callable[[], Awaitable[T]], texts: int) -> T:
        """One try, when there is a place for it, the provider's rate allows it and the breaker is closed."""
        self._breaker.refuse()
        if self._pace.left > self._backoff.asked:
            raise self._held()
        async with self._places:
            if not await self._pace.wait(self._backoff.asked):
                raise self._held()
            with self._breaker.trial() as trial:
                return await self._tried(attempt, texts, trial)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], texts: int, trial: Trial) -> T:
        """One try, and what its end says of the provider."""
        try:
            return await attempt()
        except Trouble as trouble:
            # Of many it may be one text's fault; the caller asks again with fewer, and with a plain one.
            if not (trouble.of_texts and texts > 1):
                trial.failed(trouble)
            raise
        except RequestRefused:
            trial.answered()
            raise
        except WrongAnswer as wrong:
            log.warning("provider_answers_wrongly", model=self._spec.name, reason=str(wrong))
            if texts == 1:
                trial.failed(Trouble(self._spec, "provider_wrong", f"answers wrongly: {wrong}", rests="in_a_row"))
            raise

    def _held(self) -> Trouble:
        words = "takes no more requests for now"
        return Trouble(self._spec, LIMITED, words, asked=self._pace.left, rests="never")
