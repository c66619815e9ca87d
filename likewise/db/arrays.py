"""Arrays in Postgres's own binary form: psycopg looks at each element of a list several times before it sends it."""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import AsyncConnection
from psycopg.adapt import Dumper
from psycopg.pq import Format

BYTEA_OID, INT8_OID, TEXT_OID, INT8_ARRAY_OID = 17, 20, 25, 1016
# As `array_send` gives it: one dimension, whether nulls may follow, the elements' type, their number, the lower bound.
_HEAD = struct.Struct(">5i")
_SIZE = struct.Struct(">i")
_NULL = _SIZE.pack(-1)
_BIGINT = np.dtype([("size", ">i4"), ("number", ">i8")])


@dataclass(frozen=True)
class BinaryValue:
    """A value in Postgres's own binary form, of whatever type the statement wants in its place."""

    value: bytes


@dataclass(frozen=True)
class BigintArray(BinaryValue):
    """A `bigint[]` without nulls; thousands of ids come from one statement and go to the next without being read."""

    @classmethod
    def of(cls, numbers: Iterable[int]) -> "BigintArray":
        """Return the array of these numbers."""
        taken = np.fromiter(numbers, np.int64)
        elements = np.empty(len(taken), _BIGINT)
        elements["size"], elements["number"] = _BIGINT["number"].itemsize, taken
        return cls(_array(INT8_OID, len(taken), elements.tobytes()))

    def __len__(self) -> int:
        return max(0, len(self.value) - _HEAD.size) // _BIGINT.itemsize

    def numbers(self) -> NDArray[np.int64]:
        """Return the numbers, int64 (n,)."""
        elements = np.frombuffer(self.value, _BIGINT, len(self), _HEAD.size if len(self) else 0)
        return elements["number"].astype(np.int64)


def text_array(texts: Sequence[str | None]) -> BinaryValue:
    """Return a `text[]`."""
    elements = [_NULL if one is None else _SIZE.pack(len(text := one.encode())) + text for one in texts]
    return BinaryValue(_array(TEXT_OID, len(texts), b"".join(elements)))


def bytea_array(values: Sequence[bytes | None]) -> BinaryValue:
    """Return a `bytea[]`."""
    elements = [_NULL if one is None else _SIZE.pack(len(one)) + one for one in values]
    return BinaryValue(_array(BYTEA_OID, len(values), b"".join(elements)))


def _array(element: int, count: int, elements: bytes) -> bytes:
    # An empty array has no dimension.
    return _HEAD.pack(1, 1, element, count, 1) + elements if count else struct.pack(">3i", 0, 0, element)


class _BinaryValueDumper(Dumper):
    format = Format.BINARY
    oid = 0

    def dump(self, obj: BinaryValue) -> bytes:
        return obj.value


class _BigintArrayDumper(_BinaryValueDumper):
    oid = INT8_ARRAY_OID


def register_arrays(connection: AsyncConnection[Any]) -> None:
    """Let statements on this connection take values in their binary form."""
    connection.adapters.register_dumper(BinaryValue, _BinaryValueDumper)
    connection.adapters.register_dumper(BigintArray, _BigintArrayDumper)
