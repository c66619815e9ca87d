"""The size of this machine: memory and cores, or as much of them as its container may use."""

import os
from contextlib import suppress
from pathlib import Path


def memory_limit() -> int:
    """Return the bytes of memory of this machine, or of the container that it is."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(path).read_text()))
    return min(limits)


def home_folder() -> Path | None:
    """Return the user's home folder; None if HOME is not set and the system knows no user of this id."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def processors() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cores() -> int:
    """Return the number of cores that this process may keep busy, as the share of its container allows."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or `max`
        return processors()
