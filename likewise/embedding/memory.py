"""The memory that local models take together, and the models that are unloaded before another is loaded."""

import asyncio
import ctypes
import importlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from likewise.embedding.graphs.openvino import able, choose
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import ModelSpec
from likewise.embedding.runtimes import PROVIDERS, ModelRuntime, runtime_of, torch_installed
from likewise.errors import ModelUnavailable, SettingsError
from likewise.machine import memory_limit
from likewise.settings import PREFIX, Settings
from likewise.stopping import to_its_end

SETTING = f"{PREFIX}MODELS_BYTES"
BUSY_SECONDS = 5.0  # less than a caller waits for a model that is being loaded
MIB = 2**20

# Bytes for each weight, and for a model besides, by which a process had grown after 1,400 texts, some calls at a time,
# on two cores, with models of 23 and 109 million weights. OpenVINO: f32 387 and 1,729 MiB, bf16 329 and 1,102, int8 299
# and 652; it has the graph twice, and packs the weights of each for its kernels at the first text. torch: f32 269 MiB
# of the small one, bf16 276 and (after 200 texts) 284.
BYTES = {
    ("openvino", "f32"): 16, ("openvino", "bf16"): 10, ("openvino", "int8"): 5,
    ("torch", "f32"): 4, ("torch", "bf16"): 2,
}  # fmt: skip
BESIDES = 160 * MIB


class ResidentModel(Protocol):
    """A model that takes memory. `idle`: it is loaded, and nobody uses it; `used` grows with each use."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def idle(self) -> bool: ...

    @property
    def used(self) -> int: ...

    async def unload(self) -> None:
        """Let go of an idle model."""
        ...


class ModelMemory:
    """The loaded local models of one process and the bytes of each, within LIKEWISE_MODELS_BYTES.

    The model named `keep` is never let go. Belongs to one event loop.
    """

    def __init__(self, settings: Settings, keep: str) -> None:
        given = settings.models_bytes
        self._limit = memory_limit() // 2 if given is None else given or sys.maxsize
        self._gpu_settings = settings if given is None and settings.device != "cpu" else None
        self._keep = keep
        self._taken: dict[ResidentModel, int] = {}
        self._turn = asyncio.Lock()
        self._released = asyncio.Event()

    async def take(self, resident: ResidentModel, needed: int) -> None:
        """Hold so many bytes for a model that is to be loaded; the least recently used models are unloaded for it.

        ModelUnavailable (code `model_memory`) if it does not fit beside those that must stay, or stay in use.
        """
        if self._gpu_settings is not None:
            # Not sooner: torch must be imported to say it.
            self._limit = await asyncio.to_thread(_half_of_the_gpu, self._gpu_settings, self._limit)
            self._gpu_settings = None
        if needed > self._limit - sum(self._taken[one] for one in self._taken if one.spec.name == self._keep):
            raise self._too_small(resident, needed)
        with suppress(TimeoutError):
            async with asyncio.timeout(BUSY_SECONDS):
                while not await self._taken_now(resident, needed):
                    await self._something_released()
        if resident not in self._taken:
            raise self._too_small(resident, needed)

    def give_back(self, resident: ResidentModel) -> None:
        """Hold nothing for a model any more."""
        self._taken.pop(resident, None)
        self.released()

    def released(self) -> None:
        """Wake callers that wait for a model to become idle."""
        self._released.set()

    async def _taken_now(self, resident: ResidentModel, needed: int) -> bool:
        async with self._turn:
            while going := self._to_unload(needed):
                del self._taken[going[0]]
                # Half let go, it would keep its memory, and nobody would ask it to go again.
                await to_its_end(going[0].unload())
                _trim()
            if going is not None:
                self._taken[resident] = needed
            return going is not None

    async def _something_released(self) -> None:
        self._released.clear()
        # Texts that a cancelled caller left in a model end without a word.
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await self._released.wait()

    def _to_unload(self, needed: int) -> list[ResidentModel] | None:
        """Choose idle models that make room for so many bytes, least recently used first; None if all do not."""
        missing = needed + sum(self._taken.values()) - self._limit
        going: list[ResidentModel] = []
        for one in sorted(self._taken, key=lambda one: one.used):
            if missing > 0 and one.idle and one.spec.name != self._keep:
                going.append(one)
                missing -= self._taken[one]
        return going if missing <= 0 else None

    def _too_small(self, resident: ResidentModel, needed: int) -> ModelUnavailable:
        return ModelUnavailable(
            f"{resident.spec.name} takes about {needed // MIB:,} MiB of memory, more than {SETTING} "
            f"({self._limit // MIB:,} MiB) leaves beside the default model and those in use; set it higher, or name a "
            "smaller model.",
            code="model_memory",
            retry_after=2,
        )


def needed_by(spec: ModelSpec, files: Iterable[Path], settings: Settings) -> int:
    """Estimate the bytes that a model of these files of weights takes once it works."""
    runtime = runtime_of(spec.architecture, spec.runtime, settings.device)
    count = sum(Tensors(path).count for path in files)
    return BESIDES + BYTES[runtime, _arithmetic(runtime, settings)] * count


def _arithmetic(runtime: ModelRuntime, settings: Settings) -> str:
    if runtime == "torch":
        torch = importlib.import_module(PROVIDERS["torch"])
        return str(torch.name_of(torch.arithmetic_of(settings)))
    precision = choose(settings.precision, able())
    return "int8" if precision.int8 else precision.arithmetic


def _half_of_the_gpu(settings: Settings, otherwise: int) -> int:
    """Return half of the memory of LIKEWISE_DEVICE's GPU; where torch does not see it, loading a model tells why."""
    if torch_installed():
        with suppress(SettingsError):
            return int(importlib.import_module(PROVIDERS["torch"]).gpu_memory(settings)) // 2
    return otherwise


def _trim() -> None:
    """Have the C library give back freed memory that it keeps: 160 MiB of a small model in torch, measured."""
    with suppress(OSError, AttributeError):  # another system, or another C library
        ctypes.CDLL(None).malloc_trim(0)
