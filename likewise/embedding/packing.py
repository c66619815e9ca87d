"""Texts of a call to batches of the model."""

from collections.abc import Sequence


def pack(lengths: Sequence[int], limit: int) -> list[list[int]]:
    """Places of texts in batches of neighbours by length, whose padded size stays within `limit` tokens."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > limit:
            batches.append(batch)
            batch = []
        batch.append(place)
    return [*batches, batch] if batch else batches
