"""Limits of asking a provider: retries, the rate that its answers tell of, and the breaker for one that is away."""

import asyncio
import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from likewise.backoff import Backoff, Breaker
from likewise.embedding.models import ModelSpec
from likewise.embedding.remote.errors import ProviderError, RequestRefused, WrongAnswer
from likewise.observe.logs import get_logger
from likewise.observe.metrics import PROVIDER_OPEN

log = get_logger(__name__)

BETWEEN_TRIES = Backoff(1.0, 10.0, factor=3.0)
OPEN_BREAKER = Backoff(5.0, 60.0)
# Nobody waits for that long, and a header may say anything.
MAX_HOLD_SECONDS = 3600.0
_PARTS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PARTS.pattern})+")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True)
class RetryPolicy:
    """Tries of a request, and pauses of a provider that fails.

    Attributes:
        tries: of one request.
        between: pauses between two of them.
        max_hold: seconds; a provider that wants to be left alone for longer is not waited for.
        failures: in a row, of any requests, that open the breaker.
        rest: pauses for which the breaker is open.
    """

    tries: int = 3
    between: Backoff = BETWEEN_TRIES
    max_hold: float = 60.0
    failures: int = 5
    rest: Backoff = OPEN_BREAKER

    def pause(self, failed: int) -> float:
        """Return the seconds until the next try, after so many that failed."""
        return self.between.jittered(failed + 1)

    def seconds(self, one_try: float) -> float:
        """Return how long a request may take, with all of its tries and pauses."""
        return self.tries * (one_try + max(self.max_hold, self.between.longest))


class RateGate:
    """The moment at which a provider may be asked again, for all of its requests."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def left(self) -> float:
        """Seconds until then; 0 or less from then on."""
        return self._until - time.monotonic()

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so long, or for as long as was said before."""
        self._until = max(self._until, time.monotonic() + min(seconds, MAX_HOLD_SECONDS))

    async def wait(self, max_seconds: float) -> bool:
        """Wait until then; return False, at once, if that is or comes to be more than so many seconds away."""
        deadline = time.monotonic() + max_seconds
        while (left := self.left) > 0:
            if self._until > deadline:
                return False
            await asyncio.sleep(left)
        return True


class ProviderBreaker:
    """A breaker with a log, a metric, and one request at a time while it is half open."""

    def __init__(self, spec: ModelSpec, policy: RetryPolicy) -> None:
        self._spec = spec
        self._breaker = Breaker[ProviderError](policy.rest, policy.failures)
        self._probing = False
        PROVIDER_OPEN.labels(spec.name).set(0)

    @property
    def fault(self) -> ProviderError | None:
        """The error for which the provider is left alone; None while it is asked."""
        return self._breaker.fault

    def refuse(self) -> None:
        """Raise ModelUnavailable, with the provider's error, if nobody may ask now."""
        if self._breaker.fault is not None and (self._probing or not self._breaker.allows()):
            raise self._breaker.fault.repeated(self._breaker.left)

    @contextlib.contextmanager
    def trial(self, texts: int) -> Iterator[None]:
        """Open the block of one request of so many texts; ModelUnavailable if none may be.

        It closes the breaker if it ends well, or shows that the provider is there; a failure is counted, but that of
        many texts if it may be one text's fault: the caller asks again with fewer, and with a plain one.
        """
        self.refuse()
        began, probes = self._breaker.clock(), self._breaker.fault is not None
        self._probing = probes
        try:
            yield
            self._succeeded()
        except ProviderError as error:
            if error.opens == "never":
                self._succeeded()
            elif texts == 1 or not error.of_texts:
                self._failed(error, began, probes=probes)
            raise
        except RequestRefused:
            self._succeeded()
            raise
        except WrongAnswer as wrong:
            log.warning("provider_answers_wrongly", model=self._spec.name, reason=str(wrong))
            if texts == 1:
                fault = ProviderError(self._spec, "provider_wrong", f"answers wrongly: {wrong}", opens="in_a_row")
                self._failed(fault, began, probes=probes)
            raise
        finally:
            if probes:
                self._probing = False

    def _succeeded(self) -> None:
        if self._breaker.succeeded():
            log.warning("provider_back", model=self._spec.name)
            PROVIDER_OPEN.labels(self._spec.name).set(0)

    def _failed(self, error: ProviderError, began: float, *, probes: bool) -> None:
        before = self._breaker.fault
        # What began before it opened says nothing new.
        if before is not None and not probes:
            return
        if self._breaker.failed(error, began=began, at_once=probes or error.opens == "at_once"):
            if before is None or before.code != error.code:
                log.warning("provider_away", model=self._spec.name, reason=error.detail, seconds=self._breaker.pause)
            PROVIDER_OPEN.labels(self._spec.name).set(1)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of `retry-after-ms` or `retry-after`; None if there is neither."""
    in_milliseconds = headers.get("retry-after-ms", "").strip()
    if _NUMBER.fullmatch(in_milliseconds):
        return float(in_milliseconds) / 1000
    after = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(after):
        return float(after)
    try:
        at = parsedate_to_datetime(after)
    except (ValueError, OverflowError):
        return None
    at = at.replace(tzinfo=UTC) if at.tzinfo is None else at
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def rate_reset(headers: Mapping[str, str]) -> float | None:
    """Return the seconds until the rate in `x-ratelimit-...` allows more; None if there is some left now."""
    resets = [
        duration(headers.get(f"x-ratelimit-reset-{unit}", ""))
        for unit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{unit}", "").strip() == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def duration(text: str) -> float | None:
    """Return the seconds of `1s`, `6m0s`, `120ms` or a plain number; None for anything else, or more than a day."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
    else:
        return None
    # More is no duration but a date in seconds, or nonsense.
    return seconds if seconds <= _UNITS["d"] else None
