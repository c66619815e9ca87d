"""The ids of segments: which parts they tell apart."""

from dataclasses import replace
from itertools import product
from uuid import UUID

from likewise.apps.collections.schemas import NAME_IN_PATH
from likewise.apps.segments.kind import collection_name, point_id, record_id
from likewise.embedding.models import MODELS

PARTS = ("", "a", "b", "ab", "1:a", "a1:b", "ü", "🙂", "\x1f")


def test_no_two_segments_have_one_id() -> None:
    named = [(one, other, *rest) for one, other, *rest in product(PARTS, PARTS, PARTS, ("m",), ("v1", "v2"))]
    assert len({point_id(*parts) for parts in named}) == len(named)
    assert len({record_id(*pair) for pair in product(PARTS, PARTS)}) == len(PARTS) ** 2


def test_an_id_is_a_uuid_of_version_5_that_never_changes() -> None:
    point = point_id("acme", "manual", "page 1", "sentence-transformers/all-MiniLM-L6-v2", "v1")
    assert UUID(point).version == 5
    assert point == POINT
    assert str(record_id("manual", "page 1")) == RECORD


# Of callers who keep them, and of rows that are stored.
POINT = "5ae42c62-cb4d-5bbe-9612-c47be73a85e9"
RECORD = "1a2ec1ba-1e2c-5547-9ea1-b4b0bd1c4689"


def test_a_collection_is_named_for_its_model_and_a_folder_by_its_digest() -> None:
    assert collection_name(MODELS[0]) == "segments:minilm-l6-v2"
    folders = [replace(MODELS[0], name=name) for name in ("/srv/models/mine", "/srv/models-mine", "ü")]
    named = [collection_name(folder) for folder in folders]
    assert len(set(named)) == len(named)
    assert all(NAME_IN_PATH.fullmatch(name) for name in named)
