"""The text key in a file of the data folder: made once, read by its owner alone, and changed in two steps.

`text.key` is the key in use. While it is changed `text.key.next` lies beside it, written before the database hears of
the new key and renamed after: whatever of this is cut off, the key that the database knows is in one of the two.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from likewise.errors import WrongTextKey
from likewise.postgres.filelock import open_lock
from likewise.sealing import TextKey, key_from_base64, new_key

NAME = "text.key"
# A key takes 45 bytes.
MAX_FILE_BYTES = 1_024
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OR_SETTING = "or set LIKEWISE_TEXT_KEY."
IF_LOST = "If the key is lost for good, run `likewise keys rotate-text --lost`."


class TextKeyFile:
    """The key of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / NAME
        self._next = data_dir / f"{NAME}.next"
        self._lock = data_dir / f"{NAME}.lock"
        self.name = str(self._path)

    def keys(self, *, even_broken: bool = False) -> tuple[TextKey, ...]:
        """The key in use and the one that is to replace it, as far as they are there.

        WrongTextKey if others may read them, or if a file holds no key and that does not matter (`even_broken`).
        """
        # In this order: meanwhile the second may take the first one's name.
        found = [_read(path, even_broken=even_broken) for path in (self._next, self._path)]
        return tuple(key for key in reversed(found) if key is not None)

    def make(self) -> TextKey:
        """Make the key, unless another process was first; returns the one that is there then."""
        with _explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_name(f".{NAME}.{secrets.token_hex(8)}")
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
        """Make the key that is to replace the one in use; who calls is alone, and nothing is sealed with it as yet."""
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
        """End a change that was cut off after the database had heard of it; who calls is alone."""
        made = _read(self._next, even_broken=even_broken)
        if made is not None and made.id == recorded:
            with _explained(self._path):
                self._next.replace(self._path)
                _sync_folder(self._path.parent)

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else changes the key of this folder; if so, nobody does until the end of the block."""
        with _explained(self._lock):
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            lock = contextlib.ExitStack()
            mine = lock.enter_context(open_lock(self._lock)).try_exclusive()
        with lock:
            yield mine


def _read(path: Path, *, even_broken: bool) -> TextKey | None:
    """The key in a file; None if there is no file."""
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
        if mode & OTHERS:
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
    """A new key in a new file, on the disk when this returns."""
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
        mend = "Set LIKEWISE_DATA_DIR to a folder that this user can write, or set LIKEWISE_TEXT_KEY."
        raise WrongTextKey(f"The text key {path} cannot be made: {why}.", mend) from None
