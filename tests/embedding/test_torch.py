"""Folders through torch: beside OpenVINO where both run them, and beside sentence-transformers where only torch does.

Needs the extra `torch`, which `make test-torch` brings; without it these tests are skipped.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from likewise.embedding import memory
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MODELS, local_spec
from likewise.embedding.provider import Provider
from likewise.embedding.providers import openvino
from likewise.errors import Invalid, LikewiseError, ModelUnavailable, NotSupported, SettingsError
from likewise.settings import Settings, load_settings
from likewise.testing import FakeLoader
from tests.embedding import tiny
from tests.embedding.references import MODELS_FOLDER, NAMES, TEXTS, change, cosines, expected

WHY = "needs the extra torch: make test-torch"
torch = pytest.importorskip("torch", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
safetensors = pytest.importorskip("safetensors.torch", reason=WHY)
parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules", reason=WHY)
load = pytest.importorskip("likewise.embedding.providers.torch", reason=WHY).load

WORDS = ("<s>", "<pad>", "</s>", "<unk>", *"alpha beta gamma delta one two three four".split())
GIVEN = ["alpha", "beta gamma delta", "one two three four " * 5, "unheard of", "delta " * 40, "four three"]
LIMIT = 20
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip

Make = Callable[..., Path]


@pytest.fixture
def plain(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path / "data", precision="f32", offline=True)


def roberta() -> Any:
    return transformers.RobertaModel(transformers.RobertaConfig(max_position_embeddings=LIMIT + 2, **SIZES))


def electra() -> Any:
    return transformers.ElectraModel(transformers.ElectraConfig(embedding_size=16, **SIZES))


def qwen() -> Any:
    return transformers.Qwen3Model(transformers.Qwen3Config(num_key_value_heads=2, head_dim=8, **SIZES))


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": len(WORDS)}
    return transformers.T5EncoderModel(transformers.T5Config(pad_token_id=1, eos_token_id=2, **sizes))


@pytest.fixture
def folder(tmp_path: Path) -> Make:
    """Writes a very small model with random weights as sentence-transformers writes it."""

    def make(model: Any, *heads: Any, name: str = "made", limit: int | None = LIMIT, shards: str = "1GB") -> Path:
        path = tmp_path / name
        with torch.no_grad():
            for number, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(number)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.3 if parameter.ndim > 1 else 1))
        model.save_pretrained(path, max_shard_size=shards)
        tokens = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
        tokens.pre_tokenizer = pre_tokenizers.Whitespace()
        special = [("<s>", 0), ("</s>", 2)]
        tokens.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
        tokens.save(str(path / "tokenizer.json"))
        limits = {"max_seq_length": limit, "do_lower_case": False}
        (path / "sentence_bert_config.json").write_text(json.dumps(limits))
        entries = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
        for place, head in enumerate(heads, 1):
            kind = type(head).__name__
            head.save(str(made_folder(path / f"{place}_{kind}")))
            entries.append({"type": f"sentence_transformers.models.{kind}", "path": f"{place}_{kind}"})
        (path / "modules.json").write_text(json.dumps(entries))
        return path

    return make


def made_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def theirs(path: Path, kind: Any, heads: list[Any]) -> Any:
    """What sentence-transformers makes of the texts' ids, one at a time."""
    tokens = Tokenizer.from_file(str(path / "tokenizer.json"))
    model = kind.from_pretrained(path).eval()
    made = []
    for text in GIVEN:
        ids = tokens.encode(text).ids
        kept = torch.tensor([[*ids[:-1][: LIMIT - 1], ids[-1]]])
        features = {"token_embeddings": model(kept)[0], "attention_mask": torch.ones_like(kept)}
        for head in heads:
            features = head.eval()(features)
        made.append(features["sentence_embedding"][0].detach().numpy())
    return np.stack(made)


@pytest.mark.parametrize("name", NAMES)
async def test_what_openvino_runs_is_the_same_in_torch(name: str, plain: Settings) -> None:
    # Given one folder in both
    texts, vectors, _ = expected(name)
    path = MODELS_FOLDER / name
    spec = local_spec("own", path)
    one, other = openvino.load(spec, path, plain), load(spec, path, plain)
    # When both embed
    ours, again = [await provider.embed(texts, "document") for provider in (other, one)]
    # Then a worker with the one and a server with the other share a space
    assert other.space == one.space
    assert (other.dimension, other.max_tokens) == (one.dimension, one.max_tokens)
    assert np.abs(ours.vectors - vectors).max() < 1e-4
    assert ours.vectors.dtype == np.float32
    for counts in ("tokens", "truncated", "chars_read"):
        assert getattr(ours, counts).tolist() == getattr(again, counts).tolist()
    assert await other.lengths(texts) == await one.lengths(texts)
    assert other.numerics == f"torch-{'.'.join(torch.__version__.split('.')[:2])}/cpu/f32"
    await asyncio.gather(one.close(), other.close())


@pytest.mark.parametrize(("precision", "least"), [("f32", 0.99999), ("bf16", 0.9995)])
async def test_the_default_model_agrees(
    real_folder: Path, f32: Provider, precision: str, least: float, tmp_path: Path
) -> None:
    provider = load(MODELS[0], real_folder, load_settings(data_dir=tmp_path, precision=precision))
    ours, theirs = await provider.embed(TEXTS, "document"), await f32.embed(TEXTS, "document")
    assert cosines(ours.vectors, theirs.vectors).min() >= least
    assert ours.chars_read.tolist() == theirs.chars_read.tolist()
    assert (provider.space, provider.numerics.rpartition("/")[2]) == (f32.space, precision)
    await provider.close()


@pytest.mark.parametrize(
    ("make", "heads"),
    [
        (roberta, lambda: [parts.Pooling(32, "mean"), parts.Normalize()]),
        (electra, lambda: [parts.Pooling(32, ("cls", "max"))]),
        (electra, lambda: [parts.Pooling(32, "mean"), parts.Dense(32, 8, activation_function=torch.nn.GELU())]),
        (electra, lambda: [parts.Pooling(32, "weightedmean"), parts.LayerNorm(32)]),
        (qwen, lambda: [parts.Pooling(32, "lasttoken"), parts.Normalize()]),
        (t5, lambda: [parts.Pooling(32, "mean")]),
    ],
    ids=["roberta", "electra-two-poolings", "electra-gelu", "electra-norm", "qwen-lasttoken", "t5"],
)
async def test_an_architecture_without_a_graph_end_to_end(
    folder: Make, plain: Settings, make: Callable[[], Any], heads: Callable[[], list[Any]]
) -> None:
    # Given a folder that only torch can run, named by the settings
    modules, model = heads(), make()
    path = folder(model, *modules)
    embedder = Embedder(plain.model_copy(update={"model": str(path)}))
    wanted = theirs(path, type(model), modules)
    assert embedder.spec().dimension == wanted.shape[1]
    # When texts are embedded
    got = await embedder.embed(1, GIVEN)
    # Then their vectors are those of sentence-transformers, at unit length, with counts
    assert cosines(got.vectors, wanted).min() > 0.99999
    assert got.tokens.tolist() == [min(len(text.split()) + 2, LIMIT) for text in GIVEN]
    assert got.truncated[4] == 42 - LIMIT
    assert got.chars_read[4] == len("delta " * (LIMIT - 2)) - 1
    assert "/cpu/f32" in got.numerics
    assert embedder.states()[0].state == "ready"
    await embedder.close()


async def test_prompts_by_role_and_one_that_is_not_pooled(folder: Make, plain: Settings) -> None:
    path = folder(electra(), parts.Pooling(32, "mean", include_prompt=False))
    prompts = {"prompts": {"query": "one two ", "document": ""}}
    (path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    provider = load(local_spec("own", path), path, plain)
    query = (await provider.embed(["alpha beta"], "query")).vectors
    document = (await provider.embed(["alpha beta"], "document")).vectors
    tokens = Tokenizer.from_file(str(path / "tokenizer.json")).encode("one two alpha beta").ids
    states = transformers.ElectraModel.from_pretrained(path).eval()(torch.tensor([tokens]))[0]
    features = {"token_embeddings": states, "attention_mask": torch.ones(1, len(tokens)), "prompt_length": 3}
    wanted = parts.Pooling(32, "mean", include_prompt=False)(features)["sentence_embedding"].detach().numpy()
    assert cosines(query, wanted).min() > 0.99999
    assert np.abs(query - document).max() > 1e-3
    await provider.close()


async def test_the_space_is_the_folders_own(folder: Make, plain: Settings) -> None:
    def space(path: Path) -> str:
        return load(local_spec(path.name, path), path, plain).space

    first = folder(roberta(), parts.Pooling(32, "mean"), name="first")
    again = Path(shutil.copytree(first, first.with_name("again")))
    assert space(first) == space(again)
    change(again / "1_Pooling" / "config.json", pooling_mode="cls")
    assert space(first) != space(again)
    shorter = Path(shutil.copytree(first, first.with_name("shorter")))
    change(shorter / "sentence_bert_config.json", max_seq_length=9)
    assert space(first) != space(shorter)


async def test_weights_in_shards(folder: Make, plain: Settings) -> None:
    whole = folder(roberta(), parts.Pooling(32, "mean"), name="whole")
    shards = folder(roberta(), parts.Pooling(32, "mean"), name="shards", shards="20KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 1
    embedder = Embedder(plain.model_copy(update={"model": str(shards), "models_allowed": (str(whole),)}))
    ours, theirs = [await embedder.embed(1, GIVEN, model=str(path)) for path in (shards, whole)]
    assert np.abs(ours.vectors - theirs.vectors).max() < 1e-5
    await embedder.close()
    # And each is held to what was seen first
    shard = sorted(shards.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ModelUnavailable, match=shard.name) as refused:
        load(local_spec(str(shards), shards), shards, plain)
    assert refused.value.code == "weights_checksum"


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_modules_of_one_name_are_each_held_to_their_own(plain: Settings, tmp_path: Path, runtime: str) -> None:
    # Given two Dense modules that lie in folders of the same name
    path = Path(shutil.copytree(MODELS_FOLDER / "distilbert-dense", tmp_path / "made"))
    modules = json.loads((path / "modules.json").read_text())
    width = json.loads((path / "2_Dense" / "config.json").read_text())["out_features"]
    for seed, place in enumerate(("a/dense", "b/dense")):
        shutil.copytree(path / "2_Dense", path / place)
        change(path / place / "config.json", **({"in_features": width} if seed else {}))
        if seed:
            rows = {"linear.weight": torch.eye(width), "linear.bias": torch.zeros(width)}
            safetensors.save_file(rows, path / place / "model.safetensors", {"format": "pt"})
        modules.append({"type": "sentence_transformers.models.Dense", "path": place})
    (path / "modules.json").write_text(json.dumps([one for one in modules if one["path"] != "2_Dense"]))
    bring = load if runtime == "torch" else openvino.load
    space = bring(local_spec("own", path), path, plain).space
    assert (load if runtime == "openvino" else openvino.load)(local_spec("own", path), path, plain).space == space
    # When either is changed, then it is refused, and where nothing is recorded it is another space
    for place in ("a/dense", "b/dense"):
        file = path / place / "model.safetensors"
        before = file.read_bytes()
        file.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        with pytest.raises(ModelUnavailable, match=f"{place}/model") as refused:
            bring(local_spec("own", path), path, plain)
        assert refused.value.code == "weights_checksum"
        anew = plain.model_copy(update={"data_dir": tmp_path / place})
        assert bring(local_spec("own", path), path, anew).space != space
        file.write_bytes(before)


def test_positions_bound_the_limit(folder: Make, plain: Settings) -> None:
    path = folder(roberta(), parts.Pooling(32, "mean"), limit=512)
    assert load(local_spec("own", path), path, plain).max_tokens == LIMIT  # of 22 positions, two come before the first


def test_a_model_without_any_limit_is_refused(folder: Make, plain: Settings) -> None:
    path = folder(t5(), parts.Pooling(32, "mean"), limit=None)
    with pytest.raises(ModelUnavailable, match=r"sentence_bert_config\.json names no max_seq_length"):
        load(local_spec("own", path), path, plain)


async def test_a_text_does_not_depend_on_its_company(folder: Make, plain: Settings) -> None:
    path = folder(qwen(), parts.Pooling(32, "lasttoken"))
    provider = load(local_spec("own", path), path, plain)
    many = [" ".join(np.random.default_rng(n).choice(WORDS[4:], n % 17 + 1)) for n in range(120)]
    together = (await provider.embed(many, "document")).vectors
    parts_of = await asyncio.gather(*(provider.embed(many[at : at + 3], "document") for at in range(0, 120, 3)))
    assert np.abs(np.concatenate([one.vectors for one in parts_of]) - together).max() < 1e-5
    await provider.close()


async def test_a_text_that_makes_no_number_fails_alone(folder: Make, plain: Settings) -> None:
    # Given a model in which one word is not a number
    path = folder(electra(), parts.Pooling(32, "mean"))
    tensors = safetensors.load_file(path / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][WORDS.index("delta")] = float("nan")
    safetensors.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    embedder = Embedder(plain.model_copy(update={"model": str(path)}))
    # When it is among others, then it is named, and they are not lost
    with pytest.raises(Invalid) as failed:
        await embedder.embed(1, ["alpha", "beta delta", "gamma"])
    assert [(fault.pointer, fault.code) for fault in failed.value.faults] == [("/texts/1", "text_failed")]
    assert (await embedder.embed(1, ["alpha", "gamma"])).cached.all()
    await embedder.close()


@pytest.mark.parametrize(
    ("file", "values", "named"),
    [
        ("config.json", {"model_type": "homemade"}, r"config\.json.*homemade"),
        ("config.json", {"model_type": "bart"}, "also writes"),
        ("config.json", {"quantization_config": {"load_in_8bit": True}}, r"config\.json has quantization_config"),
        ("config.json", {"attn_implementation": "some/kernel"}, r"config\.json has attn_implementation"),
        ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "model_args"),
        ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "transformer_task"),
        ("2_Dense/config.json", {"activation_function": "os.system"}, r"2_Dense.*os\.system"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.modules.module.Module"}, "2_Dense.*Module"),
    ],
)
def test_what_torch_cannot_do_here_is_refused_by_name(
    folder: Make, plain: Settings, file: str, values: dict[str, Any], named: str
) -> None:
    path = folder(electra(), parts.Pooling(32, "mean"), parts.Dense(32, 8))
    change(path / file, **values)
    with pytest.raises(NotSupported, match=named):
        load(local_spec("own", path), path, plain)


def test_no_code_of_a_folder_is_run(folder: Make, plain: Settings) -> None:
    # Given a folder whose modules and whose model are code that lies in it
    path = folder(electra(), parts.Pooling(32, "mean"))
    (path / "evil.py").write_text(f"open({str(path / 'run')!r}, 'w')\nclass Evil: pass\n")
    change(path / "config.json", model_type="evil", auto_map={"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"})
    with pytest.raises(NotSupported, match="evil"):
        load(local_spec("own", path), path, plain)
    modules = json.loads((path / "modules.json").read_text())
    modules[1]["type"] = "evil.Evil"
    (path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(NotSupported, match="evil"):
        load(local_spec("own", path), path, plain)
    assert not (path / "run").exists()


def test_no_pickle_is_opened(folder: Make, plain: Settings) -> None:
    path = folder(electra(), parts.Pooling(32, "mean"), parts.Dense(32, 8))
    for place in (path / "2_Dense", path):
        torch.save(safetensors.load_file(place / "model.safetensors"), place / "pytorch_model.bin")
        (place / "model.safetensors").unlink()
        with pytest.raises(LikewiseError, match=r"model\.safetensors"):
            load(local_spec("own", path), path, plain)


def test_weights_that_are_missing_are_not_made_up(folder: Make, plain: Settings) -> None:
    path = folder(electra(), parts.Pooling(32, "mean"))
    tensors = safetensors.load_file(path / "model.safetensors")
    gone = next(name for name in tensors if "layer.1" in name)
    safetensors.save_file(
        {name: tensor for name, tensor in tensors.items() if name != gone}, path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelUnavailable, match=f"has no tensor .*{gone}"):
        load(local_spec("own", path), path, plain)


def test_a_tensor_of_another_size_is_named(folder: Make, plain: Settings) -> None:
    path = folder(electra(), parts.Pooling(32, "mean"))
    change(path / "config.json", intermediate_size=65)
    with pytest.raises(ModelUnavailable, match=r"has `.*` of 64.* where config\.json asks for 65"):
        load(local_spec("own", path), path, plain)


@pytest.mark.parametrize(("change_of", "named"), [({"device": "cuda"}, "DEVICE"), ({"precision": "int8"}, "PRECISION")])
def test_what_this_machine_cannot_do_names_the_setting(plain: Settings, change_of: dict[str, str], named: str) -> None:
    if torch.cuda.is_available() and "device" in change_of:
        pytest.skip("this machine has a GPU")
    path = MODELS_FOLDER / "bert-cls"
    with pytest.raises(SettingsError, match=f"LIKEWISE_{named}"):
        load(local_spec("own", path), path, plain.model_copy(update=change_of))


async def test_a_gpu_that_is_not_seen_is_named_and_not_its_memory(plain: Settings) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    embedder = Embedder(plain.model_copy(update={"model": str(MODELS_FOLDER / "bert-cls"), "device": "cuda"}))
    with pytest.raises(LikewiseError, match="LIKEWISE_DEVICE names a GPU that torch does not see"):
        await embedder.embed(1, ["alpha"])
    await embedder.close()


@pytest.mark.parametrize(("precision", "size"), [("f32", 4), ("auto", 4), ("bf16", 2)])
def test_what_a_model_takes_is_counted_in_the_arithmetic_that_it_runs_in(
    folder: Make, plain: Settings, precision: str, size: int
) -> None:
    path = folder(electra(), parts.Pooling(32, "mean"))
    spec, chosen = local_spec("own", path), plain.model_copy(update={"precision": precision})
    weights = sum(tensor.numel() for tensor in safetensors.load_file(path / "model.safetensors").values())
    assert memory.needed_by(spec, [path / "model.safetensors"], chosen) == memory.BESIDES + size * weights
    assert load(spec, path, chosen).numerics.endswith("bf16" if size == 2 else "f32")


async def test_a_row_may_ask_for_torch(plain: Settings, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(f"""
        [[model]]
        name = "ours"
        folder = "{MODELS_FOLDER / "bert-cls"}"
        runtime = "torch"
    """)
    embedder = Embedder(plain.model_copy(update={"models_file": tmp_path / "models.toml", "model": "ours"}))
    assert (await embedder.embed(1, ["alpha"])).numerics.startswith("torch-")
    await embedder.close()


def test_nobody_is_called_while_a_model_is_loaded(tmp_path: Path) -> None:
    # Given a hub that counts who asks
    asked: list[str] = []

    class Counting(BaseHTTPRequestHandler):
        def handle(self) -> None:
            asked.append("somebody")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys; from pathlib import Path; from likewise.embedding.models import local_spec;"
        "from likewise.embedding.providers.torch import load; from likewise.settings import load_settings;"
        "path = Path(sys.argv[1]);"
        "print(load(local_spec('own', path), path, load_settings(data_dir=sys.argv[2])).space)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HTTPS_PROXY": f"http://127.0.0.1:{server.server_port}",
        "HOME": str(tmp_path),
    }
    # When a model is loaded
    command = [sys.executable, "-c", code, str(MODELS_FOLDER / "bert-cls"), str(tmp_path / "data")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    # Then nobody asked
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 64
    assert asked == []
    server.shutdown()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
async def test_on_a_gpu(plain: Settings) -> None:
    texts, vectors, _ = expected("mpnet-mean")
    path = MODELS_FOLDER / "mpnet-mean"
    on_gpu = plain.model_copy(update={"device": "cuda"})
    provider = load(local_spec("own", path), path, on_gpu)
    assert np.abs((await provider.embed(texts, "document")).vectors - vectors).max() < 1e-3
    await provider.close()
    provider = load(local_spec("own", path), path, on_gpu.model_copy(update={"precision": "auto"}))
    assert "/cuda/" in provider.numerics
    assert cosines((await provider.embed(texts, "document")).vectors, vectors).min() > 0.98
    await provider.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")
async def test_half_of_a_gpu_is_for_models(plain: Settings) -> None:
    chosen = plain.model_copy(update={"model": str(MODELS_FOLDER / "bert-cls"), "device": "cuda"})
    loader = FakeLoader(torch.cuda.get_device_properties(0).total_memory // 2 + 1)
    embedder = Embedder(chosen, providers={chosen.model: loader})
    with pytest.raises(ModelUnavailable) as refused:
        await embedder.embed(1, ["alpha"])
    assert refused.value.code == "model_memory"
    loader.memory_bytes -= 1
    await embedder.embed(1, ["alpha"])
    await embedder.close()


def test_a_folder_of_tiny_works_too(plain: Settings, tmp_path: Path) -> None:
    """Of the files, only those that no model can do without."""
    path = tiny.write_folder(
        tmp_path / "tiny", tiny.weights(), modules=None, config={**tiny.CONFIG, "vocab_size": len(tiny.WORDS)}
    )
    assert load(local_spec("own", path), path, plain).space == openvino.load(local_spec("own", path), path, plain).space
