"""Check this machine: Python, terminal, processor, clock, folder and disk."""

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from likewise.cli.doctor.finding import Finding, reason
from likewise.settings import Settings

# The model, its compiled form and an empty database take about 400 MB.
MIN_FREE_BYTES = 2**30
MIN_PYTHON = (3, 11)
# A clock may have been a little ahead, or in another zone, when this was installed.
INSTALLED_SECONDS = 2 * 86_400.0

CPU_FACTS = Path("/proc/cpuinfo")
# What makes local models fast, by the kernel's name for it.
FEATURES = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bf16", "amx_bf16": "AMX", "bf16": "bf16"}


def python() -> Finding:
    """Check the interpreter."""
    found = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding("python", found, "Install Python 3.11 or newer." if sys.version_info < MIN_PYTHON else None)


def terminal() -> Finding:
    """Check that every text can be printed."""
    encoding = sys.stdout.encoding or "unknown"
    if encoding.lower().replace("-", "") != "utf8":
        what = f"this locale prints in {encoding}, which not every text fits into"
        return Finding("locale", what, "export LC_ALL=C.UTF-8, or any other locale with UTF-8; unset PYTHONIOENCODING.")
    return Finding("locale", "prints UTF-8")


def processor() -> Finding:
    """Count the cores, and name what they can do for a model."""
    known = ", ".join(dict.fromkeys(FEATURES[flag] for flag in _flags() if flag in FEATURES))
    return Finding("processor", f"{os.cpu_count() or 1} cores{f' with {known}' if known else ''}")


def _flags() -> list[str]:
    try:
        lines = CPU_FACTS.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
    named = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    found = set(named.partition(":")[2].split())
    return [flag for flag in FEATURES if flag in found]


def clock(now: Callable[[], float] = time.time) -> Finding:
    """Check that this machine's clock can be right: it is not before what is on its own disk."""
    installed = Path(__file__).stat().st_mtime
    says = datetime.fromtimestamp(now(), UTC).isoformat(timespec="seconds")
    if now() < installed - INSTALLED_SECONDS:
        what = f"it says {says}, which is before Likewise was installed"
        return Finding("clock", what, "Set this machine's clock, as by timedatectl set-ntp true.")
    return Finding("clock", f"it says {says}")


def folder(settings: Settings) -> Finding:
    """Check that the data folder can be made and written."""
    place = settings.data_dir
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except (FileExistsError, NotADirectoryError):
        what = f"{place}: it, or a folder above it, is a file"
        return Finding("data folder", what, "Set LIKEWISE_DATA_DIR to a folder.")
    except OSError as error:
        return Finding("data folder", f"{place}: {reason(error)}", "Make it writable, or set LIKEWISE_DATA_DIR.")
    return Finding("data folder", f"{place} can be written")


def disk(settings: Settings) -> Finding:
    """Check that the data folder's disk has room."""
    places = (settings.data_dir, *settings.data_dir.parents)
    # Unlike Path.exists, this is false where one may not look.
    existing = next(place for place in places if os.path.exists(place))  # noqa: PTH110
    free = shutil.disk_usage(existing).free
    what = f"{free / 2**30:.1f} GiB free"
    return Finding("disk", what, None if free >= MIN_FREE_BYTES else "Free at least 1 GiB, or set LIKEWISE_DATA_DIR.")
