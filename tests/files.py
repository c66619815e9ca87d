"""Bytes in the files of a folder."""

from collections.abc import Mapping
from pathlib import Path


def files_with(folder: Path, wanted: Mapping[str, bytes]) -> dict[str, list[str]]:
    """Which files have which of these bytes, by the names that they go by; links are not followed."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.is_symlink():
            continue
        try:
            read = path.read_bytes()
        except FileNotFoundError:  # Postgres has just removed it
            continue
        for name, value in wanted.items():
            if value in read:
                found.setdefault(name, []).append(str(path.relative_to(folder)))
    return found
