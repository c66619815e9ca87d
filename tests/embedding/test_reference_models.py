"""Each architecture, pooling and head against `transformers` and sentence-transformers, on very small models.

reference_models/make.py made the models and the references.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise.embedding.graphs.architectures import ARCHITECTURES
from likewise.embedding.graphs.encoder import buckets
from likewise.embedding.graphs.openvino import able
from likewise.embedding.models import MODELS, local_spec
from likewise.embedding.providers.openvino import load
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.settings import Settings, load_settings
from tests.embedding.references import MODELS_FOLDER, NAMES, change, cosines, expected

LIMIT = 64
# As they were first stored: another value would cut every collection off from its own vectors.
SPACES = {
    "bert-cls": "9f18313bcf8a295a0297fdec7b9b8b66945d4f807b88c6612de801b757dcdd80",
    "bert-max": "99081944c21865044637f05d696a87df7b41f37b139ea9a38e4c26cb301c7949",
    "distilbert-dense": "3196dd98c54de1b3416048f55515b1a3eed2b99f65dcc9b68917b4ce2789a43b",
    "mpnet-mean": "b257892a1c82e9a16da3f6830c27d2c31f73a9486c5a5bff1dea240254c52fd2",
}


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", precision="f32")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with everything: DistilBERT, pooling, Dense."""
    return Path(shutil.copytree(MODELS_FOLDER / "distilbert-dense", tmp_path / "copy"))


def test_every_architecture_pooling_and_head_has_a_reference() -> None:
    assert NAMES == ["bert-cls", "bert-max", "distilbert-dense", "mpnet-mean"]
    assert set(ARCHITECTURES) == {spec.architecture for spec in MODELS} - {"remote"}


@pytest.mark.parametrize("name", NAMES)
async def test_vectors_are_those_of_the_reference(name: str, plain: Settings) -> None:
    texts, vectors, lengths = expected(name)
    folder = MODELS_FOLDER / name
    provider = load(local_spec(name, folder), folder, plain)
    together = await provider.embed(texts, "document")
    assert cosines(together.vectors, vectors).min() >= 0.99999
    assert np.abs(together.vectors - vectors).max() < 1e-4
    assert together.tokens.tolist() == np.minimum(lengths, LIMIT).tolist()
    assert together.truncated.tolist() == np.maximum(lengths - LIMIT, 0).tolist()
    alone = np.concatenate([(await provider.embed([text], "query")).vectors for text in texts])
    assert np.abs(alone - together.vectors).max() < 1e-5
    await provider.close()


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_what_it_always_was(name: str, plain: Settings) -> None:
    folder = MODELS_FOLDER / name
    assert load(local_spec("own", folder), folder, plain).space == SPACES[name]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("name", NAMES)
async def test_fewer_bits_stay_close(name: str, precision: str, tmp_path: Path) -> None:
    if precision.upper() not in able():
        pytest.skip(f"this processor has no {precision}")
    texts, vectors, _ = expected(name)
    folder = MODELS_FOLDER / name
    provider = load(local_spec(name, folder), folder, load_settings(data_dir=tmp_path, precision=precision))
    got = await provider.embed(texts, "document")
    # of 24 random numbers each, so rounding shows far more than in a real model
    assert cosines(got.vectors, vectors).min() >= 0.98
    assert precision in provider.numerics
    await provider.close()


def test_dense_gives_its_own_dimension() -> None:
    assert local_spec("own", MODELS_FOLDER / "distilbert-dense").dimension == 16


def test_relative_positions_fall_into_the_buckets_of_the_paper() -> None:
    of = dict(zip(range(-511, 512), buckets(512).tolist(), strict=True))
    assert [of[-distance] for distance in (0, 1, 7, 8, 15, 16, 31, 32, 63, 64, 90, 91, 127, 128, 511)] == [
        0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 14, 15, 15, 15, 15,
    ]  # fmt: skip
    assert all(of[distance] == of[-distance] + 16 for distance in range(1, 512))


def test_a_literal_padding_token_has_no_position_of_its_own(plain: Settings) -> None:
    folder = MODELS_FOLDER / "mpnet-mean"
    texts = ["stone <pad> river stone <pad>", "stone river"]
    provider = load(local_spec("own", folder), folder, plain)
    vectors = provider._embed(texts, "document").vectors
    assert np.isfinite(vectors).all()
    assert cosines(vectors[:1], vectors[1:]).max() < 0.999


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("config.json", {"model_type": "roberta"}, r"config\.json.*roberta"),
        ("config.json", {"model_type": ["bert"]}, r"config\.json"),
        ("config.json", {"activation": "gelu_new"}, r"config\.json.*gelu_new"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, r"1_Pooling.*lasttoken"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean", "max"]}, r"1_Pooling.*mean and max"),
        ("1_Pooling/config.json", {"include_prompt": False}, r"1_Pooling.*include_prompt"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.GELU"}, r"2_Dense.*GELU"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, r"2_Dense.*os\.system"),
        ("2_Dense/config.json", {"use_residual": True}, r"2_Dense.*use_residual"),
        ("2_Dense/config.json", {"module_input_name": "token_embeddings"}, r"2_Dense.*token_embeddings"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
    ],
)
def test_what_we_cannot_do_is_refused_by_name(
    copy: Path, plain: Settings, file: str, values: dict[str, Any], named: str
) -> None:
    change(copy / file, **values)
    with pytest.raises(NotSupported, match=named):
        load(local_spec("own", copy), copy, plain)


@pytest.mark.parametrize(
    "kinds",
    [
        ["sentence_transformers.models.CNN"],
        ["sentence_transformers.models.Transformer", "sentence_transformers.models.LayerNorm"],
        ["sentence_transformers.models.Transformer", "sentence_transformers.models.Transformer"],
        ["sentence_transformers.models.Pooling"],
        ["custom_code.Transformer"],
        ["sentence_transformers.models.Transformer", "custom.Dense"],
    ],
)
def test_a_module_of_another_kind_is_refused_by_name(copy: Path, plain: Settings, kinds: list[str]) -> None:
    modules = [{"type": kind, "path": "" if place == 0 else str(place)} for place, kind in enumerate(kinds)]
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(NotSupported, match=r"modules\.json.*" + kinds[-1].rpartition(".")[2]):
        load(local_spec("own", copy), copy, plain)


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "a/../../b", "..\\b", "C:b", "a\0b"])
def test_a_module_outside_its_folder_is_refused(copy: Path, plain: Settings, path: str) -> None:
    modules = json.loads((copy / "modules.json").read_text())
    modules[2]["path"] = path
    (copy / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelUnavailable, match=r"modules\.json names a module outside its folder; replace it"):
        load(local_spec("own", copy), copy, plain)


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("config.json", {"dim": None}, r"config\.json.*dim"),
        ("config.json", {"dim": 3 * 10**11}, r"vectors of 24 numbers where the model has"),
        ("config.json", {"n_heads": 5}, r"config\.json.*5 heads"),
        ("config.json", {"n_heads": 0}, r"config\.json.*n_heads"),
        ("config.json", {"n_layers": 10**9}, r"model\.safetensors has no tensor"),
        ("config.json", {"n_layers": True}, r"config\.json.*n_layers"),
        ("config.json", {"hidden_dim": 49}, r"model\.safetensors.*48 x 24.*49 x 24"),
        ("config.json", {"max_position_embeddings": 1_000}, r"model\.safetensors.*position_embeddings"),
        ("sentence_bert_config.json", {"max_seq_length": 2}, r"tokenizer\.json leaves no room"),
        ("1_Pooling/config.json", {"embedding_dimension": 25}, r"1_Pooling.*25 numbers.*24"),
        ("2_Dense/config.json", {"in_features": 32}, r"2_Dense.*32 numbers.*24"),
        ("2_Dense/config.json", {"out_features": 17}, r"2_Dense/model\.safetensors.*16 x 24.*17 x 24"),
        ("2_Dense/config.json", {"out_features": -1}, r"2_Dense.*out_features"),
    ],
)
def test_a_folder_that_contradicts_itself_names_the_file(
    copy: Path, plain: Settings, file: str, values: dict[str, Any], named: str
) -> None:
    change(copy / file, **values)
    with pytest.raises(ModelUnavailable, match=named) as refused:
        load(local_spec("own", copy), copy, plain)
    assert "replace it" in refused.value.detail
    assert "\n" not in refused.value.detail


@pytest.mark.parametrize("file", ["config.json", "modules.json", "2_Dense/config.json", "sentence_bert_config.json"])
@pytest.mark.parametrize("content", ["", "{", '"text"', "null", "[" * 100_000, "[1, 2]", "\ud800"])
def test_a_file_that_is_no_such_json_is_named(copy: Path, plain: Settings, file: str, content: str) -> None:
    (copy / file).write_text(content, errors="surrogatepass")
    with pytest.raises(ModelUnavailable, match=file.rpartition("/")[2]):
        load(local_spec("own", copy), copy, plain)


@pytest.mark.parametrize("file", ["tokenizer.json", "2_Dense/model.safetensors", "2_Dense/config.json", "config.json"])
def test_a_missing_file_is_named(copy: Path, plain: Settings, file: str) -> None:
    (copy / file).unlink()
    with pytest.raises(LikewiseError, match=file):
        load(local_spec("own", copy), copy, plain)


def test_a_tokenizer_of_another_model_is_refused(copy: Path, plain: Settings) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["vocab"]["many"] = 30_000
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelUnavailable, match=r"tokenizer\.json has token ids beyond"):
        load(local_spec("own", copy), copy, plain)


def test_weights_of_a_dense_module_are_held_to_what_was_seen_first(copy: Path, plain: Settings) -> None:
    spec = local_spec("own", copy)
    space = load(spec, copy, plain).space
    assert load(spec, copy, plain).space == space
    weights = copy / "2_Dense" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"2_Dense/model\.safetensors is not the file") as refused:
        load(spec, copy, plain)
    assert refused.value.code == "weights_checksum"
    shutil.rmtree(plain.models_folder / ".checksums")
    assert load(spec, copy, plain).space != space
