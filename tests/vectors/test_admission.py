"""No vector is compared with one of another space: what a generation was made with, against what is here."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise.db import collections
from likewise.db.collections import Generation
from likewise.db.failures import CollectionGone
from likewise.db.pool import Pool
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import ProviderResult, Role
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import ModelUnavailable, WrongModel
from likewise.kind import Policy
from likewise.settings import Settings, load_settings
from likewise.testing import DatabaseUrls, FakeProvider, ThrowawayPostgres
from likewise.vectors.admission import Admission


class Rounded(FakeProvider):
    """The same model in lower precision: its vectors are a little off."""

    def __init__(self, noise: float) -> None:
        super().__init__(numerics="fake-1/low")
        self.noise = noise

    async def embed(self, texts: Sequence[str], role: Role) -> ProviderResult:
        """See Provider.embed."""
        result = await super().embed(texts, role)
        off = np.random.default_rng(1).standard_normal(result.vectors.shape).astype(np.float32)
        vectors = result.vectors + self.noise * off / np.sqrt(self.dimension)
        result.vectors[:] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return result


@dataclass
class Rows:
    """A database, and collections in it."""

    pool: Pool
    settings: Settings
    tenant: int
    made: int = 0

    async def generation(self, dimension: int = 384) -> Generation:
        self.made += 1
        async with self.pool.tenant(self.tenant) as tx:
            made = await collections.make(
                tx,
                f"c{self.made}",
                kind="collection",
                analyzer="english-1",
                policy=Policy(),
                model=self.settings.model,
                dimension=dimension,
            )
        return made.active

    async def again(self, generation: Generation) -> Generation:
        async with self.pool.tenant(self.tenant) as tx:
            found = await collections.generation(tx, generation.id)
        assert found is not None
        return found[0]

    @asynccontextmanager
    async def process(self, provider: FakeProvider) -> AsyncIterator[Admission]:
        """A process that has this model."""
        embedder = Embedder(self.settings, providers={self.settings.model: lambda spec: provider})
        try:
            yield Admission(self.pool, embedder)
        finally:
            await embedder.close()


@asynccontextmanager
async def rows_of(urls: DatabaseUrls, folder: Path) -> AsyncIterator[Rows]:
    settings = load_settings(data_dir=folder, database_url=urls.owner, database_serving_url=urls.serving)
    pool = await Pool(urls.serving, max_size=4).open()
    try:
        yield Rows(pool, settings, await collections.tenant_named(pool, "tenant"))
    finally:
        await pool.close()


@pytest.fixture(scope="module")
async def rows(postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rows]:
    """See Rows."""
    async with postgres.database() as urls, rows_of(urls, tmp_path_factory.mktemp("data")) as rows:
        yield rows


@pytest.fixture
async def own_rows(database: DatabaseUrls, tmp_path: Path) -> AsyncIterator[Rows]:
    """The same of the test's own: the default model is looked at beside all that is stored."""
    async with rows_of(database, tmp_path) as rows:
        yield rows


async def test_the_first_says_what_a_generation_is_made_with(rows: Rows) -> None:
    generation = await rows.generation()
    assert (generation.space, generation.probe) == (None, None)
    async with rows.process(FakeProvider()) as admission:
        admitted = await admission.admit(rows.tenant, generation)
    stored = await rows.again(generation)
    assert stored.space == admitted.space == FakeProvider().space
    assert stored.numerics == "fake-1/f32"
    own = (await FakeProvider().embed(PROBE_TEXTS, "document")).vectors
    np.testing.assert_allclose(stored.probe, own, atol=1e-6)


async def test_it_is_asked_once_a_process(rows: Rows) -> None:
    generation = await rows.generation()
    provider = FakeProvider()
    async with rows.process(provider) as admission:
        await admission.admit(rows.tenant, generation)
        probes = len(provider.calls)
        for _ in range(5):
            await admission.admit(rows.tenant, generation)
        assert len(provider.calls) == probes


async def test_two_that_are_first_at_once_agree(rows: Rows) -> None:
    for _ in range(5):
        generation = await rows.generation()
        async with rows.process(FakeProvider()) as one, rows.process(FakeProvider(space="other")) as other:
            outcomes = await asyncio.gather(
                one.admit(rows.tenant, generation), other.admit(rows.tenant, generation), return_exceptions=True
            )
        refused = [outcome for outcome in outcomes if isinstance(outcome, ModelUnavailable)]
        assert len(refused) == 1
        assert (await rows.again(generation)).space in (FakeProvider().space, FakeProvider(space="other").space)


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (lambda: FakeProvider(space="other"), "weights, tokenizer or configuration"),
        (lambda: FakeProvider(dimension=128), "128-dimensional"),
        (lambda: Rounded(0.5), "probe"),
    ],
    ids=["another space", "another dimension", "another reading"],
)
async def test_another_model_is_refused_with_the_reason(rows: Rows, provider: type[FakeProvider], reason: str) -> None:
    generation = await rows.generation()
    async with rows.process(FakeProvider()) as admission:
        await admission.admit(rows.tenant, generation)
    before = await rows.again(generation)
    async with rows.process(provider()) as admission:
        for _ in range(2):
            with pytest.raises(ModelUnavailable, match=reason) as refused:
                await admission.admit(rows.tenant, before)
            assert refused.value.code == "model_differs"
        assert list(admission.refused) == [generation.id]
    after = await rows.again(generation)
    assert (after.space, after.numerics) == (before.space, before.numerics)
    np.testing.assert_array_equal(after.probe, before.probe)


@pytest.mark.parametrize(
    ("provider", "reason"),
    [
        (lambda: FakeProvider(space="other"), "are others"),
        (lambda: FakeProvider(dimension=128), "are others"),
        (lambda: Rounded(0.5), "reads the probe texts otherwise"),
    ],
    ids=["another space", "another dimension", "another reading"],
)
async def test_a_default_model_that_made_nothing_that_is_stored_is_no_default(
    own_rows: Rows, provider: type[FakeProvider], reason: str
) -> None:
    # Given
    rows = own_rows
    generation = await rows.generation()
    async with rows.process(FakeProvider()) as admission:
        await admission.check_default_model()
        await admission.admit(rows.tenant, generation)
        await admission.check_default_model()
    # Then
    async with rows.process(provider()) as admission:
        with pytest.raises(WrongModel, match=reason):
            await admission.check_default_model()


@pytest.mark.parametrize(
    "trouble", [{"fail": ModelUnavailable("away")}, {"gate": asyncio.Event()}], ids=["away", "hangs"]
)
async def test_a_default_model_that_does_not_answer_stops_no_start(
    own_rows: Rows, monkeypatch: pytest.MonkeyPatch, trouble: dict[str, Any]
) -> None:
    # Given a model, as one at an address, with vectors that are stored
    monkeypatch.setattr("likewise.vectors.admission.START_SECONDS", 0.5)
    generation = await own_rows.generation()
    async with own_rows.process(FakeProvider()) as admission:
        await admission.admit(own_rows.tenant, generation)
    # Then nothing is said of it while it is away
    async with own_rows.process(FakeProvider(**trouble)) as admission:
        await admission.check_default_model()


async def test_one_generation_of_another_space_closes_itself_only(own_rows: Rows) -> None:
    # Given two generations of one name, made by different models
    rows = own_rows
    ours, theirs = await rows.generation(), await rows.generation()
    async with rows.process(FakeProvider()) as admission:
        await admission.admit(rows.tenant, ours)
    async with rows.process(FakeProvider(space="other")) as admission:
        await admission.admit(rows.tenant, theirs)
    # When one of these models is the default
    async with rows.process(FakeProvider()) as admission:
        await admission.check_default_model()
        # Then
        await admission.admit(rows.tenant, await rows.again(ours))
        with pytest.raises(ModelUnavailable):
            await admission.admit(rows.tenant, await rows.again(theirs))


async def test_another_precision_of_the_same_model_is_admitted(rows: Rows) -> None:
    generation = await rows.generation()
    async with rows.process(FakeProvider()) as admission:
        await admission.admit(rows.tenant, generation)
    async with rows.process(Rounded(0.02)) as admission:
        await admission.admit(rows.tenant, await rows.again(generation))
        assert admission.refused == {}


async def test_a_model_that_comes_back_is_admitted_again(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("likewise.vectors.admission.REFUSED_SECONDS", 0.0)
    generation = await rows.generation()
    provider = Rounded(0.0)
    async with rows.process(provider) as admission:
        # Given one that is refused
        async with rows.process(FakeProvider()) as first:
            await first.admit(rows.tenant, generation)
        provider.noise = 0.5
        with pytest.raises(ModelUnavailable):
            await admission.admit(rows.tenant, await rows.again(generation))
        # When it is mended
        provider.noise = 0.0
        await admission.admit(rows.tenant, await rows.again(generation))
        # Then
        assert admission.refused == {}


async def test_a_generation_that_has_just_gone_is_not_found(rows: Rows) -> None:
    generation = await rows.generation()
    async with rows.pool.tenant(rows.tenant) as tx:
        collection = (await collections.named(tx, f"c{rows.made}")).id
        await collections.drop(tx, collection)
    async with rows.process(FakeProvider()) as admission:
        with pytest.raises(CollectionGone):
            await admission.admit(rows.tenant, generation)
