"""Fewer numbers of a vector, for models whose first numbers are a vector too."""

import hashlib

import numpy as np

from likewise.embedding.provider import Matrix
from likewise.errors import Fault, Invalid


def refuse_dimensions(model: str, dimension: int, wanted: int | None, *, matryoshka: bool) -> None:
    """Invalid unless a model's vectors, which have so many numbers, can have the wanted ones."""
    if wanted is None or wanted == dimension:
        return
    if not matryoshka:
        message = f"The vectors of {model} have {dimension} numbers and cannot be shortened."
    elif not 1 <= wanted <= dimension:
        message = f"The vectors of {model} can have 1 to {dimension} numbers."
    else:
        return
    raise Invalid.at("/dimensions", message, "dimensions")


def shortened(vectors: Matrix, space: str, wanted: int) -> tuple[Matrix, str]:
    """The first so many numbers of each vector, at unit length again, and the space that these are of.

    What Matryoshka models are trained for: Kusupati et al. 2022, https://arxiv.org/abs/2205.13147. Invalid names the
    texts of which that leaves nothing.
    """
    first = vectors[:, :wanted]
    norms = np.linalg.norm(first, axis=1, keepdims=True)
    if not norms.all():
        message = "Of this text's vector the first numbers are all 0; ask for more of them."
        places = np.flatnonzero(norms[:, 0] == 0)
        raise Invalid(message, faults=[Fault(f"/texts/{place}", "text_failed", message) for place in places])
    return first / norms, hashlib.sha256(f"{space} the first {wanted}".encode()).hexdigest()
