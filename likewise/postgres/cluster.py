"""The folder of the embedded Postgres: its parts, how it is made, and what makes it unusable."""

import errno
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from likewise.errors import ServerStartError, StorageFault
from likewise.machine import memory_limit, processors
from likewise.postgres.account import SystemUser, names_let_in, system_user_for
from likewise.postgres.binaries import Binaries
from likewise.postgres.tuning import HOST_BASED_AUTHENTICATION, configuration, identity_map, server_settings, sizes

SOCKET_NAME = ".s.PGSQL.5432"
MAX_SOCKET_PATH = 103  # macOS; Linux takes 107
# Folders that root makes open to the group of the user that runs Postgres; the data itself is that user's alone.
PRIVATE, GROUP_ENTERS = 0o700, 0o750
INITDB_OPTIONS = ("-E", "UTF8", "--data-checksums", "-U", "postgres", "--auth=peer", "--no-instructions")
_BREAKS_SHELL = re.compile(r'["\\$`\n\r]')
BUILTIN_LOCALE = (
    ("--locale-provider=builtin", "--locale=C.UTF-8"),
    # Where the C library knows no C.UTF-8.
    ("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"),
)
LIBRARY_LOCALE = (("--locale=C.UTF-8",), ("--locale=C",))


class Cluster:
    """The files of one embedded Postgres, under `postgres` in Likewise's data folder.

    `data` is the data directory of Postgres and belongs to the user that runs it. `lock` is held while someone starts
    or stops the server, `users` by each process that uses it, `running` by the server's own processes.
    """

    def __init__(self, data_dir: Path) -> None:
        self.home = (data_dir / "postgres").resolve()
        self.data = (self.home / "data").resolve()
        self.log = self.home / "log"
        self.lock = self.home / "lock"
        self.users = self.home / "users"
        self.running = self.home / "running"
        self.configuration = self.home / "postgresql.conf"

    @property
    def major(self) -> int | None:
        """The major version of Postgres that made the data; None if there is none yet."""
        try:
            return int((self.data / "PG_VERSION").read_text())
        except FileNotFoundError:
            return None

    @property
    def is_there(self) -> bool:
        """True if Likewise has made or begun this cluster before."""
        return self.lock.exists()

    def refuse_unusable_path(self) -> None:
        """Refuse a folder that is a file, or whose name initdb's own shell command would not survive."""
        if _BREAKS_SHELL.search(str(self.home)):
            raise ServerStartError(
                'LIKEWISE_DATA_DIR has a character in its path that Postgres cannot take: ", \\, $, ` or a line break. '
                "Set it to another folder."
            )
        # Unlike Path.exists, this is false where one may not look.
        nearest = next((place for place in (self.home, *self.home.parents) if os.path.lexists(place)), self.home)
        if nearest.is_file():
            raise ServerStartError(f"LIKEWISE_DATA_DIR leads through {nearest}, which is a file. Set it to a folder.")

    def account(self) -> SystemUser:
        """Return the user that runs Postgres here."""
        return system_user_for(self.data, self.home)

    def make_home(self, account: SystemUser) -> None:
        """Make the folder and its lock files; refuse one that is someone else's or out of the account's reach."""
        self._refuse_unreachable(account)
        for folder in (*reversed(self.home.parents), self.home):
            if not folder.exists():
                folder.mkdir(exist_ok=True)
                if not account.is_ours:
                    folder.chmod(0o755)
        if any(self.home.iterdir()) and not self.is_there:
            raise ServerStartError(
                f"{self.home} has files that are not Likewise's. Move them away, "
                "or set LIKEWISE_DATA_DIR to another folder."
            )
        self._close_home(account)
        for path in (self.lock, self.users, self.running, self.log):
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o640))
            account.own(path)

    def make_data(self, binaries: Binaries, account: SystemUser, *, durable: bool) -> None:
        """Make the data directory beside its place and move it there whole, so that a kill leaves none or all."""
        for left in self.home.glob("data.new-*"):
            shutil.rmtree(left, ignore_errors=True)
        # A name of its own: the initdb of a process that was killed may still be at work in another.
        scratch = Path(tempfile.mkdtemp(prefix="data.new-", dir=self.home))
        account.own(scratch)
        _initdb(binaries, account, scratch, durable=durable)
        scratch.rename(self.data)
        _sync_folder(self.home)

    def refuse_foreign_data(self, account: SystemUser) -> None:
        """Refuse a data directory that Postgres could not or should not open."""
        if not self.data.exists():
            return
        if self.major is None:
            raise ServerStartError(f"{self.data} is no data directory of Postgres. Move it away or restore it.")
        if self.data.stat().st_uid != account.uid:
            raise ServerStartError(
                f"{self.data} belongs to another user than {account.name}. Run Likewise as that user or as root, "
                "or set LIKEWISE_DATA_DIR to another folder."
            )

    def write_configuration(self, account: SystemUser, socket_folder: Path, *, durable: bool) -> None:
        """Write the settings of this version of Likewise over those of the last start."""
        hba, ident = self.home / "pg_hba.conf", self.home / "pg_ident.conf"
        settings = server_settings(socket_folder, durable=durable)
        _replace(hba, HOST_BASED_AUTHENTICATION)
        _replace(ident, identity_map(names_let_in(account)))
        _replace(self.configuration, configuration({**settings, "hba_file": str(hba), "ident_file": str(ident)}))

    def socket_folder(self, account: SystemUser) -> Path:
        """Make a private folder for the socket: beside the data, or in /tmp if that path takes no sockets."""
        beside = self.home / "socket"
        if len(os.fsencode(beside / SOCKET_NAME)) <= MAX_SOCKET_PATH:
            _make_private(beside, account)
            if _takes_sockets(beside):
                return beside
        digest = sha256(os.fsencode(self.home)).hexdigest()[:12]
        in_tmp = Path("/tmp") / f"likewise-{account.uid}-{digest}"  # noqa: S108 - owner and mode are checked
        _make_private(in_tmp, account)
        return in_tmp

    def _close_home(self, account: SystemUser) -> None:
        if self.home.stat().st_uid != os.geteuid():
            return  # root at a user's folder, or that user at root's
        if not account.is_ours:
            os.chown(self.home, -1, account.gid)
        self.home.chmod(PRIVATE if account.is_ours else GROUP_ENTERS)

    def _refuse_unreachable(self, account: SystemUser) -> None:
        nearest = next(folder for folder in (self.home, *self.home.parents) if folder.exists())
        if not account.is_ours and not account.may_enter(nearest.parent if nearest == self.home else nearest):
            raise ServerStartError(
                f"As root, Likewise runs Postgres as the user {account.name}, who may not enter {nearest}. "
                "Set LIKEWISE_DATA_DIR to a folder that every user can reach, such as /var/lib/likewise."
            )


@contextmanager
def explained(place: Path) -> Iterator[None]:
    """Turn an error of the file system into one sentence with a fix."""
    try:
        yield
    except OSError as error:
        raise _explanation(error, place) from error


def disk_full(place: Path) -> StorageFault:
    """Return the error for a disk without space."""
    return StorageFault(
        f"The disk of {place} is full. Free some space or set LIKEWISE_DATA_DIR to another disk.",
        public_detail="The disk of the database is full. Free some space on it.",
    )


def server_environment() -> dict[str, str]:
    """Return the environment of Postgres's programs: no PG* variable of ours, English messages, its libraries."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return {"PATH": os.defpath, **kept, "LC_ALL": "C", "TZ": "UTC"}


def _explanation(error: OSError, place: Path) -> ServerStartError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(place)
    kind = StorageFault if error.errno in (errno.EIO, errno.EROFS) else ServerStartError
    return kind(_sentence(error, place))


def _sentence(error: OSError, place: Path) -> str:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{error.filename or place} cannot be written by this user ({error.strerror}). "
            "Set LIKEWISE_DATA_DIR to a folder that can."
        )
    return f"{error.filename or place} cannot be used: {error.strerror}. Set LIKEWISE_DATA_DIR to another folder."


def _initdb(binaries: Binaries, account: SystemUser, folder: Path, *, durable: bool) -> None:
    options = [f"--pgdata={folder}", *INITDB_OPTIONS, *([] if durable else ["--no-sync"])]
    if binaries.major >= 16:  # those before take no settings
        # Its own choice is /dev/shm, and where that is small it says that the disk is full.
        kind = sizes(memory_limit(), processors())["dynamic_shared_memory_type"]
        options += ["-c", f"dynamic_shared_memory_type={kind}"]
    said = ""
    for locale in BUILTIN_LOCALE if binaries.major >= 17 else LIBRARY_LOCALE:
        done = subprocess.run(  # noqa: S603
            [binaries.folder / "initdb", *options, *locale],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=server_environment(),
            start_new_session=True,  # Ctrl-C is ours to handle
            check=False,
            umask=0o077,
            **account.spawn_options,
        )
        if done.returncode == 0:
            return
        said = done.stderr
        if "locale" not in said:
            break
    raise _initdb_error(said, folder)


def _initdb_error(said: str, folder: Path) -> ServerStartError:
    if "shared memory" in said:
        return ServerStartError(
            "This machine has too little shared memory for Postgres. Give it more: `--shm-size=256m` for a container, "
            "a larger kernel.shmmax elsewhere."
        )
    if "No space left on device" in said or "Disk quota exceeded" in said:
        return disk_full(folder)
    lines = [line for line in said.splitlines() if "error" in line.lower() or "fatal" in line.lower()]
    reason = lines[0] if lines else "no reason given"
    return ServerStartError(f"Postgres could not make its data directory {folder}: {reason}")


def _replace(path: Path, text: str) -> None:
    if not os.access(path.parent, os.W_OK) and path.exists():
        return  # root's folder, and this is the user that runs Postgres: root's configuration serves
    scratch = path.with_name(f".{path.name}.new")
    scratch.unlink(missing_ok=True)
    with scratch.open("x") as file:
        file.write(text)
    scratch.chmod(0o644)
    scratch.replace(path)


def _make_private(folder: Path, account: SystemUser) -> None:
    with suppress(FileExistsError):
        folder.mkdir(PRIVATE)
        account.own(folder)
    state = folder.lstat()
    if not folder.is_dir() or folder.is_symlink() or state.st_uid != account.uid or state.st_mode & 0o077:
        raise ServerStartError(
            f"{folder} is not a private folder (mode 0700) of the user {account.name}, as Postgres needs for its "
            "socket. Remove it or set LIKEWISE_DATA_DIR to another folder with a shorter path."
        )


def _takes_sockets(folder: Path) -> bool:
    """Try a socket: some shared folders of virtual machines and containers hold files but no sockets."""
    path = folder / ".try"
    with socket.socket(socket.AF_UNIX) as attempt, suppress(OSError):
        path.unlink(missing_ok=True)
        attempt.bind(str(path))
        path.unlink()
        return True
    return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
