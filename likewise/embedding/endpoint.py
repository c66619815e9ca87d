"""Where a remote model is served."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible API, or one that reranks, and what it takes at a time.

    Attributes:
        base_url: what `/embeddings` or `/rerank` is added to, without a slash at its end.
        model: the model's name there.
        key: sent with each request; None if the endpoint asks for none.
        key_name: the variable that holds the key, for messages; None if the endpoint asks for none.
        api_version: Azure's; with one the key goes in the header `api-key`, as Azure wants it.
        texts: at most so many in a request.
        calls: at most so many requests under way.
        seconds: one try may take.
        texts_named: what a reranker's API calls its texts.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    api_version: str | None = None
    texts: int = 100
    calls: int = 8
    seconds: float = 30.0
    texts_named: Literal["documents", "texts"] = "documents"
