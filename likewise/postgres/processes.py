"""Which processes are Postgres on a data directory: from /proc, or from `ps` and `lsof` where there is none."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")
HAS_PROC = (PROC / "self" / "stat").exists()


def is_postgres_on(pid: int, data: Path) -> bool:
    """Whether a process lives, is Postgres and works in that data directory; a number may have a new owner by now."""
    if HAS_PROC:
        return _link(pid, "cwd") == str(data) and _program(pid) == "postgres"
    command = _output_of("ps", "-o", "command=", "-p", str(pid))
    return "postgres" in command and str(data) in command


def postgres_processes(data: Path, held_file: Path) -> list[int]:
    """The processes of Postgres on that data directory, orphans of a killed postmaster too.

    Where there is no /proc they are known by `held_file`, which they all keep open.
    """
    if HAS_PROC:
        return [pid for pid in _all_processes() if is_postgres_on(pid, data)]
    others = (int(line) for line in _output_of("lsof", "-t", str(held_file)).split() if line.isdigit())
    return [pid for pid in others if "postgres" in _output_of("ps", "-o", "comm=", "-p", str(pid))]


def _all_processes() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _program(pid: int) -> str:
    # A program that was upgraded under its process is shown as "postgres (deleted)".
    return Path(_link(pid, "exe").removesuffix(" (deleted)")).name


def _link(pid: int, name: str) -> str:
    try:
        return str((PROC / str(pid) / name).readlink())
    except OSError:  # gone, a zombie, or another user's
        return ""


def _output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
