"""A provider's rate: what its answers say of it, and the waiting that all requests share."""

import asyncio
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# Nobody waits for that long, and a header may say anything.
LONGEST = 3600.0
_PARTS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PARTS.pattern})+")
_NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Pace:
    """When a provider may be asked again. One for all of its requests."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def left(self) -> float:
        """Seconds until then, 0 or less from then on."""
        return self._until - time.monotonic()

    def hold(self, seconds: float) -> None:
        """Let nobody ask for so long, or as long as was said before."""
        self._until = max(self._until, time.monotonic() + min(seconds, LONGEST))

    async def wait(self, most: float) -> bool:
        """Until then; False, at once, if that is more than so many seconds away, or comes to be."""
        deadline = time.monotonic() + most
        while (left := self.left) > 0:
            if self._until > deadline:
                return False
            await asyncio.sleep(left)
        return True


def asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next request is wanted, by `retry-after-ms` or `retry-after`; None if neither says any."""
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


def used_up(headers: Mapping[str, str]) -> float | None:
    """Seconds until the provider's rate allows more, by its `x-ratelimit-...`; None if there is some left now."""
    resets = [
        duration(headers.get(f"x-ratelimit-reset-{unit}", ""))
        for unit in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{unit}", "").strip() == "0"
    ]
    return max((reset for reset in resets if reset is not None), default=None)


def duration(text: str) -> float | None:
    """Seconds, from `1s`, `6m0s`, `120ms` or a plain number; None if it is none, or more than a day."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        seconds = float(text)
    elif _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PARTS.findall(text))
    else:
        return None
    # More is no duration but a date in seconds, or nonsense.
    return seconds if seconds <= _UNITS["d"] else None
