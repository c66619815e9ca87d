"""OpenAI's API for embeddings, `/v1`."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag
from starlette.types import Scope

from likewise.apps.answers import REFUSALS, Answer, as_base64, json_answer, with_rows
from likewise.apps.body import PARSED
from likewise.apps.checking import LIST_OF_IT, ONE_OF_IT, OldRequest, wrong
from likewise.apps.declaration import Body, Load, declares
from likewise.apps.deps import CanRead, Metered, ProcessEmbedder
from likewise.apps.embed.routes import MAX_TEXTS
from likewise.apps.fields import AS_WHOLE_NUMBER, Text
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.models import ModelSpec
from likewise.errors import Fault, Invalid, LikewiseError, ModelNotAllowed, NotFound
from likewise.search.reranking import Rerankers

TOKENS = (
    "Arrays of token ids are not taken, because they are another tokenizer's: send texts. "
    "(LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False).)"
)


def _no_tokens(value: Any) -> Any:
    """Say in a word what is wrong, where each of the forms would find something to say."""
    if isinstance(value, list) and value and (_are_ids(value) or all(_are_ids(one) for one in value)):
        raise wrong("token_ids", TOKENS)
    if not isinstance(value, str | list):
        raise wrong("wrong_type", "This must be a string or a list of strings.")
    return value


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(one) is int for one in value)


def _form(value: Any) -> str:
    return LIST_OF_IT if isinstance(value, list) else ONE_OF_IT


Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
Input = Annotated[
    Annotated[Text, Tag(ONE_OF_IT)] | Annotated[Texts, Tag(LIST_OF_IT)],
    Discriminator(_form),
    BeforeValidator(_no_tokens),
]


class EmbeddingsIn(OldRequest):
    """OpenAI's request: one text or up to 2,048. Fields that are not here are ignored."""

    input: Input
    model: str | None = Field(None, description="One that `GET /v1/models` lists; the default if absent.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` if absent; `base64` is of little-endian float32."
    )
    dimensions: Annotated[int, Field(ge=1, le=16_000), AS_WHOLE_NUMBER] | None = Field(
        None, description="The first so many numbers of each vector, for models that are made for it."
    )


class EmbeddingOut(BaseModel):
    """One text's vector; `truncated_tokens` only where some were cut off."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    truncated_tokens: int | None = None


class UsageOut(BaseModel):
    """Tokens of all texts as the model reads them: with its special ones, and without what is cut off."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """The vectors, of unit length, in the order of the texts."""

    object: Literal["list"]
    data: list[EmbeddingOut]
    model: str
    usage: UsageOut


@dataclass(frozen=True)
class OpenAIModelOut:
    """One model; `dimensions` and `max_input_tokens` of each text, `space` null before it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    max_input_tokens: int
    provider: str
    space: str | None


class OpenAIModelsAnswer(BaseModel):
    """All models that requests may name, the default first."""

    object: Literal["list"]
    data: list[OpenAIModelOut]


class ErrorOut(BaseModel):
    """The reason of a refusal; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorOut


router = APIRouter(prefix="/v1", tags=["openai"])

# OpenAI's clients want to know when a model was made, which its files do not say: 20 November 2026, as good as any.
CREATED = 1_795_132_800


class ModelNotFound(NotFound):
    """There is no such model here. `GET /v1/models` lists those there are."""

    code = "model_not_found"

    def __init__(self) -> None:
        super().__init__(faults=[Fault("/model", self.code, type(self).__doc__ or "")])


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documented errors of a route, in OpenAI's shape, which has 400 for a wrong field."""
    return {status: {"description": REFUSALS[status], "model": ErrorAnswer} for status in sorted({*statuses, 500, 503})}


# As BODY_REFUSALS, but for 422.
REFUSED = refusals(400, 404, 413, 415, 429)


@router.post("/embeddings", response_model=EmbeddingsAnswer, responses=REFUSED)
@declares(Load.EMBEDDING, Body(EmbeddingsIn))
async def embeddings(tenant: CanRead, metered: Metered, body: Annotated[EmbeddingsIn, PARSED]) -> Response:
    """The vectors of texts; `x-likewise-cached` and `x-likewise-truncated` count texts."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    spec = known_model(metered.embedder, body.model)

    def pointer(place: int) -> str:
        return "/input" if isinstance(body.input, str) else f"/input/{place}"

    made = await metered.embed(tenant, texts, pointer, model=body.model, dimensions=body.dimensions)
    tokens = int(made.tokens.sum())
    head = {
        "object": "list",
        "model": spec.bare_name if body.model is None else body.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    written = await with_rows(head, "data", _data(made, body.encoding_format == "base64"), made.vectors.shape[1])
    cut = int((made.truncated > 0).sum())
    return json_answer(written, {"x-likewise-cached": str(int(made.cached.sum())), "x-likewise-truncated": str(cut)})


@router.get("/models", response_model=OpenAIModelsAnswer, responses=refusals())
@declares(Load.OTHER)
async def list_models(_: CanRead, embedder: ProcessEmbedder) -> Answer:
    """The models that requests may name, the default first."""
    return Answer({"object": "list", "data": [_model(spec, embedder) for spec in embedder.models()]})


@router.get("/models/{model:path}", response_model=OpenAIModelOut, responses=refusals(400, 404))
@declares(Load.OTHER)
async def get_model(
    _: CanRead, embedder: ProcessEmbedder, model: Annotated[str, Path(description="Any of a model's names.")]
) -> Answer:
    """One model by any of its names."""
    return Answer(_model(known_model(embedder, model), embedder, model))


def known_model(
    models: Embedder | Rerankers, name: str | None, refusal: type[ModelNotFound] = ModelNotFound
) -> ModelSpec:
    """Return the facts of a model or reranker; `refusal` if requests may not name it."""
    try:
        return models.known(name)
    except ModelNotAllowed:
        raise refusal from None


def _data(made: Embedded, in_base64: bool) -> Any:
    for place, vector in enumerate(made.vectors):
        cut = int(made.truncated[place])
        yield {
            "object": "embedding",
            "index": place,
            "embedding": as_base64(vector) if in_base64 else vector,
            **({"truncated_tokens": cut} if cut else {}),
        }


def _model(spec: ModelSpec, embedder: ProcessEmbedder, name: str | None = None) -> OpenAIModelOut:
    owner = "likewise" if spec.own else spec.hub_id.partition("/")[0] if "/" in spec.hub_id else spec.provider
    size, space = (spec.dimension, spec.max_tokens), embedder.space(spec.name)
    return OpenAIModelOut(name or spec.name, "model", CREATED, owner, *size, spec.provider, space)


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
