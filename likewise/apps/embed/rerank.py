"""Cohere's and Jina's API for reranking, `/v1/rerank`."""

from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from likewise.apps.answers import json_answer, written
from likewise.apps.body import PARSED
from likewise.apps.checking import LIST_OF_IT, ONE_OF_IT, OldRequest, wrong
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, Metered, runtime_of
from likewise.apps.embed.openai import REFUSED, ModelNotFound, UsageOut, known_model
from likewise.apps.fields import AS_WHOLE_NUMBER, Text
from likewise.cleaning import cleaned
from likewise.search.reranking import RerankResult

MAX_DOCUMENTS = 1_000


class DocumentIn(OldRequest):
    """A document that is an object: its text. Other fields are ignored."""

    text: Text


def _text_or_object(value: Any) -> Any:
    """Say in a word what is wrong, where each of the forms would find something to say."""
    if not isinstance(value, str | dict):
        raise wrong("wrong_type", "This must be a string, or an object with a text.")
    return value


def _form(value: Any) -> str:
    # Pydantic's tags, of which faults say nothing; none of both is a list here.
    return LIST_OF_IT if isinstance(value, dict | DocumentIn) else ONE_OF_IT


Document = Annotated[
    Annotated[Text, Tag(ONE_OF_IT)] | Annotated[DocumentIn, Tag(LIST_OF_IT)],
    Discriminator(_form),
    BeforeValidator(_text_or_object),
]


class RerankIn(OldRequest):
    """A query and up to 1,000 documents. Fields that are not here are ignored."""

    query: Text
    documents: list[Document] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    model: str | None = Field(None, description="A reranker of the settings; LIKEWISE_RERANKER if absent.")
    top_n: Annotated[int, Field(ge=1), AS_WHOLE_NUMBER] | None = Field(
        None, description="How many results to answer, the best; all if absent."
    )
    return_documents: bool | None = Field(None, description="Whether each result has its document's text.")

    @property
    def texts(self) -> list[str]:
        """The documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]

    def pointer(self, place: int) -> str:
        """Return the place of a document's text in the request."""
        return f"/documents/{place}" + ("" if isinstance(self.documents[place], str) else "/text")


class DocumentOut(BaseModel):
    """A document as it was sent."""

    text: str


class ResultOut(BaseModel):
    """One document: its place in the request, and how well it answers the query, from 0 to 1."""

    index: int
    relevance_score: float
    document: DocumentOut | None = None


class TokensOut(BaseModel):
    """Tokens that the reranker read."""

    input_tokens: int


class MetaOut(BaseModel):
    """The count of `usage` again, where Cohere's clients look for it."""

    tokens: TokensOut


class RerankAnswer(BaseModel):
    """The documents by their scores, best first, those of equal ones in the order of the request."""

    id: str
    model: str
    results: list[ResultOut]
    usage: UsageOut
    meta: MetaOut


router = APIRouter(prefix="/v1", tags=["openai"])


class RerankerNotFound(ModelNotFound):
    """There is no such reranker here. Leave `model` out for the one that the settings name."""


@router.post("/rerank", response_model=RerankAnswer, response_model_exclude_none=True, responses=REFUSED)
@declares(Load.EMBEDDING, Body(RerankIn))
async def rerank(tenant: CanRead, metered: Metered, body: Annotated[RerankIn, PARSED]) -> Response:
    """Documents in the order in which they answer a query; `x-likewise-truncated` counts those that were cut off."""
    rerankers = runtime_of(metered.request).reranking
    # What is refused for its model takes nothing from the quota.
    spec = known_model(rerankers, body.model, RerankerNotFound)
    metered.quotas.spend(tenant, [body.query, *body.texts])
    work = rerankers.rerank(tenant, cleaned(body.query), [cleaned(text) for text in body.texts], model=body.model)
    made = await metered.attended(work, body.pointer)
    tokens, cut = int(made.tokens.sum()), int((made.truncated > 0).sum())
    answer = {
        "id": f"rerank-{uuid4().hex}",
        "model": spec.bare_name if body.model is None else body.model,
        "results": results(made, body),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "meta": {"tokens": {"input_tokens": tokens}},
    }
    return json_answer(written(answer), {"x-likewise-truncated": str(cut)})


def results(made: RerankResult, body: RerankIn) -> list[dict[str, Any]]:
    """Return the best documents, those of equal scores in their order."""
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
