"""The circuit breaker of one provider, which lets a single request through to find out whether it is back."""

import contextlib
from collections.abc import Iterator

from likewise.backoff import Breaker
from likewise.embedding.remote.errors import ProviderError
from likewise.embedding.remote.limits import RetryPolicy
from likewise.observe.logs import get_logger
from likewise.observe.metrics import PROVIDER_OPEN

log = get_logger(__name__)


class ProviderBreaker:
    """A breaker with a log, a metric, and one request at a time while it is half open."""

    def __init__(self, model: str, policy: RetryPolicy) -> None:
        self._model = model
        self._breaker = Breaker[ProviderError](policy.rest, policy.failures)
        self._probing = False
        PROVIDER_OPEN.labels(model).set(0)

    @property
    def fault(self) -> ProviderError | None:
        """The error for which the provider is left alone; None while it is asked."""
        return self._breaker.fault

    def refuse(self) -> None:
        """Raise ModelUnavailable, with the provider's error, if nobody may ask now."""
        if self._breaker.fault is not None and (self._probing or not self._breaker.allows()):
            raise self._breaker.fault.repeated(self._breaker.left)

    @contextlib.contextmanager
    def trial(self) -> Iterator["Trial"]:
        """Open the block of one request, which closes the breaker if it ends well; ModelUnavailable if none may be."""
        self.refuse()
        probes = self._probing = self._breaker.fault is not None
        trial = Trial(self, self._breaker.clock(), probes=probes)
        try:
            yield trial
            self.succeeded()
        finally:
            if probes:
                self._probing = False

    def succeeded(self) -> None:
        """Close the breaker, as the provider has answered."""
        if self._breaker.succeeded():
            log.warning("provider_back", model=self._model)
            PROVIDER_OPEN.labels(self._model).set(0)

    def failed(self, error: ProviderError, trial: "Trial") -> None:
        """Count a request that failed."""
        before = self._breaker.fault
        # What began before it opened says nothing new.
        if before is not None and not trial.probes:
            return
        if self._breaker.failed(error, began=trial.began, at_once=trial.probes or error.opens == "at_once"):
            if before is None or before.code != error.code:
                log.warning("provider_away", model=self._model, reason=error.detail, seconds=self._breaker.pause)
            PROVIDER_OPEN.labels(self._model).set(1)


class Trial:
    """One request under a breaker; whoever makes it says what its end means."""

    def __init__(self, breaker: ProviderBreaker, began: float, *, probes: bool) -> None:
        self._breaker = breaker
        self.began = began
        self.probes = probes

    def succeeded(self) -> None:
        """Note that the provider is there, whatever it said."""
        self._breaker.succeeded()

    def failed(self, error: ProviderError) -> None:
        """Note that the provider is away, or might as well be."""
        if error.opens == "never":
            self.succeeded()
        else:
            self._breaker.failed(error, self)
