"""The device that torch runs models on: which it is, its arithmetic and its memory. Needs the extra `torch`."""

from typing import Any

import torch

from likewise.errors import SettingsError
from likewise.settings import Settings


def device_of(settings: Settings) -> Any:
    """The device of LIKEWISE_DEVICE; SettingsError if torch does not see it."""
    device = torch.device(settings.device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"LIKEWISE_DEVICE names a GPU that torch does not see (it sees {torch.cuda.device_count()}); set it to "
            "cpu, or see that the GPU's driver and a torch that is built for CUDA are installed."
        )
    return device


def arithmetic_of(settings: Settings) -> Any:
    """bf16 on a GPU that has it, else f32, unless LIKEWISE_PRECISION says otherwise; SettingsError if it cannot be."""
    precision, device = settings.precision, device_of(settings)
    if precision == "int8":
        raise SettingsError("LIKEWISE_PRECISION=int8 is of models that OpenVINO runs; with torch set it to auto.")
    able = device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "bf16" and not able:
        raise SettingsError("LIKEWISE_PRECISION=bf16 needs a GPU with bf16; set it to auto or f32.")
    chosen = precision == "bf16" or (device.type == "cuda" and precision != "f32" and able)
    return torch.bfloat16 if chosen else torch.float32


def name_of(arithmetic: Any) -> str:
    """As numerics record it: vectors of two names do not share a cache."""
    return "bf16" if arithmetic is torch.bfloat16 else "f32"


def gpu_memory(settings: Settings) -> int:
    """Bytes of memory of the GPU that LIKEWISE_DEVICE names; SettingsError if torch does not see it."""
    return int(torch.cuda.get_device_properties(device_of(settings)).total_memory)
