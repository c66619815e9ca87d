"""Which arithmetic is chosen, what it is called, and what int8 costs."""

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from likewise.embedding.graphs.openvino import Precision, able, choose
from likewise.embedding.models import MODELS
from likewise.embedding.providers.openvino import OpenVinoProvider, load
from likewise.errors import SettingsError
from likewise.settings import load_settings
from tests.embedding.references import REFERENCE, TEXTS, cosines

ALL = {"FP32", "BF16", "INT8"}


@pytest.mark.parametrize(
    ("choice", "capabilities", "name"),
    [
        ("auto", ALL, "bf16"), ("auto", {"FP32", "INT8"}, "f32"), ("auto", {"FP32"}, "f32"),
        ("f32", ALL, "f32"), ("bf16", ALL, "bf16"), ("int8", ALL, "int8-bf16"), ("int8", {"FP32", "INT8"}, "int8-f32"),
    ],
)  # fmt: skip
def test_int8_is_never_chosen_by_itself(choice: str, capabilities: set[str], name: str) -> None:
    assert choose(choice, capabilities).name == name


@pytest.mark.parametrize(("choice", "capabilities"), [("bf16", {"FP32", "INT8"}), ("int8", {"FP32", "BF16"})])
def test_what_the_processor_cannot_do_is_refused(choice: str, capabilities: set[str]) -> None:
    with pytest.raises(SettingsError, match=f"LIKEWISE_PRECISION={choice} needs .* set it to auto or f32"):
        choose(choice, capabilities)


def test_names_are_all_different() -> None:
    every = [Precision(arithmetic, int8) for arithmetic in ("f32", "bf16") for int8 in (False, True)]
    assert len({precision.name for precision in every}) == 4


@pytest.fixture(scope="session")
async def int8(real_folder: Path) -> AsyncIterator[OpenVinoProvider]:
    """The default model with int8 weights, where the processor has the instructions."""
    if "INT8" not in able():
        pytest.skip("this processor has no products of int8")
    provider = load(MODELS[0], real_folder, load_settings(precision="int8"))
    yield provider
    await provider.close()


async def test_int8_is_near_on_the_oddest_texts(int8: OpenVinoProvider) -> None:
    got = await int8.embed(TEXTS, "document")
    cosine = cosines(got.vectors, REFERENCE["vectors"])
    assert cosine.min() >= 0.99
    assert np.quantile(cosine, 0.01) >= 0.994
    assert cosine.mean() >= 0.998
    assert np.abs(np.linalg.norm(got.vectors.astype(np.float64), axis=1) - 1).max() < 1e-5


async def test_int8_has_the_space_of_the_others_and_numerics_of_its_own(
    int8: OpenVinoProvider, f32: OpenVinoProvider
) -> None:
    assert int8.space == f32.space
    assert int8.numerics.rpartition("/")[2] in ("int8-bf16", "int8-f32")


async def test_company_hardly_changes_a_vector_in_int8(int8: OpenVinoProvider) -> None:
    together = (await int8.embed(TEXTS[:96], "document")).vectors
    apart = np.concatenate([(await int8.embed([text], "query")).vectors for text in TEXTS[:96]])
    assert cosines(apart, together).min() >= 0.999
