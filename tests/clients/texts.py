"""What the clients embed, and how alike two vectors are."""

from collections.abc import Sequence

import numpy as np

PUMP = "the pump fails when it is cold"
PARAPHRASE = "freezing breaks the pump"
INVOICES = "invoices are sent on the first of the month"
TEXTS = (PUMP, PARAPHRASE, INVOICES)


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """1 for the same direction, 0 for nothing in common."""
    one, other = np.asarray(left), np.asarray(right)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
