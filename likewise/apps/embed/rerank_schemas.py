"""What `/v1/rerank` takes and answers: the shape of Cohere's and Jina's."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Discriminator, Field, Tag

from likewise.apps.body import LIST_OF_IT, ONE_OF_IT, OldRequest, wrong
from likewise.apps.embed.openai_schemas import UsageOut
from likewise.apps.fields import AS_WHOLE_NUMBER, Text

MAX_DOCUMENTS = 1_000


class DocumentIn(OldRequest):
    """A document that is an object: its text. Other fields are ignored."""

    text: Text


def _text_or_object(value: Any) -> Any:
    """What is wrong in a word, where the forms that there are would each find something to say."""
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
        """Where the text of a document stands."""
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
    """What was read."""

    input_tokens: int


class MetaOut(BaseModel):
    """The same count as in `usage`, where Cohere's clients look for it."""

    tokens: TokensOut


class RerankAnswer(BaseModel):
    """The documents by their scores, best first, those of equal ones in the order of the request."""

    id: str
    model: str
    results: list[ResultOut]
    usage: UsageOut
    meta: MetaOut
