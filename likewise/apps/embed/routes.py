"""The routes of the embedder that this one replaces, `/embed`."""

from typing import Annotated, Any

from fastapi import APIRouter, Response

from likewise.apps.answers import Answer, json_answer, with_rows, written
from likewise.apps.body import PARSED
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import Anyone, CanRead
from likewise.apps.embed.asking import Asks, ProcessEmbedder
from likewise.apps.embed.metrics import loaded
from likewise.apps.embed.results import EmbeddingResult, facts_of_batch, facts_of_one
from likewise.apps.embed.schemas import (
    BatchAnswer,
    BatchIn,
    HealthAnswer,
    ModelsAnswer,
    QueryIn,
    TextIn,
)
from likewise.apps.problems import BODY_REFUSALS, refusals
from likewise.embedding import formats
from likewise.embedding.embedder import Embedded
from likewise.embedding.models import ModelSpec

router = APIRouter(prefix="/embed", tags=["embed"])

REFUSED = refusals(*BODY_REFUSALS, 429)
SERVICE = "embedder"


@router.post("/text", response_model=EmbeddingResult, responses=REFUSED)
@declares(Load.EMBEDDING, Body(TextIn))
async def embed_text(tenant: CanRead, asks: Asks, body: Annotated[TextIn, PARSED]) -> Response:
    """The vector of one text."""
    made = await asks.embed(tenant, [body.text], lambda _: "/text", model=body.model, use_cache=body.use_cache)
    return _one(made, asks.embedder.known(made.model))


@router.post("/query", response_model=EmbeddingResult, responses=REFUSED)
@declares(Load.EMBEDDING, Body(QueryIn))
async def embed_query(tenant: CanRead, asks: Asks, body: Annotated[QueryIn, PARSED]) -> Response:
    """The vector of one text that documents are searched for with."""
    options: dict[str, Any] = {"model": body.model, "use_cache": body.use_cache, "role": "query"}
    made = await asks.embed(tenant, [body.query], lambda _: "/query", **options)
    return _one(made, asks.embedder.known(made.model))


@router.post("/batch", response_model=BatchAnswer, responses=REFUSED)
@declares(Load.EMBEDDING, Body(BatchIn))
async def embed_batch(tenant: CanRead, asks: Asks, body: Annotated[BatchIn, PARSED]) -> Response:
    """The vectors of many texts, in their order."""
    options: dict[str, Any] = {"model": body.model, "use_cache": body.use_cache, "batch_size": body.batch_size}
    made = await asks.embed(tenant, body.texts, lambda place: f"/texts/{place}", **options)
    rows: Any = made.vectors
    form = body.format or "float"
    head = {**facts_of_batch(made, asks.embedder.known(made.model).bare_name), "format": form}
    if form != "float":
        rows, head["scales"] = getattr(formats, form)(made.vectors)
    return json_answer(await with_rows(head, "embeddings", rows, made.vectors.shape[1]))


@router.get("/models", response_model=ModelsAnswer, responses=refusals())
@declares(Load.OTHER)
async def embed_models(_: CanRead, embedder: ProcessEmbedder) -> Answer:
    """The models that requests may name, the default first."""
    specs = embedder.models()
    states = {one.name: one.state for one in embedder.states()}
    models = [_model(spec, states[spec.name], embedder.space(spec.name)) for spec in specs]
    return Answer({"models": models, "default": specs[0].bare_name})


@router.get("/health", response_model=HealthAnswer, responses=refusals())
@declares(Load.OTHER)
async def embed_health(_: Anyone, embedder: ProcessEmbedder) -> Answer:
    """Whether texts can be embedded; the answer is 200 in any case, and `status` says it."""
    state = embedder.states()[0].state
    # A default model that is still to be opened is no fault.
    healthy = state in ("ready", "present", "loading")
    return Answer(
        {
            "status": "healthy" if healthy else "degraded",
            "service": SERVICE,
            "default_model": embedder.models()[0].bare_name,
            "caching_enabled": embedder.caches,
            "models_loaded": loaded(embedder),
        }
    )


def _one(made: Embedded, spec: ModelSpec) -> Response:
    return json_answer(written({"embedding": made.vectors[0], **facts_of_one(made, spec.bare_name)}))


def _model(spec: ModelSpec, state: str, space: str | None) -> dict[str, Any]:
    return {
        "name": spec.bare_name,
        "provider": spec.provider,
        "dimension": spec.dimension,
        "max_batch_size": spec.most_texts,
        "max_input_length": spec.max_tokens,
        "cost_per_1k_tokens": spec.price_per_1k_tokens,
        "hub_id": spec.hub_id,
        "state": state,
        "matryoshka": spec.matryoshka,
        "space": space,
    }
