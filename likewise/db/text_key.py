"""The text key of a process: its source, its agreement with the database's, and its change."""

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from psycopg.sql import SQL

from likewise.db.failures import KeyChanging
from likewise.db.pool import Pool
from likewise.db.transaction import Tx
from likewise.errors import TextKeyUnavailable, WrongTextKey
from likewise.postgres.filelock import open_lock
from likewise.sealing import Sealing, TextKey, key_from_base64, new_key
from likewise.settings import Settings

RECORDED = SQL("SELECT id FROM likewise.text_key")
RECORD = SQL("SELECT record_text_key(%s)")
# Whoever writes what is sealed shares this lock; who changes the key has it alone. Nobody waits for it with a
# connection in hand.
SHARE = SQL("SELECT pg_try_advisory_xact_lock_shared(7722, 0)")

FILE_NAME = "text.key"
# A key takes 45 bytes.
MAX_FILE_BYTES = 1_024
READ_BY_OTHERS = stat.S_IRWXG | stat.S_IRWXO
OR_SETTING = "or set LIKEWISE_TEXT_KEY."
IF_LOST = "If the key is lost for good, run `likewise keys rotate-text --lost`."


class SettingKeys:
    """The keys of LIKEWISE_TEXT_KEY and LIKEWISE_TEXT_KEY_NEXT; without a word from the database the first counts."""

    name = "LIKEWISE_TEXT_KEY"

    def __init__(self, key: str, following: str | None) -> None:
        self._key = key_from_base64(key)
        self._next = None if following is None else key_from_base64(following)

    def keys(self, *, even_broken: bool = False) -> tuple[TextKey, ...]:
        """Return both keys, as far as they are set."""
        return (self._key,) if self._next is None else (self._key, self._next)

    def make(self) -> TextKey:
        """Return the key that is set."""
        return self._key

    def make_next(self, recorded: bytes | None, *, even_broken: bool) -> TextKey:
        """Return LIKEWISE_TEXT_KEY_NEXT; where the recorded key is lost, LIKEWISE_TEXT_KEY may be the new one."""
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
        """Leave it to the administrator to move the next key to its place."""

    def alone(self) -> contextlib.AbstractContextManager[bool]:
        """Rely on the database's lock, which is enough."""
        return contextlib.nullcontext(True)


class TextKeyFile:
    """The key in a file of the data folder: made once, read by its owner alone, and changed in two steps.

    `text.key` is the key in use. While it is changed `text.key.next` lies beside it, written before the database hears
    of the new key and renamed after: whatever of this is cut off, the key that the database knows is in one of the two.
    """

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._next = data_dir / f"{FILE_NAME}.next"
        self._lock = data_dir / f"{FILE_NAME}.lock"
        self.name = str(self._path)

    def keys(self, *, even_broken: bool = False) -> tuple[TextKey, ...]:
        """Return the key in use and the one that is to replace it, as far as they are there.

        WrongTextKey if others may read them, or if a file holds no key and that does not matter (`even_broken`).
        """
        # In this order: meanwhile the second may take the first one's name.
        found = [_read(path, even_broken=even_broken) for path in (self._next, self._path)]
        return tuple(key for key in reversed(found) if key is not None)

    def make(self) -> TextKey:
        """Make the key, unless another process was first; return the one that is there then."""
        with _explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_name(f".{FILE_NAME}.{secrets.token_hex(8)}")
            _write(scratch)
            try:
                # Unlike a rename this fails if it is there, and unlike an exclusive open it is never seen half written.
                with contextlib.suppress(FileExistsError):
                    os.link(scratch, self._path)
            finally:
                scratch.unlink()
            _sync_folder(self._path.parent)
        made = _read(self._path, even_broken=False)
        if made is None:
            raise WrongTextKey(f"{self._path} went as it was made.", "Leave it in its place.")
        return made

    def make_next(self, recorded: bytes | None, *, even_broken: bool) -> TextKey:
        """Make the key that is to replace the one in use; the caller is alone, and nothing is sealed with it as yet."""
        if recorded is not None:
            self.settle(recorded, even_broken=even_broken)
        with _explained(self._next):
            self._next.parent.mkdir(parents=True, exist_ok=True)
            _write(self._next)
            _sync_folder(self._next.parent)
        made = _read(self._next, even_broken=False)
        assert made is not None
        return made

    def settle(self, recorded: bytes, *, even_broken: bool = False) -> None:
        """End a change that was cut off after the database had heard of it; the caller is alone."""
        made = _read(self._next, even_broken=even_broken)
        if made is not None and made.id == recorded:
            with _explained(self._path):
                self._next.replace(self._path)
                _sync_folder(self._path.parent)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep others from changing the key of this folder until the end of the block; False if one is at it."""
        with _explained(self._lock):
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            lock = contextlib.ExitStack()
            mine = lock.enter_context(open_lock(self._lock)).try_exclusive()
        with lock:
            yield mine


# Each has a name, and the same five methods.
TextKeySource = SettingKeys | TextKeyFile


def _read(path: Path, *, even_broken: bool) -> TextKey | None:
    """Read the key in a file; None if there is no file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink():
            raise _not_plain(path) from None
        why = (error.strerror or "").lower()
        raise WrongTextKey(f"{path} cannot be read: {why}.", f"Make it readable for this user, {OR_SETTING}") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise _not_plain(path)
        if mode & READ_BY_OTHERS:
            raise WrongTextKey(f"{path} may be read by others than its owner.", f"Run: chmod 600 {path}")
        written = os.read(descriptor, MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    try:
        return key_from_base64(written.decode("ascii").strip())
    except ValueError:
        if even_broken:
            return None
        raise WrongTextKey(f"{path} holds no key: 32 bytes in base64.", f"Restore it, {OR_SETTING} {IF_LOST}") from None


def _not_plain(path: Path) -> WrongTextKey:
    return WrongTextKey(f"{path} is no plain file.", f"Put the key itself there, in a file of mode 0600, {OR_SETTING}")


def _write(path: Path) -> None:
    """Write a new key to a new file, on the disk when this returns."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(new_key() + "\n")
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = (error.strerror or "it cannot be written").lower()
        fix = "Set LIKEWISE_DATA_DIR to a folder that this user can write, or set LIKEWISE_TEXT_KEY."
        raise WrongTextKey(f"The text key {path} cannot be made: {why}.", fix) from None


def source_of(settings: Settings) -> TextKeySource:
    """Return the source of the text key that these settings name."""
    if settings.text_key is not None:
        return SettingKeys(settings.text_key, settings.text_key_next)
    if settings.text_key_next is not None:
        raise WrongTextKey(
            "LIKEWISE_TEXT_KEY_NEXT is set and LIKEWISE_TEXT_KEY is not.",
            "Set that to what text.key in the data folder holds, or leave both out.",
        )
    return TextKeyFile(settings.data_dir)


def chosen(source: TextKeySource, keys: Sequence[TextKey], recorded: bytes) -> TextKey:
    """Choose the key that the database knows; WrongTextKey with the fix if it is not at hand."""
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
    """The text key of this process, which follows when it is changed."""

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
    """Return the key that the database knows by now, if any, and those at hand."""
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
