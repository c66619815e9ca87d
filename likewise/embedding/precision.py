"""Which arithmetic a local model runs in."""

import platform
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from likewise.embedding.openvino_runtime import openvino
from likewise.errors import SettingsError

Choice = Literal["auto", "f32", "bf16", "int8"]

_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True)
class Precision:
    """`arithmetic` is that of everything but, with `int8`, the layers' linear maps: OpenVINO's name for it."""

    arithmetic: Literal["f32", "bf16"]
    int8: bool = False

    @property
    def name(self) -> str:
        """As numerics record it: vectors of two names do not share a cache."""
        return f"int8-{self.arithmetic}" if self.int8 else self.arithmetic


def choose(choice: Choice, able: Collection[str]) -> Precision:
    """The precision that the settings ask for on a processor that is able to do so.

    `able` has BF16 or INT8 where there are instructions for it. SettingsError if there are none for what is asked.
    """
    if choice in ("bf16", "int8") and choice.upper() not in able:
        needs = {"bf16": "bf16", "int8": "products of int8 (AVX-512 VNNI or AVX-VNNI)"}[choice]
        raise SettingsError(f"LIKEWISE_PRECISION={choice} needs a processor with {needs}; set it to auto or f32.")
    bf16 = "BF16" in able and choice != "f32"
    return Precision("bf16" if bf16 else "f32", int8=choice == "int8")


def able() -> set[str]:
    """What this machine's processor can do."""
    told = set(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    # OpenVINO says INT8 wherever it can do it somehow; without these instructions that is slower than f32
    return told if _has_int8_products() else told - {"INT8"}


def _has_int8_products() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:  # no Linux: take OpenVINO's word
        return True
    return bool(_INT8_FLAGS & set(told.split()))
