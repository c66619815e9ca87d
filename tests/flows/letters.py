"""A kind of four views: letters have a text, a subject, the words of both, and a stamp that is made of their marks."""

import asyncio
import json
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray

from likewise.apps.registry import App
from likewise.db import waiting
from likewise.ingest.writer import Destination, NewCollection
from likewise.kind import TEXT, Kind, NewRecord, Policy, View
from likewise.library import Likewise
from likewise.search.hits import RecordHit
from likewise.search.options import RecordQuestion, SearchOptions, SearchQuestion, SearchRequest, TextQuestion
from tests.patience import PATIENCE

DIMENSION = 8


def marks(record: NewRecord) -> bytes | None:
    """The marks that a stamp is made from."""
    found = record.payload.get("marks")
    return None if found is None else json.dumps(found).encode()


def stamp(record: NewRecord) -> NDArray[np.float32]:
    """A vector of unit length with a number for each mark, the same for the same marks."""
    vector = np.zeros(DIMENSION, np.float32)
    for mark in record.payload["marks"]:
        vector[sha256(mark.encode()).digest()[0] % DIMENSION] += 1
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def words(record: NewRecord) -> str:
    """All that is written."""
    return f"{record.payload.get('subject', '')} {record.text}"


LETTERS = Kind(
    "letters",
    views=(
        TEXT,
        View("subject", text=lambda record: record.payload.get("subject"), terms=False),
        View("words", text=words, embedded=False),
        View("stamp", vector=stamp, made_from=marks, space="stamps-1", dimension=DIMENSION),
    ),
    indexed=("sender",),
)
APP = App("letters", "tests.flows", kinds=("letters:LETTERS",))


def letter(id: str, text: str, **payload: Any) -> NewRecord:
    """A letter with what its payload has."""
    return NewRecord(id=id, text=text, payload=payload)


async def send(lw: Likewise, tenant: int, *batch: NewRecord, policy: Policy = LETTERS.policy) -> dict[str, str]:
    """Write letters to the tenant's collection, which the first make; returns what became of each."""
    into = Destination("letters", LETTERS, NewCollection(lw.embedder.known(), policy))
    _, outcome = await lw.runtime.writer.write(tenant, into, batch)
    return dict(outcome.outcome_of)


async def all_embedded(lw: Likewise) -> None:
    """Wait until nothing waits for a vector any more, in any view."""
    async with asyncio.timeout(PATIENCE):
        while await waiting.models(lw.runtime.pool):
            await asyncio.sleep(0.02)


async def search(lw: Likewise, tenant: int, question: str | SearchQuestion, **options: Any) -> list[RecordHit]:
    """The hits of a search; a text is asked as it is."""
    asked = TextQuestion(question) if isinstance(question, str) else question
    request = SearchRequest(asked, SearchOptions(**options))
    return list((await lw.runtime.searcher.search(tenant, "letters", request)).records)


async def found(lw: Likewise, tenant: int, question: str | SearchQuestion, **options: Any) -> list[str]:
    """The ids of the hits, best first."""
    return [hit.record.id for hit in await search(lw, tenant, question, **options)]


def like(id: str) -> RecordQuestion:
    """The question for others like a letter."""
    return RecordQuestion(id)
