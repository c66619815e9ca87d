"""What a loaded local model is known by, and what any model has put before texts."""

from collections.abc import Mapping
from dataclasses import dataclass

from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Role


@dataclass(frozen=True)
class ModelFacts:
    """What others know a loaded model by; `call_tokens` is about how much it likes to be given at a time."""

    space: str
    numerics: str
    dimension: int
    max_tokens: int
    call_tokens: int


def prefixes(spec: ModelSpec, prompts: Mapping[str, str] | None = None) -> dict[Role, str]:
    """What goes before a text, by role: what the model's row says, else the prompts of its folder, if it has one."""
    prompts = prompts or {}
    return {
        "query": spec.query_prefix or prompts.get("query", ""),
        "document": spec.document_prefix or prompts.get("document", ""),
    }
