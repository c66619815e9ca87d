"""Reading of `.safetensors` files: a JSON header, then raw numbers. No code in such a file is ever run."""

import json
import math
import mmap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from likewise.embedding.graphs.architectures import broken

Float32 = npt.NDArray[np.float32]

_HEADER_LIMIT = 100 * 2**20  # the format's own limit
_DTYPES: Mapping[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "BF16": np.uint16}


class Tensors:
    """The float tensors of one file, mapped into memory and read on demand.

    `content` is the whole file, so that its checksum is of the very bytes that are read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                if not path.stat().st_size:
                    raise broken(self._path, "is empty")
                self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise broken(self._path, f"cannot be read ({error.strerror})") from error
        self._header, self._start = self._read_header()

    def __contains__(self, name: object) -> bool:
        return name in self._header

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._header)

    @property
    def count(self) -> int:
        """Numbers in all tensors; 0 of those whose shape is none."""
        shapes = [entry.get("shape") for entry in self._header.values() if isinstance(entry, dict)]
        return sum(math.prod(shape) for shape in shapes if isinstance(shape, list) and all(map(_is_size, shape)))

    def read(self, name: str, shape: Sequence[int | None] | None = None) -> Float32:
        """Read one tensor as float32; ModelUnavailable if it is not there, not of floats, or not of that shape.

        None in a shape stands for any number.
        """
        entry = self._header.get(name)
        if entry is None:
            raise broken(self._path, f"has no tensor `{name}`")
        raw = self._raw(name, entry)
        if shape is not None and not _fits(raw.shape, shape):
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise broken(
                self._path, f"has `{name}` of {' x '.join(map(str, raw.shape))} where config.json asks for {wanted}"
            )
        return _as_float32(raw, entry["dtype"])

    def _raw(self, name: str, entry: Any) -> npt.NDArray[Any]:
        try:
            dtype = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            count = (end - begin) // np.dtype(dtype).itemsize
            return np.frombuffer(self.content, dtype, count, self._start + begin).reshape(entry["shape"])
        except (KeyError, OverflowError, TypeError, ValueError):  # of too few bytes frombuffer says ValueError
            raise broken(self._path, f"is cut off or has no float tensor `{name}`") from None

    def _read_header(self) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self.content[:8], "little")
        header = None
        if length <= min(_HEADER_LIMIT, len(self.content) - 8):
            with suppress(ValueError, RecursionError):
                header = json.loads(self.content[8 : 8 + length])
        if not isinstance(header, dict):
            raise broken(self._path, "is not a safetensors file")
        header.pop("__metadata__", None)
        return header, 8 + length


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value >= 0


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return len(shape) == len(wanted) and all(asked in (None, size) for size, asked in zip(shape, wanted, strict=True))


def _as_float32(raw: npt.NDArray[Any], dtype: str) -> Float32:
    if dtype == "BF16":  # the upper half of a float32
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32, copy=False)
