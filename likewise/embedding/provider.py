"""The contract of everything that turns texts into vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from likewise.embedding.models import ModelSpec

Role = Literal["query", "document"]
Lane = Literal["interactive", "bulk"]
Matrix = npt.NDArray[np.float32]
Vector = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class ProviderResult:
    """What a provider made of n texts, in their order.

    `vectors` float32 (n, d) of unit length; `tokens`, `truncated` and `chars_read` int32 (n,): tokens that were read,
    with the model's special ones; tokens that were cut off; characters from the start of the text that were read.
    """

    vectors: Matrix
    tokens: Counts
    truncated: Counts
    chars_read: Counts


class Provider(Protocol):
    """Turns texts into vectors, in order. Batching, caching and retrying belong to the caller.

    `space` is the digest of all that decides what a vector means; `numerics` names runtime, version and precision;
    `batch_tokens` is about how much it likes to be given at a time. An `Unavailable` error says that the provider is
    away; any other may be a text's own fault.
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
    def batch_tokens(self) -> int: ...

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts."""
        ...

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, special ones included, before anything is cut off."""
        ...

    async def close(self) -> None:
        """Let go of memory and threads."""
        ...


ProviderFactory = Callable[[ModelSpec], Provider]
