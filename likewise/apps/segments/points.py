"""The ids of segments: the same on every server and for every text, so that whoever stores one can work them out."""

from collections.abc import Iterable
from uuid import UUID, uuid5

# Of our own, made once; a change would give every segment another id.
POINTS = UUID("6f0d1a52-93b6-5d0e-8f2b-0f3a7f6c1d44")
RECORDS = UUID("a2f6c1f0-4c0e-5b6f-9d53-7f4f1f1f0b7e")


def point_id(tenant: str, asset_id: str, segment_id: str, model: str, model_ver: str) -> str:
    """The id that callers know a segment by; `model` is the id on the hub."""
    return str(_named(POINTS, (tenant, asset_id, segment_id, model, model_ver)))


def record_id(asset_id: str, segment_id: str) -> UUID:
    """The id of its record, within the collection of a tenant and a model: one for all versions of the model."""
    return _named(RECORDS, (asset_id, segment_id))


def _named(namespace: UUID, parts: Iterable[str]) -> UUID:
    """Each part with its length before it: ("a", "bc") and ("ab", "c") are two names."""
    return uuid5(namespace, "".join(f"{len(part)}:{part}" for part in parts))
