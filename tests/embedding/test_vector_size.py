"""LIKEWISE_VECTOR_SIZE holds for a model, too, whose folder comes after the start."""

from pathlib import Path

import pytest

import likewise
from likewise.embedding import loading
from likewise.embedding.embedder import Embedder
from likewise.errors import ModelUnavailable
from likewise.settings import load_settings
from likewise.testing import ThrowawayPostgres
from tests.embedding import tiny


async def test_a_folder_of_another_size_that_comes_later_is_not_taken(
    postgres: ThrowawayPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOCAL_RETRY_SECONDS", 0.02)
    # Given a server that was started without its model's folder
    async with postgres.database() as urls:
        settings = load_settings(
            data_dir=tmp_path / "data",
            database_url=urls.owner,
            database_serving_url=urls.serving,
            model=str(tmp_path / "later"),
            vector_size=768,
            offline=True,
        )
        async with likewise.open(settings, worker=False) as lw:
            with pytest.raises(ModelUnavailable):
                await lw.collection("notes").create()
            # When one comes whose vectors have another size
            tiny.write_folder(tmp_path / "later", tiny.weights())
            # Then no collection of it is made, of either kind
            tenant = await lw.runtime.tenant()
            for made in (
                lambda: lw.collection("notes").create(),
                lambda: lw.segments.embed(tenant, "manual", "1", "the pump fails when it is cold"),
            ):
                with pytest.raises(ModelUnavailable, match="LIKEWISE_VECTOR_SIZE=768") as refused:
                    await made()
                assert refused.value.code == "vector_size"


async def test_it_is_not_loaded_either(tmp_path: Path) -> None:
    # Given
    folder = tiny.write_folder(tmp_path / "model", tiny.weights())
    for size, fits in ((768, False), (32, True)):
        embedder = Embedder(load_settings(data_dir=tmp_path / "data", model=str(folder), vector_size=size))
        try:
            # When
            if fits:
                assert (await embedder.opened()).dimension == size
                continue
            with pytest.raises(ModelUnavailable, match="LIKEWISE_VECTOR_SIZE=32"):
                await embedder.opened()
            # Then whoever looks at the server sees why
            (state,) = embedder.states()
            assert state.state == "failed"
            assert "LIKEWISE_VECTOR_SIZE" in (state.reason or "")
        finally:
            await embedder.close()
