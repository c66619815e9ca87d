"""Made the folders beside it: very small cross-encoders with random weights, and what `transformers` makes of pairs.

    .venv-bench/bin/python -m tests.search.reference_rerankers.make

Each is a folder as sentence-transformers writes it, with `expected.npz`: `pairs` (JSON, UTF-8, of queries and texts),
`logits` float32 (n,) by `transformers`' own forward pass in fp32 on one thread, one pair at a time, `scores` float32
(n,) by sentence-transformers' CrossEncoder, and `lengths` int32 (n,): tokens that are read. Weights are random, large
enough for every part to matter, and stored in float16, which they were rounded to before.
"""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)  # fmt: skip

from tests.embedding.reference_models.make import (
    HEADS,
    HIDDEN,
    INNER,
    LAYERS,
    LIMIT,
    POSITIONS,
    SIZES,
    WORDS,
    randomise,
    wordpiece,
)

HERE = Path(__file__).parent
BERT = "[PAD] [UNK] [CLS] [SEP] [MASK]".split()
MPNET = "<s> <pad> </s> [UNK] <mask>".split()


def pairs() -> list[tuple[str, str]]:
    """Queries and texts that fit together, and those of which the text is cut, the query, or both."""
    rng = random.Random(5)

    def words(count: int) -> str:
        return " ".join(rng.choice(WORDS) + rng.choice(("", "", "s", "ed")) for _ in range(count))

    sizes = [(1, 1), (2, 9), (5, 20), (9, 2), (12, 30), (3, 70), (20, 50), (29, 60), (30, 80), (31, 31), (60, 3)]
    sizes += [(30, 31), (31, 30), (70, 70), (90, 20), (4, 56), (4, 57), (4, 58), (27, 27), (40, 40)]
    return [(words(query), words(text)) for query, text in sizes] + [("Rivers, stones?", "unknown ünïcödé.")]


def wrap(made: Tokenizer, template: str, specials: dict[str, str], types: bool) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers` has it, with special tokens around a text, and as in `template` around two."""
    begin, end = specials["cls_token"], specials["sep_token"]
    ids = [(token, made.token_to_id(token)) for token in (begin, end)]
    single = f"{begin} $A {end}"
    made.post_processor = processors.TemplateProcessing(single=single, pair=template, special_tokens=ids)
    names = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LIMIT, model_input_names=names, **specials)


def of_bert(*, types: bool) -> PreTrainedTokenizerFast:
    """As of BERT: a text's tokens are of another type than the query's, which DistilBERT does not ask for."""
    specials = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    return wrap(wordpiece(BERT, lowercase=True), "[CLS] $A [SEP] $B:1 [SEP]:1", specials, types)


def of_mpnet() -> PreTrainedTokenizerFast:
    """As of MPNet: two special tokens stand between the texts."""
    specials = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "[UNK]"}
    return wrap(wordpiece(MPNET, lowercase=True), "<s> $A </s> </s> $B </s>", specials, types=False)


def bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A BERT for a tokenizer."""
    return BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **SIZES))


def distilbert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A DistilBERT for a tokenizer."""
    sizes = {"dim": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": INNER}
    config = DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, num_labels=1, **sizes)
    return DistilBertForSequenceClassification(config)


def mpnet(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An MPNet for a tokenizer."""
    config = MPNetConfig(vocab_size=len(tokenizer), layer_norm_eps=1e-5, num_labels=1, **SIZES)
    return MPNetForSequenceClassification(config)


def make(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """One folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    randomise(model)
    model.eval()
    model.save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    whole = CrossEncoder(str(folder / "bare"), device="cpu")
    whole.save(str(folder))
    shutil.rmtree(folder / "bare")
    (folder / "README.md").unlink()
    file = folder / "model.safetensors"
    save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    given = pairs()
    read = [tokenizer(query, text, truncation=True, return_tensors="pt") for query, text in given]
    with torch.no_grad():
        logits = [float(model(**one).logits[0, 0]) for one in read]
    np.savez_compressed(
        folder / "expected.npz",
        pairs=np.frombuffer(json.dumps(given).encode(), np.uint8),
        logits=np.array(logits, np.float32),
        scores=np.array([whole.predict([pair])[0] for pair in given], np.float32),
        lengths=np.array([one["input_ids"].shape[1] for one in read], np.int32),
    )
    print(f"{name}: logits from {min(logits):.3f} to {max(logits):.3f}, {sorted(read[0])}")


def main() -> None:
    """Make all."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    typed, plain, masked = of_bert(types=True), of_bert(types=False), of_mpnet()
    make("bert", bert(typed), typed)
    make("distilbert", distilbert(plain), plain)
    make("mpnet", mpnet(masked), masked)


if __name__ == "__main__":
    main()
