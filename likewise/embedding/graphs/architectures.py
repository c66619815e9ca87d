"""The architectures that there are graphs for, and the names of the parts that all of them have.

BERT: Devlin et al. 2019, https://arxiv.org/abs/1810.04805; DistilBERT: Sanh et al. 2019,
https://arxiv.org/abs/1910.01108; MPNet: Song et al. 2020, https://arxiv.org/abs/2004.09297. The names are those of
Hugging Face's `transformers`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from likewise.errors import ModelUnavailable, NotSupported


@dataclass(frozen=True)
class ConfigKeys:
    """Keys of `config.json`. Without an `epsilon` it is 1e-12."""

    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    inner: str = "intermediate_size"
    activation: str = "hidden_act"
    epsilon: str | None = "layer_norm_eps"


@dataclass(frozen=True)
class LayerNames:
    """Names of a layer's linear maps and layer norms; `{}` in `layer` is its number."""

    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    mixed: str = "attention.output.dense"
    mixed_norm: str = "attention.output.LayerNorm"
    inner: str = "intermediate.dense"
    outer: str = "output.dense"
    outer_norm: str = "output.LayerNorm"


@dataclass(frozen=True)
class ScoringHead:
    """The two linear maps that make one number of a pair's first token, with the activation of the first."""

    inner: str
    activation: Literal["tanh", "relu"]
    outer: str


@dataclass(frozen=True)
class Architecture:
    """One family of encoders.

    `prefix` may stand before the tensors' names; `only` are the configuration's values that the graph is right for, and
    what an absent one stands for. With a `padding` id, positions are counted as fairseq does: from the id after it, and
    not over tokens that are padding. `relative_bias` is the table of attention biases by relative position. `scoring`
    is what a cross-encoder has besides.
    """

    name: str
    scoring: ScoringHead
    keys: ConfigKeys = ConfigKeys()
    layers: LayerNames = LayerNames()
    prefix: str = ""
    only: Mapping[str, Any] = field(default_factory=dict)
    token_types: bool = False
    padding: int | None = None
    relative_bias: str | None = None

    @property
    def first_position(self) -> int:
        """The position of a text's first token."""
        return 0 if self.padding is None else self.padding + 1


_ALL: tuple[Architecture, ...] = (
    Architecture(
        "bert",
        ScoringHead("bert.pooler.dense", "tanh", "classifier"),
        prefix="bert.",
        only={"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False},
        token_types=True,
    ),
    Architecture(
        "distilbert",
        ScoringHead("pre_classifier", "relu", "classifier"),
        keys=ConfigKeys("dim", "n_heads", "n_layers", "hidden_dim", "activation", None),
        layers=LayerNames(
            "transformer.layer.{}.",
            "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
            "ffn.lin1", "ffn.lin2", "output_layer_norm",
        ),
        prefix="distilbert.",
        only={"activation": "gelu"},
    ),
    Architecture(
        "mpnet",
        ScoringHead("classifier.dense", "tanh", "classifier.out_proj"),
        layers=LayerNames(
            "encoder.layer.{}.",
            "attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
        ),
        prefix="mpnet.",
        only={"hidden_act": "gelu", "relative_attention_num_buckets": 32},
        padding=1,
        relative_bias="encoder.relative_attention_bias.weight",
    ),
)  # fmt: skip

ARCHITECTURES: Mapping[str, Architecture] = {one.name: one for one in _ALL}


@dataclass(frozen=True)
class Shape:
    """The numbers of one encoder, from its `config.json`."""

    architecture: Architecture
    hidden: int
    heads: int
    layers: int
    inner: int
    positions: int
    epsilon: float

    @property
    def max_tokens(self) -> int:
        """Tokens that there are positions for."""
        return self.positions - self.architecture.first_position

    @property
    def linear_weights(self) -> int:
        """Numbers in the layers' linear maps: each token costs twice as many operations, attention itself apart."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.inner)

    @classmethod
    def read(cls, config: Mapping[str, Any], path: Path) -> "Shape":
        """Read the configuration in `path`.

        NotSupported names what there is no graph for; ModelUnavailable, the number that is missing or makes no sense.
        """
        architecture = architecture_of(config, path)
        refuse_others(config, architecture.only, path)
        keys = architecture.keys
        hidden, heads, layers, inner, positions = (
            whole_number(config, key, path)
            for key in (keys.hidden, keys.heads, keys.layers, keys.inner, "max_position_embeddings")
        )
        if hidden % heads or positions <= architecture.first_position:
            raise broken(path, f"has {keys.hidden} {hidden}, {heads} heads and {positions} positions")
        return cls(architecture, hidden, heads, layers, inner, positions, _epsilon(config, keys.epsilon, path))


def architecture_of(config: Mapping[str, Any], path: Path) -> Architecture:
    """Find the architecture of the configuration in `path`; NotSupported if there is no graph for it."""
    name = str(config.get("model_type"))
    if name not in ARCHITECTURES:
        raise NotSupported(f"{path} is of a model of type `{name}`; this version runs {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]


def refuse_others(config: Mapping[str, Any], only: Mapping[str, Any], path: Path) -> None:
    """Raise NotSupported if the configuration in `path` has other values than these, which absent ones stand for."""
    for key, value in only.items():
        if config.get(key, value) != value:
            raise NotSupported(f"{path} has {key} `{config[key]}`; this version runs `{value}` only.")


def whole_number(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Read a whole number above zero; ModelUnavailable if there is none of that key."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise broken(path, f"has no whole number above 0 as {key}")
    return value


def broken(path: Path, what: str) -> ModelUnavailable:
    """Return the error for a file of a model's folder that is not what it should be."""
    return ModelUnavailable(f"{path} {what}; replace it with the model's own file.", code="weights_broken")


def _epsilon(config: Mapping[str, Any], key: str | None, path: Path) -> float:
    value = config.get(key, 1e-12) if key else 1e-12
    if not isinstance(value, float) or not 0 < value < 1:
        raise broken(path, f"has no small number as {key}")
    return value
