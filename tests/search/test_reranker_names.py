"""Names of rerankers: what one means where there is none, and which a row of the models file may not have."""

from pathlib import Path
from typing import Any

import pytest

from likewise.embedding.models import Catalogue
from likewise.errors import ModelNotAllowed, SettingsError
from likewise.search.reranking import NoReranker, RerankerCatalogue
from likewise.settings import Settings, load_settings
from tests.models_file import models_file

KNOWN = ["minilm-l6-v2", "ms-marco-MiniLM-L-6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2", "mock"]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings that name no reranker."""
    return load_settings(data_dir=tmp_path / "data", offline=True)


def test_where_there_is_none_a_name_that_is_none_is_no_matter_of_time(settings: Settings) -> None:
    catalogue = RerankerCatalogue(settings)
    with pytest.raises(ModelNotAllowed):
        catalogue.resolve("rerank-v3.5")
    for name in (None, "ms-marco-MiniLM-L-6-v2"):
        with pytest.raises(NoReranker):
            catalogue.resolve(name)


@pytest.mark.parametrize("kind", ["embedding", "reranker"])
@pytest.mark.parametrize("name", KNOWN)
def test_a_row_has_the_name_of_no_model_of_either_kind(
    settings: Settings, tmp_path: Path, kind: str, name: str
) -> None:
    fields: dict[str, Any] = {"name": name, "kind": kind}
    chosen = settings.model_copy(update={"models_file": models_file(tmp_path, "http://127.0.0.1:1", **fields)})
    with pytest.raises(SettingsError, match="choose another"):
        (Catalogue if kind == "embedding" else RerankerCatalogue)(chosen)
