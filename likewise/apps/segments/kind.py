"""The kind of segments, the fields of one beside its metadata, the names of their collections, and their ids."""

import re
from collections.abc import Iterable
from hashlib import sha256
from uuid import UUID, uuid5

from likewise.embedding.models import ModelSpec
from likewise.kind import Kind, Policy
from likewise.settings import Settings

METADATA = "metadata"
KIND = Kind(
    name="segments",
    indexed=("point_id", "segment_id"),
    aliases={"asset_id": "parent", "id": "point_id"},
    within=METADATA,
)
# What is kept of a segment beside its metadata, and answered.
OWN = ("point_id", "segment_id", "modality", "model", "model_ver", "job_id")
# Names that a collection's may end with; those of models may be folders.
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")

# Ids are the same on every server and for every text, so that whoever stores a segment can work them out. The
# namespaces are our own, made once; a change would give every segment another id.
POINTS = UUID("6f0d1a52-93b6-5d0e-8f2b-0f3a7f6c1d44")
RECORDS = UUID("a2f6c1f0-4c0e-5b6f-9d53-7f4f1f1f0b7e")


def collection_name(spec: ModelSpec) -> str:
    """Return the name of a model's collection; a folder's path, which no address has room for, has its digest there."""
    if _NAME.fullmatch(spec.name):
        return f"{KIND.name}:{spec.name}"
    return f"{KIND.name}:{sha256(spec.name.encode()).hexdigest()[:32]}"


def policy_of(settings: Settings) -> Policy:
    """Return the policy of collections made from now on."""
    return Policy(keep_text=settings.segments_keep_text, keep_terms=settings.segments_keep_terms)


def point_id(tenant: str, asset_id: str, segment_id: str, model: str, model_ver: str) -> str:
    """The id that callers know a segment by; `model` is the id on the hub."""
    return str(_named(POINTS, (tenant, asset_id, segment_id, model, model_ver)))


def record_id(asset_id: str, segment_id: str) -> UUID:
    """The id of its record, within the collection of a tenant and a model: one for all versions of the model."""
    return _named(RECORDS, (asset_id, segment_id))


def _named(namespace: UUID, parts: Iterable[str]) -> UUID:
    """Each part with its length before it: ("a", "bc") and ("ab", "c") are two names."""
    return uuid5(namespace, "".join(f"{len(part)}:{part}" for part in parts))
