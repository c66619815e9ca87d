"""The kind of segments, the fields of one beside its metadata, and the names of their collections."""

import re
from hashlib import sha256

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


def collection_name(spec: ModelSpec) -> str:
    """Return the name of a model's collection; a folder's path, which no address has room for, has its digest there."""
    if _NAME.fullmatch(spec.name):
        return f"{KIND.name}:{spec.name}"
    return f"{KIND.name}:{sha256(spec.name.encode()).hexdigest()[:32]}"


def policy_of(settings: Settings) -> Policy:
    """Return the policy of collections made from now on."""
    return Policy(keep_text=settings.segments_keep_text, keep_terms=settings.segments_keep_terms)
