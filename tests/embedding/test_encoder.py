"""The graph against a forward pass in numpy, and what of a folder is honoured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise.embedding.files.folder import ModelFolder
from likewise.embedding.graphs.architectures import Shape
from likewise.embedding.graphs.encoder import Encoder, headed, pooled
from likewise.embedding.graphs.openvino import openvino
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import local_spec
from likewise.embedding.providers.openvino import load
from likewise.errors import LikewiseError, ModelUnavailable
from likewise.settings import Settings, load_settings
from tests.embedding import tiny

IDS = [[2, 4, 5, 6, 3], [2, 7, 3], [2, 8, 9, 10, 11, 4, 4, 3]]


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", precision="f32")


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("prefix", ["", "bert."])
def test_vectors_are_those_of_the_paper(tmp_path: Path, pooling: Any, prefix: str) -> None:
    weights = tiny.weights()
    tiny.write_safetensors(tmp_path / "m.safetensors", weights, prefix=prefix)
    encoder = Encoder(Shape.read(tiny.CONFIG, tmp_path), Tensors(tmp_path / "m.safetensors"))
    made = headed(pooled(encoder.states(), encoder.inside, pooling), (), {})
    graph = openvino.Model([made], [encoder.ids, encoder.lengths], "encoder")
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    padded = np.array([ids + [9] * (8 - len(ids)) for ids in IDS], np.int32)  # padding is no word of its own
    vectors = compiled([padded, np.array([[len(ids)] for ids in IDS], np.int32)])[0]
    expected = np.array([tiny.forward(weights, ids, pooling) for ids in IDS])
    assert np.abs(vectors - expected).max() < 2e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [("F32", 0.0), ("F16", 1e-3), ("BF16", 1e-2)])
def test_tensors_of_each_kind_of_float(tmp_path: Path, dtype: str, tolerance: float) -> None:
    weights = tiny.weights()
    tiny.write_safetensors(tmp_path / "m.safetensors", weights, dtype)
    tensors = Tensors(tmp_path / "m.safetensors")
    assert set(tensors.names()) == set(weights)
    for name, tensor in weights.items():
        read = tensors.read(name)
        assert read.dtype == np.float32
        assert np.abs(read - tensor).max() <= tolerance * 2


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\x03\x04 a zip archive of pickles", b"\xff" * 64, (10).to_bytes(8, "little") + b"not json!!" + b"x" * 9],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors"):
        Tensors(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tiny.write_safetensors(path, tiny.weights())
    path.write_bytes(path.read_bytes()[:-4])
    tensors = Tensors(path)
    with pytest.raises(ModelUnavailable, match="cut off"):
        tensors.read(tensors.names()[-1])


async def test_a_folder_of_ones_own(tmp_path: Path, plain: Settings) -> None:
    folder = tiny.write_folder(tmp_path / "own", tiny.weights(), "cls_token")
    spec = local_spec("own", folder)
    assert (spec.dimension, spec.max_tokens, spec.pooling) == (32, 12, "cls")
    provider = load(spec, folder, plain)
    got = await provider.embed(["alpha beta gamma", "alpha " * 30], "document")
    assert got.vectors[0] @ tiny.forward(tiny.weights(), [2, 4, 5, 6, 3], "cls") > 0.999999
    assert got.tokens.tolist() == [5, 12]
    assert got.truncated.tolist() == [0, 20]
    assert got.chars_read.tolist() == [16, 59]
    await provider.close()


async def test_a_text_of_any_length_alone(tmp_path: Path, plain: Settings) -> None:
    weights, limit = tiny.weights(), 21
    weights["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"][:limit]
    config = tiny.CONFIG | {"max_position_embeddings": limit}
    folder = tiny.write_folder(tmp_path / "own", weights, config=config, sentence_bert_config=None)
    provider = load(local_spec("own", folder), folder, plain)
    for words in range(1, limit + 2):
        got = await provider.embed(["beta " * words], "query")
        expected = tiny.forward(weights, [2, *[5] * min(words, limit - 2), 3], "mean")
        assert got.vectors[0] @ expected > 0.999999
    await provider.close()


async def test_prompts_go_before_the_text_by_role(tmp_path: Path, plain: Settings) -> None:
    prompts = {"prompts": {"query": "one two ", "document": ""}}
    folder = tiny.write_folder(tmp_path / "own", tiny.weights(), config_sentence_transformers=prompts)
    provider = load(local_spec("own", folder), folder, plain)
    query, document = [await provider.embed(["alpha " * 12], role) for role in ("query", "document")]
    same = await provider.embed(["one two " + "alpha " * 12], "document")
    assert np.array_equal(query.vectors, same.vectors)
    assert (query.tokens[0], query.truncated[0], query.chars_read[0]) == (12, 4, 47)
    assert (document.tokens[0], document.truncated[0], document.chars_read[0]) == (12, 2, 59)
    await provider.close()


async def test_lower_casing_that_the_folder_asks_for(tmp_path: Path, plain: Settings) -> None:
    lower: dict[str, Any] = {"sentence_bert_config": {"max_seq_length": 12, "do_lower_case": True}}
    folder = tiny.write_folder(tmp_path / "own", tiny.weights(), **lower)
    provider = load(local_spec("own", folder), folder, plain)
    vectors = (await provider.embed(["alpha beta", "Alpha BETA"], "document")).vectors
    assert np.array_equal(vectors[0], vectors[1])
    await provider.close()


def test_a_folder_without_modules_is_pooled_by_the_mean(tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "own", tiny.weights(), modules=None, sentence_bert_config=None)
    facts = ModelFolder.read(folder)
    assert (facts.pooling, facts.max_tokens) == ("mean", tiny.POSITIONS)


async def test_everything_that_changes_vectors_changes_the_space(tmp_path: Path, plain: Settings) -> None:
    variants: list[dict[str, Any]] = [
        {}, {"pooling": "cls_token"}, {"tensors": tiny.weights(1)}, {"sentence_bert_config": {"max_seq_length": 11}},
        {"config_sentence_transformers": {"prompts": {"query": "one "}}},
        {"config": tiny.CONFIG | {"layer_norm_eps": 1e-6}},
    ]  # fmt: skip
    spaces = []
    for place, variant in enumerate(variants):
        folder = tiny.write_folder(tmp_path / str(place), **{"tensors": tiny.weights(), **variant})
        spaces.append(load(local_spec(str(place), folder), folder, plain).space)
    assert len(set(spaces)) == len(variants)
    again = tiny.write_folder(tmp_path / "again", tiny.weights())
    assert load(local_spec("again", again), again, plain).space == spaces[0]


def test_weights_that_lack_a_layer(tmp_path: Path, plain: Settings) -> None:
    weights = tiny.weights()
    del weights["encoder.layer.1.output.dense.bias"]
    folder = tiny.write_folder(tmp_path / "own", weights)
    with pytest.raises(LikewiseError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        load(local_spec("own", folder), folder, plain)
