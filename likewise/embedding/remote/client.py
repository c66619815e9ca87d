"""All requests to one remote model: permits, rate, circuit breaker, retries, and the error that a status stands for."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, TypeVar

import httpx2
import orjson

from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.remote.errors import LIMITED, ProviderError, RequestFails, RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import ProviderBreaker, RateGate, RetryPolicy, rate_reset, retry_after
from likewise.errors import ModelUnavailable
from likewise.observe.steps import ProviderStep
from likewise.observe.version import program_version

# Reading 1 MB of base64 takes 4 ms, of numbers 8 ms (100 vectors of 3,072 numbers are 1.6 and 6 MB): not in the loop.
LARGE_ANSWER = 500_000
CONNECT_SECONDS = 10.0  # of those that a try has
KEPT_SECONDS = 60.0  # an idle connection: a query now and then need not pay for TLS anew
# An error's text is for nobody here; a longer one costs its connection.
ERROR_BYTES = 64 * 2**10
# OpenAI's code of a 429 that no waiting helps.
_SPENT = "insufficient_quota"

T = TypeVar("T")


@dataclass(frozen=True)
class ProviderReply:
    """An answer as it came; of an error's body no more than ERROR_BYTES."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def hold(self) -> float | None:
        """Seconds for which the provider wants no further request."""
        may_ask = self.status in (408, 429) or self.status >= 500
        waits = (rate_reset(self.headers), retry_after(self.headers) if may_ask else None)
        return max((wait for wait in waits if wait), default=None)


class ProviderClient:
    """Requests to one remote model, which share `endpoint.calls` permits and connections, its rate and a breaker.

    `path` is added to the endpoint's base URL. Nobody is asked yet; ModelUnavailable if the key or the address of the
    settings is missing or cannot be one. Nothing that it raises has the key in it.
    """

    def __init__(self, spec: ModelSpec, endpoint: Endpoint, policy: RetryPolicy, path: str) -> None:
        self._spec = spec
        self._seconds = endpoint.seconds
        self._policy = policy
        self._url = _url(spec, endpoint, path)
        self._http = _http_client(spec, endpoint)
        self._permits = asyncio.Semaphore(endpoint.calls)
        self._gate = RateGate()
        self._breaker = ProviderBreaker(spec, policy)

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
            reply = await self._answer(asked, max_bytes)
            request.answered(reply.status)
            self._gate.hold(reply.hold or 0.0)
            _refuse(reply, self._spec)
            if len(reply.body) > LARGE_ANSWER:
                return await asyncio.to_thread(read, reply.body)
            return read(reply.body)

    async def close(self) -> None:
        """End the connections."""
        await self._http.aclose()

    async def _answer(self, asked: Mapping[str, Any], max_bytes: int) -> ProviderReply:
        """Post JSON; ProviderError if nothing comes, WrongAnswer if more than `max_bytes` do."""
        content = orjson.dumps(asked)
        try:
            async with asyncio.timeout(self._seconds):
                async with self._http.stream("POST", self._url, content=content) as response:
                    return await _read(response, max_bytes)
        except TimeoutError:
            raise self._away(f"has not answered within {self._seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise self._away(f"does not answer ({type(error).__name__})") from None

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
            with self._breaker.trial(texts):
                return await attempt()

    def _held(self) -> ProviderError:
        words = "takes no more requests for now"
        return ProviderError(self._spec, LIMITED, words, hold=self._gate.left, opens="never")

    def _away(self, words: str) -> ProviderError:
        return ProviderError(self._spec, "provider_unreachable", words, try_again=True, opens="in_a_row")


def _refuse(reply: ProviderReply, spec: ModelSpec) -> None:
    """Raise ProviderError or RequestRefused unless the answer is a good one."""
    status = reply.status
    if status == 200:
        return
    if status in (400, 413, 422):
        raise RequestRefused(f"the provider refuses the request ({status})")
    if status in (401, 403):
        name = spec.endpoint.key_name if spec.endpoint else None
        words = f"refuses the key in {name} ({status})" if name else f"wants a key, and none is named ({status})"
        raise ProviderError(spec, "provider_unauthorized", words)
    if status == 404:
        raise ProviderError(
            spec, "provider_model_missing", "has no such model, or the base URL is not that of an API (404)"
        )
    if status == 429:
        raise _limited(reply, spec)
    if status == 408 or status >= 500:
        raise _failed(reply, spec)
    raise ProviderError(spec, "provider_refuses", f"answers {status} where it should answer with what was asked for")


def _failed(reply: ProviderReply, spec: ModelSpec) -> ProviderError:
    words, hold = f"fails ({reply.status})", reply.hold
    # Some servers answer 500 to a text whose vector has no finite numbers.
    of_texts = reply.status == 500
    return ProviderError(spec, "provider_failed", words, try_again=True, hold=hold, opens="in_a_row", of_texts=of_texts)


def _limited(reply: ProviderReply, spec: ModelSpec) -> ProviderError:
    if _code(reply.body) == _SPENT:
        return ProviderError(
            spec, "provider_spent", f"says that its account has nothing left to spend ({reply.status})"
        )
    words = f"takes no more requests for now ({reply.status})"
    return ProviderError(spec, LIMITED, words, try_again=True, hold=reply.hold, opens="never")


def _code(body: bytes) -> object:
    try:
        return orjson.loads(body)["error"]["code"]
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
        return None


def _url(spec: ModelSpec, endpoint: Endpoint, path: str) -> httpx2.URL:
    query = f"?api-version={endpoint.api_version}" if endpoint.api_version else ""
    try:
        return httpx2.URL(f"{endpoint.base_url}{path}{query}")
    except httpx2.InvalidURL:
        message = f"The base URL of {spec.name} is none: {endpoint.base_url}. Fix it in the settings."
        public_detail = f"The base URL of {spec.name} is none."
        raise ModelUnavailable(message, code="provider_address", public_detail=public_detail) from None


def _http_client(spec: ModelSpec, endpoint: Endpoint) -> httpx2.AsyncClient:
    headers = _headers(spec, endpoint)
    try:
        return httpx2.AsyncClient(
            headers=headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx2.Timeout(endpoint.seconds, connect=min(CONNECT_SECONDS, endpoint.seconds)),
            limits=httpx2.Limits(
                max_connections=endpoint.calls,
                max_keepalive_connections=endpoint.calls,
                keepalive_expiry=KEPT_SECONDS,
            ),
            follow_redirects=False,
        )
    except (ValueError, ImportError, OSError) as error:
        # Its message may have a proxy's password.
        message = f"{spec.name} cannot be asked by the proxies and certificates that the environment names"
        hint = "see HTTPS_PROXY, ALL_PROXY and SSL_CERT_FILE"
        raise ModelUnavailable(f"{message} ({type(error).__name__}); {hint}.", code="provider_proxy") from None


def _headers(spec: ModelSpec, endpoint: Endpoint) -> dict[str, str]:
    headers = {
        "accept": "application/json",
        # Of a compressed answer nobody knows how large it is; vectors in base64 hardly get smaller.
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": f"likewise/{program_version()}",
    }
    key = (endpoint.key or "").strip()
    if endpoint.key_name is not None and not key:
        message = f"{spec.name} needs the key of its provider: set {endpoint.key_name}."
        raise ModelUnavailable(message, code="provider_key_missing")
    if not key.isascii() or not key.isprintable():
        message = f"{endpoint.key_name} has characters that no key has; set it anew."
        raise ModelUnavailable(message, code="provider_key_missing")
    if key:
        headers |= {"api-key": key} if endpoint.api_version else {"authorization": f"Bearer {key}"}
    return headers


async def _read(response: httpx2.Response, max_bytes: int) -> ProviderReply:
    headers = {name.lower(): value for name, value in response.headers.items()}
    good = response.status_code == 200
    if good and headers.get("content-encoding", "identity").lower() != "identity":
        raise WrongAnswer("it is compressed, which nobody asked for")
    limit = max_bytes if good else ERROR_BYTES
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > limit:
            if good:
                raise WrongAnswer(f"it is larger than {limit:,} bytes")
            break
    return ProviderReply(response.status_code, headers, bytes(body))
