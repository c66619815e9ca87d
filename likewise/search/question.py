"""The question of a search: its terms from the analyzer or the index, its vector from the model or the store."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import numpy as np

from likewise.db import lookups, terms
from likewise.db.transaction import Tx
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import Matrix, Vector
from likewise.errors import Conflict, Invalid, NotFound, Unavailable
from likewise.sealing import Sealing
from likewise.search.analyzer import analyze
from likewise.search.options import ContentsQuestion, RecordQuestion, TextQuestion, TextsQuestion, VectorQuestion
from likewise.search.plan import SearchPlan, StepTiming
from likewise.stopping import stop
from likewise.vectors.admission import Admission
from likewise.vectors.store import VectorStore

# Of a long query, or a text that others like it are wanted of, so many terms are counted.
MAX_COUNTED_TERMS = 128
# Longer queries are analysed beside the event loop.
LONG_QUERY = 10_000
# Vectors whose mean is shorter than this point in all directions.
MIN_MEAN_LENGTH = 1e-3


@dataclass(frozen=True)
class QueryVector:
    """The vector of a question's text, None where the model is away and words alone answer."""

    vector: Vector | None
    timing: StepTiming

    @property
    def degraded(self) -> tuple[str, ...]:
        """The parts that were away."""
        return () if self.vector is not None else ("model",)


Embedding = asyncio.Task[QueryVector]


@dataclass(frozen=True)
class Question:
    """A question as the rankings need it.

    Attributes:
        terms: what words are looked for.
        text: what a reranker compares hits with.
        without: the record in question, which is no hit.
        own: the content that only the record in question has: as the best match it would dwarf all others.
        stored: a vector that is known already.
        embedding: the task that makes the vector of a text.
    """

    terms: Sequence[int] = ()
    text: str | None = None
    without: int | None = None
    own: int | None = None
    stored: Vector | None = None
    embedding: Embedding | None = None

    async def vector(self) -> Vector | None:
        """Wait for the vector, if there is one; a caller who leaves does not end its making."""
        return self.stored if self.embedding is None else (await asyncio.shield(self.embedding)).vector


class QuestionResolver:
    """Finds out what a question means: by the analyzer, the model, or the rows of what it names."""

    def __init__(self, embedder: Embedder, admission: Admission, store: VectorStore, sealing: Sealing) -> None:
        self._embedder = embedder
        self._admission = admission
        self._store = store
        self._sealing = sealing

    @contextlib.asynccontextmanager
    async def embedding(self, plan: SearchPlan) -> AsyncIterator[Embedding | None]:
        """Have the question's texts embedded while the block looks at filter and words; None without texts."""
        texts = _texts_of(plan)
        if not texts:
            yield None
            return
        task = asyncio.create_task(self._embed(plan, texts))
        try:
            if not self._embedder.is_ready(plan.generation.model):
                # No connection is held while a model loads.
                await asyncio.wait({task})
            yield task
            # Where nothing fitted nobody has waited for it; a query that is none is refused all the same.
            await asyncio.shield(task)
        finally:
            await stop([task])

    @contextlib.asynccontextmanager
    async def embeddings(self, plan: SearchPlan) -> AsyncIterator[list[Embedding | None]]:
        """Have the question's texts embedded for the view of the plan, and for those that are fused with it."""
        async with contextlib.AsyncExitStack() as stack:
            plans = (plan, *plan.others)
            yield [await stack.enter_async_context(self.embedding(one)) for one in plans]

    async def resolve(self, tx: Tx, plan: SearchPlan, embedding: Embedding | None) -> Question:
        """Return the question with its terms and its vector; NotFound for a record that is not there."""
        match plan.request.question:
            case TextQuestion(text):
                return Question(await self._terms(plan, [text]), text, embedding=embedding)
            case TextsQuestion(texts):
                return Question(await self._terms(plan, texts), "\n".join(texts), embedding=embedding)
            case RecordQuestion(id_):
                return await self._of_record(tx, plan, id_)
            case ContentsQuestion(contents):
                terms = _first(zip_longest(*[await self._stored_terms(tx, plan, one) for one in contents]))
                return Question(terms, stored=await self._stored_vector(tx, plan, contents))
            case VectorQuestion(vector):
                return Question(stored=vector)

    async def _of_record(self, tx: Tx, plan: SearchPlan, id_: str) -> Question:
        collection, text = plan.collection, None
        found = await lookups.pointed(tx, collection.id, id_, plan.view.number)
        if found is None:
            raise NotFound("There is no record of this id.", code="record_not_found")
        record, content = found
        if content is None:
            raise NotFound("This record has nothing to compare in this view.", code="record_not_in_view")
        if plan.options.rerank:
            stored = await lookups.one(tx, collection.id, collection.active.id, id_)
            text = stored.text if stored else None
        terms = await self._stored_terms(tx, plan, content)
        vector = await self._stored_vector(tx, plan, [content])
        shared = await lookups.shared(tx, content, record, plan.view.number)
        return Question(terms, text, record, None if shared else content, vector)

    async def _terms(self, plan: SearchPlan, texts: Sequence[str]) -> list[int]:
        """The distinct terms of texts, the first of long ones."""
        if not plan.by_words:
            return []
        key = plan.collection.terms_key(self._sealing)
        whole = "\n".join(texts)
        counted = analyze(whole, key) if len(whole) < LONG_QUERY else await asyncio.to_thread(analyze, whole, key)
        return list(counted)[:MAX_COUNTED_TERMS]

    async def _stored_terms(self, tx: Tx, plan: SearchPlan, content: int) -> list[int]:
        if not plan.by_words:
            return []
        words = await terms.of_content(tx, plan.collection.id, content, view=plan.view.number)
        return words[:MAX_COUNTED_TERMS]

    async def _stored_vector(self, tx: Tx, plan: SearchPlan, contents: Sequence[int]) -> Vector | None:
        """The mean of the vectors that contents have; None if they have none and words will do."""
        if not plan.uses_vector:
            return None
        known = await self._store.fetch(tx, plan.generation, contents)
        if known:
            return _mean(np.stack(list(known.values())))
        if plan.needs_vector:
            raise Conflict("This record has no vector yet. Try again soon.", code="waiting", retry_after=1)
        return None

    async def _embed(self, plan: SearchPlan, texts: Sequence[str]) -> QueryVector:
        """The vector of the texts, where it can be had."""
        started, generation = time.perf_counter(), plan.generation
        vector: Vector | None = None
        try:
            await self._admission.admit(plan.tenant, generation)
            embedded = await self._embedder.embed(
                plan.tenant, texts, model=generation.model, role="query", lane="interactive"
            )
            vector = _mean(embedded.vectors)
        except Invalid as error:
            if isinstance(plan.request.question, TextsQuestion):
                raise
            raise Invalid.at("/query", error.detail, error.faults[0].code) from None
        except Unavailable:
            # Words still find; only what cannot be answered without the meaning is refused.
            if plan.needs_vector or not plan.view.terms:
                raise
        return QueryVector(vector, StepTiming.since(started, "embed"))


def _texts_of(plan: SearchPlan) -> Sequence[str]:
    """The texts that have to be embedded."""
    match plan.request.question:
        case TextQuestion(text) if plan.uses_vector:
            return (text,)
        case TextsQuestion(texts) if plan.uses_vector:
            return texts
    return ()


def _mean(vectors: Matrix) -> Vector:
    """The mean of unit vectors float32 (n, d), of unit length: what is near to it is near to most of them."""
    if len(vectors) == 1:
        alone: Vector = vectors[0]
        return alone
    mean: Vector = vectors.mean(axis=0)
    length = float(np.linalg.norm(mean))
    if length < MIN_MEAN_LENGTH:
        raise Invalid.at("/question", "These have nothing in common; ask for them one by one.", "no_common_meaning")
    return mean / np.float32(length)


def _first(ranked: Iterable[Sequence[int | None]]) -> list[int]:
    """The distinct terms of several contents, those of most weight first, of each as many as of the others."""
    terms = dict.fromkeys(term for term in chain.from_iterable(ranked) if term is not None)
    return list(islice(terms, MAX_COUNTED_TERMS))
