"""Which program runs a model, and what is said where it is not installed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from likewise.cli.models import model_rows, require_runnable
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import Catalogue
from likewise.embedding.runtimes import runtime_of, torch_installed
from likewise.errors import NotSupported, SettingsError
from likewise.settings import Settings, load_settings
from tests.embedding.references import MODELS_FOLDER

EXTRA = r"pip install 'likewise\[torch\]'"
without_torch = pytest.mark.skipif(torch_installed(), reason="torch is installed")
with_torch = pytest.mark.skipif(not torch_installed(), reason="needs the extra torch: make test-torch")


@pytest.fixture
def roberta(tmp_path: Path) -> Path:
    """A folder of an architecture that there is no graph for."""
    folder = Path(shutil.copytree(MODELS_FOLDER / "bert-cls", tmp_path / "roberta"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "roberta"}))
    return folder


@pytest.mark.parametrize("architecture", ["bert", "mpnet", "distilbert"])
def test_on_the_processor_openvino_runs_what_it_has_a_graph_for(architecture: str) -> None:
    assert runtime_of(architecture, None, "cpu") == "openvino"


@with_torch
@pytest.mark.parametrize(
    ("architecture", "asked", "device", "runtime"),
    [
        ("bert", None, "cuda", "torch"),
        ("bert", None, "cuda:1", "torch"),
        ("bert", "torch", "cpu", "torch"),
        ("bert", "openvino", "cuda", "openvino"),
        ("roberta", None, "cpu", "torch"),
    ],
)
def test_torch_runs_the_rest(architecture: str, asked: Any, device: str, runtime: str) -> None:
    assert runtime_of(architecture, asked, device) == runtime


def test_openvino_cannot_be_asked_for_what_has_no_graph() -> None:
    with pytest.raises(NotSupported, match="no graph for roberta"):
        runtime_of("roberta", "openvino", "cpu")


@without_torch
async def test_a_missing_extra_is_named(settings: Settings, roberta: Path) -> None:
    # Given a folder that only torch could run
    chosen = settings.model_copy(update={"models_allowed": (str(roberta),)})
    embedder = Embedder(chosen)
    # When it is asked for, then the file, the reason and the mend are told
    with pytest.raises(NotSupported, match=rf"config\.json is of a model of type `roberta`.*{EXTRA}"):
        await embedder.embed(1, ["alpha"], model=str(roberta))
    assert [one.state for one in embedder.states()] == ["absent", "failed"]
    assert "likewise[torch]" in (embedder.states()[1].reason or "")
    assert {row["name"]: row["state"] for row in model_rows(chosen)}[str(roberta)] == "needs torch"
    await embedder.close()


@without_torch
def test_the_default_model_is_refused_at_the_start_where_nothing_runs_it(settings: Settings, roberta: Path) -> None:
    with pytest.raises(SettingsError, match=rf"LIKEWISE_MODEL: .*roberta.*{EXTRA}"):
        require_runnable(settings.model_copy(update={"model": str(roberta)}))


@without_torch
def test_a_gpu_without_the_extra_is_refused_by_the_setting_that_asks_for_it(settings: Settings) -> None:
    with pytest.raises(SettingsError, match=f"^LIKEWISE_DEVICE: .*{EXTRA}"):
        require_runnable(settings.model_copy(update={"device": "cuda"}))


@without_torch
def test_a_gpu_needs_the_extra(settings: Settings) -> None:
    with pytest.raises(NotSupported, match=f"LIKEWISE_DEVICE.*{EXTRA}"):
        Catalogue(settings.model_copy(update={"device": "cuda"})).resolve(None)


def test_a_folder_of_another_architecture_tells_its_facts(settings: Settings, roberta: Path) -> None:
    spec = Catalogue(settings.model_copy(update={"model": str(roberta)})).specs()[0]
    assert (spec.architecture, spec.dimension, spec.max_tokens, spec.runtime) == ("roberta", 24, 64, "torch")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "mps", "CUDA", "cuda:1000", "cpu:0"])
def test_a_device_that_is_none_is_refused(device: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LIKEWISE_DEVICE: it is `cpu`"):
        load_settings(data_dir=tmp_path, device=device)
