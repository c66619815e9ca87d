"""All requests to one remote model: permits, rate, circuit breaker and retries."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.remote.errors import LIMITED, ProviderError, RequestFails, RequestRefused, WrongAnswer
from likewise.embedding.remote.http import RemoteApi, refuse
from likewise.embedding.remote.limits import ProviderBreaker, RateGate, RetryPolicy, Trial
from likewise.observe.logs import get_logger
from likewise.observe.steps import ProviderStep

log = get_logger(__name__)

# Reading 1 MB of base64 takes 4 ms, of numbers 8 ms (100 vectors of 3,072 numbers are 1.6 and 6 MB): not in the loop.
LARGE_ANSWER = 500_000

T = TypeVar("T")


class ProviderClient:
    """Requests to one remote model, which share `endpoint.calls` permits, the provider's rate and a breaker.

    `path` is added to the endpoint's base URL. Nobody is asked yet; ModelUnavailable if the key or the address is
    missing.
    """

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, policy: RetryPolicy, path: str) -> None:
        self._spec = spec
        self._policy = policy
        self._api = RemoteApi(spec, endpoint, path)
        self._permits = asyncio.Semaphore(endpoint.calls)
        self._gate = RateGate()
        self._breaker = ProviderBreaker(spec.name, policy)

    @property
    def fault(self) -> str | None:
        """The reason for which the provider is left alone, without its address."""
        error = self._breaker.fault or (self._held() if self._gate.left > self._policy.max_hold else None)
        return error.public_detail if error else None

    async def retried(self, attempt: Callable[[], Awaitable[T]], texts: int) -> T:
        """Try until it works, cannot work, or has failed too often; `attempt` posts so many texts.

        Raises:
            ModelUnavailable: the provider is away, wants no more for now, or refuses the key.
            RequestRefused, WrongAnswer: a text may be at fault.
        """
        failed = 0
        while True:
            try:
                return await self._in_turn(attempt, texts)
            except ProviderError as error:
                failed += 1
                if error.of_texts and failed >= self._policy.tries:
                    raise RequestFails(f"the provider fails on the request, {failed} times") from None
                if not error.try_again or failed >= self._policy.tries:
                    raise
                await self._wait(error, failed)

    async def once(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try once what any provider can do, so that a failure is the provider's doing; errors as `retried`."""
        return await self._in_turn(attempt, 1)

    async def post(self, asked: Mapping[str, Any], texts: int, max_bytes: int, read: Callable[[bytes], T]) -> T:
        """Post one request in an attempt, and return what `read` makes of its answer."""
        with ProviderStep(self._spec.name, texts) as request:
            reply = await self._api.post(asked, max_bytes)
            request.answered(reply.status)
            self._gate.hold(reply.hold or 0.0)
            refuse(reply, self._spec)
            if len(reply.body) > LARGE_ANSWER:
                return await asyncio.to_thread(read, reply.body)
            return read(reply.body)

    async def close(self) -> None:
        """End the connections."""
        await self._api.close()

    async def _wait(self, error: ProviderError, failed: int) -> None:
        """Wait before the next try; all requests wait for what the provider asks for, and for a used-up rate."""
        if error.hold is not None:
            return
        seconds = self._policy.pause(failed)
        if error.code == LIMITED:
            self._gate.hold(seconds)
        else:
            await asyncio.sleep(seconds)

    async def _in_turn(self, attempt: Callable[[], Awaitable[T]], texts: int) -> T:
        """Try once, with a permit, when the provider's rate and the breaker allow it."""
        self._breaker.refuse()
        if self._gate.left > self._policy.max_hold:
            raise self._held()
        async with self._permits:
            if not await self._gate.wait(self._policy.max_hold):
                raise self._held()
            with self._breaker.trial() as trial:
                return await self._tried(attempt, texts, trial)

    async def _tried(self, attempt: Callable[[], Awaitable[T]], texts: int, trial: Trial) -> T:
        """Try once, and tell the breaker what the end says of the provider."""
        try:
            return await attempt()
        except ProviderError as error:
            # Of many it may be one text's fault; the caller asks again with fewer, and with a plain one.
            if not (error.of_texts and texts > 1):
                trial.failed(error)
            raise
        except RequestRefused:
            trial.succeeded()
            raise
        except WrongAnswer as wrong:
            log.warning("provider_answers_wrongly", model=self._spec.name, reason=str(wrong))
            if texts == 1:
                trial.failed(ProviderError(self._spec, "provider_wrong", f"answers wrongly: {wrong}", opens="in_a_row"))
            raise

    def _held(self) -> ProviderError:
        words = "takes no more requests for now"
        return ProviderError(self._spec, LIMITED, words, hold=self._gate.left, opens="never")
