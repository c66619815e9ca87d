"""The routes of the embedder that this one replaces, `/embed`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, Field

from likewise.apps.answers import BODY_REFUSALS, Answer, json_answer, refusals, with_rows, written
from likewise.apps.body import PARSED
from likewise.apps.checking import OldRequest
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import Anyone, CanRead, Metered, ProcessEmbedder
from likewise.apps.embed.service import (
    BatchEmbeddingResult,
    EmbeddingModelConfig,
    EmbeddingResult,
    facts_of_batch,
    facts_of_one,
    loaded,
)
from likewise.apps.fields import AS_WHOLE_NUMBER, Text
from likewise.embedding import formats
from likewise.embedding.embedder import Embedded
from likewise.embedding.models import ModelSpec

MAX_TEXTS = 2_048

Format = Literal["float", "int8", "binary"]
HealthStatus = Literal["healthy", "degraded"]
_MODEL = "One that `GET /embed/models` lists; the default if absent."

UseCache = Annotated[
    bool | None,
    # As everywhere here, null is the same as absent.
    AfterValidator(lambda value: value is not False),
    Field(description="Whether the cache may answer, and keeps what is new."),
]


class TextIn(OldRequest):
    """One text, as a document."""

    text: Text
    model: str | None = Field(None, description=_MODEL)
    use_cache: UseCache = True


class QueryIn(OldRequest):
    """One text, as a query: with the prefix that some models want before it."""

    query: Text
    model: str | None = Field(None, description=_MODEL)
    use_cache: UseCache = True


class BatchIn(OldRequest):
    """Many texts, as documents."""

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    model: str | None = Field(None, description=_MODEL)
    batch_size: Annotated[int, Field(ge=1, le=MAX_TEXTS), AS_WHOLE_NUMBER] | None = Field(
        None, description="How many texts go to a remote model at a time; local ones see to it."
    )
    use_cache: UseCache = True
    format: Format | None = Field("float", description="`int8` and `binary` are smaller, and come with `scales`.")


@dataclass(frozen=True)
class BatchAnswer(BatchEmbeddingResult):
    """The vectors of all texts in their order, and what they cost together in US dollars.

    With `int8` a scale times the numbers is about the vector; with `binary` each number holds eight signs, the first
    highest.
    """

    format: Format
    scales: list[float] | None = None


@dataclass(frozen=True)
class EmbedModelOut(EmbeddingModelConfig):
    """One model that requests may name; `cost_per_1k_tokens` in US dollars, `space` null before it is loaded."""

    hub_id: str
    state: str
    matryoshka: bool
    space: str | None


class EmbedModelsAnswer(BaseModel):
    """All of them, and the name of the one that is taken where a request names none."""

    models: list[EmbedModelOut]
    default: str


@dataclass(frozen=True)
class EmbedHealthAnswer:
    """`healthy`, or `degraded` while the default model is away."""

    status: HealthStatus
    service: str
    default_model: str
    caching_enabled: bool
    models_loaded: list[str]


router = APIRouter(prefix="/embed", tags=["embed"])

REFUSED = refusals(*BODY_REFUSALS, 429)
SERVICE = "embedder"


@router.post("/text", response_model=EmbeddingResult, responses=REFUSED)
@declares(Load.EMBEDDING, Body(TextIn))
async def embed_text(tenant: CanRead, metered: Metered, body: Annotated[TextIn, PARSED]) -> Response:
    """The vector of one text."""
    made = await metered.embed(tenant, [body.text], lambda _: "/text", model=body.model, use_cache=body.use_cache)
    return _one(made, metered.embedder.known(made.model))


@router.post("/query", response_model=EmbeddingResult, responses=REFUSED)
@declares(Load.EMBEDDING, Body(QueryIn))
async def embed_query(tenant: CanRead, metered: Metered, body: Annotated[QueryIn, PARSED]) -> Response:
    """The vector of one text that documents are searched for with."""
    options: dict[str, Any] = {"model": body.model, "use_cache": body.use_cache, "role": "query"}
    made = await metered.embed(tenant, [body.query], lambda _: "/query", **options)
    return _one(made, metered.embedder.known(made.model))


@router.post("/batch", response_model=BatchAnswer, responses=REFUSED)
@declares(Load.EMBEDDING, Body(BatchIn))
async def embed_batch(tenant: CanRead, metered: Metered, body: Annotated[BatchIn, PARSED]) -> Response:
    """The vectors of many texts, in their order."""
    options: dict[str, Any] = {"model": body.model, "use_cache": body.use_cache, "batch_size": body.batch_size}
    made = await metered.embed(tenant, body.texts, lambda place: f"/texts/{place}", **options)
    rows: Any = made.vectors
    form = body.format or "float"
    head = {**facts_of_batch(made, metered.embedder.known(made.model).bare_name), "format": form}
    if form != "float":
        rows, head["scales"] = getattr(formats, form)(made.vectors)
    return json_answer(await with_rows(head, "embeddings", rows, made.vectors.shape[1]))


@router.get("/models", response_model=EmbedModelsAnswer, responses=refusals())
@declares(Load.OTHER)
async def embed_models(_: CanRead, embedder: ProcessEmbedder) -> Answer:
    """The models that requests may name, the default first."""
    specs = embedder.models()
    states = {one.name: one.state for one in embedder.states()}
    models = [_model(spec, states[spec.name], embedder.space(spec.name)) for spec in specs]
    return Answer({"models": models, "default": specs[0].bare_name})


@router.get("/health", response_model=EmbedHealthAnswer, responses=refusals())
@declares(Load.OTHER)
async def embed_health(_: Anyone, embedder: ProcessEmbedder) -> Answer:
    """Health of the embedder: the answer is 200 in any case, and `status` says whether texts can be embedded."""
    # A default model that is still to be opened is no fault.
    healthy = embedder.states()[0].state in ("ready", "present", "loading")
    status: HealthStatus = "healthy" if healthy else "degraded"
    default = embedder.models()[0].bare_name
    return Answer(EmbedHealthAnswer(status, SERVICE, default, embedder.caches, loaded(embedder)))


def _one(made: Embedded, spec: ModelSpec) -> Response:
    return json_answer(written({"embedding": made.vectors[0], **facts_of_one(made, spec.bare_name)}))


def _model(spec: ModelSpec, state: str, space: str | None) -> EmbedModelOut:
    known = vars(EmbeddingModelConfig.of(spec))
    return EmbedModelOut(**known, hub_id=spec.hub_id, state=state, matryoshka=spec.matryoshka, space=space)
