"""OpenAI's API for embeddings, `/v1`."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Response
from starlette.types import Scope

from likewise.apps.answers import Answer, as_base64, json_answer, with_rows
from likewise.apps.body import PARSED
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead
from likewise.apps.embed.asking import Asks, ProcessEmbedder
from likewise.apps.embed.openai_schemas import EmbeddingsAnswer, EmbeddingsIn, ErrorAnswer, ModelOut, ModelsAnswer
from likewise.apps.problems import BODY_REFUSALS, REFUSALS
from likewise.embedding.embedder import Embedded
from likewise.embedding.models import ModelSpec
from likewise.errors import Fault, Invalid, LikewiseError, ModelNotAllowed, NotFound

router = APIRouter(prefix="/v1", tags=["openai"])

# OpenAI's clients want to know when a model was made, which its files do not say: 20 November 2026, as good as any.
CREATED = 1_795_132_800


class ModelNotFound(NotFound):
    """There is no such model here. `GET /v1/models` lists those there are."""

    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__(faults=[Fault("/model", self.code, type(self).__doc__ or "")])


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The documented errors of a route, in OpenAI's shape, which has 400 for a wrong field."""
    return {status: {"description": REFUSALS[status], "model": ErrorAnswer} for status in sorted({*statuses, 500, 503})}


@router.post(
    "/embeddings",
    response_model=EmbeddingsAnswer,
    responses=refusals(*(status for status in BODY_REFUSALS if status != 422), 404, 429),
)
@declares(Load.EMBEDDING, Body(EmbeddingsIn))
async def embeddings(tenant: CanRead, asks: Asks, body: Annotated[EmbeddingsIn, PARSED]) -> Response:
    """The vectors of texts; `x-likewise-cached` and `x-likewise-truncated` count texts."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    spec = known_model(asks.embedder, body.model)

    def pointer(place: int) -> str:
        return "/input" if isinstance(body.input, str) else f"/input/{place}"

    made = await asks.embed(tenant, texts, pointer, model=body.model, dimensions=body.dimensions)
    tokens = int(made.tokens.sum())
    head = {
        "object": "list",
        "model": spec.bare_name if body.model is None else body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    written = await with_rows(head, "data", _data(made, body.encoding_format == "base64"), made.vectors.shape[1])
    cut = int((made.truncated > 0).sum())
    return json_answer(written, {"x-likewise-cached": str(int(made.cached.sum())), "x-likewise-truncated": str(cut)})


@router.get("/models", response_model=ModelsAnswer, responses=refusals())
@declares(Load.OTHER)
async def list_models(_: CanRead, embedder: ProcessEmbedder) -> Answer:
    """The models that requests may name, the default first."""
    return Answer({"object": "list", "data": [_model(spec, embedder) for spec in embedder.models()]})


@router.get("/models/{model:path}", response_model=ModelOut, responses=refusals(400, 404))
@declares(Load.OTHER)
async def get_model(
    _: CanRead, embedder: ProcessEmbedder, model: Annotated[str, Path(description="Any of a model's names.")]
) -> Answer:
    """One model by any of its names."""
    return Answer(_model(known_model(embedder, model), embedder, model))


def known_model(embedder: ProcessEmbedder, name: str | None) -> ModelSpec:
    """What is known of a model; ModelNotFound if requests may not name it."""
    try:
        return embedder.known(name)
    except ModelNotAllowed:
        raise ModelNotFound from None


def _data(made: Embedded, in_base64: bool) -> Any:
    for place, vector in enumerate(made.vectors):
        cut = int(made.truncated[place])
        yield {
            "object": "embedding",
            "index": place,
            "embedding": as_base64(vector) if in_base64 else vector,
            **({"truncated_tokens": cut} if cut else {}),
        }


def _model(spec: ModelSpec, embedder: ProcessEmbedder, name: str | None = None) -> dict[str, Any]:
    return {
        "id": name or spec.name,
        "object": "model",
        "created": CREATED,
        "owned_by": "likewise" if spec.own else spec.hub_id.partition("/")[0] if "/" in spec.hub_id else spec.provider,
        "dimensions": spec.dimension,
        "max_input_tokens": spec.max_tokens,
        "provider": spec.provider,
        "space": embedder.space(spec.name),
    }


# LiteLLM goes by these words, and takes a 401 that says `invalid_request_error` for a wrong field.
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def openai_error(error: LikewiseError, detail: str, _: Scope, /) -> Response:
    """Return an error as OpenAI's API has it, with 400 for a wrong field. An ErrorShape."""
    status = 400 if error.status == Invalid.status else error.status
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    parameter, code = None, error.code
    if error.faults:
        first = error.faults[0]
        parameter = first.pointer.strip("/").replace("/", ".") or None
        code = first.code if error.code == Invalid.code else error.code
    return Answer({"error": {"message": detail, "type": kind, "param": parameter, "code": code}}, status)
