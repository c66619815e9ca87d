"""Settings without a database, an embedder with a deterministic model, and the real model in both precisions."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.graphs.openvino import able
from likewise.embedding.models import MODELS
from likewise.embedding.providers.openvino import OpenVinoProvider, load
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider

MakeEmbedder = Callable[..., Embedder]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of an empty machine without a network: no weights anywhere."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr("likewise.embedding.files.wheel.installed_folder", lambda spec: None)
    return load_settings(data_dir=tmp_path / "data", offline=True)


@pytest.fixture
async def make_embedder(settings: Settings) -> AsyncIterator[MakeEmbedder]:
    """Makes embedders with a given provider as the default model; they are closed at the end."""
    made: list[Embedder] = []

    def make(provider: FakeProvider, **options: object) -> Embedder:
        chosen = settings.model_copy(update=options)
        made.append(Embedder(chosen, providers={settings.model: lambda spec: provider}))
        return made[-1]

    yield make
    for embedder in made:
        await embedder.close()


@pytest.fixture(scope="session")
def real_folder(real_models: Path) -> Path:
    """The folder of the default model's files."""
    folder = weights.locate(MODELS[0], load_settings(models_dir=real_models))
    assert folder is not None
    return folder


@pytest.fixture(scope="session")
async def f32(real_folder: Path) -> AsyncIterator[OpenVinoProvider]:
    """The default model in float32."""
    provider = load(MODELS[0], real_folder, load_settings(precision="f32"))
    yield provider
    await provider.close()


@pytest.fixture(scope="session")
async def bf16(real_folder: Path) -> AsyncIterator[OpenVinoProvider]:
    """The default model in bfloat16, where the processor has that."""
    if "BF16" not in able():
        pytest.skip("this processor has no bfloat16")
    provider = load(MODELS[0], real_folder, load_settings(precision="bf16"))
    yield provider
    await provider.close()
