"""Many models within a memory budget: who is let go, who stays, and what is never loaded twice."""

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from likewise.embedding import memory
from likewise.embedding.embedder import Embedded, Embedder
from likewise.embedding.models import ModelSpec, local_spec
from likewise.embedding.providers import openvino
from likewise.errors import ModelUnavailable
from likewise.settings import Settings
from likewise.testing import FakeLoader, FakeProvider
from tests.embedding import tiny
from tests.patience import until

DEFAULT = "minilm-l6-v2"
NAMES = (DEFAULT, "minilm-l12-v2", "multi-qa-minilm", "paraphrase-minilm")
A, B, C = NAMES[1:]
Make = Callable[..., tuple[Embedder, "Loaders"]]


class Loader(FakeLoader):
    """One of several; each model that it makes is counted with those of the others."""

    def __init__(self, among: "Loaders") -> None:
        super().__init__(100)
        self._among = among

    def __call__(self, spec: ModelSpec) -> FakeProvider:
        """One more provider."""
        made = super().__call__(spec)
        self._among.most = max(self._among.most, len(self._among.loaded()))
        return made


class Loaders(dict[str, Loader]):
    """The loaders of all models, by name; `most` is how many models were loaded at once."""

    def __init__(self) -> None:
        super().__init__({name: Loader(self) for name in NAMES})
        self.most = 0

    def loaded(self) -> list[FakeProvider]:
        """Those that were made and are not closed."""
        return [one for loader in self.values() for one in loader.made if not one.closed]


@pytest.fixture
async def make(settings: Settings) -> AsyncIterator[Make]:
    """An embedder of four models of 100 bytes each within a limit, and their loaders."""
    made: list[Embedder] = []

    def embedder(limit: int) -> tuple[Embedder, Loaders]:
        loaders = Loaders()
        chosen = settings.model_copy(update={"models_allowed": NAMES[1:], "models_bytes": limit})
        made.append(Embedder(chosen, providers=loaders))
        return made[-1], loaders

    yield embedder
    for one in made:
        await one.close()


def states(embedder: Embedder) -> list[str]:
    return [one.state for one in embedder.states()]


async def kept_busy(embedder: Embedder, loader: Loader, model: str) -> tuple[asyncio.Event, asyncio.Task[Embedded]]:
    """A text in the middle of a model beside the default: what lets it go on, and the request for it."""
    await embedder.opened()
    await embedder.opened(model)
    gate = loader.made[-1].gate = asyncio.Event()
    busy = asyncio.create_task(embedder.embed(1, ["long text"], model=model))
    await until(lambda: bool(loader.made[-1].calls))
    return gate, busy


async def test_the_least_recently_used_is_let_go_and_comes_back(make: Make) -> None:
    # Given room for the default and two others, of which A was used last
    embedder, loaders = make(300)
    for model in (None, A, B, A):
        await embedder.embed(1, ["text"], model=model)
    # When a third comes
    await embedder.embed(1, ["text"], model=C)
    # Then B went
    assert states(embedder) == ["ready", "ready", "present", "ready"]
    assert loaders[B].made[0].closed
    assert not embedder.is_ready(B)
    # And when B is wanted again, it is loaded again, for A
    assert (await embedder.embed(1, ["other"], model=B)).vectors.shape == (1, 384)
    assert states(embedder) == ["ready", "present", "ready", "ready"]
    assert [len(loaders[name].made) for name in NAMES] == [1, 1, 2, 1]


async def test_the_default_stays_though_nobody_uses_it(make: Make) -> None:
    embedder, loaders = make(200)
    await embedder.start()
    for model in (A, B, C, A):
        await embedder.embed(1, ["text"], model=model)
    assert states(embedder) == ["ready", "ready", "present", "present"]
    assert len(loaders[DEFAULT].made) == 1


async def test_a_busy_model_is_waited_for_and_never_let_go(make: Make) -> None:
    # Given a model in the middle of a text, and room for it and the default alone
    embedder, loaders = make(200)
    gate, busy = await kept_busy(embedder, loaders[A], A)
    # When another is wanted
    other = asyncio.create_task(embedder.embed(1, ["text"], model=B))
    await asyncio.sleep(0.3)
    # Then it waits, until the first is done
    assert not other.done()
    assert not loaders[A].made[0].closed
    gate.set()
    assert (await busy).vectors.shape == (await other).vectors.shape == (1, 384)
    assert states(embedder) == ["ready", "present", "ready", "present"]


async def test_what_stays_busy_keeps_the_other_out(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model in the middle of a text, and room for it and the default alone
    monkeypatch.setattr(memory, "BUSY_SECONDS", 0.1)
    embedder, loaders = make(200)
    gate, busy = await kept_busy(embedder, loaders[A], A)
    # When another is wanted, and the first is not done in the time that a busy one is waited for
    with pytest.raises(ModelUnavailable, match="LIKEWISE_MODELS_BYTES") as refused:
        await embedder.embed(1, ["text"], model=B)
    # Then it was not loaded, and the first answers
    assert refused.value.code == "model_memory"
    assert not loaders[B].made
    gate.set()
    assert (await busy).vectors.shape == (1, 384)
    assert states(embedder) == ["ready", "ready", "present", "present"]


async def test_a_model_that_is_slow_to_go_goes_whole(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a model that nobody uses, and that takes longer to go than anybody waits for it
    monkeypatch.setattr(memory, "BUSY_SECONDS", 0.05)
    embedder, loaders = make(200)
    await embedder.opened()
    await embedder.opened(A)
    (slow,) = loaders[A].made
    close = slow.close

    async def closed_slowly() -> None:
        await asyncio.sleep(0.2)
        await close()

    monkeypatch.setattr(slow, "close", closed_slowly)
    # When another is wanted
    with contextlib.suppress(ModelUnavailable):
        await embedder.opened(B)
    # Then it is gone, and the other can come
    assert slow.closed
    await embedder.opened(B)
    assert states(embedder) == ["ready", "present", "ready", "present"]


async def test_a_batch_whose_caller_left_keeps_its_model(make: Make) -> None:
    # Given a caller who leaves while the text is in the model
    embedder, loaders = make(200)
    gate, left = await kept_busy(embedder, loaders[A], A)
    left.cancel()
    # When another model is wanted, then it comes once the text is through
    other = asyncio.create_task(embedder.embed(1, ["text"], model=B))
    await asyncio.sleep(0.05)
    assert not loaders[A].made[0].closed
    gate.set()
    await other
    assert loaders[A].made[0].closed


async def test_a_model_that_never_fits_says_so_and_closes_nothing(make: Make) -> None:
    embedder, loaders = make(250)
    loaders[C].memory_bytes = 151
    for model in (None, A):
        await embedder.embed(1, ["text"], model=model)
    with pytest.raises(ModelUnavailable, match=f"{C} takes .* LIKEWISE_MODELS_BYTES") as refused:
        await embedder.embed(1, ["text"], model=C)
    assert (refused.value.code, refused.value.retry_after) == ("model_memory", 2)
    assert states(embedder) == ["ready", "ready", "present", "present"]
    assert "LIKEWISE_MODELS_BYTES" in (embedder.states()[3].reason or "")
    # And as soon as it fits it is loaded
    loaders[C].memory_bytes = 150
    assert (await embedder.embed(1, ["text"], model=C)).model == C


@pytest.mark.parametrize("limit", [0, 1_000])
async def test_fifty_first_uses_at_once_load_a_model_once(make: Make, limit: int) -> None:
    embedder, loaders = make(limit)
    names = [None, A, B, C]
    made = await asyncio.gather(*(embedder.embed(1, [f"text {n}"], model=names[n % 4]) for n in range(200)))
    assert len(made) == 200
    assert [len(loaders[name].made) for name in NAMES] == [1, 1, 1, 1]
    assert states(embedder) == ["ready"] * 4


async def test_nothing_fails_while_models_take_turns(make: Make) -> None:
    # Given room for the default and one more
    embedder, loaders = make(200)

    # When many requests want three others, in any order, and none is held in the cache
    async def ask(number: int) -> None:
        await asyncio.sleep(number % 7 / 1_000)
        model = (None, A, B, C)[number % 4]
        got = await embedder.embed(number, [f"text {number}"], model=model, use_cache=False)
        assert got.model == (model or DEFAULT)

    await asyncio.gather(*map(ask, range(100)))
    # Then all were answered, and never more was loaded than fits
    assert len(loaders.loaded()) == loaders.most == 2
    assert len(loaders[DEFAULT].made) == 1


async def test_a_failed_load_holds_no_memory(make: Make) -> None:
    embedder, loaders = make(200)
    await embedder.opened()
    loaders[A].options = {"no": "such option"}
    with pytest.raises(ModelUnavailable):
        await embedder.embed(1, ["text"], model=A)
    assert (await embedder.embed(1, ["text"], model=B)).model == B


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> dict[str, weakref.ref[openvino.OpenVinoProvider]]:
    """By name, the real models that were loaded last, for as long as anybody holds them."""
    found: dict[str, weakref.ref[openvino.OpenVinoProvider]] = {}
    load = openvino.load

    def watched(spec: ModelSpec, folder: Path, settings: Settings) -> openvino.OpenVinoProvider:
        provider = load(spec, folder, settings)
        found[spec.name] = weakref.ref(provider)
        return provider

    monkeypatch.setattr(openvino, "load", watched)
    return found


async def test_the_memory_of_real_models_is_given_back(
    settings: Settings, tmp_path: Path, opened: dict[str, weakref.ref[openvino.OpenVinoProvider]]
) -> None:
    # Given three folders and room for two
    folders = [tiny.write_folder(tmp_path / name, tiny.weights(seed)) for seed, name in enumerate("abc")]
    first, second, third = map(str, folders)
    needed = memory.needed_by(local_spec(first, folders[0]), [folders[0] / "model.safetensors"], settings)
    assert needed > memory.BESIDES
    chosen = {"model": first, "models_allowed": (second, third), "models_bytes": 2 * needed}
    embedder = Embedder(settings.model_copy(update=chosen))
    before = (await embedder.embed(1, ["alpha beta"], model=second, use_cache=False)).vectors
    assert opened[second]() is not None
    # When the third is used beside the default
    await embedder.embed(1, ["alpha"])
    await embedder.embed(1, ["alpha"], model=third)
    # Then nothing is left of the second, and loaded again it answers as before
    gc.collect()
    assert opened[second]() is None
    assert states(embedder) == ["ready", "present", "ready"]
    again = await embedder.embed(1, ["alpha beta"], model=second, use_cache=False)
    assert (again.vectors == before).all()
    await embedder.close()


async def test_a_folder_that_cannot_be_read_says_why_and_needs_no_memory(settings: Settings, tmp_path: Path) -> None:
    folder = tiny.write_folder(tmp_path / "broken", tiny.weights())
    (folder / "model.safetensors").write_bytes(b"no tensors")
    embedder = Embedder(settings.model_copy(update={"model": str(folder), "models_bytes": 1}))
    with pytest.raises(ModelUnavailable, match="is not a safetensors file"):
        await embedder.embed(1, ["alpha"])
    await embedder.close()
