"""Any local sentence-transformers folder through torch: on a GPU, or on the CPU where there is no graph for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from likewise.embedding.files.folder import ModelFolder
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.files.weights import check_weights
from likewise.embedding.graphs.architectures import broken
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.provider import Matrix, Role, prefixes
from likewise.embedding.providers.local import LocalProvider, ModelFacts
from likewise.embedding.space import space_of, space_of_files
from likewise.embedding.tokenizing import Ids, TextTokenizer
from likewise.embedding.torch_device import arithmetic_of, device_of, name_of
from likewise.embedding.torch_model import ENDLESS, TorchModel
from likewise.errors import ModelUnavailable, NotSupported
from likewise.machine import cores
from likewise.settings import Settings

_FIRST_TEXT = "a"


def load(spec: ModelSpec, folder: Path, settings: Settings) -> "TorchProvider":
    """Check the weights of a folder, bring them to the device, and give the provider; blocks for seconds.

    NotSupported names what the folder asks for and is not done; ModelUnavailable the file that is broken; SettingsError
    the setting that this machine cannot fulfil.
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
    told = ModelFacts(space, _numerics(device, dtype), first.shape[1], limit, model.call_tokens)
    return TorchProvider(told, tokenizer, before, model, prompt_pooled=facts.prompt_pooled)


class TorchProvider(LocalProvider):
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
        # One batch at a time, in the order that they come: calls get their turns batch by batch.
        super().__init__(facts, tokenizer, before, batch_tokens=model.batch_tokens, model_threads=1)
        self._model: TorchModel | None = model
        self._left_out = {
            role: tokenizer.prefix_length(prefix) if prefix and not prompt_pooled else None
            for role, prefix in before.items()
        }

    async def close(self) -> None:
        """Let the threads go, and the device's memory."""
        await super().close()
        self._model = None
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    def _vectors(self, ids: Sequence[Ids], batches: Sequence[Sequence[int]], role: Role) -> Matrix:
        vectors = np.empty((len(ids), self.dimension), np.float32)
        model = self._model
        if model is None:
            raise ModelUnavailable("The model is shutting down.")
        for places in batches:
            batch = [ids[place] for place in places]
            vectors[places] = self._model_threads.submit(model.run, batch, self._left_out[role]).result()
        return vectors


def _checked(
    spec: ModelSpec, facts: TorchFolder, settings: Settings, device: Any, dtype: Any
) -> tuple[TorchModel, list[str]]:
    """The modules on the device, and the checksums of the files that they were read from."""
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
    """What is known of a folder that OpenVINO runs too: their vectors are of one space."""
    try:
        return ModelFolder.read(folder)
    except NotSupported:
        return None


def _numerics(device: Any, dtype: Any) -> str:
    version = ".".join(torch.__version__.split(".")[:2])
    return f"torch-{version}/{device.type}/{name_of(dtype)}"


def _signatures(facts: TorchFolder) -> list[tuple[int, int, int]]:
    """What changes when a file is replaced."""
    found = [path.stat() for path in facts.weights.values() if path.is_file()]
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in found]
