"""Made the folders beside it: very small models with random weights, and what sentence-transformers makes of texts.

    .venv-bench/bin/python tests/embedding/reference_models/make.py

Each is a folder as sentence-transformers writes it, with `expected.npz`: `texts` (JSON, UTF-8), `vectors` float32
(n, d) of unit length by `transformers`' own forward pass in fp32 on one thread, one text at a time, and `lengths` int32
(n,): tokens before anything is cut off. Weights are random, large enough for every part to matter, and stored in
float16, which they were rounded to before.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import sentence_transformers.sentence_transformer.modules as parts
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)  # fmt: skip

HERE = Path(__file__).parent
HIDDEN, HEADS, LAYERS, INNER, POSITIONS, LIMIT = 24, 3, 2, 48, 72, 64
SIZES = {
    "hidden_size": HIDDEN, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
WORDS = (
    "river stone window cable market silver engine letter winter garden copper signal thread mountain paper kettle "
    "harbour invoice server packet buffer kernel branch ticket customer refund delivery balance account password"
).split()
PIECES = "##s ##ed ##ing ##er a b c d e f g ##a ##b ##c ##d ##e ##f ##g . , ?".split()


def texts() -> list[str]:
    """Words and pieces of words in texts of 1 to 90 tokens, below, at and over the limit."""
    rng = random.Random(11)
    made = ["stone", "Rivers, stones?", "unknown ünïcödé", ".", "a b c d e f g", "Window Window window"]
    sizes = (2, 3, 5, 8, 13, 15, 16, 17, 18, 21, 31, 32, 33, 34, 47, 60, 61, 62, 63, 64, 65, 90)
    endings = ("", "", "s", "ed", "ing")
    return made + [" ".join(rng.choice(WORDS) + rng.choice(endings) for _ in range(size)) for size in sizes]


def wordpiece(specials: list[str], lowercase: bool) -> Tokenizer:
    """A WordPiece tokenizer whose special tokens are padding, unknown, begin, end and mask, in the order of ids."""
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS, *PIECES])}
    unknown = next(word for word in specials if "unk" in word.lower())
    made = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def unigram(specials: list[str]) -> Tokenizer:
    """A Unigram tokenizer like those of multilingual models."""
    pieces = [(word, 0.0) for word in specials]
    pieces += [("▁" + word, -4.0 - number / 10) for number, word in enumerate(WORDS)]
    pieces += [(piece.removeprefix("##"), -6.0) for piece in dict.fromkeys(p.removeprefix("##") for p in PIECES)]
    made = Tokenizer(models.Unigram([*pieces, ("▁", -3.0)], unk_id=specials.index("<unk>")))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def wrap(made: Tokenizer, begin: str, end: str, **names: str) -> PreTrainedTokenizerFast:
    """The tokenizer as `transformers` has it, with its special tokens around each text."""
    ids = [(token, made.token_to_id(token)) for token in (begin, end)]
    made.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token=begin, sep_token=end, **names)


def bert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A BERT for a tokenizer."""
    return BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES), add_pooling_layer=False)


def mpnet(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """An MPNet for a tokenizer."""
    config = MPNetConfig(vocab_size=len(tokenizer), layer_norm_eps=1e-5, **SIZES)
    return MPNetModel(config, add_pooling_layer=False)


def distilbert(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A DistilBERT for a tokenizer."""
    sizes = {"dim": HIDDEN, "n_heads": HEADS, "n_layers": LAYERS, "hidden_dim": INNER}
    return DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **sizes))


def english() -> PreTrainedTokenizerFast:
    """As of BERT in English."""
    made = wordpiece("[PAD] [UNK] [CLS] [SEP] [MASK]".split(), lowercase=True)
    return wrap(made, "[CLS]", "[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def cased() -> PreTrainedTokenizerFast:
    """As of multilingual DistilBERT."""
    made = wordpiece("[PAD] [UNK] [CLS] [SEP] [MASK]".split(), lowercase=False)
    return wrap(made, "[CLS]", "[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def multilingual() -> PreTrainedTokenizerFast:
    """As of paraphrase-multilingual-MiniLM."""
    made = unigram("<s> <pad> </s> <unk>".split())
    return wrap(made, "<s>", "</s>", pad_token="<pad>", unk_token="<unk>")


def masked() -> PreTrainedTokenizerFast:
    """As of MPNet: padding is 1."""
    made = wordpiece("<s> <pad> </s> [UNK] <mask>".split(), lowercase=True)
    return wrap(made, "<s>", "</s>", pad_token="<pad>", unk_token="[UNK]")


def randomise(model: torch.nn.Module) -> None:
    """Weights of a size that makes every part matter, rounded to float16."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            spread = 0.6 if tensor.ndim == 2 else 0.2
            if "relative" in name:
                spread = 2.0
            middle = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            tensor.copy_((torch.randn_like(tensor) * spread + middle).half().float())


def make(
    name: str,
    encoder: Callable[[PreTrainedTokenizerFast], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    pooling: str,
    *heads: torch.nn.Module,
) -> None:
    """One folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model = encoder(tokenizer)
    for part in (model, *heads):
        randomise(part)
    model.save_pretrained(folder / "bare")
    tokenizer.save_pretrained(folder / "bare")
    transformer = parts.Transformer(str(folder / "bare"), max_seq_length=LIMIT)
    whole = SentenceTransformer(
        modules=[transformer, parts.Pooling(HIDDEN, pooling_mode=pooling), *heads], device="cpu"
    )
    whole.save(str(folder))
    shutil.rmtree(folder / "bare")
    (folder / "README.md").unlink()
    for file in folder.rglob("model.safetensors"):
        save_file({key: tensor.half() for key, tensor in load_file(file).items()}, file, {"format": "pt"})
    given = texts()
    vectors = np.stack([whole.encode([text], normalize_embeddings=True)[0] for text in given])
    lengths = [len(tokenizer(text, verbose=False)["input_ids"]) for text in given]
    np.savez_compressed(
        folder / "expected.npz",
        texts=np.frombuffer(json.dumps(given).encode(), np.uint8),
        vectors=vectors.astype(np.float32),
        lengths=np.array(lengths, np.int32),
    )
    print(f"{name}: {vectors.shape}, {min(lengths)} to {max(lengths)} tokens")


def main() -> None:
    """Make all."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    make("bert-cls", bert, english(), "cls", parts.Normalize())
    make("bert-max", bert, multilingual(), "max")
    make("mpnet-mean", mpnet, masked(), "mean", parts.Normalize())
    make("distilbert-dense", distilbert, cased(), "mean", parts.Dense(HIDDEN, 16))


if __name__ == "__main__":
    main()
