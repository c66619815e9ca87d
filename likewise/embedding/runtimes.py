"""The runtime of a local model: OpenVINO on the processor where there is a graph for it, else torch."""

import functools
import importlib.util
from collections.abc import Mapping
from typing import Literal

from likewise.embedding.graphs.architectures import ARCHITECTURES
from likewise.errors import NotSupported

ModelRuntime = Literal["openvino", "torch"]

# imported when a model is loaded that it runs
PROVIDERS: Mapping[ModelRuntime, str] = {
    "openvino": "likewise.embedding.providers.openvino",
    "torch": "likewise.embedding.providers.torch",
}
TORCH_NEEDED = "torch needs an extra: pip install 'likewise[torch]'"


def runtime_of(architecture: str, asked: ModelRuntime | None, device: str) -> ModelRuntime:
    """Choose the runtime of a model of that architecture on LIKEWISE_DEVICE; `asked` is that of its row.

    NotSupported if there is none: the architecture has no graph, or torch is not installed.
    """
    if asked == "openvino" and architecture not in ARCHITECTURES:
        raise NotSupported(
            f"There is no graph for {architecture} models; leave the runtime to Likewise, or name torch."
        )
    runtime = asked or ("openvino" if device == "cpu" and architecture in ARCHITECTURES else "torch")
    if runtime == "torch" and not torch_installed():
        why = f"LIKEWISE_DEVICE={device}" if follows_device(architecture, asked) else f"{architecture} models"
        raise NotSupported(f"This version runs {why} with torch, and {TORCH_NEEDED}.")
    return runtime


def follows_device(architecture: str, asked: ModelRuntime | None) -> bool:
    """Return whether LIKEWISE_DEVICE alone chooses the runtime: there is a graph, and no row names another."""
    return architecture in ARCHITECTURES and asked is None


@functools.cache
def torch_installed() -> bool:
    """Return whether the packages of the extra `torch` are here; nothing is imported."""
    return all(importlib.util.find_spec(name) for name in ("sentence_transformers", "torch", "transformers"))
