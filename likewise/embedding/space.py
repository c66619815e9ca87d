"""The identity of a vector space: a digest of all that decides what vectors mean, and texts to check it by."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from likewise.digests import digest_of
from likewise.embedding.files.folder import ModelFolder, Module
from likewise.embedding.provider import Role

# Varied in language, length and kind, so that a wrong tokenizer, pooling or weight shows in at least one of them.
# They are part of every stored generation: never change one.
PROBE_TEXTS: tuple[str, ...] = (
    "The quick brown fox jumps over the lazy dog.",
    "error",
    "How do I reset my password if I no longer have access to my e-mail address?",
    "def mean(values):\n    return sum(values) / len(values)",
    "Der Zug nach Zürich fährt heute fünfzehn Minuten später ab.",
    "2024-03-01T12:00:00Z WARN payment-service timeout after 3000 ms, retrying (attempt 2 of 5)",
    "今日は天気がいいので、公園を散歩しました。",
    (
        "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. It takes place in the "
        "chloroplasts of plants and algae, and it is the source of nearly all energy in food chains."
    ),
)


def space_of(folder: ModelFolder, weights: Sequence[str], prefixes: Mapping[Role, str]) -> str:
    """Return the space of a folder that there is a graph for, as 64 hex digits.

    `weights` are the SHA-256 of its weights' files, the Transformer's first.
    """
    # in words of their own and not those of the code: a stored vector's space must outlive a renaming
    shape = folder.shape
    return digest_of(
        (
            *weights,
            _sha256(folder.transformer / "tokenizer.json"),
            f"{folder.architecture} {shape.hidden} {shape.heads} {shape.layers} {shape.inner}",
            f"positions {shape.positions}, epsilon {shape.epsilon}",
            f"pooling {folder.pooling}",
            *_stages(folder.modules),
            f"lowercase {folder.lowercase}",
            *_limits(prefixes, folder.max_tokens),
        )
    ).hex()


def space_of_files(files: Mapping[str, Path], weights: Sequence[str], prefixes: Mapping[Role, str], limit: int) -> str:
    """Return the space of any other folder: its weights, and every byte of the files that say how they are used.

    A folder that was written anew by another version of a library is another space, though it may be the same.
    """
    described = [f"{name} {_sha256(path)}" for name, path in sorted(files.items())]
    return digest_of((*weights, *described, *_limits(prefixes, limit))).hex()


def space_of_address(base_url: str, model: str, dimension: int, prefixes: Mapping[Role, str]) -> str:
    """Return the declared space of a remote model; models that are alike in all of this count as the same."""
    return digest_of(("remote", base_url, model, str(dimension), prefixes["query"], prefixes["document"])).hex()


def _limits(prefixes: Mapping[Role, str], tokens: int) -> tuple[str, str, str]:
    return f"query {prefixes['query']}", f"document {prefixes['document']}", f"tokens {tokens}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stages(modules: Sequence[Module]) -> list[str]:
    """Describe the modules after pooling; all end at unit length, whether the folder asks for it or not."""
    stages = [module if module == "normalize" else f"dense {module.outputs} {module.activation}" for module in modules]
    return [*(stages[:-1] if stages[-1:] == ["normalize"] else stages), "normalize"]
