"""A very small BERT with random weights: its folder, as sentence-transformers writes it, and its forward in numpy."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models, pre_tokenizers, processors

Array = npt.NDArray[Any]

HIDDEN, HEADS, LAYERS, POSITIONS = 32, 4, 2, 24
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *"alpha beta gamma delta one two three four".split())
CONFIG = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS, "intermediate_size": 4 * HIDDEN, "max_position_embeddings": POSITIONS,
    "layer_norm_eps": 1e-12,
}  # fmt: skip


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(WORDS), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,), "embeddings.LayerNorm.bias": (HIDDEN,),
    }  # fmt: skip
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{name}{part}.weight": (HIDDEN, HIDDEN), f"{name}{part}.bias": (HIDDEN,)}
        shapes |= {
            f"{name}intermediate.dense.weight": (4 * HIDDEN, HIDDEN),
            f"{name}intermediate.dense.bias": (4 * HIDDEN,),
        }
        shapes |= {f"{name}output.dense.weight": (HIDDEN, 4 * HIDDEN), f"{name}output.dense.bias": (HIDDEN,)}
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{name}{part}.weight": (HIDDEN,), f"{name}{part}.bias": (HIDDEN,)}
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def write_safetensors(path: Path, tensors: dict[str, Array], dtype: str = "F32", prefix: str = "") -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, tensor in tensors.items():
        raw = _stored(tensor, dtype).tobytes()
        header[prefix + name] = {
            "dtype": dtype,
            "shape": tensor.shape,
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_folder(folder: Path, tensors: dict[str, Array], pooling: str = "mean_tokens", **files: Any) -> Path:
    """Files that are given as keywords go beside or in the place of the usual ones; `None` leaves one out."""
    (folder / "1_Pooling").mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", tensors)
    _tokenizer().save(str(folder / "tokenizer.json"))
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    parts: dict[str, Any] = {
        "config": CONFIG,
        "modules": [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()],
        "sentence_bert_config": {"max_seq_length": 12, "do_lower_case": False},
        **files,
    }
    for name, content in parts.items():
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))
    return folder


def forward(tensors: dict[str, Array], ids: list[int], pooling: str) -> Array:
    """One text's unit vector, step by step as in the paper."""
    get = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    state = get["embeddings.word_embeddings.weight"][ids] + get["embeddings.position_embeddings.weight"][: len(ids)]
    state = _norm(state + get["embeddings.token_type_embeddings.weight"][0], get, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        name = f"encoder.layer.{layer}."
        attended = _dense(_attention(state, get, name + "attention.self."), get, name + "attention.output.dense")
        state = _norm(attended + state, get, name + "attention.output.LayerNorm")
        inner = _gelu(_dense(state, get, name + "intermediate.dense"))
        state = _norm(_dense(inner, get, name + "output.dense") + state, get, name + "output.LayerNorm")
    vector: Array = {"mean": state.mean(axis=0), "max": state.max(axis=0), "cls": state[0]}[pooling]
    unit: Array = vector / np.linalg.norm(vector)
    return unit


def _stored(tensor: Array, dtype: str) -> Array:
    if dtype == "BF16":
        return (tensor.view(np.uint32) >> 16).astype(np.uint16)
    return tensor.astype({"F32": np.float32, "F16": np.float16}[dtype])


def _tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def _dense(state: Array, get: dict[str, Array], name: str) -> Array:
    result: Array = state @ get[f"{name}.weight"].T + get[f"{name}.bias"]
    return result


def _norm(state: Array, get: dict[str, Array], name: str) -> Array:
    centred = state - state.mean(axis=-1, keepdims=True)
    scaled: Array = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled * get[f"{name}.weight"] + get[f"{name}.bias"]


def _attention(state: Array, get: dict[str, Array], name: str) -> Array:
    size = HIDDEN // HEADS
    query, key, value = (_dense(state, get, name + part).reshape(-1, HEADS, size) for part in ("query", "key", "value"))
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(size)
    weight = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed: Array = np.einsum("hqk,khd->qhd", weight / weight.sum(axis=-1, keepdims=True), value)
    return mixed.reshape(-1, HIDDEN)


def _gelu(state: Array) -> Array:
    erf = np.vectorize(math.erf)
    result: Array = state * 0.5 * (1 + erf(state / math.sqrt(2)))
    return result
