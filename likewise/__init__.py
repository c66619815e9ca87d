"""Likewise turns texts and records into vectors, keeps them, and finds what is alike."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from likewise.errors import LikewiseError
from likewise.settings import Settings

if TYPE_CHECKING:
    from likewise.library import Collection, Likewise, open  # noqa: A004 - the promised name is `likewise.open`

__all__ = ["Collection", "Likewise", "LikewiseError", "Settings", "open"]

_IN_LIBRARY = frozenset({"Collection", "Likewise", "open"})


def __getattr__(name: str) -> Any:
    # The library brings Postgres and OpenVINO along, which `likewise --help` has no use for.
    if name not in _IN_LIBRARY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("likewise.library"), name)
