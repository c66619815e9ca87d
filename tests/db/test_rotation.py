"""Changing the text key beside what has left, and what has been damaged."""

from typing import LiteralString
from uuid import UUID, uuid4

import pytest
from psycopg import AsyncConnection

from likewise.db import text_key_rotation
from likewise.db.jobs import TextGone
from likewise.db.pool import Pool
from likewise.db.text_key import source_of
from likewise.db.text_key_rotation import RotationOutcome, TextUnreadable
from likewise.kind import Policy
from likewise.library import Likewise
from likewise.settings import Settings
from likewise.testing import DatabaseUrls
from tests.conftest import Opener


async def as_owner(database: DatabaseUrls, statement: LiteralString) -> None:
    async with await AsyncConnection.connect(database.owner, autocommit=True) as connection:
        await connection.execute("SET search_path = likewise")
        await connection.execute(statement)


async def rotate(settings: Settings, *, lost: bool = False) -> RotationOutcome:
    assert settings.database_url is not None
    pool = await Pool(settings.database_url, max_size=1).open()
    try:
        return await text_key_rotation.rotate(pool, source_of(settings), lost=lost)
    finally:
        await pool.close()


async def a_task(lw: Likewise) -> UUID:
    """A task with an input that waits for nobody."""
    job = uuid4()
    async with lw.runtime.pool.tenant(await lw.tenant()) as tx:
        await lw.runtime.tasks.add(tx, job, "try", b"input")
    return job


async def test_a_task_that_has_ended_is_in_nobodys_way(settings: Settings, open_likewise: Opener) -> None:
    async with open_likewise(worker=False) as lw:
        # Given one that was cancelled, whose input has left, and one that waits
        await lw.jobs.cancel(await lw.tenant(), await a_task(lw))
        await a_task(lw)
        # Then
        rotated = await rotate(settings)
        assert (rotated.sealed.tasks, rotated.lost.tasks) == (1, 0)


async def test_a_task_whose_input_was_given_up_is_to_be_sent_again(
    settings: Settings, open_likewise: Opener, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as lw:
        job = await a_task(lw)
        (settings.data_dir / "text.key").unlink()
        await rotate(settings, lost=True)
        view = await lw.jobs.get(await lw.tenant(), job)
        assert (view.status, view.error and view.error.code) == ("FAILED", "text_key_lost")
        with pytest.raises(TextGone):
            await lw.jobs.retry(await lw.tenant(), job)


async def test_what_was_damaged_is_named_and_can_be_given_up(
    settings: Settings, open_likewise: Opener, database: DatabaseUrls
) -> None:
    async with open_likewise(worker=False) as lw:
        # Given a key of words of which a byte is another
        await lw.collections.create(await lw.tenant(), "bare", policy=Policy(keep_text=False))
        await as_owner(database, "UPDATE collections SET terms_key = set_byte(terms_key, 30, 0) || '\\x00'")
        # Then
        with pytest.raises(TextUnreadable, match="The key of a collection's words"):
            await rotate(settings)
        assert (await rotate(settings, lost=True)).lost.collections == 1
        assert (await rotate(settings)).sealed.collections == 1
