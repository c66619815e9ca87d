"""What every route that embeds does around it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from likewise.apps.deps import Spending, services
from likewise.apps.leaving import while_connected
from likewise.cleaning import cleaned
from likewise.embedding.embedder import Embedded, Embedder
from likewise.errors import Invalid

# Where a text stands in the request, by its place among the texts.
Pointer = Callable[[int], str]


async def embedder(request: Request) -> Embedder:
    """The process's embedder."""
    return services(request).runtime.embedder


ProcessEmbedder = Annotated[Embedder, Depends(embedder)]


@dataclass(frozen=True)
class Asking:
    """Embeds the texts of one request, within its tenant's quota and for as long as its caller is there."""

    request: Request
    embedder: Embedder
    spend: Spending

    async def embed(self, tenant: int, texts: Sequence[str], pointer: Pointer, **options: Any) -> Embedded:
        """The texts' vectors; errors name the places of the request itself."""
        # What is refused for its model takes nothing from the quota.
        self.embedder.known(options.get("model"))
        self.spend(tenant, texts)
        with pointed(pointer):
            work = self.embedder.embed(tenant, [cleaned(text) for text in texts], **options)
            return await while_connected(self.request, work)


async def asking(request: Request, embedder: ProcessEmbedder, spend: Spending) -> Asking:
    """For the routes that embed."""
    return Asking(request, embedder, spend)


Asks = Annotated[Asking, Depends(asking)]


@contextmanager
def pointed(pointer: Pointer) -> Iterator[None]:
    """Faults at the embedder's `/texts/3` as faults where that text is in the request."""
    try:
        yield
    except Invalid as error:
        raise error.moved("/texts", pointer) from None
