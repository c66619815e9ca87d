"""Ids of contents as Postgres writes them: thousands come from one statement and go to the next without being read."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

INT8_OID, INT8_ARRAY_OID = 20, 1016
# int8[]: one dimension (none if empty), no nulls, the elements' type, their number, the lower bound.
_HEAD = struct.Struct(">5i")
_EMPTY = struct.pack(">3i", 0, 0, INT8_OID)
_ELEMENT = np.dtype([("size", ">i4"), ("id", ">i8")])


@dataclass(frozen=True)
class ContentIds:
    """A list of ids in the binary format of `int8[]`, as `array_send` gives it."""

    wire: bytes

    @classmethod
    def of(cls, ids: Iterable[int]) -> "ContentIds":
        """Return the list of these ids."""
        numbers = np.fromiter(ids, np.int64)
        if not len(numbers):
            return cls(_EMPTY)
        elements = np.empty(len(numbers), _ELEMENT)
        elements["size"], elements["id"] = 8, numbers
        return cls(_HEAD.pack(1, 0, INT8_OID, len(numbers), 1) + elements.tobytes())

    def __len__(self) -> int:
        return max(0, len(self.wire) - _HEAD.size) // _ELEMENT.itemsize

    def numbers(self) -> NDArray[np.int64]:
        """Return the ids, int64 (n,)."""
        return np.frombuffer(self.wire, _ELEMENT, len(self), _HEAD.size if len(self) else 0)["id"].astype(np.int64)


class _ContentIdsDumper(Dumper):
    format = Format.BINARY
    oid = INT8_ARRAY_OID

    def dump(self, obj: ContentIds) -> Buffer | None:
        return obj.wire


def register(connection: AsyncConnection[tuple[object, ...]]) -> None:
    """Let statements on this connection take a ContentIds for an `int8[]`."""
    connection.adapters.register_dumper(ContentIds, _ContentIdsDumper)
