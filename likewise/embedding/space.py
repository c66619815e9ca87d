"""The digest of all that decides what a model's vectors mean, whichever program or provider runs the model."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from likewise.digests import digest_of
from likewise.embedding.files.folder import ModelFolder, Module
from likewise.embedding.provider import Role


def space_of(folder: ModelFolder, weights: Sequence[str], prefixes: Mapping[Role, str]) -> str:
    """The space of a folder that there is a graph for, as 64 hex digits.

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
    """The space of any other folder: its weights, and every byte of the files that say what is done with them.

    So a folder that was written anew by another version of a library is another space, though it may be the same.
    """
    described = [f"{name} {_sha256(path)}" for name, path in sorted(files.items())]
    return digest_of((*weights, *described, *_limits(prefixes, limit))).hex()


def space_of_address(base_url: str, model: str, dimension: int, prefixes: Mapping[Role, str]) -> str:
    """The space of a remote model. Declared, as nobody can look: what is alike in all of this is taken for the same."""
    return digest_of(("remote", base_url, model, str(dimension), prefixes["query"], prefixes["document"])).hex()


def _limits(prefixes: Mapping[Role, str], tokens: int) -> tuple[str, str, str]:
    return f"query {prefixes['query']}", f"document {prefixes['document']}", f"tokens {tokens}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _stages(modules: Sequence[Module]) -> list[str]:
    """What comes after pooling; whether the folder asks for unit length at the end or not makes no difference."""
    stages = [module if module == "normalize" else f"dense {module.outputs} {module.activation}" for module in modules]
    return [*(stages[:-1] if stages[-1:] == ["normalize"] else stages), "normalize"]
