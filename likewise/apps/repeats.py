"""Batches in which an id comes twice."""

from collections.abc import Sequence

from likewise.errors import Fault, Invalid


def refuse_repeats(ids: Sequence[str], pointer: str, message: str) -> None:
    """Refuse texts with one id, of which none can be known to count: Invalid, with a fault for each repetition.

    Args:
        pointer: where an id is in the request, with `{}` for its place in the batch.
    """
    seen: set[str] = set()
    faults = []
    for place, one in enumerate(ids):
        if one in seen:
            faults.append(Fault(pointer.format(place), "duplicate_id", message))
        seen.add(one)
    if faults:
        raise Invalid(message, faults=faults)
