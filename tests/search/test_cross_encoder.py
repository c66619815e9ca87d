"""Cross-encoders of folders: their scores against those of transformers, and what of a folder is refused."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from likewise.embedding.graphs.openvino import able
from likewise.errors import LikewiseError, ModelUnavailable, NotSupported
from likewise.search.rerankers import openvino
from likewise.search.rerankers.openvino import CrossEncoderFolder, PairTokenizer, shares
from likewise.settings import load_settings
from tests.embedding import tiny
from tests.search.rerankers import BERT, FOLDER, NAMES, expected, own


def load(folder: Path, data: Path, precision: Any = "f32") -> openvino.OpenVinoReranker:
    return openvino.load(own(folder), folder, load_settings(data_dir=data, precision=precision))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small BERT, to be changed."""
    return Path(shutil.copytree(BERT, tmp_path / "bert"))


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize("name", NAMES)
async def test_scores_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    pairs, logits, scores, lengths = expected(name)
    reranker = load(FOLDER / name, tmp_path)
    tokens, ours = [], []
    for query, text in pairs:
        scored = await reranker.score(query, [text])
        tokens.append(int(scored.tokens[0]))
        ours.append(float(scored.scores[0]))
    assert tokens == lengths.tolist()
    assert np.abs(np.array(ours) - scores).max() < 1e-5
    encoded = [reranker._tokenizer.encode(query, [text])[0] for query, text in pairs]
    assert np.abs(reranker.logits(encoded) - logits).max() < 1e-4
    await reranker.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("precision", "most"), [("bf16", 0.06), ("int8", 0.12)])
async def test_in_fewer_bits_scores_are_near_those(tmp_path: Path, name: str, precision: str, most: float) -> None:
    if precision.upper() not in able():
        pytest.skip(f"this processor has no {precision}")
    pairs, _, scores, _ = expected(name)
    reranker = load(FOLDER / name, tmp_path, precision)
    ours = [float((await reranker.score(query, [text])).scores[0]) for query, text in pairs]
    # weights as large as these, in models as small, are harder on fewer bits than trained ones
    assert np.abs(np.array(ours) - scores).max() < most
    await reranker.close()


async def test_many_texts_in_batches_score_as_each_alone(tmp_path: Path) -> None:
    # Given texts of all lengths, more than a batch holds
    rng = random.Random(3)
    words = "river stone window cable market silver engine letter winter garden copper".split()
    texts = [" ".join(rng.choice(words) for _ in range(rng.randint(1, 70))) for _ in range(120)]
    reranker = load(BERT, tmp_path)
    # When they are scored together, and each by itself
    together = await reranker.score("silver engine", texts)
    alone = [await reranker.score("silver engine", [text]) for text in texts]
    # Then it is all the same, in order
    assert np.abs(together.scores - np.array([one.scores[0] for one in alone])).max() < 1e-5
    assert together.tokens.tolist() == [int(one.tokens[0]) for one in alone]
    assert together.truncated.tolist() == [int(one.truncated[0]) for one in alone]
    await reranker.close()


@pytest.mark.parametrize("room", [2, 3, 8, 9, 61])
def test_what_is_cut_is_what_tokenizers_cut(room: int) -> None:
    made = Tokenizer.from_file(str(BERT / "tokenizer.json"))
    made.no_padding()
    made.enable_truncation(room + 3, strategy="longest_first")
    # Every length of small rooms; of a large one each seventh, and those around it, its half and its double.
    edges = (1, room // 2, room, 2 * room)
    all_of_them = range(1, 2 * room + 2)
    lengths = [n for n in all_of_them if room < 10 or n % 7 == 0 or any(abs(n - edge) < 2 for edge in edges)]
    for query in lengths:
        for text in lengths:
            of_both = made.encode("stone " * query, "stone " * text).sequence_ids
            assert shares(query, text, room) == (of_both.count(0), of_both.count(1)), (query, text)


def test_a_pair_says_what_was_cut_off() -> None:
    tokenizer = PairTokenizer(BERT / "tokenizer.json", 16)
    short, long = tokenizer.encode("stone", ["river", "river " * 40])
    assert (short.truncated, len(short.ids), short.second) == (0, 5, 3)
    assert (long.truncated, len(long.ids), long.second) == (40 + 1 - 13, 16, 3)


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"id2label": {"0": "no", "1": "yes"}}, "2 labels"),
        ("config.json", {"id2label": ..., "num_labels": 3}, "3 labels"),
        ("config.json", {"id2label": ...}, "2 labels"),
        ("config.json", {"architectures": ["BertModel"]}, "BertModel, which is no cross-encoder"),
        ("config.json", {"model_type": "deberta-v2"}, "deberta-v2"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("sentence_bert_config.json", {"transformer_task": "feature-extraction"}, "transformer_task"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "a prompt before each text"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(folder: Path, file: str, values: dict[str, Any], words: str) -> None:
    change(folder / file, **values)
    with pytest.raises(NotSupported, match=words) as refused:
        CrossEncoderFolder.read(folder)
    assert file in refused.value.detail


def test_a_folder_of_more_modules_is_refused(folder: Path) -> None:
    kind = "sentence_transformers.base.modules.transformer.Transformer"
    modules = [{"path": "", "type": kind}, {"path": "1_Dense", "type": "sentence_transformers.models.Dense"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(NotSupported, match=r"modules\.json"):
        CrossEncoderFolder.read(folder)


def test_a_folder_of_plain_transformers_will_do(folder: Path, tmp_path: Path) -> None:
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    assert load(folder, tmp_path / "data").max_tokens == 64


def test_weights_without_a_head_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny.write_safetensors(folder / "model.safetensors", tiny.weights())
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors"):
        load(folder, tmp_path / "data")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(LikewiseError, match=missing.replace(".", r"\.")):
        load(folder, tmp_path / "data")


def test_other_weights_than_those_first_seen_are_refused(folder: Path, tmp_path: Path) -> None:
    load(folder, tmp_path / "data")
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="SHA-256") as refused:
        load(folder, tmp_path / "data")
    assert refused.value.code == "weights_checksum"


async def test_texts_that_no_tokenizer_likes(tmp_path: Path) -> None:
    reranker = load(BERT, tmp_path)
    texts = ["\ud800 half", "\0", "e\u0301" * 3_000, "_" * 50_000, "🙂" * 100, "stone"]
    for query in texts:
        scored = await reranker.score(query, texts)
        assert np.isfinite(scored.scores).all()
        assert (scored.tokens <= 64).all()
    await reranker.close()
