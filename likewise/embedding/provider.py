"""The contract of everything that turns texts into vectors: which texts there can be, and what is made of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from likewise.embedding.models import ModelSpec
from likewise.errors import Fault, Invalid

MAX_CHARS = 200_000
CHARS_PER_TOKEN = 4  # English prose and WordPiece; an estimate is enough to bound a queue

Role = Literal["query", "document"]
Lane = Literal["interactive", "bulk"]
Matrix = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ProviderResult:
    """Vectors and counts of n texts, in order.

    `vectors` float32 (n, d) of unit length; `tokens`, `truncated` and `chars_read` int32 (n,): tokens that were read,
    with the model's special ones; tokens that were cut off; characters from the start of the text that were read.
    `estimated`: nobody counted the tokens, they are guessed from the characters.
    """

    vectors: Matrix
    tokens: Counts
    truncated: Counts
    chars_read: Counts
    estimated: bool = False


@dataclass(frozen=True)
class Capacity:
    """The size of calls that suits a provider.

    `tokens` and `texts` are about how much of each in one call, `calls` how many calls at a time, of each lane and
    role, and `seconds` what one may take. A `remote` one works on other cores than ours: long texts
    keep out no short ones, and callers may say how many texts go in a call.
    """

    tokens: int
    texts: int = 1_024
    calls: int = 2  # one is prepared while the other is in the model
    seconds: float = 60.0
    remote: bool = False


class Provider(Protocol):
    """Turns texts into vectors, in order. Batching, caching and retrying belong to the caller.

    `space` is the digest of all that decides what a vector means; `numerics` names runtime, version and precision;
    `fault` says why a provider that was loaded cannot work now. An `Unavailable` error says that the provider is away;
    any other may be a text's own fault.
    """

    @property
    def space(self) -> str: ...

    @property
    def numerics(self) -> str: ...

    @property
    def dimension(self) -> int: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def capacity(self) -> Capacity: ...

    @property
    def fault(self) -> str | None: ...

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """Embed texts in order."""
        ...

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text as a document, special ones included, before anything is cut off."""
        ...

    async def split(self, text: str, max_tokens: int, overlap: int) -> list[tuple[int, int]]:
        """Return start and end of the parts of a text, of at most `max_tokens` each, estimated where nobody counts.

        At most `overlap` tokens of a part are those that the one before ends with.
        """
        ...

    async def close(self) -> None:
        """Let go of memory and threads."""
        ...


ProviderFactory = Callable[[ModelSpec], Provider]


def prefixes(spec: ModelSpec, prompts: Mapping[str, str] | None = None) -> dict[Role, str]:
    """Return the text before each text, by role: that of the model's row, else of its folder's prompts, if any."""
    prompts = prompts or {}
    return {
        "query": spec.query_prefix or prompts.get("query", ""),
        "document": spec.document_prefix or prompts.get("document", ""),
    }


def refuse_unreadable(texts: Sequence[str]) -> None:
    """Raise Invalid, with a fault for each text that is none, blank or too long."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise Invalid.at("/texts", "Texts come as a list, one of them as a list of one.", "wrong_type")
    faults = [fault for place, text in enumerate(texts) if (fault := _fault(place, text))]
    if faults:
        raise Invalid(faults[0].message, faults=faults)


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, without a tokenizer."""
    return len(text) // CHARS_PER_TOKEN + 1


def _fault(place: int, text: object) -> Fault | None:
    if not isinstance(text, str):
        return Fault(f"/texts/{place}", "wrong_type", "This is no text.")
    if len(text) > MAX_CHARS:
        message = f"This text has more than {MAX_CHARS:,} characters; split it into parts."
        return Fault(f"/texts/{place}", "too_long", message)
    if not text or text.isspace():
        return Fault(f"/texts/{place}", "blank", "This text is blank; leave it out.")
    return None
