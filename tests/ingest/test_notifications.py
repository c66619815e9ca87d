"""What other programs on the database hear of texts that go: nothing."""

import asyncio
from base64 import b64encode

import pytest
from psycopg import AsyncConnection

from likewise.db.contents import text_hash
from likewise.library import Likewise
from likewise.testing import DatabaseUrls
from tests.conftest import Opener
from tests.patience import PATIENCE, until

pytestmark = pytest.mark.usefixtures("whole")


async def test_who_may_only_connect_hears_no_digest_of_a_text(lw: Likewise, database: DatabaseUrls) -> None:
    notes = lw.collection("notes")
    await notes.add([{"id": "a", "text": "alpha"}])
    digest = text_hash("alpha")
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("LISTEN likewise_forget")
        # When
        await notes.delete("a")
        heard = [notice async for notice in connection.notifies(timeout=PATIENCE, stop_after=1)]
    # Then
    (notice,) = heard
    for told in (digest.hex(), b64encode(digest).decode()[:20], b64encode(b"1 " + digest).decode()[:20]):
        assert told not in notice.payload


async def test_a_notice_of_nobody_makes_all_be_forgotten(open_likewise: Opener, database: DatabaseUrls) -> None:
    async with open_likewise(worker=False) as lw:
        await lw.embed(["alpha"])
        assert lw.embedder.cache_bytes > 0
        async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
            await connection.execute("NOTIFY likewise_forget, 'x'")
        await until(lambda: lw.embedder.cache_bytes == 0)
        await asyncio.sleep(0)
