"""Issuer: the keys of whoever signs the tokens, fetched now and then, whoever asks and however often."""

import asyncio
import math
import time
from collections.abc import Callable

from likewise.auth.jwk import Key, KeySet, keys_of
from likewise.auth.jwks_http import FETCH_SECONDS, FetchFailed, KeysAddress
from likewise.errors import IssuerUnavailable
from likewise.observe.logs import get_logger
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
MOST_WAITING = 256

log = get_logger(__name__)


class Issuer:
    """The keys at one address, as one process sees them.

    `version` counts the sets of keys that there were: with another one, what an older one has checked is not true any
    more. While the issuer is away the last set goes on, for as long as that lasts.
    """

    def __init__(self, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._address = KeysAddress(url)
        self._clock = clock
        self._keys: KeySet | None = None
        self._fetched_at = self._asked_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None
        self._failures = 0
        self._rests_until = -math.inf
        self._trouble: str | None = None
        self._waiting = 0
        self.version = 0

    @property
    def fault(self) -> str | None:
        """Why no token can be checked: its keys never came."""
        return self._trouble if self._keys is None else None

    async def key(self, algorithm: str, kid: str | None) -> Key | None:
        """The key that a token names; None if there is none. IssuerUnavailable if no keys have come so far."""
        found = (await self._current()).find(algorithm, kid)
        if found is not None or kid is None or not (self._is_fetching or self._may_ask(UNKNOWN_SECONDS)):
            return found
        await self._wait(self.fetch())
        return (await self._current()).find(algorithm, kid)

    async def newer(self, algorithm: str) -> Key | None:
        """The one key of tokens that name none, after asking for new ones; None if none have come since."""
        before = self.version
        if self._is_fetching or self._may_ask(UNKNOWN_SECONDS):
            await self._wait(self.fetch())
        return None if self.version == before else (await self._current()).find(algorithm, None)

    def fetch(self) -> asyncio.Task[None]:
        """Ask for new keys, unless somebody does already; it ends well whatever becomes of it."""
        if self._fetching is None or self._fetching.done():
            self._asked_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="fetch the issuer's keys")
        return self._fetching

    async def close(self) -> None:
        """Ask no more."""
        if self._fetching is not None:
            await stop([self._fetching])
        await self._address.close()

    @property
    def _is_fetching(self) -> bool:
        return self._fetching is not None and not self._fetching.done()

    def _may_ask(self, after: float) -> bool:
        now = self._clock()
        return now >= self._rests_until and now - self._asked_at >= after

    async def _current(self) -> KeySet:
        age = self._clock() - self._fetched_at
        if age >= FRESH_SECONDS and (self._is_fetching or self._may_ask(0)):
            fetching = self.fetch()
            # In an outage, once it is known, nobody waits who need not.
            if self._keys is None or (age >= OLD_SECONDS and not self._failures):
                await self._wait(fetching)
        if self._keys is None:
            raise IssuerUnavailable(retry_after=math.ceil(max(1.0, self._rests_until - self._clock())))
        return self._keys

    async def _wait(self, fetching: asyncio.Task[None]) -> None:
        """Until it has ended, and not for long; whoever is cancelled meanwhile does not cancel it for the others."""
        if self._waiting >= MOST_WAITING:
            return
        self._waiting += 1
        try:
            await asyncio.wait({fetching}, timeout=FETCH_SECONDS + 1)
        finally:
            self._waiting -= 1

    async def _fetch(self) -> None:
        try:
            keys = keys_of(await self._address.fetch())
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
        if not self._failures:
            log.warning("issuer_away", why=f"It {why}.", keys_kept=self._keys is not None)
        self._failures += 1
        rest = min(LONGEST_REST_SECONDS, REST_SECONDS * 2 ** min(self._failures - 1, 10))
        self._rests_until = self._clock() + rest
        self._trouble = f"The issuer of tokens {why}."

    def _succeeded(self, keys: KeySet) -> None:
        if self._failures:
            log.warning("issuer_back")
        if self._keys is None or self._keys.digest != keys.digest:
            self.version += 1
            log.info("issuer_keys", usable=len(keys.keys))
            if not keys.keys:
                log.warning("issuer_has_no_keys", fix="See that LIKEWISE_JWKS_URL has RSA or P-256 keys for signing.")
        self._keys, self._fetched_at = keys, self._clock()
        self._failures, self._trouble = 0, None
