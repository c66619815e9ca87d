"""The folder of a cross-encoder, read; a feature that this version does not have is refused by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likewise.embedding.files.folder import read_json, read_modules, token_limit
from likewise.embedding.graphs.architectures import Shape
from likewise.errors import NotSupported

WEIGHTS = "model.safetensors"
# Of the Transformer module that sentence-transformers writes since its version 6.
_SENTENCE_ONLY: Mapping[str, Any] = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}
_CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class CrossEncoderFolder:
    """One folder, read; `lowercase` is asked for besides what the tokenizer does by itself."""

    path: Path
    shape: Shape
    max_tokens: int
    lowercase: bool

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.path / WEIGHTS

    @classmethod
    def read(cls, path: Path) -> "CrossEncoderFolder":
        """Read the folder's JSON files.

        NotSupported names what this version does not do; ModelUnavailable the file that is broken.
        """
        _refuse_modules(path)
        file = path / "config.json"
        config = read_json(file)
        _refuse_other_heads(config, file)
        shape = Shape.read(config, file)
        sentence = _sentence(path / "sentence_bert_config.json")
        _refuse_prompts(path / "config_sentence_transformers.json")
        limit = min(token_limit(sentence, path), shape.max_tokens)
        return cls(path, shape, limit, bool(sentence.get("do_lower_case", False)))


def _refuse_modules(path: Path) -> None:
    modules = read_modules(path)
    if modules != [("Transformer", "")]:
        names = ", ".join(kind for kind, _ in modules)
        raise NotSupported(f"{path / 'modules.json'} has {names}, and is of no cross-encoder: that is one Transformer.")


def _refuse_other_heads(config: Mapping[str, Any], file: Path) -> None:
    """An encoder without a head, or one that chooses among several labels, gives no score."""
    named = config.get("architectures") or []
    names = [str(one) for one in named] if isinstance(named, list) else []
    if names and not any(name.endswith(_CLASSIFIER) for name in names):
        raise NotSupported(f"{file} is of a {names[0]}, which is no cross-encoder; those end in {_CLASSIFIER}.")
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count != 1:
        raise NotSupported(f"{file} has {count} labels; this version runs cross-encoders that give one score.")


def _sentence(file: Path) -> Mapping[str, Any]:
    sentence: Mapping[str, Any] = read_json(file, {})
    for key, only in _SENTENCE_ONLY.items():
        if sentence.get(key, only) != only:
            raise NotSupported(f"{file} has {key} `{sentence[key]}`; this version runs `{only}` only.")
    return sentence


def _refuse_prompts(file: Path) -> None:
    if read_json(file, {}).get("default_prompt_name"):
        raise NotSupported(f"{file} has a prompt before each text, which this version does not do.")
