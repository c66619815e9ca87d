"""A sentence-transformers folder that torch runs: any architecture, and modules that there is no graph for.

Nothing in a folder names code to import: modules, activations and ways to attend are of closed lists.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from likewise.embedding.files.folder import (
    INDEX,
    KINDS,
    SENTENCE_ONLY,
    read_json,
    read_modules,
    read_prompts,
    token_limit,
)
from likewise.embedding.graphs.architectures import broken
from likewise.errors import ModelUnavailable, NotSupported

_WEIGHTS = "model.safetensors"
_HEADS = (*KINDS, "LayerNorm")
_WITH_WEIGHTS = ("Dense", "LayerNorm")
_SIZES = ("hidden_size", "d_model", "dim", "n_embd")  # the dimension of a token's vector, by architecture
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(activation\.[A-Za-z]+|linear\.Identity)")
# keys of config.json that lead to code or packages that are not torch's own, but for these values
_CONFIG_ONLY: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "attn_implementation": (None, "eager", "sdpa"),
    "_attn_implementation": (None, "eager", "sdpa"),
}
_SENTENCE_KEYS = ("max_seq_length", "do_lower_case", "unpad_inputs", *SENTENCE_ONLY)


@dataclass(frozen=True)
class HeadModule:
    """One module after the Transformer, and the folder with its files."""

    kind: str
    path: Path

    @property
    def weights(self) -> list[Path]:
        """Its file of weights, if such a module has any."""
        return [self.path / _WEIGHTS] if self.kind in _WITH_WEIGHTS else []


@dataclass(frozen=True)
class TorchFolder:
    """One folder, read. `dimension` is 0 where only the loaded model knows it; `max_tokens` is `sys.maxsize` then.

    `heads` come after the Transformer, in order; none stands for the mean of the tokens. `prompts` go before a text, by
    role; without `prompt_pooled` their tokens are read, and left out when a vector is made of the tokens'.
    """

    path: Path
    transformer: Path
    architecture: str
    heads: tuple[HeadModule, ...]
    max_tokens: int
    dimension: int
    lowercase: bool
    prompts: Mapping[str, str]
    prompt_pooled: bool

    @classmethod
    def read(cls, path: Path) -> "TorchFolder":
        """Read the folder's JSON files.

        NotSupported names the module or value that this version does not do; ModelUnavailable the file that is broken.
        """
        modules = read_modules(path, _HEADS)
        transformer = path / modules[0][1]
        heads = tuple(_head(kind, path / place, path) for kind, place in modules[1:])
        config = _config(transformer)
        sentence = _sentence(transformer)
        positions = config.get("max_position_embeddings")
        return cls(
            path=path,
            transformer=transformer,
            architecture=str(config.get("model_type")),
            heads=heads,
            max_tokens=min(token_limit(sentence, transformer), _positive(positions) or sys.maxsize, sys.maxsize),
            dimension=_dimension(config, heads),
            lowercase=bool(sentence.get("do_lower_case", False)),
            prompts=read_prompts(path / "config_sentence_transformers.json"),
            prompt_pooled=all(_config_of(head).get("include_prompt", True) is True for head in heads),
        )

    @property
    def weights(self) -> dict[str, Path]:
        """The files of weights, the Transformer's first, by the names of their checksum records."""
        shards = _shards(self.transformer)
        named = {"" if path.name == _WEIGHTS else path.stem: path for path in shards}
        # by the whole place: `a/dense` and `b/dense` are two
        places = {head.path.relative_to(self.path).as_posix(): path for head in self.heads for path in head.weights}
        if both := sorted(named.keys() & places.keys()):
            raise broken(self.path / "modules.json", f"has the module `{both[0]}`, and a file of weights has its name")
        return {**named, **places}

    @property
    def described_by(self) -> dict[str, Path]:
        """The files that describe the use of the weights, by name."""
        files = [
            self.path / "modules.json",
            self.transformer / "config.json",
            self.transformer / "tokenizer.json",
            *_sentence_files(self.transformer),
            *(head.path / "config.json" for head in self.heads),
        ]
        return {file.relative_to(self.path).as_posix(): file for file in files if file.is_file()}


def _config(transformer: Path) -> Mapping[str, Any]:
    file = transformer / "config.json"
    config: Mapping[str, Any] = read_json(file)
    for key, values in _CONFIG_ONLY.items():
        if config.get(key) not in values:
            raise NotSupported(f"{file} has {key}, which this version does not do.")
    if (transformer / "adapter_config.json").is_file():
        raise NotSupported(f"{transformer} holds an adapter of a model; merge it into the model's own weights.")
    return config


def _sentence(transformer: Path) -> Mapping[str, Any]:
    for file in _sentence_files(transformer):
        sentence: Mapping[str, Any] = read_json(file)
        for key, value in sentence.items():
            if value and key not in _SENTENCE_KEYS:
                raise NotSupported(f"{file} has {key}, which this version does not do.")
        modality = sentence.get("modality_config", SENTENCE_ONLY["modality_config"])
        given = {**sentence, "modality_config": {"text": modality.get("text")} if isinstance(modality, dict) else None}
        for key, only in SENTENCE_ONLY.items():
            if given.get(key, only) != only:
                raise NotSupported(f"{file} has {key} `{sentence[key]}`; this version runs `{only}` only.")
        return sentence
    return {}


def _sentence_files(transformer: Path) -> list[Path]:
    """Find the file of the Transformer module, once named for its architecture: `sentence_roberta_config.json`."""
    usual = transformer / "sentence_bert_config.json"
    return [usual] if usual.is_file() else sorted(transformer.glob("sentence_*_config.json"))[:1]


def _head(kind: str, path: Path, folder: Path) -> HeadModule:
    if kind == "Transformer":
        raise NotSupported(
            f"{folder / 'modules.json'} has Transformer ({path.name}) where this version does not run it."
        )
    head = HeadModule(kind, path)
    for file in head.weights:
        if not file.is_file():
            raise ModelUnavailable(f"{file} is missing; put the model's own file there.")
    activation = str(_config_of(head).get("activation_function", "torch.nn.modules.activation.Tanh"))
    if not _ACTIVATION.fullmatch(activation):
        raise NotSupported(
            f"{path / 'config.json'} asks for the activation {activation}, which this version does not run."
        )
    return head


def _config_of(head: HeadModule) -> Mapping[str, Any]:
    absent: Any = {} if head.kind == "Normalize" else None
    config: Mapping[str, Any] = read_json(head.path / "config.json", absent)
    return config


def _shards(transformer: Path) -> list[Path]:
    if (transformer / _WEIGHTS).is_file() or not (transformer / INDEX).is_file():
        return [transformer / _WEIGHTS]
    places = read_json(transformer / INDEX).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise broken(transformer / INDEX, "does not name the files of the weights")
    return [transformer / name for name in names]


def _dimension(config: Mapping[str, Any], heads: tuple[HeadModule, ...]) -> int:
    dimension = next((size for key in _SIZES if (size := _positive(config.get(key)))), 0)
    for head in heads:
        module = _config_of(head)
        if head.kind == "Pooling":
            named = module.get("pooling_mode")
            flagged = [key for key, value in module.items() if key.startswith("pooling_mode_") and value is True]
            dimension *= len(named) if isinstance(named, list) else 1 if named else max(1, len(flagged))
        if head.kind == "Dense":
            dimension = _positive(module.get("out_features"))
    return dimension


def _positive(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
