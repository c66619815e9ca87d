"""Any local sentence-transformers folder through torch: on a GPU, or on the CPU where there is no graph for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers.sentence_transformer.modules as parts
import torch
import transformers

from likewise.embedding.files.folder import ModelFolder
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.files.weights import check_weights
from likewise.embedding.graphs.architectures import broken
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Capacity, Matrix, Role, prefixes
from likewise.embedding.providers.local import CALL_SECONDS, LocalProvider
from likewise.embedding.space import space_of, space_of_files
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.errors import ModelUnavailable, NotSupported, SettingsError
from likewise.machine import cores
from likewise.settings import Settings

_FIRST_TEXT = "a"
ENDLESS = 2**31  # the limit of tokenizers without one is larger
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
        """Make unit vectors float32 (n, d) of n texts' ids; the first `left_out` tokens of each are not pooled."""
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
        """The number of positions; those of fairseq's models begin after the id of padding."""
        positions = ENDLESS
        for name, module in self.transformer.named_modules():
            if isinstance(module, torch.nn.Embedding) and "position" in name and "relative" not in name:
                skipped = 0 if module.padding_idx is None else module.padding_idx + 1
                positions = min(positions, module.num_embeddings - skipped)
        return positions

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have embeddings."""
        return int(self.transformer.get_input_embeddings().num_embeddings)

    @property
    def batch_tokens(self) -> int:
        """The padded size of a batch."""
        return (CPU_SIZES if self.device.type == "cpu" else GPU_SIZES)[0]

    @property
    def call_tokens(self) -> int:
        """Tokens of a call: fewer for a larger model, so that a call takes as long."""
        _, shortest, longest, weights = CPU_SIZES if self.device.type == "cpu" else GPU_SIZES
        parameters = int(self.transformer.num_parameters())
        return max(shortest, min(longest, longest * weights // max(1, parameters)))

    def _padded(self, batch: Sequence[Ids]) -> tuple[Any, Any]:
        lengths = [len(ids) for ids in batch]
        padding = getattr(self.transformer.config, "pad_token_id", None)
        padded = np.full((len(batch), max(lengths)), 0 if padding is None else padding, np.int64)
        mask = np.zeros_like(padded)
        for place, ids in enumerate(batch):
            padded[place, : len(ids)] = ids
            mask[place, : len(ids)] = 1
        return torch.from_numpy(padded).to(self.device), torch.from_numpy(mask).to(self.device)


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "TorchProvider":
    """Check the weights of a folder, bring them to the device, and return the provider; blocks for seconds.

    NotSupported names the part of the folder that this version does not run; ModelUnavailable the broken file;
    SettingsError the setting that this machine cannot fulfil.
    """
    device, dtype = device_of(settings), arithmetic_of(settings)
    facts = TorchFolder.read(folder)
    known = _with_a_graph(folder)
    before = prefixes(spec, facts.prompts)
    model, digests = _checked(spec, facts, settings, device, dtype)
    limit = _limit(known, facts, model)
    tokenizer = _tokenizer(facts, limit, model.vocabulary)
    first = model.run([each.ids for each in tokenizer.encode([_FIRST_TEXT])], None)
    space = space_of(known, digests, before) if known else space_of_files(facts.described_by, digests, before, limit)
    pooled = facts.prompt_pooled
    return TorchProvider(
        space=space,
        numerics=_numerics(device, dtype),
        dimension=first.shape[1],
        max_tokens=limit,
        capacity=Capacity(model.call_tokens, seconds=CALL_SECONDS),
        tokenizer=tokenizer,
        before=before,
        batch_tokens=model.batch_tokens,
        # One at a time, in the order that they come: calls get their turns batch by batch.
        model_threads=1,
        model=model,
        left_out={
            role: tokenizer.prefix_length(text) if text and not pooled else None for role, text in before.items()
        },
    )


@dataclass(kw_only=True, eq=False, repr=False)
class TorchProvider(LocalProvider):
    """One local model: a tokenizer, and its modules on a device.

    `left_out` is the number of tokens at the start of each text that are not pooled, by role.
    """

    model: TorchModel | None
    left_out: Mapping[Role, int | None]

    async def close(self) -> None:
        """Let the threads go, and the device's memory."""
        await super().close()
        self.model = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        vectors = np.empty((len(ids), self.dimension), np.float32)
        model = self.model
        if model is None:
            raise ModelUnavailable("The model is shutting down.")
        for places in batches:
            batch = [ids[place] for place in places]
            vectors[places] = self._model_threads.submit(model.run, batch, self.left_out[role]).result()
        return vectors


def _checked(
    spec: ModelSpec, facts: TorchFolder, settings: Settings, device: Any, dtype: Any
) -> tuple[TorchModel, list[str]]:
    """Load the modules on the device; also return the checksums of the files that they were read from."""
    unread = _signatures(facts)
    digests = [check_weights(spec, path, Tensors(path).content, settings, name) for name, path in facts.weights.items()]
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or cores())
    model = TorchModel.load(facts, device, dtype)
    if unread != _signatures(facts):
        raise ModelUnavailable(f"The weights in {facts.path} changed while they were read.", code="weights_broken")
    return model, digests


def _limit(known: ModelFolder | None, facts: TorchFolder, model: TorchModel) -> int:
    limit = known.max_tokens if known else min(facts.max_tokens, model.positions)
    if limit >= ENDLESS:
        raise broken(facts.transformer / "sentence_bert_config.json", "names no max_seq_length, nor does the model")
    return limit


def _tokenizer(facts: TorchFolder, limit: int, vocabulary: int) -> TextTokenizer:
    file = facts.transformer / "tokenizer.json"
    tokenizer = TextTokenizer(file, limit, lowercase=facts.lowercase, vocabulary=vocabulary)
    if tokenizer.has_types:
        raise NotSupported(f"{file} has token types, which this version does not run.")
    return tokenizer


def _with_a_graph(folder: Path) -> ModelFolder | None:
    """Read a folder that OpenVINO runs too, as the vectors of both are of one space; None for others."""
    try:
        return ModelFolder.read(folder)
    except NotSupported:
        return None


def _numerics(device: Any, dtype: Any) -> str:
    version = ".".join(torch.__version__.split(".")[:2])
    return f"torch-{version}/{device.type}/{name_of(dtype)}"


def _signatures(facts: TorchFolder) -> list[tuple[int, int, int]]:
    """Return what changes when a file is replaced."""
    found = [path.stat() for path in facts.weights.values() if path.is_file()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]


def _transformer(path: Path, dtype: Any) -> Any:
    config = _configuration(path)
    encodes = type(config) in transformers.MODEL_FOR_TEXT_ENCODING_MAPPING  # of T5 and its like, the half that reads
    if getattr(config, "is_encoder_decoder", False) and not encodes:
        raise NotSupported(f"{path / 'config.json'} is of a model that also writes, which this version does not run.")
    kind = transformers.AutoModelForTextEncoding if encodes else transformers.AutoModel
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # its warnings are no log lines; those that matter are below
    model, loaded = kind.from_pretrained(
        str(path),
        config=config,
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    missing = sorted(name for name in loaded["missing_keys"] if not _UNUSED.search(name))
    if missing:  # the library makes up what is missing
        raise broken(path / "model.safetensors", f"has no tensor `{missing[0]}`")
    for name, found, wanted in sorted(loaded["mismatched_keys"]):
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
    config.use_cache = False  # of no use where a text is read once
    return config


def _head(kind: str, path: Path) -> Any:
    if kind == "Normalize":
        return parts.Normalize()
    if kind == "Pooling":
        config = parts.Pooling.load_config(str(path), local_files_only=True)
        if not {"embedding_dimension", "word_embedding_dimension"} & set(config):
            config["embedding_dimension"] = 1  # never used
        return parts.Pooling(**config)
    return {"Dense": parts.Dense, "LayerNorm": parts.LayerNorm}[kind].load(str(path), local_files_only=True)


def device_of(settings: Settings) -> Any:
    """Return the device of LIKEWISE_DEVICE; SettingsError if torch does not see it."""
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"LIKEWISE_DEVICE names a GPU that torch does not see (it sees {torch.cuda.device_count()}); set it to "
            "cpu, or see that the GPU's driver and a torch that is built for CUDA are installed."
        )
    return device


def arithmetic_of(settings: Settings) -> Any:
    """Return bf16 on a GPU that has it, else f32, unless LIKEWISE_PRECISION asks for another, or SettingsError."""
    precision, device = settings.precision, device_of(settings)
    if precision == "int8":
        raise SettingsError("LIKEWISE_PRECISION=int8 is of models that OpenVINO runs; with torch set it to auto.")
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise SettingsError("LIKEWISE_PRECISION=bf16 needs a GPU with bf16; set it to auto or f32.")
    chosen = precision == "bf16" or (device.type == "cuda" and precision != "f32" and able)
    return torch.bfloat16 if chosen else torch.float32


def name_of(arithmetic: Any) -> str:
    """Return the name of an arithmetic in numerics: vectors of two names do not share a cache."""
    return "bf16" if arithmetic is torch.bfloat16 else "f32"


def gpu_memory(settings: Settings) -> int:
    """Return the bytes of memory of the GPU that LIKEWISE_DEVICE names; SettingsError if torch does not see it."""
    return int(torch.cuda.get_device_properties(device_of(settings)).total_memory)
