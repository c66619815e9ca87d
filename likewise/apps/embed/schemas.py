"""What the routes of `embed` take and answer."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from likewise.apps.body import OldRequest
from likewise.apps.embed.results import BatchEmbeddingResult
from likewise.apps.fields import AS_WHOLE_NUMBER, Text

MAX_TEXTS = 2_048

Format = Literal["float", "int8", "binary"]
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


class ModelOut(BaseModel):
    """One model that requests may name; `cost_per_1k_tokens` in US dollars, `space` null before it is loaded."""

    name: str
    provider: str
    dimension: int
    max_batch_size: int
    max_input_length: int
    cost_per_1k_tokens: float
    hub_id: str
    state: str
    matryoshka: bool
    space: str | None


class ModelsAnswer(BaseModel):
    """All of them, and the name of the one that is taken where a request names none."""

    models: list[ModelOut]
    default: str


class HealthAnswer(BaseModel):
    """`healthy`, or `degraded` while the default model is away."""

    status: Literal["healthy", "degraded"]
    service: str
    default_model: str
    caching_enabled: bool
    models_loaded: list[str]
