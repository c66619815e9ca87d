"""The text key of a process: where it comes from, that it is the database's own, and what happens when that changes."""

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Protocol

from psycopg.sql import SQL

from likewise.db.failures import KeyChanging
from likewise.db.pool import Pool
from likewise.db.text_key_file import IF_LOST, TextKeyFile
from likewise.db.transaction import Tx
from likewise.errors import TextKeyUnavailable, WrongTextKey
from likewise.sealing import Sealing, TextKey, key_from_base64
from likewise.settings import Settings

RECORDED = SQL("SELECT id FROM likewise.text_key")
RECORD = SQL("SELECT record_text_key(%s)")
# Whoever writes what is sealed shares this lock; who changes the key has it alone. Nobody waits for it with a
# connection in hand.
SHARE = SQL("SELECT pg_try_advisory_xact_lock_shared(7722, 0)")


class TextKeySource(Protocol):
    """Where a process has its text keys from: the settings, or a file."""

    name: str

    def keys(self, *, even_broken: bool = False) -> tuple[TextKey, ...]:
        """Those at hand now; without a word from the database the first counts."""
        ...

    def make(self) -> TextKey:
        """The first key of a database that has none."""
        ...

    def make_next(self, recorded: bytes | None, *, even_broken: bool) -> TextKey:
        """The key that is to replace the recorded one; who calls is alone."""
        ...

    def settle(self, recorded: bytes, *, even_broken: bool = False) -> None:
        """Note that this one is in use now, for good; who calls is alone."""
        ...

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """Whether nobody else changes the key from this source, until the end of the block."""
        ...


class SettingKeys:
    """The keys of LIKEWISE_TEXT_KEY and LIKEWISE_TEXT_KEY_NEXT."""

    name = "LIKEWISE_TEXT_KEY"

    def __init__(self, key: str, following: str | None) -> None:
        self._key = key_from_base64(key)
        self._next = None if following is None else key_from_base64(following)

    def keys(self, *, even_broken: bool = False) -> tuple[TextKey, ...]:
        """Both, as far as they are set."""
        return (self._key,) if self._next is None else (self._key, self._next)

    def make(self) -> TextKey:
        """The one that is set."""
        return self._key

    def make_next(self, recorded: bytes | None, *, even_broken: bool) -> TextKey:
        """LIKEWISE_TEXT_KEY_NEXT; where the recorded key is lost, LIKEWISE_TEXT_KEY may be the new one itself."""
        if even_broken and self._next is None and self._key.id != recorded:
            return self._key
        if self._next is None:
            raise WrongTextKey(
                "LIKEWISE_TEXT_KEY_NEXT is not set.", "Set it to the new key, as `openssl rand -base64 32` makes one."
            )
        if self._next.id == recorded:
            raise WrongTextKey(
                "LIKEWISE_TEXT_KEY_NEXT is the key in use already.",
                "If it has replaced LIKEWISE_TEXT_KEY, set that to it; else set it to a new key.",
            )
        return self._next

    def settle(self, recorded: bytes, *, even_broken: bool = False) -> None:
        """Whoever set them moves the next one to its place."""

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """The database's lock is enough."""
        return contextlib.nullcontext(True)


def source_of(settings: Settings) -> TextKeySource:
    """Where these settings have the text key from."""
    if settings.text_key is not None:
        return SettingKeys(settings.text_key, settings.text_key_next)
    if settings.text_key_next is not None:
        raise WrongTextKey(
            "LIKEWISE_TEXT_KEY_NEXT is set and LIKEWISE_TEXT_KEY is not.",
            "Set that to what text.key in the data folder holds, or leave both out.",
        )
    return TextKeyFile(settings.data_dir)


def chosen(source: TextKeySource, keys: Sequence[TextKey], recorded: bytes) -> TextKey:
    """The key that the database knows; WrongTextKey with the mend if it is not at hand."""
    for key in keys:
        if key.id == recorded:
            return key
    if not keys:
        raise WrongTextKey(
            f"The database has a text key, and {source.name} is not there.",
            f"Bring it from where the database was used first, or set LIKEWISE_TEXT_KEY. {IF_LOST}",
        )
    raise WrongTextKey(
        f"{source.name} is another key than the database's.",
        f"Bring the right one from where the database was used first. {IF_LOST}",
    )


class TextKeys:
    """The text key of this process, which goes along when it is changed."""

    def __init__(self, source: TextKeySource, sealing: Sealing) -> None:
        self.sealing = sealing
        self._source = source

    @classmethod
    async def open(cls, settings: Settings, pool: Pool) -> "TextKeys":
        """Take the key that the database knows. One that is at hand where it knows none is recorded.

        Where there is none either, it is made when something is first sealed: who never does needs none.

        Raises:
            WrongTextKey: it is not at hand, or others may read it.
        """
        source = source_of(settings)
        async with pool.nobody() as tx:
            try:
                key, keys = await _agreed(source, tx)
            except WrongTextKey:
                # It may have been changed between the two looks.
                key, keys = await _agreed(source, tx)
        if key is not None and key is not keys[0]:
            _settle(source, key.id)
        return cls(source, Sealing([key, *keys] if key else [], lambda: _at_hand(source)))

    async def hold(self, tx: Tx) -> None:
        """Keep the key from being changed until this transaction ends: to be called before anything is sealed in it.

        Raises:
            KeyChanging: it is being changed; the whole transaction is to be tried again.
            TextKeyUnavailable: it was, and this process cannot have the new one; or there is none and none can be made.
        """
        shared, known = await tx.together((SHARE, []), (RECORDED, []))
        if not shared[0][0]:
            raise KeyChanging
        recorded = known[0][0] if known else await self._first(tx)
        if not self.sealing.switch(recorded):
            raise TextKeyUnavailable

    async def _first(self, tx: Tx) -> bytes:
        """Make the first key and have it recorded, unless another process was first; its id."""
        try:
            key = await asyncio.to_thread(self._source.make)
        except WrongTextKey as error:
            raise TextKeyUnavailable(error.detail) from None
        row = await tx.row(RECORD, [key.id])
        return row[0] if row else key.id


async def _agreed(source: TextKeySource, tx: Tx) -> tuple[TextKey | None, Sequence[TextKey]]:
    """The key that the database knows by now, if any, and those at hand."""
    # In this order: a key is there before the database knows it.
    known = await tx.row(RECORDED)
    keys = source.keys()
    if known is None and keys:
        known = await tx.row(RECORD, [keys[0].id])
    return chosen(source, keys, known[0]) if known else None, keys


def _at_hand(source: TextKeySource) -> tuple[TextKey, ...]:
    with contextlib.suppress(WrongTextKey):
        return source.keys()
    return ()


def _settle(source: TextKeySource, recorded: bytes) -> None:
    """End a change of the key that was cut off, unless somebody is at it."""
    with contextlib.suppress(WrongTextKey), source.alone() as alone:
        if alone:
            source.settle(recorded)
