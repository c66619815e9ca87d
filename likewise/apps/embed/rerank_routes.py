"""Cohere's and Jina's API for reranking, `/v1/rerank`."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Depends, Request, Response

from likewise.apps.answers import json_answer, written
from likewise.apps.body import PARSED
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, Spending, services
from likewise.apps.embed.asking import pointed
from likewise.apps.embed.openai_routes import ModelNotFound, refusals
from likewise.apps.embed.rerank_schemas import RerankAnswer, RerankIn
from likewise.apps.leaving import while_connected
from likewise.apps.problems import BODY_REFUSALS
from likewise.cleaning import cleaned
from likewise.embedding.models import ModelSpec
from likewise.errors import ModelNotAllowed
from likewise.search.reranking import Reranking, RerankResult

router = APIRouter(prefix="/v1", tags=["openai"])


class RerankerNotFound(ModelNotFound):
    """There is no such reranker here. Leave `model` out for the one that the settings name."""


async def reranking(request: Request) -> Reranking:
    """The process's rerankers."""
    return services(request).runtime.reranking


@router.post(
    "/rerank",
    response_model=RerankAnswer,
    response_model_exclude_none=True,
    responses=refusals(*(status for status in BODY_REFUSALS if status != 422), 404, 429),
)
@declares(Load.EMBEDDING, Body(RerankIn))
async def rerank(
    tenant: CanRead,
    request: Request,
    rerankers: Annotated[Reranking, Depends(reranking)],
    spend: Spending,
    body: Annotated[RerankIn, PARSED],
) -> Response:
    """Documents in the order in which they answer a query; `x-likewise-truncated` counts those that were cut off."""
    # What is refused for its model takes nothing from the quota.
    spec = known_reranker(rerankers, body.model)
    spend(tenant, [body.query, *body.texts])
    with pointed(body.pointer):
        work = rerankers.rerank(tenant, cleaned(body.query), [cleaned(text) for text in body.texts], model=body.model)
        made = await while_connected(request, work)
    tokens, cut = int(made.tokens.sum()), int((made.truncated > 0).sum())
    answer = {
        "id": f"rerank-{uuid4().hex}",
        "model": spec.bare_name if body.model is None else body.model,
        "results": results(made, body),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"tokens": {"input_tokens": tokens}},
    }
    return json_answer(written(answer), {"x-likewise-truncated": str(cut)})


def known_reranker(rerankers: Reranking, name: str | None) -> ModelSpec:
    """What is known of a reranker; RerankerNotFound if requests may not name it."""
    try:
        return rerankers.known(name)
    except ModelNotAllowed:
        raise RerankerNotFound from None


def results(made: RerankResult, body: RerankIn) -> list[dict[str, Any]]:
    """The best documents, those of equal scores in their order."""
    scores: list[float] = made.scores.tolist()
    best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[: body.top_n]
    texts = body.texts if body.return_documents else None
    return [
        {
            "index": place,
            "relevance_score": scores[place],
            **({"document": {"text": texts[place]}} if texts is not None else {}),
        }
        for place in best
    ]
