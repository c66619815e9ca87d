"""Vectors in less room: the first of their numbers, and numbers of fewer bytes."""

import hashlib

import numpy as np
import numpy.typing as npt

from likewise.embedding.provider import Matrix
from likewise.errors import Fault, Invalid

Bytes = npt.NDArray[np.int8]
Bits = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

_LARGEST = 127


def refuse_dimensions(model: str, dimension: int, dimensions: int, *, matryoshka: bool) -> None:
    """Raise Invalid unless the vectors of a model, of `dimension` numbers, can be shortened to `dimensions`."""
    if dimensions == dimension:
        return
    if not matryoshka:
        message = f"The vectors of {model} have {dimension} numbers and cannot be shortened."
    elif not 1 <= dimensions <= dimension:
        message = f"The vectors of {model} can have 1 to {dimension} numbers."
    else:
        return
    raise Invalid.at("/dimensions", message, "dimensions")


def shortened(vectors: Matrix, space: str, dimensions: int) -> tuple[Matrix, str]:
    """Return the first numbers of each vector, at unit length again, and their space.

    Matryoshka models are trained for it: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147. Invalid names the
    texts whose first numbers are all 0.
    """
    first = vectors[:, :dimensions]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    if not norms.all():
        message = "Of this text's vector the first numbers are all 0; ask for more of them."
        places = np.flatnonzero(norms[:, 0] == 0)
        raise Invalid(message, faults=[Fault(f"/texts/{place}", "text_failed", message) for place in places])
    return first / norms, hashlib.sha256(f"{space} the first {dimensions}".encode()).hexdigest()


def int8(vectors: Matrix) -> tuple[Bytes, Scales]:
    """Return each number as a byte: int8 (n, d) and float32 (n,); scale times bytes is about the vector.

    The scale is the vector's own, so that its largest number becomes 127: all of the range is used.
    """
    scales = (np.abs(vectors).max(axis=1) / _LARGEST).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def binary(vectors: Matrix) -> tuple[Bits, Scales]:
    """Return the sign of each number as a bit: uint8 (n, ceil(d / 8)), the first number highest, and float32 (n,).

    Signs as +1 and -1, times the scale, times another vector are about the cosine of both, and no smaller or larger on
    average (Gao and Long 2024, https://arxiv.org/abs/2405.12497): the scale is 1 by the sum of the numbers without
    their signs, so that a vector times its own signs is 1.
    """
    return np.packbits(vectors > 0, axis=1), (1 / np.abs(vectors).sum(axis=1)).astype(np.float32)
