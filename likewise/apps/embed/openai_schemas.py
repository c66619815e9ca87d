"""What the routes of OpenAI's API take and answer here."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from likewise.apps.body import LIST_OF_IT, ONE_OF_IT, OldRequest, wrong
from likewise.apps.embed.schemas import MAX_TEXTS
from likewise.apps.fields import AS_WHOLE_NUMBER, Text

TOKENS = (
    "Arrays of token ids are not taken, because they are another tokenizer's: send texts. "
    "(LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False).)"
)


def _no_tokens(value: Any) -> Any:
    """What is wrong in a word, where the forms that there are would each find something to say."""
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
