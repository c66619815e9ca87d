"""The embedder as routes use it: within a quota, and for as long as somebody waits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from likewise.apps.deps import ProcessEmbedder, ProcessQuotas, while_connected
from likewise.cleaning import cleaned
from likewise.embedding.embedder import Embedded, Embedder
from likewise.errors import Invalid

# Where a text stands in the request, by its place among the texts.
Pointer = Callable[[int], str]


@dataclass(frozen=True)
class MeteredEmbedder:
    """Embeds the texts of one request, within its tenant's quota and for as long as its caller is there."""

    request: Request
    embedder: Embedder
    quotas: ProcessQuotas

    async def embed(self, tenant: int, texts: Sequence[str], pointer: Pointer, **options: Any) -> Embedded:
        """Return the vectors of texts; errors name the places of the request itself."""
        # What is refused for its model takes nothing from the quota.
        self.embedder.known(options.get("model"))
        self.quotas.spend(tenant, texts)
        with pointed(pointer):
            work = self.embedder.embed(tenant, [cleaned(text) for text in texts], **options)
            return await while_connected(self.request, work)


async def metered_embedder(request: Request, embedder: ProcessEmbedder, quotas: ProcessQuotas) -> MeteredEmbedder:
    """Return the embedder for a request."""
    return MeteredEmbedder(request, embedder, quotas)


Metered = Annotated[MeteredEmbedder, Depends(metered_embedder)]


@contextmanager
def pointed(pointer: Pointer) -> Iterator[None]:
    """Move faults at the embedder's `/texts/3` to where that text is in the request."""
    try:
        yield
    except Invalid as error:
        raise error.moved("/texts", pointer) from None
