"""A sentence-transformers folder, read from its JSON files. Parts that this version cannot run are refused by name."""

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias

from likewise.embedding.graphs.architectures import Shape, broken, refuse_others, whole_number
from likewise.errors import ModelUnavailable, NotSupported

Pooling = Literal["mean", "cls", "max"]
Activation = Literal["tanh", "identity"]

REQUIRED = ("config.json", "tokenizer.json", "model.safetensors")
INDEX = "model.safetensors.index.json"
IN_SHARDS = (*REQUIRED[:2], INDEX)  # of a model whose weights are too large for one file
OPTIONAL = (
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)

KINDS = ("Transformer", "Pooling", "Dense", "Normalize")  # of modules that there are graphs for

_POOLING_KEYS: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_POOLINGS: Sequence[Pooling] = ("mean", "cls", "max")
_ACTIVATIONS: Mapping[str, Activation] = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.linear.Identity": "identity",
}
# values of a Dense module that there is a graph for, which absent ones stand for
_DENSE_ONLY: Mapping[str, Any] = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
# the same of a Transformer module, since sentence-transformers 6
SENTENCE_ONLY: Mapping[str, Any] = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}
# by role, the first of these prompts that there is
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class Dense:
    """A linear map with an activation, whose weights are `model.safetensors` in `path`."""

    path: Path
    inputs: int
    outputs: int
    bias: bool
    activation: Activation


Module: TypeAlias = Dense | Literal["normalize"]


@dataclass(frozen=True)
class ModelFolder:
    """One folder, read: the place of its Transformer, and the way from token states to a vector.

    `modules` come after pooling, in order; `lowercase` is asked for besides what the tokenizer does by itself;
    `prompts` go before a text, by role.
    """

    path: Path
    transformer: Path
    shape: Shape
    max_tokens: int
    pooling: Pooling
    lowercase: bool
    modules: tuple[Module, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """The `model_type` of its configuration."""
        return self.shape.architecture.name

    @property
    def dense(self) -> list[Dense]:
        """Its Dense modules."""
        return [module for module in self.modules if isinstance(module, Dense)]

    @property
    def dimension(self) -> int:
        """Numbers in a vector."""
        return self.dense[-1].outputs if self.dense else self.shape.hidden

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Read the folder's JSON files.

        NotSupported names the module or mode that this version does not do; ModelUnavailable the file that is broken.
        """
        listed = read_modules(path)
        transformer = path / listed[0][1]
        shape = Shape.read(read_json(transformer / "config.json"), transformer / "config.json")
        sentence = _sentence(transformer / "sentence_bert_config.json")
        pooling, rest = _split(path, listed[1:])
        return cls(
            path=path,
            transformer=transformer,
            shape=shape,
            max_tokens=min(token_limit(sentence, transformer), shape.max_tokens),
            pooling="mean" if pooling is None else _pooling(pooling, shape.hidden),
            lowercase=bool(sentence.get("do_lower_case", False)),
            modules=_modules(rest, shape.hidden),
            prompts=read_prompts(path / "config_sentence_transformers.json"),
        )


def has_weights(path: Path) -> bool:
    """Return whether the files that every model needs are all in this folder, or in its Transformer's."""
    return any(_has_all(base, REQUIRED) or _has_all(base, IN_SHARDS) for base in (path, path / "0_Transformer"))


def module_files(path: Path) -> list[tuple[str, bool]]:
    """List the files of the modules that follow pooling in `modules.json`, and whether each must be there."""
    _, rest = _split(path, read_modules(path)[1:])
    names = [(place.relative_to(path), kind == "Dense") for kind, place in rest]
    return [((name / "config.json").as_posix(), needed) for name, needed in names] + [
        ((name / "model.safetensors").as_posix(), True) for name, needed in names if needed
    ]


def read_modules(path: Path, kinds: Collection[str] = KINDS) -> list[tuple[str, str]]:
    """Read kind and place of each module in `modules.json`, the Transformer first; NotSupported for other kinds."""
    file = path / "modules.json"
    entries = read_json(file, [], kind=list)
    if not all(isinstance(entry, dict) for entry in entries):
        raise broken(file, "is no list of modules")
    listed = [(_kind(entry, file, kinds), _place(entry, file)) for entry in entries] or [("Transformer", "")]
    if listed[0][0] != "Transformer":
        raise NotSupported(f"{file} begins with {listed[0][0]}; this version runs a Transformer first.")
    return listed


def _kind(entry: Mapping[str, Any], file: Path, kinds: Collection[str]) -> str:
    name = str(entry.get("type", ""))
    kind = name.rpartition(".")[2]
    if kind not in kinds or not name.startswith("sentence_transformers."):
        raise NotSupported(f"{file} has a module of type {name or 'nothing'}, which this version does not run.")
    return kind


def _place(entry: Mapping[str, Any], file: Path) -> str:
    place = str(entry.get("path", ""))
    parts = PurePosixPath(place)
    if parts.is_absolute() or ".." in parts.parts or "\\" in place or ":" in place or "\0" in place:
        raise broken(file, "names a module outside its folder")
    return place


def _split(path: Path, listed: Sequence[tuple[str, str]]) -> tuple[Path | None, list[tuple[str, Path]]]:
    """Return the folder of the pooling, and kind and folder of the modules after it."""
    places = [(kind, path / place) for kind, place in listed]
    pooling = places.pop(0)[1] if places and places[0][0] == "Pooling" else None
    for kind, place in places:
        if kind not in ("Dense", "Normalize"):
            raise NotSupported(f"{path / 'modules.json'} has {kind} ({place.name}) where this version does not run it.")
    return pooling, places


def _modules(places: Iterable[tuple[str, Path]], dimension: int) -> tuple[Module, ...]:
    modules: list[Module] = []
    for kind, place in places:
        if kind == "Normalize":
            modules.append("normalize")
            continue
        dense = _dense(place, dimension)
        modules.append(dense)
        dimension = dense.outputs
    return tuple(modules)


def _dense(path: Path, dimension: int) -> Dense:
    file = path / "config.json"
    config = read_json(file)
    refuse_others(config, _DENSE_ONLY, file)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation not in _ACTIVATIONS:
        raise NotSupported(f"{file} asks for the activation {activation}, which this version does not run.")
    inputs, outputs = whole_number(config, "in_features", file), whole_number(config, "out_features", file)
    if inputs != dimension:
        raise broken(file, f"takes vectors of {inputs} numbers where those before it have {dimension}")
    return Dense(path, inputs, outputs, config.get("bias", True) is not False, _ACTIVATIONS[activation])


def _pooling(path: Path, dimension: int) -> Pooling:
    file = path / "config.json"
    config = read_json(file)
    size = config.get("word_embedding_dimension", config.get("embedding_dimension", dimension))
    if size != dimension:
        raise broken(file, f"pools vectors of {size} numbers where the model has {dimension}")
    if config.get("include_prompt", True) is not True:
        raise NotSupported(f"{file} leaves prompts out of pooling (include_prompt), which this version does not do.")
    flagged = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    named = config.get("pooling_mode", [_POOLING_KEYS.get(key, key) for key in flagged])
    modes = named if isinstance(named, list) else [named]
    for pooling in _POOLINGS:
        if modes == [pooling]:
            return pooling
    asked = " and ".join(map(str, modes)) or "nothing"
    raise NotSupported(f"{file} asks for pooling by {asked}, which this version does not do.")


def _sentence(file: Path) -> Mapping[str, Any]:
    sentence: Mapping[str, Any] = read_json(file, {})
    refuse_others(sentence, SENTENCE_ONLY, file)
    return sentence


def _has_all(base: Path, names: Iterable[str]) -> bool:
    return all((base / name).is_file() for name in names)


def token_limit(sentence: Mapping[str, Any], transformer: Path) -> int:
    """Read the most tokens of a text: sentence-transformers keeps them with the tokenizer, before 6 by themselves."""
    tokenizer = read_json(transformer / "tokenizer_config.json", {})
    for value in (sentence.get("max_seq_length"), tokenizer.get("model_max_length")):
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return sys.maxsize


def read_prompts(file: Path) -> dict[str, str]:
    """Read the prompts of `config_sentence_transformers.json` by role."""
    config = read_json(file, {})
    given = config.get("prompts") or {}
    if not isinstance(given, dict):
        raise broken(file, "has prompts without names")
    default = given.get(config.get("default_prompt_name"), "")
    found = {
        role: next((given[name] for name in names if name in given), default) for role, names in _PROMPT_NAMES.items()
    }
    return {role: str(prompt) for role, prompt in found.items() if prompt}


def read_json(path: Path, absent: Any = None, kind: type = dict) -> Any:
    """Read a JSON file, `absent` where there is no such file; ModelUnavailable names a broken one."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        if absent is not None:
            return absent
        raise ModelUnavailable(f"{path} is missing; put the model's own file there.") from None
    except OSError as error:
        raise ModelUnavailable(f"{path} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError):
        raise broken(path, "is not JSON") from None
    if not isinstance(content, kind):
        raise broken(path, "is not what such a file holds")
    return content
