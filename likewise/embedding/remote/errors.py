"""What goes wrong with a remote model, and whose fault it is."""

import math
from typing import Literal

from likewise.embedding.models import ModelSpec
from likewise.errors import ModelUnavailable

# Whether the provider is to be left alone: at once, after some failures in a row, or not for this.
Rests = Literal["at_once", "in_a_row", "never"]


# The code of having asked too often, which is waited for and is no failure.
LIMITED = "provider_limited"


class Trouble(ModelUnavailable):
    """The provider could not do one request, whatever its texts are.

    `heals`: the same request may do in moments; `asked` are the seconds that the provider wants to be left alone;
    `of_texts`: it may be one of the texts after all, if it goes on.
    """

    def __init__(
        self,
        spec: ModelSpec,
        code: str,
        words: str,
        *,
        heals: bool = False,
        asked: float | None = None,
        rests: Rests = "at_once",
        of_texts: bool = False,
    ) -> None:
        place = f" at {spec.endpoint.base_url}" if spec.endpoint else ""
        retry_after = max(1, math.ceil(asked or 0))
        public_detail = f"The provider of {spec.name} {words}."
        super().__init__(
            f"The provider of {spec.name}{place} {words}.",
            code=code,
            retry_after=retry_after,
            public_detail=public_detail,
        )
        self.heals = heals
        self.asked = asked
        self.rests = rests
        self.of_texts = of_texts

    def once_more(self, seconds: float) -> ModelUnavailable:
        """The same, for somebody who comes while the provider is left alone for so many more seconds."""
        return ModelUnavailable.because(self, max(1, math.ceil(seconds)))


class RequestRefused(Exception):
    """The provider will not or cannot do this request, for what is in it: its texts, or as many of them."""


class RequestFails(RequestRefused):
    """The provider fails on this request each time, and does not say whose fault that is."""


class WrongAnswer(ValueError):
    """The provider answered, and that is no answer. Its words are ours and hold nothing of it but numbers."""
