"""The modules of a sentence-transformers folder in torch: the Transformer, and what makes one vector of its tokens'."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers.sentence_transformer.modules as parts
import torch
import transformers

from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.graphs.architectures import broken
from likewise.embedding.provider import Matrix
from likewise.embedding.tokenizing import Ids
from likewise.errors import NotSupported

ENDLESS = 2**31  # what tokenizers without a limit have for one is larger
# A batch's padded size; a call's tokens, least and most; and the weights of a model that gets the longest calls. On the
# CPU more than 512 gains nothing in f32 and costs in bf16 (73 texts/s; 1,024: 58, 4,096: 45, on a busy machine). On a
# GPU it is arithmetic, not measured: 190 million weights times 131,072 tokens are 5e13 operations, a second of a small
# one.
CPU_SIZES = (512, 4_096, 32_768, 22_000_000)
GPU_SIZES = (16_384, 8_192, 131_072, 190_000_000)
_UNUSED = re.compile(r"(^|\.)pooler\.")  # weights that no vector is made with, and that many folders leave out


@dataclass(frozen=True)
class TorchModel:
    """The modules of a folder on a device: the Transformer in the arithmetic that is asked for, the rest in float32."""

    transformer: Any
    heads: Sequence[Any]
    device: Any

    @classmethod
    def load(cls, facts: TorchFolder, device: Any, dtype: Any) -> "TorchModel":
        """Read the weights, from safetensors only; no code and no word of a folder is run, and nothing is fetched."""
        heads = [_head(one.kind, one.path) for one in facts.heads]
        if not any(one.kind == "Pooling" for one in facts.heads):
            heads.insert(0, parts.Pooling(1, "mean"))
        transformer = _transformer(facts.transformer, dtype)
        return cls(transformer.to(device).eval(), [head.to(device).eval() for head in heads], device)

    def run(self, batch: Sequence[Ids], left_out: int | None) -> Matrix:
        """Unit vectors float32 (n, d) of n texts' token ids; the first `left_out` tokens of each are not pooled."""
        ids, mask = self._padded(batch)
        with torch.inference_mode():
            states = self.transformer(input_ids=ids, attention_mask=mask, return_dict=True).last_hidden_state
            # Sums over many tokens need more digits than bf16 has.
            features = {"token_embeddings": states.float(), "attention_mask": mask, "input_ids": ids}
            if left_out is not None:
                features["prompt_length"] = left_out
            for head in self.heads:
                features = head(features)
            vectors = torch.nn.functional.normalize(features["sentence_embedding"].float(), dim=1)
            made: Matrix = vectors.cpu().numpy()
        return made

    @property
    def positions(self) -> int:
        """Tokens that there are positions for; fairseq's models count from the id after padding."""
        most = ENDLESS
        for name, module in self.transformer.named_modules():
            if isinstance(module, torch.nn.Embedding) and "position" in name and "relative" not in name:
                skipped = 0 if module.padding_idx is None else module.padding_idx + 1
                most = min(most, module.num_embeddings - skipped)
        return most

    @property
    def vocabulary(self) -> int:
        """Tokens that there are embeddings for."""
        return int(self.transformer.get_input_embeddings().num_embeddings)

    @property
    def batch_tokens(self) -> int:
        """The padded size of a batch."""
        return (CPU_SIZES if self.device.type == "cpu" else GPU_SIZES)[0]

    @property
    def call_tokens(self) -> int:
        """How much to be given at a time: of a larger model less, so that a call takes as long."""
        _, least, most, weights = CPU_SIZES if self.device.type == "cpu" else GPU_SIZES
        parameters = int(self.transformer.num_parameters())
        return max(least, min(most, most * weights // max(1, parameters)))

    def _padded(self, batch: Sequence[Ids]) -> tuple[Any, Any]:
        lengths = [len(ids) for ids in batch]
        padding = getattr(self.transformer.config, "pad_token_id", None)
        padded = np.full((len(batch), max(lengths)), 0 if padding is None else padding, np.int64)
        mask = np.zeros_like(padded)
        for place, ids in enumerate(batch):
            padded[place, : len(ids)] = ids
            mask[place, : len(ids)] = 1
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(mask).to(self.device)


def _transformer(path: Path, dtype: Any) -> Any:
    config = _configuration(path)
    encodes = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING  # of T5 and its like, the half that reads
    if getattr(config, "is_encoder_decoder", False) and not encodes:
        raise NotSupported(f"{path / 'config.json'} is of a model that also writes, which this version does not run.")
    kind = transformers.AutoModelForTextEncoding if encodes else transformers.AutoModel
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its warnings are no log lines, and what matters of them is below
    model, told = kind.from_pretrained(
        str(path),
        config=config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    missing = sorted(name for name in told["missing_keys"] if not _UNUSED.search(name))
    if missing:  # the library makes up what is missing
        raise broken(path / "model.safetensors", f"has no tensor `{missing[0]}`")
    for name, found, wanted in sorted(told["mismatched_keys"]):
        sizes = f"{_size(found)} where config.json asks for {_size(wanted)}"
        raise broken(path / "model.safetensors", f"has `{name}` of {sizes}")
    return model


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _configuration(path: Path) -> Any:
    given = str(transformers.PretrainedConfig.get_config_dict(str(path), local_files_only=True)[0].get("model_type"))
    if given not in transformers.CONFIG_MAPPING:
        raise NotSupported(
            f"{path / 'config.json'} is of a model of type `{given}`, which transformers {transformers.__version__} "
            "does not have; code that comes with a model is not run."
        )
    config = transformers.AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    config.use_cache = False  # of no use to who reads a text once
    return config


def _head(kind: str, path: Path) -> Any:
    if kind == "Normalize":
        return parts.Normalize()
    if kind == "Pooling":
        config = parts.Pooling.load_config(str(path), local_files_only=True)
        if not {"embedding_dimension", "word_embedding_dimension"} & set(config):
            config["embedding_dimension"] = 1  # only told, never used
        return parts.Pooling(**config)
    return {"Dense": parts.Dense, "LayerNorm": parts.LayerNorm}[kind].load(str(path), local_files_only=True)
