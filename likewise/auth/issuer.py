"""The issuer of tokens: its keys, fetched now and then from the address of the settings, whoever asks for them."""

import asyncio
import math
import time
from collections.abc import Callable
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx2

from likewise.auth.verification_keys import PublishedKeys, VerificationKey, published_keys
from likewise.backoff import Backoff, Breaker
from likewise.errors import IssuerUnavailable
from likewise.observe.logs import get_logger
from likewise.observe.version import program_version
from likewise.stopping import stop

# After so long new ones are fetched, beside the requests.
FRESH_SECONDS = 600.0
# Older ones, of a server that nobody called for a while, are not used before the issuer was asked.
OLD_SECONDS = 660.0
# Anybody can name a key that is not there: that is a reason to ask for new ones once in so long.
UNKNOWN_SECONDS = 30.0
# After a failure the issuer is left alone for so long, twice as long after each more, up to the last.
REST_SECONDS, LONGEST_REST_SECONDS = 1.0, 30.0
# Half of the requests that a server holds: those without a token go on.
MAX_WAITING = 256

FETCH_SECONDS = 5.0
# Sets have a few keys of one or two KiB, certificates included.
MAX_BYTES = 256 * 2**10

log = get_logger(__name__)


class FetchFailed(Exception):
    """The keys could not be had. Its words end a sentence, and have nothing in them that came from outside."""


class Issuer:
    """The keys at one address, as one process knows them.

    `version` counts the sets of keys that there were: with another one, what an older one has checked is not true any
    more. While the issuer is away the last set goes on, for as long as that lasts.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = KeysAddress(url)
        self._clock = clock
        self._keys: PublishedKeys | None = None
        self._fetched_at = self._asked_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._breaker: Breaker[str] = Breaker(Backoff(REST_SECONDS, LONGEST_REST_SECONDS), clock=clock)
        self._waiting = 0
        self.version = 0

    @property
    def fault(self) -> str | None:
        """The reason for which no token can be checked: the keys never came."""
        return self._breaker.fault if self._keys is None else None

    async def key(self, algorithm: str, kid: str | None) -> VerificationKey | None:
        """Return the key that a token names; None if there is none. IssuerUnavailable if no keys have come so far."""
        found = (await self._current()).find(algorithm, kid)
        if found is not None or kid is None or not (self._is_fetching or self._may_ask(UNKNOWN_SECONDS)):
            return found
        await self._wait(self._fetch())
        return (await self._current()).find(algorithm, kid)

    async def newer(self, algorithm: str) -> VerificationKey | None:
        """Ask for new keys, and return the one for tokens that name none; None if no new ones have come."""
        before = self.version
        if self._is_fetching or self._may_ask(UNKNOWN_SECONDS):
            await self._wait(self._fetch())
        return None if self.version == before else (await self._current()).find(algorithm, None)

    def fetch_ahead(self) -> None:
        """Ask for the keys before the first caller needs them, and wait for nothing."""
        self._fetch()

    async def close(self) -> None:
        """Ask no more."""
        if self._fetching is not None:
            await stop([self._fetching])
        await self._address.close()

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _may_ask(self, after: float) -> bool:
        return self._breaker.allows() and self._clock() - self._asked_at >= after

    async def _current(self) -> PublishedKeys:
        age = self._clock() - self._fetched_at
        if age >= FRESH_SECONDS and (self._is_fetching or self._may_ask(0)):
            fetching = self._fetch()
            # In an outage, once it is known, nobody waits who need not.
            if self._keys is None or (age >= OLD_SECONDS and self._breaker.fault is None):
                await self._wait(fetching)
        if self._keys is None:
            raise IssuerUnavailable(retry_after=math.ceil(max(1.0, self._breaker.left)))
        return self._keys

    def _fetch(self) -> asyncio.Task[None]:
        """Ask for new keys, unless somebody does already; the task ends well whatever becomes of it."""
        if self._fetching is None or self._fetching.done():
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch_now(), name="fetch the issuer's keys")
        return self._fetching

    async def _wait(self, fetching: asyncio.Task[None]) -> None:
        """Wait for its end, and not for long; whoever is cancelled meanwhile does not cancel it for the others."""
        if self._waiting >= MAX_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.wait({fetching}, timeout=FETCH_SECONDS + 1)
        finally:
            self._waiting -= 1

    async def _fetch_now(self) -> None:
        try:
            keys = published_keys(await self._address.fetch())
        except FetchFailed as failed:
            self._failed(str(failed))
        except ValueError:
            self._failed("answers with what is no set of keys")
        except Exception as error:  # noqa: BLE001 - whoever waits must not be told of it as of a fault of theirs
            log.error("issuer_failed", error=error)
            self._failed("could not be asked; the server's log has the reason")
        else:
            self._succeeded(keys)

    def _failed(self, why: str) -> None:
        if self._breaker.fault is None:
            log.warning("issuer_away", why=f"It {why}.", keys_kept=self._keys is not None)
        self._breaker.failed(f"The issuer of tokens {why}.")

    def _succeeded(self, keys: PublishedKeys) -> None:
        if self._breaker.succeeded():
            log.warning("issuer_back")
        if self._keys is None or self._keys.digest != keys.digest:
            self.version += 1
            log.info("issuer_keys", usable=keys.usable)
            if not keys.usable:
                log.warning("issuer_has_no_keys", fix="See that LIKEWISE_JWKS_URL has RSA or P-256 keys for signing.")
        self._keys, self._fetched_at = keys, self._clock()


class KeysAddress:
    """The address at which an issuer publishes its keys; its answers are small and in time, or none."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: httpx2.AsyncClient | None = None

    async def fetch(self) -> bytes:
        """Return the document, of whatever media type it says it is; FetchFailed if it does not come whole, in time."""
        try:
            # In all, however slowly it drips.
            async with asyncio.timeout(FETCH_SECONDS):
                async with self._opened().stream("GET", self._url) as response:
                    return await _read(response)
        except TimeoutError:
            raise FetchFailed(f"does not answer within {FETCH_SECONDS:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise FetchFailed(f"does not answer ({type(error).__name__})") from None

    async def close(self) -> None:
        """End its connection."""
        if self._client is not None:
            await self._client.aclose()

    def _opened(self) -> httpx2.AsyncClient:
        if self._client is None:
            self._client = _client()
        return self._client


def _client() -> httpx2.AsyncClient:
    try:
        return httpx2.AsyncClient(
            headers={
                "accept": "application/json",
                # Of a compressed answer nobody knows how large it is.
                "accept-encoding": "identity",
                "user-agent": f"likewise/{program_version()}",
            },
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            timeout=httpx2.Timeout(FETCH_SECONDS),
            limits=httpx2.Limits(max_connections=1, keepalive_expiry=0),
            follow_redirects=False,
        )
    except (ValueError, ImportError, OSError) as error:
        # Its message may have a proxy's password.
        kind = type(error).__name__
        raise FetchFailed(f"cannot be asked by the proxies and certificates of the environment ({kind})") from None


async def _read(response: httpx2.Response) -> bytes:
    if response.status_code != 200:
        raise FetchFailed(f"answers {response.status_code}")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchFailed("answers compressed, which nobody asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise FetchFailed(f"answers more than {MAX_BYTES // 2**10} KiB")
    return bytes(body)
