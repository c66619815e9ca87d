"""Names of models, and which of them the settings allow."""

from pathlib import Path

import pytest

from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MODELS, Catalogue, ModelSpec
from likewise.errors import Invalid, ModelUnavailable, NotSupported
from likewise.settings import Settings
from tests.embedding import tiny


@pytest.mark.parametrize("name", ["minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", None])
def test_a_model_answers_to_three_names(settings: Settings, name: str | None) -> None:
    assert Catalogue(settings).resolve(name).name == "minilm-l6-v2"


@pytest.mark.parametrize("model", ["text-embedding-3-small", "text-embedding-ada-002"])
def test_models_of_later_versions_are_refused_by_name(settings: Settings, model: str) -> None:
    with pytest.raises(NotSupported, match=model):
        Catalogue(settings.model_copy(update={"model": model})).resolve(None)


@pytest.mark.parametrize("spec", [spec for spec in MODELS if spec.architecture != "remote"], ids=lambda spec: spec.name)
def test_every_local_model_can_be_chosen(settings: Settings, spec: ModelSpec) -> None:
    assert Catalogue(settings.model_copy(update={"model": spec.hub_id})).resolve(None) == spec


def test_no_name_stands_for_two_models() -> None:
    names = [name for spec in MODELS for name in {spec.name, spec.hub_id, spec.bare_name}]
    assert len(set(names)) == len(names)


async def test_a_folder_is_opened_only_if_the_settings_name_it(settings: Settings, tmp_path: Path) -> None:
    named = tiny.write_folder(tmp_path / "named", tiny.weights())
    other = tiny.write_folder(tmp_path / "other", tiny.weights())
    inside = tiny.write_folder(settings.models_folder / "inside", tiny.weights())
    embedder = Embedder(settings.model_copy(update={"model": str(named), "models_allowed": ("inside", "minilm-l6-v2")}))
    assert (await embedder.embed(1, ["alpha"])).vectors.shape == (1, 32)
    assert (await embedder.embed(1, ["alpha"], model="inside")).vectors.shape == (1, 32)
    for name in (str(other), str(inside), "other", "../other", f"{named}/", "named"):
        with pytest.raises(Invalid) as refused:
            await embedder.embed(1, ["alpha"], model=name)
        assert refused.value.faults[0].code == "model_not_allowed"
    assert [state.state for state in embedder.states()] == ["ready", "ready", "absent"]
    await embedder.close()


async def test_a_folder_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    embedder = Embedder(settings.model_copy(update={"model": str(tmp_path / "nowhere")}))
    await embedder.start()
    with pytest.raises(ModelUnavailable, match="nowhere"):
        await embedder.embed(1, ["alpha"])
    with pytest.raises(ModelUnavailable, match="nowhere"):
        embedder.spec()
    tiny.write_folder(tmp_path / "nowhere", tiny.weights())
    assert embedder.spec().dimension == 32
    await embedder.close()
