"""Errors of remote models, by whose fault they are.

ProviderError (ModelUnavailable)    the provider could not do a request, whatever its texts are
RequestRefused                      the provider will not do this request, for what is in it
  RequestFails                      it fails on this request each time, and does not say why
WrongAnswer (ValueError)            it answered, and that is no answer
"""

import math
from typing import Literal

from likewise.embedding.models import ModelSpec
from likewise.errors import ModelUnavailable

# Whether an error opens the provider's breaker: at once, after some in a row, or never.
OpensBreaker = Literal["at_once", "in_a_row", "never"]

# The code of having asked too often, which is waited for and is no failure.
LIMITED = "provider_limited"


class ProviderError(ModelUnavailable):
    """The provider could not do one request, whatever its texts are.

    Attributes:
        try_again: whether the same request may succeed in moments.
        hold: seconds for which the provider wants no request; None if it did not say.
        opens: whether it opens the breaker.
        of_texts: whether one of the texts may be at fault after all, if it goes on.
    """

    def __init__(
        self,
        spec: ModelSpec,
        code: str,
        words: str,
        *,
        try_again: bool = False,
        hold: float | None = None,
        opens: OpensBreaker = "at_once",
        of_texts: bool = False,
    ) -> None:
        place = f" at {spec.endpoint.base_url}" if spec.endpoint else ""
        super().__init__(
            f"The provider of {spec.name}{place} {words}.",
            code=code,
            retry_after=max(1, math.ceil(hold or 0)),
            public_detail=f"The provider of {spec.name} {words}.",
        )
        self.try_again = try_again
        self.hold = hold
        self.opens = opens
        self.of_texts = of_texts

    def repeated(self, seconds: float) -> ModelUnavailable:
        """Return this error for a caller who comes while the provider is left alone for so many more seconds."""
        return ModelUnavailable.because(self, max(1, math.ceil(seconds)))


class RequestRefused(Exception):
    """The provider will not or cannot do this request, for what is in it: its texts, or as many of them."""


class RequestFails(RequestRefused):
    """The provider fails on this request each time, and does not say whose fault that is."""


class WrongAnswer(ValueError):
    """The provider answered, and that is no answer. The message is ours and repeats nothing of it but numbers."""
