"""Vectors in fewer bytes, for those who keep many."""

import numpy as np
import numpy.typing as npt

from likewise.embedding.provider import Matrix

Bytes = npt.NDArray[np.int8]
Bits = npt.NDArray[np.uint8]
Scales = npt.NDArray[np.float32]

_LARGEST = 127


def int8(vectors: Matrix) -> tuple[Bytes, Scales]:
    """Each number as a byte: int8 (n, d) and float32 (n,), which times the bytes gives about the vectors.

    The scale is the vector's own, so that its largest number becomes 127: all of the range is used.
    """
    scales = (np.abs(vectors).max(axis=1) / _LARGEST).astype(np.float32)
    return np.rint(vectors / scales[:, None]).astype(np.int8), scales


def binary(vectors: Matrix) -> tuple[Bits, Scales]:
    """The sign of each number as a bit: uint8 (n, ceil(d / 8)), the first number highest, and float32 (n,).

    Signs as +1 and -1, times the scale, times another vector are about the cosine of both, and no smaller or larger on
    average (Gao and Long 2024, https://arxiv.org/abs/2405.12497): the scale is 1 by the sum of the numbers without
    their signs, so that a vector times its own signs is 1.
    """
    return np.packbits(vectors > 0, axis=1), (1 / np.abs(vectors).sum(axis=1)).astype(np.float32)
