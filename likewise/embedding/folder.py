"""What a sentence-transformers folder says about its model. What this version cannot do is refused by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from likewise.errors import ModelUnavailable, NotSupported

Pooling = Literal["mean", "cls", "max"]

REQUIRED = ("config.json", "tokenizer.json", "model.safetensors")
OPTIONAL = ("modules.json", "sentence_bert_config.json", "1_Pooling/config.json", "config_sentence_transformers.json")

_POOLING_KEYS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}


@dataclass(frozen=True)
class ModelFolder:
    """One folder, read: where its Transformer lies and how its token states become a vector.

    `lowercase` is asked for besides what the tokenizer does by itself; `prompts` go before a text, by role.
    """

    path: Path
    transformer: Path
    config: Mapping[str, Any]
    max_tokens: int
    pooling: Pooling
    lowercase: bool
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The `model_type` of its configuration."""
        return str(self.config.get("model_type", "unknown"))

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return int(self.config.get("hidden_size", 0))

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Read the folder's JSON files; NotSupported names the module or mode that this version does not do."""
        modules = _modules(path)
        transformer = path / modules.get("Transformer", "")
        config = _json(transformer / "config.json")
        sentence = _json(transformer / "sentence_bert_config.json", {})
        prompts = _json(path / "config_sentence_transformers.json", {}).get("prompts") or {}
        return cls(
            path=path,
            transformer=transformer,
            config=config,
            max_tokens=int(sentence.get("max_seq_length") or config.get("max_position_embeddings", 512)),
            pooling=_pooling(path / modules["Pooling"] / "config.json") if "Pooling" in modules else "mean",
            lowercase=bool(sentence.get("do_lower_case", False)),
            prompts={role: str(prompts[role]) for role in ("query", "document") if prompts.get(role)},
        )


def has_weights(path: Path) -> bool:
    """Whether the files that no model can do without are all in this folder, or in its Transformer's."""
    return any(all((base / name).is_file() for name in REQUIRED) for base in (path, path / "0_Transformer"))


def _modules(path: Path) -> dict[str, str]:
    """The folder of each module by its kind."""
    found: dict[str, str] = {}
    for module in _json(path / "modules.json", []):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise NotSupported(f"{path} has a module of type {kind}, which this version does not run.")
        found[kind] = str(module.get("path", ""))
    return found


def _pooling(path: Path) -> Pooling:
    config = _json(path)
    modes = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _POOLING_KEYS:
        raise NotSupported(
            f"{path} asks for pooling by {' and '.join(modes) or 'nothing'}, which this version does not do."
        )
    return _POOLING_KEYS[modes[0]]


def _json(path: Path, absent: Any = None) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        if absent is not None:
            return absent
        raise ModelUnavailable(f"{path} is missing; put the model's own file there.") from None
    except ValueError:
        raise ModelUnavailable(
            f"{path} is not JSON; replace it with the model's own file.", code="weights_broken"
        ) from None
