"""Any local sentence-transformers folder through torch: on a GPU, or on the CPU where there is no graph for it."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likewise.embedding.facts import ModelFacts, prefixes
from likewise.embedding.folder import ModelFolder
from likewise.embedding.graphs.architectures import broken
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.packing import pack
from likewise.embedding.provider import Capacity, Matrix, ProviderResult, Role
from likewise.embedding.space import space_of, space_of_files
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.embedding.torch_folder import TorchFolder
from likewise.embedding.torch_model import ENDLESS, TorchModel
from likewise.embedding.weights import check_weights
from likewise.errors import ModelUnavailable, NotSupported, SettingsError
from likewise.machine import cores
from likewise.settings import Settings

CALLERS = 4  # calls at a time: some are tokenised while another is in the model
_FIRST_TEXT = "a"


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "TorchProvider":
    """Check the weights of a folder, bring them to the device, and give the provider; blocks for seconds.

    NotSupported names what the folder asks for and is not done; ModelUnavailable the file that is broken; SettingsError
    the setting that this machine cannot fulfil.
    """
    device = _device(settings.device)
    dtype = _arithmetic(settings.precision, device)
    facts = TorchFolder.read(folder)
    known = _with_a_graph(folder)
    before = prefixes(spec, facts.prompts)
    unread = _signatures(facts)
    digests = [check_weights(spec, path, Tensors(path).content, settings, name) for name, path in facts.weights.items()]
    if device.type == "cpu":
        torch.set_num_threads(settings.threads or cores())
    model = TorchModel.load(facts, device, dtype)
    if unread != _signatures(facts):
        raise ModelUnavailable(f"The weights in {folder} changed while they were read.", code="weights_broken")
    limit = known.max_tokens if known else min(facts.max_tokens, model.positions)
    if limit >= ENDLESS:
        raise broken(facts.transformer / "sentence_bert_config.json", "names no max_seq_length, nor does the model")
    tokenizer = TextTokenizer(
        facts.transformer / "tokenizer.json", limit, lowercase=facts.lowercase, vocabulary=model.vocabulary
    )
    if tokenizer.has_types:
        raise NotSupported(f"{facts.transformer / 'tokenizer.json'} has token types, which this version does not run.")
    first = model.run([each.ids for each in tokenizer.encode([_FIRST_TEXT])], None)
    space = space_of(known, digests, before) if known else space_of_files(facts.described_by, digests, before, limit)
    return TorchProvider(
        ModelFacts(space, _numerics(device, dtype), first.shape[1], limit, model.call_tokens),
        tokenizer,
        before,
        model,
        prompt_pooled=facts.prompt_pooled,
    )


class TorchProvider:
    """One local model: a tokenizer, and its modules on a device."""

    def __init__(
        self,
        facts: ModelFacts,
        tokenizer: TextTokenizer,
        before: Mapping[Role, str],
        model: TorchModel,
        *,
        prompt_pooled: bool,
    ) -> None:
        self.space = facts.space
        self.numerics = facts.numerics
        self.dimension = facts.dimension
        self.max_tokens = facts.max_tokens
        self.capacity = Capacity(tokens=facts.call_tokens)
        self.fault: str | None = None
        self._tokenizer = tokenizer
        self._prefixes = before
        self._model: TorchModel | None = model
        self._batch_tokens = model.batch_tokens
        self._left_out = {
            role: tokenizer.prefix_length(prefix) if prefix and not prompt_pooled else None
            for role, prefix in before.items()
        }
        self._callers = ThreadPoolExecutor(CALLERS, "likewise-embed")
        # One batch at a time, in the order that they come: calls get their turns batch by batch.
        self._turns = ThreadPoolExecutor(1, "likewise-model")

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """The texts' vectors and counts; texts of similar length share a batch."""
        return await asyncio.get_running_loop().run_in_executor(self._callers, self._embed, texts, role)

    async def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as a document, special ones included, before anything is cut off."""
        count, prefix = self._tokenizer.lengths, self._prefixes["document"]
        return await asyncio.get_running_loop().run_in_executor(self._callers, count, texts, prefix)

    async def close(self) -> None:
        """Let the threads go, and the device's memory."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        self._turns.shutdown(wait=False, cancel_futures=True)
        self._model = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        encoded = self._tokenizer.encode(texts, self._prefixes[role])
        lengths = [len(each.ids) for each in encoded]
        return ProviderResult(
            vectors=self._vectors([each.ids for each in encoded], pack(lengths, self._batch_tokens), role),
            tokens=np.array(lengths, np.int32),
            truncated=np.array([each.truncated for each in encoded], np.int32),
            chars_read=np.array([each.chars_read for each in encoded], np.int32),
        )

    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        vectors = np.empty((len(ids), self.dimension), np.float32)
        model = self._model
        if model is None:
            raise ModelUnavailable("The model is shutting down.")
        for places in batches:
            batch = [ids[place] for place in places]
            vectors[places] = self._turns.submit(model.run, batch, self._left_out[role]).result()
        return vectors


def _with_a_graph(folder: Path) -> ModelFolder | None:
    """What is known of a folder that OpenVINO runs too: their vectors are of one space."""
    try:
        return ModelFolder.read(folder)
    except NotSupported:
        return None


def _device(name: str) -> Any:
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"LIKEWISE_DEVICE names a GPU that torch does not see (it sees {torch.cuda.device_count()}); set it to "
            "cpu, or see that the GPU's driver and a torch that is built for CUDA are installed."
        )
    return device


def _arithmetic(precision: str, device: Any) -> Any:
    """bf16 on a GPU, f32 on the CPU, unless the setting says otherwise."""
    if precision == "int8":
        raise SettingsError("LIKEWISE_PRECISION=int8 is of models that OpenVINO runs; with torch set it to auto.")
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise SettingsError("LIKEWISE_PRECISION=bf16 needs a GPU with bf16; set it to auto or f32.")
    return (
        torch.bfloat16
        if precision == "bf16" or (device.type == "cuda" and precision != "f32" and able)
        else torch.float32
    )


def _numerics(device: Any, dtype: Any) -> str:
    version = ".".join(torch.__version__.split(".")[:2])
    return f"torch-{version}/{device.type}/{'bf16' if dtype is torch.bfloat16 else 'f32'}"


def _signatures(facts: TorchFolder) -> list[tuple[int, int, int]]:
    """What changes when a file is replaced."""
    found = [path.stat() for path in facts.weights.values() if path.is_file()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]
