"""Tells every process that texts went, so that no cache answers from them.

The notices go with the transaction that took the texts away, and say digests only. Where commits wait for each other
because of them, those do that take texts away, and no others.
"""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence

from psycopg.sql import SQL

from likewise.db.collections import MOST_HASHES, Collection
from likewise.db.transaction import Tx
from likewise.embedding.embedder import Embedder, Maker
from likewise.ingest.notices import Notices

CHANNEL = "likewise_forget"
DIGEST_BYTES = 32
# A notice has less than 8,000 bytes.
DIGESTS_A_NOTICE = 180
# Some 2 million texts; who has more to do forgets everything instead.
MOST_UNREAD = 10_000
# A notice of so many texts that each process forgets all that it has in memory.
ALL = "all"

TELL = SQL("SELECT count(pg_notify(%s, said)) FROM unnest(%s::text[]) AS said")

# What a notice said; None: some were missed.
_Heard = tuple[int, list[bytes]] | None


class Forgetting:
    """One process's part in it. Without a cache it has nothing to forget, and tells the others."""

    def __init__(self, notices: Notices, embedder: Embedder) -> None:
        """Before `notices` are started."""
        self._embedder = embedder
        self._heard: asyncio.Queue[_Heard] = asyncio.Queue()
        if embedder.caches:
            notices.hear(CHANNEL, self._hear, self._missed)

    def tell(self, tx: Tx, text_hashes: Sequence[bytes]) -> None:
        """Have all processes forget texts of this tenant once the transaction has been committed."""
        if len(text_hashes) > MOST_HASHES:
            tx.at_the_end(TELL, [CHANNEL, [ALL]])
        elif text_hashes and tx.tenant is not None:
            parts = range(0, len(text_hashes), DIGESTS_A_NOTICE)
            said = [_said(tx.tenant, text_hashes[start : start + DIGESTS_A_NOTICE]) for start in parts]
            tx.at_the_end(TELL, [CHANNEL, said])

    async def forget(self, collection: Collection, text_hashes: Sequence[bytes]) -> None:
        """Forget them here, and in Redis, before anybody is answered."""
        if len(text_hashes) > MOST_HASHES:
            await self._embedder.forget_all()
        elif text_hashes and self._embedder.caches:
            await self._embedder.forget(collection.tenant, text_hashes, at_once=True, maker=_maker(collection))

    async def run(self) -> None:
        """Forget what other processes tell, until cancelled."""
        while True:
            heard = await self._heard.get()
            if heard is None:
                await self._embedder.forget_all()
            else:
                await self._embedder.forget(*heard)

    def _hear(self, payload: str) -> None:
        if self._heard.qsize() >= MOST_UNREAD:
            self._missed()
            return
        tenant, _, encoded = payload.partition(" ")
        try:
            digests = b64decode(encoded, validate=True)
            said = [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]
            self._heard.put_nowait((int(tenant), said))
        except ValueError:
            # ALL, or none of ours: whoever said it meant something.
            self._missed()

    def _missed(self) -> None:
        while not self._heard.empty():
            self._heard.get_nowait()
        self._heard.put_nowait(None)


def _said(tenant: int, text_hashes: Sequence[bytes]) -> str:
    return f"{tenant} {b64encode(b''.join(text_hashes)).decode()}"


def _maker(collection: Collection) -> Maker | None:
    active = collection.active
    if active.space is None or active.numerics is None:
        return None
    return Maker(active.space, active.numerics, active.dimension)
