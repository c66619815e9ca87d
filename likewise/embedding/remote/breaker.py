"""Leaves a provider that fails alone, and asks it again with a single request."""

import time
from types import TracebackType
from typing import Self

from likewise.embedding.remote.backoff import Backoff
from likewise.embedding.remote.errors import Trouble
from likewise.observe.logs import get_logger
from likewise.observe.metrics import PROVIDER_OPEN

log = get_logger(__name__)


class Breaker:
    """A circuit breaker: closed while all is well, open after failures in a row, then half open, for one request."""

    def __init__(self, model: str, backoff: Backoff) -> None:
        self._model = model
        self._most = backoff.failures
        self._first, self._longest = backoff.rest
        self._in_a_row = 0
        self._row_began = 0.0
        self._open: Trouble | None = None
        self._until = 0.0
        self._rest = self._first
        self._probing = False
        PROVIDER_OPEN.labels(model).set(0)

    @property
    def trouble(self) -> Trouble | None:
        """Why it is not closed."""
        return self._open

    def refuse(self) -> None:
        """ModelUnavailable, with what was the trouble, if nobody may ask now."""
        left = self._until - time.monotonic()
        if self._open is not None and (self._probing or left > 0):
            raise self._open.once_more(left)

    def trial(self) -> "Trial":
        """The block in which a request is made; ModelUnavailable if none may be."""
        self.refuse()
        self._probing = self._open is not None
        return Trial(self, probes=self._probing)

    def close(self) -> None:
        """The provider has answered."""
        self._in_a_row, self._rest = 0, self._first
        if self._open is not None:
            log.warning("provider_back", model=self._model)
            self._open = None
            PROVIDER_OPEN.labels(self._model).set(0)

    def count(self, trouble: Trouble, began: float, *, probe: bool) -> None:
        """A request has failed."""
        if not self._in_a_row:
            self._row_began = time.monotonic()
        self._in_a_row += 1
        if probe or (self._open is None and (trouble.rests == "at_once" or self._is_enough(began))):
            self._leave_alone(trouble)

    def _is_enough(self, began: float) -> bool:
        # One moment's trouble ends all requests that are under way, however many: the next try of one has to fail too.
        return self._in_a_row >= self._most and began > self._row_began

    def _leave_alone(self, trouble: Trouble) -> None:
        if self._open is None or self._open.code != trouble.code:
            log.warning("provider_away", model=self._model, reason=trouble.detail, seconds=self._rest)
        self._open, self._until = trouble, time.monotonic() + self._rest
        self._rest = min(2 * self._rest, self._longest)
        PROVIDER_OPEN.labels(self._model).set(1)

    def let_go(self) -> None:
        """The probe has ended; if that told nothing the next request is one."""
        self._probing = False


class Trial:
    """One request. A block that ends well closes the breaker; one that raises says what that means, if anything."""

    def __init__(self, breaker: Breaker, *, probes: bool) -> None:
        self._breaker = breaker
        self._probes = probes
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is None:
            self.answered()
        if self._probes:
            self._breaker.let_go()

    def answered(self) -> None:
        """The provider is there, whatever it said."""
        self._breaker.close()

    def failed(self, trouble: Trouble) -> None:
        """It is not, or might as well not be."""
        if trouble.rests == "never":
            self.answered()
        else:
            self._breaker.count(trouble, self._began, probe=self._probes)
