"""The Embedder through its public door, with a deterministic model."""

import asyncio
import gc
import weakref
from typing import Any

import numpy as np
import pytest

from likewise.embedding.batching import MAX_GIVEN_UP
from likewise.embedding.embedder import Embedder
from likewise.embedding.provider import MAX_CHARS, Capacity, Lane
from likewise.embedding.queue import QueuedText
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import Invalid, ModelUnavailable, Overloaded
from likewise.settings import Settings
from likewise.testing import FakeProvider
from tests.patience import PATIENCE, until


async def settled() -> None:
    """Until each request waits for the model: on its way there nothing leaves the loop, which takes its turns here."""
    for _ in range(100):
        await asyncio.sleep(0)


def held() -> int:
    """How many texts that were to be embedded are still in this process's memory, wherever they stand."""
    gc.collect()
    return sum(isinstance(one, QueuedText) for one in gc.get_objects())


async def test_answers_in_order_with_counts(make_embedder: Any) -> None:
    embedder = make_embedder(FakeProvider(16, max_tokens=5))
    got = await embedder.embed(1, ["red fox", "blue whale song of winter", "red fox"])
    alone = await make_embedder(FakeProvider(16, max_tokens=5)).embed(1, ["red fox"])
    assert got.vectors.shape == (3, 16)
    assert got.vectors.dtype == np.float32
    assert np.array_equal(got.vectors[0], alone.vectors[0])
    assert np.array_equal(got.vectors[0], got.vectors[2])
    assert got.tokens.tolist() == [4, 5, 4]
    assert got.truncated.tolist() == [0, 2, 0]
    assert got.chars_read.tolist() == [7, len("blue whale song"), 7]
    assert got.cached.tolist() == [False, False, False]
    assert got.cost == 0.0


async def test_no_texts_make_no_vectors(make_embedder: Any) -> None:
    got = await make_embedder(FakeProvider(16)).embed(1, [])
    assert got.vectors.shape == (0, 16)


async def test_equal_texts_of_a_request_are_embedded_once(make_embedder: Any) -> None:
    provider = FakeProvider()
    await make_embedder(provider).embed(1, ["same", "other", "same"])
    assert sorted(provider.texts) == ["other", "same"]


async def test_a_cached_text_is_not_embedded_again(make_embedder: Any) -> None:
    provider = FakeProvider()
    embedder = make_embedder(provider)
    first = await embedder.embed(1, ["one"])
    again = await embedder.embed(1, ["one", "two"])
    assert again.cached.tolist() == [True, False]
    assert np.array_equal(first.vectors[0], again.vectors[0])
    assert provider.texts == ["one", "two"]


async def test_without_the_cache_nothing_is_read_or_kept(make_embedder: Any) -> None:
    provider = FakeProvider()
    embedder = make_embedder(provider)
    await embedder.embed(1, ["one"], use_cache=False)
    got = await embedder.embed(1, ["one"])
    assert not got.cached[0]
    assert (await embedder.embed(1, ["one"], use_cache=False)).cached.tolist() == [False]
    assert provider.texts == ["one"] * 3


@pytest.mark.parametrize(("scope", "cached"), [("tenant", False), ("shared", True)])
async def test_whose_texts_count_as_cached(make_embedder: Any, scope: str, cached: bool) -> None:
    embedder = make_embedder(FakeProvider(), cache_scope=scope)
    await embedder.embed(1, ["secret plan"])
    assert (await embedder.embed(2, ["secret plan"])).cached.tolist() == [cached]


async def test_a_document_that_looks_like_a_query_is_not_one(make_embedder: Any) -> None:
    embedder = make_embedder(FakeProvider())
    await embedder.embed(1, ["query: x"], role="document")
    assert not (await embedder.embed(1, ["x"], role="query")).cached[0]
    assert not (await embedder.embed(1, ["query: x"], role="query")).cached[0]


async def test_two_requests_share_a_text_in_flight(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider, cache_bytes=0)
    both = [asyncio.create_task(embedder.embed(1, ["shared", f"own {place}"])) for place in range(2)]
    await until(lambda: sum(provider.calls) == 3)
    gate.set()
    first, second = await asyncio.gather(*both)
    assert sorted(provider.texts) == ["own 0", "own 1", "shared"]
    assert np.array_equal(first.vectors[0], second.vectors[0])


async def test_tenants_do_not_share_a_text_in_flight(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider)
    both = [asyncio.create_task(embedder.embed(tenant, ["same"])) for tenant in (1, 2)]
    await until(lambda: sum(provider.calls) == 2)
    gate.set()
    await asyncio.gather(*both)


async def test_the_first_of_two_leaves_and_the_other_still_gets_its_vector(make_embedder: Any) -> None:
    # Given a text in the model that two want
    before = held()
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider)
    first = asyncio.create_task(embedder.embed(1, ["shared"]))
    await until(lambda: provider.calls)
    second = asyncio.create_task(embedder.embed(1, ["shared"]))
    await settled()
    # When the first leaves
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.set()
    # Then the other has its vector, which is made once, and kept
    made = await second
    assert made.vectors.shape == (1, 384)
    again = await embedder.embed(1, ["shared"])
    assert again.cached.all()
    assert np.array_equal(again.vectors, made.vectors)
    assert provider.texts == ["shared"]
    # And nothing is held beside the cache
    await settled()
    assert held() <= before


async def test_a_cancelled_request_leaves_the_queue(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate, capacity=Capacity(tokens=1))
    embedder = make_embedder(provider, queue_tokens=1_000)
    running = [asyncio.create_task(embedder.embed(1, [f"running {place}"])) for place in range(2)]
    await until(lambda: len(provider.calls) == 2)
    waiting = asyncio.create_task(embedder.embed(1, ["w" * 3_900]))
    await settled()
    with pytest.raises(Overloaded):
        await embedder.embed(1, ["x" * 400])
    waiting.cancel()
    await settled()
    after = asyncio.create_task(embedder.embed(1, ["x" * 400]))
    await settled()
    gate.set()
    await asyncio.gather(*running, after)
    assert "w" * 3_900 not in provider.texts


async def test_too_much_at_once_is_refused_and_says_when_to_come_back(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider, queue_tokens=1_000)
    first = asyncio.create_task(embedder.embed(1, ["a" * 3_600]))
    await until(lambda: provider.calls)
    with pytest.raises(Overloaded) as refused:
        await embedder.embed(1, ["b" * 3_600])
    assert refused.value.retry_after
    gate.set()
    await first
    assert (await embedder.embed(1, ["b" * 3_600])).tokens.tolist() == [3]


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u3000\u00a0"])
async def test_blank_and_oversized_texts_are_refused_by_index(make_embedder: Any, blank: str) -> None:
    provider = FakeProvider()
    with pytest.raises(Invalid) as refused:
        await make_embedder(provider).embed(1, ["fine", blank, "y" * (MAX_CHARS + 1)])
    assert [(fault.pointer, fault.code) for fault in refused.value.faults] == [
        ("/texts/1", "blank"),
        ("/texts/2", "too_long"),
    ]
    assert not provider.calls


@pytest.mark.parametrize("spoilt", [{"nan": True}, {"wrong_count": True}, {"fail": RuntimeError("secret text")}])
async def test_a_provider_that_answers_nonsense(make_embedder: Any, spoilt: dict[str, Any]) -> None:
    provider = FakeProvider(**spoilt)
    embedder = make_embedder(provider)
    with pytest.raises(ModelUnavailable) as failed:
        await embedder.embed(1, ["one", "two"])
    assert "secret" not in failed.value.detail
    provider.nan, provider.wrong_count, provider.fail = False, False, None
    assert not (await embedder.embed(1, ["one", "two"])).cached.any()


async def test_a_provider_of_another_dimension_than_it_says(make_embedder: Any) -> None:
    provider = FakeProvider(16)
    embedder = make_embedder(provider)
    await embedder.opened()
    provider.dimension = 32
    vectors = provider._vectors
    provider._vectors = lambda texts: vectors(texts)[:, :16]  # type: ignore[method-assign]
    with pytest.raises(ModelUnavailable):
        await embedder.embed(1, ["one"])


async def test_a_poisoned_text_is_named_and_the_others_are_not_lost(make_embedder: Any) -> None:
    provider = FakeProvider(poison=lambda text: "poison" in text)
    embedder = make_embedder(provider)
    texts = [f"text {place}" for place in range(20)]
    texts[13] = "poison pill"
    other = asyncio.create_task(embedder.embed(1, ["innocent bystander"]))
    with pytest.raises(Invalid) as failed:
        await embedder.embed(1, texts)
    assert failed.value.code == "text_failed"
    assert [fault.pointer for fault in failed.value.faults] == ["/texts/13"]
    assert "pill" not in str(failed.value)
    assert (await other).vectors.shape == (1, 384)
    del texts[13]
    assert (await embedder.embed(1, texts)).cached.all()


async def test_a_model_that_hangs_while_a_batch_is_split_fails_no_text(make_embedder: Any) -> None:
    # Given a model that fails on a batch, can do a plain text, and then hangs
    class Hanging(FakeProvider):
        async def embed(self, texts: Any, role: Any) -> Any:
            if len(self.calls) > 1:
                self.gate = asyncio.Event()
            return await super().embed(texts, role)

    capacity = Capacity(tokens=2_048, seconds=0.05)
    provider = Hanging(capacity=capacity, poison=lambda text: "text" in text and "plain" not in text)
    # When many texts go through it
    with pytest.raises(ModelUnavailable) as failed:
        await make_embedder(provider).embed(1, [f"text {place}" for place in range(100)])
    # Then it is the model's fault, told after one more try and not after one for each text
    assert failed.value.code == "model_hangs"
    assert len(provider.calls) == 3


async def test_an_outage_costs_one_more_call_and_not_one_for_each_text(make_embedder: Any) -> None:
    provider = FakeProvider(fail=RuntimeError())
    with pytest.raises(ModelUnavailable):
        await make_embedder(provider).embed(1, [f"text {place}" for place in range(100)])
    assert len(provider.calls) == 2


async def test_interactive_texts_overtake_bulk(make_embedder: Any) -> None:
    provider = FakeProvider(delay=0.01, capacity=Capacity(tokens=8))
    embedder = make_embedder(provider)
    bulk = asyncio.create_task(embedder.embed(1, [f"bulk text {place}" for place in range(60)], lane="bulk"))
    await until(lambda: len(provider.calls) >= 2)
    before = len(provider.calls)
    await embedder.embed(1, ["a query"], role="query")
    assert len(provider.calls) <= before + 1 + 2  # ours, and those that started when we were done
    assert not bulk.done()
    assert (await bulk).vectors.shape == (60, 384)


async def test_bulk_does_not_starve(make_embedder: Any) -> None:
    provider = FakeProvider(delay=0.001)
    embedder = make_embedder(provider, cache_bytes=0)
    stop = False

    async def ask() -> None:
        place = 0
        while not stop:
            place += 1
            await embedder.embed(1, [f"query {place}"], role="query")

    askers = [asyncio.create_task(ask()) for _ in range(2)]
    await until(lambda: len(provider.calls) > 2)
    async with asyncio.timeout(PATIENCE):
        await embedder.embed(2, ["bulk text"], lane="bulk")
    stop = True
    await asyncio.gather(*askers)


async def test_a_text_that_waits_in_bulk_is_promoted_when_somebody_waits_for_it(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate, capacity=Capacity(tokens=4))
    embedder = make_embedder(provider)
    bulk = asyncio.create_task(embedder.embed(1, [f"bulk text {place:02}" for place in range(20)], lane="bulk"))
    await until(lambda: len(provider.calls) == 2)
    wanted = next(f"bulk text {place:02}" for place in range(20) if f"bulk text {place:02}" not in provider.texts)
    asked = asyncio.create_task(embedder.embed(1, [wanted]))
    await until(lambda: len(provider.calls) == 3)
    assert provider.texts[-1] == wanted
    gate.set()
    await asyncio.gather(bulk, asked)
    assert len(provider.texts) == 20


async def test_many_callers_share_batches(make_embedder: Any) -> None:
    provider = FakeProvider(delay=0.01)
    embedder = make_embedder(provider)
    await asyncio.gather(*(embedder.embed(1, [f"caller {place}"]) for place in range(100)))
    assert len(provider.calls) < 20
    assert len(provider.texts) == 100


async def test_closing_fails_what_waits(make_embedder: Any) -> None:
    provider = FakeProvider(gate=asyncio.Event(), capacity=Capacity(tokens=1))
    embedder = make_embedder(provider)
    waiting = [asyncio.create_task(embedder.embed(1, [f"text {place}"])) for place in range(5)]
    await until(lambda: provider.calls)
    await embedder.close()
    for task in waiting:
        with pytest.raises(ModelUnavailable):
            await task
    assert provider.closed


async def test_lengths_and_probe(make_embedder: Any) -> None:
    embedder = make_embedder(FakeProvider(16))
    assert await embedder.lengths(["one two", "three"]) == [4, 3]
    probe = await embedder.probe()
    assert probe.shape == (len(PROBE_TEXTS), 16) == (8, 16)
    assert np.array_equal(probe, (await embedder.embed(1, PROBE_TEXTS)).vectors)


async def test_what_an_open_model_is(make_embedder: Any) -> None:
    embedder = make_embedder(FakeProvider(16, max_tokens=99, numerics="fake-2/f16"))
    assert embedder.spec().dimension == 384
    model = await embedder.opened("all-MiniLM-L6-v2")
    assert (model.dimension, model.max_tokens, model.numerics) == (16, 99, "fake-2/f16")
    assert model.spec.name == "minilm-l6-v2"
    assert embedder.spec().dimension == 16
    assert embedder.states()[0].state == "ready"


async def test_only_allowed_models_are_opened(settings: Settings) -> None:
    embedder = Embedder(settings.model_copy(update={"models_allowed": ("bge-small", "text-embedding-3-small")}))
    for name in ("minilm-l12-v2", "../../etc/passwd", "https://example.org/model", "", "x" * 10_000, "MINILM-L6-V2"):
        with pytest.raises(Invalid) as refused:
            await embedder.embed(1, ["text"], model=name)
        assert refused.value.faults[0].code == "model_not_allowed"
        assert refused.value.faults[0].pointer == "/model"
        assert not name or name not in refused.value.detail
    assert embedder.spec("BAAI/bge-small-en-v1.5").pooling == "cls"
    assert embedder.spec("text-embedding-3-small").dimension == 1536
    assert [state.name for state in embedder.states()] == ["minilm-l6-v2", "bge-small", "text-embedding-3-small"]
    await embedder.close()


@pytest.mark.parametrize(("lane", "calls"), [("bulk", 1), ("interactive", 2)])
async def test_an_interactive_call_is_short_and_a_bulk_one_as_long_as_the_model_likes(
    make_embedder: Any, lane: Lane, calls: int
) -> None:
    # Given: a model that likes long calls, and texts of about 8,000 tokens
    provider = FakeProvider(capacity=Capacity(tokens=100_000))
    texts = [f"{number} " + "word " * 31 for number in range(200)]
    # When
    await make_embedder(provider).embed(1, texts, lane=lane)
    # Then
    assert len(provider.calls) == calls


async def test_a_vector_that_is_not_in_the_cache_as_yet_is_not_made_again(make_embedder: Any) -> None:
    # Given a request of two texts, the first of which has its vector while the other is still in the model
    before = held()
    halted, go = asyncio.Event(), asyncio.Event()

    class Halting(FakeProvider):
        async def embed(self, texts: Any, role: Any) -> Any:
            if self.calls:
                halted.set()
                await go.wait()
            return await super().embed(texts, role)

    provider = Halting(capacity=Capacity(tokens=1, calls=1))
    embedder = make_embedder(provider)
    both = asyncio.create_task(embedder.embed(1, ["one", "two"]))
    await until(halted.is_set)
    assert len(provider.texts) == 1
    # When another asks for both
    other = asyncio.create_task(embedder.embed(1, ["two", "one"]))
    await settled()
    go.set()
    made = await asyncio.gather(both, other)
    # Then each was made once
    assert sorted(provider.texts) == ["one", "two"]
    assert np.array_equal(made[0].vectors, made[1].vectors[::-1])
    # And nothing is held beside the cache
    await settled()
    assert held() <= before


@pytest.mark.parametrize("callers", [1, 2])
async def test_what_was_given_up_is_not_shared(make_embedder: Any, callers: int) -> None:
    # Given a text in the model that its callers give up, one after the other
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider)
    leaving = [asyncio.create_task(embedder.embed(1, ["given up"])) for _ in range(callers)]
    await until(lambda: provider.calls)
    for one in leaving:
        await settled()
        one.cancel()
    # When another asks for it in the very moment in which the last leaves
    another = asyncio.create_task(embedder.embed(1, ["given up"]))
    await asyncio.sleep(0)
    gate.set()
    # Then it has its vector
    assert (await another).vectors.shape == (1, 384)
    await asyncio.gather(*leaving, return_exceptions=True)
    assert all(one.cancelled() for one in leaving)


async def test_texts_of_callers_that_left_are_not_kept(make_embedder: Any) -> None:
    # Given a model that is busy, and a caller that waits
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate, capacity=Capacity(tokens=1, calls=1))
    embedder = make_embedder(provider)
    patient = asyncio.create_task(embedder.embed(1, ["busy", "patient"]))
    await until(lambda: provider.calls)
    before = held()
    # When many come with long texts and leave
    texts = [await gone(embedder, number) for number in range(30)]
    await settled()
    # Then nothing of them is held but places for some, and who waited is answered
    assert held() - before < MAX_GIVEN_UP
    assert not [text for text in texts if text() is not None]
    gate.set()
    assert (await patient).vectors.shape == (2, 384)


class Text(str):
    """A text that can be watched."""

    __slots__ = ("__weakref__",)


async def gone(embedder: Any, number: int) -> weakref.ref[Text]:
    text = Text(f"{number} " + "x" * 10_000)
    leaving = asyncio.create_task(embedder.embed(1, [text, *(f"{number} {place}" for place in range(99))]))
    await settled()
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    return weakref.ref(text)


async def test_of_a_remote_model_a_place_is_left_for_what_is_short(make_embedder: Any) -> None:
    # Given a remote model with two places, and more to do in bulk than goes in one call
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate, capacity=Capacity(tokens=1_000, texts=1, calls=2, remote=True))
    embedder = make_embedder(provider)
    bulk = asyncio.create_task(embedder.embed(1, ["bulk one", "bulk two", "bulk three"], lane="bulk"))
    await until(lambda: provider.texts)
    await settled()
    assert len(provider.texts) == 1
    # When something short comes: it need not wait for those
    short = asyncio.create_task(embedder.embed(1, ["short"]))
    await until(lambda: len(provider.texts) > 1)
    assert provider.texts[1:] == ["short"]
    gate.set()
    await asyncio.gather(bulk, short)


async def test_a_text_to_be_made_anew_is_shared_with_nobody(make_embedder: Any) -> None:
    gate = asyncio.Event()
    provider = FakeProvider(gate=gate)
    embedder = make_embedder(provider)
    anew = asyncio.create_task(embedder.embed(1, ["twice"], use_cache=False))
    await until(lambda: len(provider.calls) == 1)
    other = asyncio.create_task(embedder.embed(1, ["twice"]))
    await until(lambda: len(provider.calls) == 2)
    gate.set()
    await asyncio.gather(anew, other)
    assert provider.texts == ["twice", "twice"]


async def test_an_outage_after_a_failed_batch_is_told_as_one(make_embedder: Any) -> None:
    # Given a model that fails on a batch, and is away when it is asked whether it works at all
    class GoingAway(FakeProvider):
        async def embed(self, texts: Any, role: Any) -> Any:
            if self.calls:
                self.fail = ModelUnavailable(code="limited", retry_after=7)
            return await super().embed(texts, role)

    with pytest.raises(ModelUnavailable) as failed:
        await make_embedder(GoingAway(fail=RuntimeError())).embed(1, ["one", "two"])
    assert (failed.value.code, failed.value.retry_after) == ("limited", 7)


async def test_a_shortened_vector_is_never_empty(settings: Settings) -> None:
    class ZeroFirst(FakeProvider):
        async def embed(self, texts: Any, role: Any) -> Any:
            made = await super().embed(texts, role)
            made.vectors[:, :4] = 0
            made.vectors[:] /= np.linalg.norm(made.vectors, axis=1, keepdims=True)
            return made

    name = "text-embedding-3-small"
    chosen = settings.model_copy(update={"model": name})
    embedder = Embedder(chosen, providers={name: lambda _: ZeroFirst(16)})
    with pytest.raises(Invalid) as refused:
        await embedder.embed(1, ["x"], dimensions=4)
    assert refused.value.faults[0].pointer == "/texts/0"
    assert (await embedder.embed(1, ["x"], dimensions=8)).vectors.shape == (1, 8)
    # And it is the loaded model's own length that counts
    with pytest.raises(Invalid, match="1 to 16 numbers"):
        await embedder.embed(1, ["x"], dimensions=17)
    await embedder.close()
