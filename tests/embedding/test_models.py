"""Names of models, and which of them the settings allow."""

import os
from pathlib import Path

import numpy as np
import pytest

from likewise.embedding.embedder import Embedder
from likewise.embedding.models import MODELS, Catalogue, Endpoint, ModelSpec
from likewise.errors import Invalid, ModelUnavailable, SettingsError
from likewise.settings import Settings
from tests.embedding import tiny

SECRET = "sk-canary-of-a-key"


@pytest.mark.parametrize("name", ["minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2", None])
def test_a_model_answers_to_three_names(settings: Settings, name: str | None) -> None:
    assert Catalogue(settings).resolve(name).name == "minilm-l6-v2"


@pytest.mark.parametrize(
    ("model", "price"),
    [("text-embedding-3-small", 0.00002), ("text-embedding-3-large", 0.00013), ("text-embedding-ada-002", 0.0001)],
)
def test_a_remote_model_of_the_table_is_served_where_the_settings_say(
    settings: Settings, model: str, price: float
) -> None:
    # Given an address and a key
    changed = {"model": model, "openai_base_url": "http://127.0.0.1:9/v1/", "openai_api_key": SECRET}
    # When the model is resolved
    spec = Catalogue(settings.model_copy(update=changed)).resolve(None)
    # Then it is served there, at its price, and nothing shows the key
    assert (spec.endpoint.base_url, spec.endpoint.model) == ("http://127.0.0.1:9/v1", model)
    assert spec.price_per_1k_tokens == price
    assert SECRET not in repr(spec)


def test_models_of_ones_own_are_allowed_by_being_in_the_file(settings: Settings, tmp_path: Path) -> None:
    # Given a folder and an address in the file
    folder = tiny.write_folder(tmp_path / "folder", tiny.weights())
    file = tmp_path / "models.toml"
    file.write_text(f"""
        [[model]]
        name = "ours"
        folder = "{folder}"

        [[model]]
        name = "theirs/large"
        base_url = "https://embeddings.example/v1/"
        model = "large"
        key_variable = "THEIRS_KEY"
        api_version = "2024-10-21"
        dimension = 1024
        max_tokens = 512
        price_per_1k_tokens = 0.0001
        matryoshka = true
    """)
    # When they are named
    catalogue = Catalogue(settings.model_copy(update={"models_file": file}))
    ours, theirs = catalogue.resolve("ours"), catalogue.resolve("theirs/large")
    # Then they are there, beside the default
    assert (ours.folder, ours.dimension, ours.endpoint) == (folder, 32, None)
    assert (theirs.dimension, theirs.max_tokens, theirs.price_per_1k_tokens) == (1024, 512, 0.0001)
    assert theirs.endpoint == Endpoint(
        "https://embeddings.example/v1", "large", None, "THEIRS_KEY", "2024-10-21", seconds=30.0
    )
    assert [spec.name for spec in catalogue.specs()] == ["minilm-l6-v2", "ours", "theirs/large"]
    with pytest.raises(Invalid):
        catalogue.resolve("large")


REMOTE = '[[model]]\nname = "a"\nbase_url = "http://a/v1"\n'


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[[model]\n", "TOML"),
        ('[[model]]\nname = "a"\n', "folder"),
        (REMOTE, "dimension"),
        (REMOTE + 'dimension = 4\nfolder = "/a"\n', "either"),
        (REMOTE + "dimension = 4\nflavour = 1\n", "model.0.flavour"),
        (REMOTE + "dimension = 4\nprice_per_1k_tokens = nan\n", "price_per_1k_tokens"),
        (REMOTE.replace("http://a", "http://user:secret@a") + "dimension = 4\n", "base_url"),
        (REMOTE.replace("http://", "file://") + "dimension = 4\n", "base_url"),
        (REMOTE.replace("http://a/v1", "http://") + "dimension = 4\n", "base_url"),
        (REMOTE.replace("http://a/v1", "http://a:99999/v1") + "dimension = 4\n", "base_url"),
        (REMOTE.replace("http://a/v1", "http://a b/v1") + "dimension = 4\n", "base_url"),
        (REMOTE.replace("http://a/v1", "http://a\\nsecret/v1") + "dimension = 4\n", "base_url"),
        (REMOTE + 'dimension = "4"\n', "dimension"),
        (2 * (REMOTE + "dimension = 4\n"), "same name"),
        (REMOTE.replace('"a"', '"all-MiniLM-L6-v2"') + "dimension = 4\n", "all-MiniLM-L6-v2"),
        (REMOTE.replace('"a"', '"../a"') + "dimension = 4\n", "name"),
    ],
)
def test_what_is_wrong_in_the_models_file_is_named(settings: Settings, tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "models.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named) as refused:
        Catalogue(settings.model_copy(update={"models_file": file}))
    assert "LIKEWISE_MODELS_FILE" in refused.value.detail
    assert "secret" not in refused.value.detail


def test_a_models_file_that_is_none(settings: Settings, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(SettingsError, match="not a regular file"):
            Catalogue(settings.model_copy(update={"models_file": path}))


def test_a_models_file_that_is_not_there(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LIKEWISE_MODELS_FILE cannot be read"):
        Catalogue(settings.model_copy(update={"models_file": tmp_path / "nowhere.toml"}))


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


async def test_a_row_of_the_file_outlives_a_folder_that_comes_later(settings: Settings, tmp_path: Path) -> None:
    # Given two rows of one folder that is not there yet, one of them with a prefix for documents
    folder, file = tmp_path / "later", tmp_path / "models.toml"
    file.write_text(f"""
        [[model]]
        name = "plain"
        folder = "{folder}"

        [[model]]
        name = "prefixed"
        folder = "{folder}"
        document_prefix = "beta "
        runtime = "openvino"
    """)
    embedder = Embedder(settings.model_copy(update={"models_file": file}))
    # When it is there
    tiny.write_folder(folder, tiny.weights())
    prefixed = await embedder.embed(1, ["alpha"], model="prefixed")
    # Then the prefix goes before its documents
    plain = await embedder.embed(1, ["beta alpha", "alpha"], model="plain")
    assert np.allclose(prefixed.vectors[0], plain.vectors[0], atol=1e-5)
    assert not np.allclose(prefixed.vectors[0], plain.vectors[1], atol=1e-2)
    await embedder.close()
