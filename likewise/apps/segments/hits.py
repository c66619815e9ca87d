"""What is found of segments, as their callers see it; and as the job of a search keeps it, without what may leave."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from likewise.apps.segments.kind import METADATA, OWN
from likewise.db import collections, lookups, segments
from likewise.db.lookups import StoredRecord
from likewise.db.transaction import Tx
from likewise.errors import NotFound
from likewise.search.options import Found


@dataclass(frozen=True)
class SegmentHit:
    """One segment that was found. `score` is the cosine in mode dense, and orders the hits of any other."""

    point_id: str
    score: float
    payload: dict[str, Any]
    similarity: float | None


@dataclass(frozen=True)
class SegmentsFound:
    """Segments, best first, and the model that made the query's vector; `total` counts the results."""

    results: list[SegmentHit] = field(default_factory=list)
    query_model: str = ""
    query_model_ver: str = ""
    total: int = 0


@dataclass(frozen=True)
class Looked:
    """What a search came to, before its hits are told; `name` is the collection's."""

    name: str
    query_model: str
    query_model_ver: str
    hits: Sequence[Found] = ()

    def told(self, org: str) -> SegmentsFound:
        """It for who waits for it."""
        return _told(
            self.query_model,
            self.query_model_ver,
            [hit_of(one.record, one.score, one.similarity, org) for one in self.hits],
        )

    def kept(self) -> dict[str, Any]:
        """It for a job: which records, with which text, and how near. What is said of them stays with them alone."""
        hits = [[one.record.pk, one.record.content, one.score, one.similarity] for one in self.hits]
        return {
            "query_model": self.query_model,
            "query_model_ver": self.query_model_ver,
            "hits": {"collection": self.name, "records": hits},
        }


async def told_again(tx: Tx, kept: Mapping[str, Any]) -> dict[str, Any]:
    """What a search's job keeps, as `told`: of what was found all that is still there and has the same text."""
    name, hits = kept["hits"]["collection"], kept["hits"]["records"]
    try:
        collection = await collections.named(tx, name)
    except NotFound:
        hits, there = [], {}
    else:
        there = await lookups.still(tx, collection.id, collection.active.id, [(one[0], one[1]) for one in hits])
    org = await segments.tenant_name(tx)
    results = [hit_of(there[pk], score, similarity, org) for pk, _, score, similarity in hits if pk in there]
    return asdict(_told(kept["query_model"], kept["query_model_ver"], results))


def _told(model: str, model_ver: str, results: list[SegmentHit]) -> SegmentsFound:
    return SegmentsFound(results, model, model_ver, len(results))


def hit_of(record: StoredRecord, score: float, similarity: float | None, org: str) -> SegmentHit:
    """A hit with what its vector's row says of the text; a record that waits has nothing there."""
    own = {name: record.payload.get(name) for name in OWN}
    metadata = record.payload.get(METADATA) or {}
    payload = {
        **metadata,
        "org_id": org,
        "asset_id": record.parent,
        **own,
        "text_len": record.chars,
        "truncated_len": record.chars_read,
        "tokens": record.tokens,
        METADATA: metadata,
    }
    return SegmentHit(record.payload["point_id"], score, payload, similarity)
