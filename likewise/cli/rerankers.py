"""The rerankers as the command line tries them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.embedding.models import RERANKERS, ModelSpec
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import Invalid, ModelUnavailable
from likewise.search.reranking import RerankerCatalogue, Reranking
from likewise.settings import Settings

TRIED_PAIRS = 64


def named_by(settings: Settings) -> list[ModelSpec]:
    """The rerankers that requests may name, then the others that are known by name."""
    allowed = RerankerCatalogue(settings).specs()
    return list({spec.name: spec for spec in (*allowed, *RERANKERS)}.values())


async def tried(settings: Settings, spec: ModelSpec) -> dict[str, Any]:
    """Load a reranker, or ask the one that serves it, and let it score; ModelUnavailable says what is wrong with it."""
    if spec.endpoint is None and weights.locate(spec, settings) is None:
        raise weights.absent(spec, settings)
    texts = PROBE_TEXTS if spec.endpoint else (PROBE_TEXTS * TRIED_PAIRS)[:TRIED_PAIRS]
    async with _opened(settings, spec) as reranking:
        started = time.perf_counter()
        reranker = await reranking.opened(patience=ONE_USE_SECONDS)
        loaded = time.perf_counter()
        try:
            await reranking.rerank(0, PROBE_TEXTS[0], texts)
        except Invalid as error:
            raise ModelUnavailable(f"{spec.name} does not work: {error.detail}", code="provider_wrong") from None
        done = time.perf_counter()
    facts = {"model": spec.name, "kind": "reranker", "max_tokens": reranker.max_tokens, "numerics": reranker.numerics}
    if spec.endpoint is not None:
        return facts | {"address": spec.endpoint.base_url, "answer_seconds": round(done - loaded, 2)}
    speed = {"load_seconds": round(loaded - started, 2), "pairs_per_second": round(len(texts) / (done - loaded), 1)}
    return facts | {"folder": str(weights.locate(spec, settings))} | speed


@asynccontextmanager
async def _opened(settings: Settings, spec: ModelSpec) -> AsyncIterator[Reranking]:
    """The rerankers, this one as the default, with the queue and the memory of an embedder that does nothing."""
    chosen = settings.model_copy(update={"reranker": spec.name, "redis_url": None})
    embedder = Embedder(chosen)
    reranking = Reranking(chosen, embedder.ledger, embedder.budget, embedder.memory)
    try:
        yield reranking
    finally:
        await reranking.close()
        await embedder.close()
