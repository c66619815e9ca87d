"""Tells every process that texts went, so that no cache answers from them.

The notices go with the transaction that took the texts away. They are digests, encrypted: any role that may connect to
the database may listen. Where commits wait for each other because of them, those do that take texts away, no others.
"""

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Sequence

from psycopg.sql import SQL

from likewise.db.collections import MAX_HASHES, CollectionRow
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.embedding.cache import VectorOrigin
from likewise.embedding.embedder import Embedder
from likewise.errors import SealBroken, TextKeyUnavailable
from likewise.ingest.notifications import Notifications
from likewise.sealing import Sealing, TextKey

CHANNEL = "likewise_forget"
DIGEST_BYTES = 32
# A notice has less than 8,000 bytes.
DIGESTS_A_NOTICE = 180
# Some 2 million texts; who has more to do forgets everything instead.
MAX_UNREAD = 10_000
# A notice of so many texts that each process forgets all that it has in memory.
ALL = "all"

ABOUT = b"notice"

KEY = SQL("SELECT key FROM notice_key")
SEND = SQL("SELECT count(pg_notify(%s, said)) FROM unnest(%s::text[]) AS said")

# What a notice said; None: some were missed.
_Heard = tuple[int, list[bytes]] | None


class CacheInvalidation:
    """One process's part in it. Without a cache it has nothing to forget, and tells the others."""

    def __init__(self, notifications: Notifications, embedder: Embedder, sealing: Sealing) -> None:
        """Listen, before `notifications` are started; `sealing` is with the key of notices."""
        self._embedder = embedder
        self._sealing = sealing
        self._heard: asyncio.Queue[_Heard] = asyncio.Queue()
        if embedder.caches:
            notifications.listen(CHANNEL, self._hear, self._missed)

    def send(self, tx: Tx, text_hashes: Sequence[bytes]) -> None:
        """Have all processes forget texts of this tenant once the transaction has been committed."""
        if len(text_hashes) > MAX_HASHES:
            tx.at_the_end(SEND, [CHANNEL, [ALL]])
        elif text_hashes and tx.tenant is not None:
            parts = range(0, len(text_hashes), DIGESTS_A_NOTICE)
            said = [self._said(tx.tenant, text_hashes[start : start + DIGESTS_A_NOTICE]) for start in parts]
            tx.at_the_end(SEND, [CHANNEL, said])

    async def forget(self, collection: CollectionRow, text_hashes: Sequence[bytes]) -> None:
        """Forget them here, and in Redis, before anybody is answered."""
        if len(text_hashes) > MAX_HASHES:
            await self._embedder.forget_all()
        elif text_hashes and self._embedder.caches:
            for origin in _origins(collection):
                await self._embedder.forget(collection.tenant, text_hashes, at_once=True, origin=origin)

    async def run(self) -> None:
        """Forget what other processes tell, until cancelled."""
        while True:
            heard = await self._heard.get()
            if heard is None:
                await self._embedder.forget_all()
            else:
                await self._embedder.forget(*heard)

    def _hear(self, payload: str) -> None:
        if self._heard.qsize() >= MAX_UNREAD:
            self._missed()
            return
        try:
            tenant, _, digests = self._sealing.unseal_bytes(b64decode(payload, validate=True), ABOUT).partition(b" ")
            said = [digests[start : start + DIGEST_BYTES] for start in range(0, len(digests), DIGEST_BYTES)]
            self._heard.put_nowait((int(tenant), said))
        except (ValueError, SealBroken, TextKeyUnavailable):
            # ALL, or none of ours: whoever said it meant something.
            self._missed()

    def _said(self, tenant: int, text_hashes: Sequence[bytes]) -> str:
        return b64encode(self._sealing.seal_bytes(b"%d " % tenant + b"".join(text_hashes), ABOUT)).decode()

    def _missed(self) -> None:
        while not self._heard.empty():
            self._heard.get_nowait()
        self._heard.put_nowait(None)


async def notice_sealing(pool: Pool) -> Sealing:
    """Return the key of notifications, which every process on this database has."""
    row = await pool.row(KEY)
    assert row is not None
    return Sealing([TextKey(row[0])])


def _origins(collection: CollectionRow) -> set[VectorOrigin | None]:
    """The origins of the vectors that its views have of texts."""
    generations = [view.generation for view in collection.views if view.generation and not view.generation.is_made]
    return {
        None if one.space is None or one.numerics is None else VectorOrigin(one.space, one.numerics, one.dimension)
        for one in generations
    }
