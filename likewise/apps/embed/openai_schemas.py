"""What the routes of OpenAI's API take and answer here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from likewise.apps.body import wrong
from likewise.apps.embed.schemas import MAX_TEXTS, OldRequest

TOKENS = (
    "Arrays of token ids are not taken, because they are another tokenizer's: send texts. "
    "(LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False).)"
)


def _texts(value: Any) -> Any:
    """A text, or texts, and no token ids."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong("wrong_type", "This must be a string or a list of strings.")
    if not value:
        raise wrong("too_short", "This must have at least 1 item.")
    if len(value) > MAX_TEXTS:
        raise wrong("too_long", f"This must have at most {MAX_TEXTS} items.")
    if all(isinstance(one, int | list) for one in value):
        raise wrong("token_ids", TOKENS)
    if not all(isinstance(one, str) for one in value):
        raise wrong("wrong_type", "Each item must be a string.")
    return value


_TEXTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_TEXTS},
    ]
}


class EmbeddingsIn(OldRequest):
    """OpenAI's request: one text or up to 2,048. Fields that are not here are ignored."""

    input: Annotated[str | list[str], BeforeValidator(_texts), WithJsonSchema(_TEXTS_SCHEMA)]
    model: str | None = Field(None, description="One that `GET /v1/models` lists; the default if absent.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="`float` if absent; `base64` is of little-endian float32."
    )
    dimensions: int | None = Field(
        None, ge=1, le=16_000, description="The first so many numbers of each vector, for models that are made for it."
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


class ModelOut(BaseModel):
    """One model; `dimensions` and `max_input_tokens` of each text, `space` null before it is loaded."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    dimensions: int
    max_input_tokens: int
    provider: str
    space: str | None


class ModelsAnswer(BaseModel):
    """All models that requests may name, the default first."""

    object: Literal["list"]
    data: list[ModelOut]


class ErrorOut(BaseModel):
    """What is wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorOut
