"""Reranking as a whole: which reranker, its place in memory and in the queue, what it costs, what goes wrong."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from likewise.embedding.embedder import Embedder
from likewise.errors import Invalid, LikewiseError, ModelNotAllowed, ModelUnavailable, Overloaded, SettingsError
from likewise.search.reranking import NoReranker, RerankerCatalogue, Rerankers
from likewise.settings import Settings, load_settings
from likewise.testing import ScriptedReply, Upstream
from tests.models_file import models_file
from tests.patience import PATIENCE, until
from tests.search.rerankers import BERT, at, expected, reranking

TENANT = 1
QUERY, TEXTS = "silver engine", ["the engine is of silver", "winter in the garden", "a letter"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of an empty machine without a network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return load_settings(data_dir=tmp_path / "data", offline=True, precision="f32")


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream().running() as running:
        yield running


@pytest.fixture
async def closing() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


def remote(settings: Settings, closing: AsyncExitStack, upstream: Upstream, folder: Path, **fields: Any) -> Rerankers:
    """Rerankers with one at an address; `fields` are of its row, but for `queue_tokens`."""
    most = fields.pop("queue_tokens", settings.queue_tokens)
    made = reranking(settings, **at(folder, upstream.url, **fields), queue_tokens=most)
    closing.push_async_callback(made.close)
    return made


async def test_a_folder_scores_as_transformers_do(settings: Settings, closing: AsyncExitStack) -> None:
    # Given the folder of a cross-encoder
    made = reranking(settings, reranker=str(BERT))
    closing.push_async_callback(made.close)
    pairs, _, scores, lengths = expected("bert")
    for place in (0, 3, 5):
        query, text = pairs[place]
        # When one text of many is what was tried with transformers
        done = await made.rerank(TENANT, query, ["stone"] * 40 + [text])
        # Then it has that score
        assert done.scores[-1] == pytest.approx(scores[place], abs=1e-5)
        assert int(done.tokens[-1]) == lengths[place]
        assert (done.model, done.cost) == (str(BERT), 0.0)


async def test_without_a_setting_there_is_none(settings: Settings) -> None:
    made = reranking(settings)
    for name in (None, "ms-marco-MiniLM-L-6-v2"):
        with pytest.raises(NoReranker, match="LIKEWISE_RERANKER=ms-marco-MiniLM-L-6-v2") as refused:
            await made.rerank(TENANT, QUERY, TEXTS, model=name)
        assert "likewise models pull" in refused.value.detail
    assert made.states() == []


async def test_one_whose_files_are_absent_says_how_to_get_them(settings: Settings, closing: AsyncExitStack) -> None:
    made = reranking(settings, reranker="ms-marco-MiniLM-L-6-v2")
    closing.push_async_callback(made.close)
    await made.start()
    with pytest.raises(ModelUnavailable, match="likewise models pull ms-marco-MiniLM-L-6-v2") as refused:
        await made.rerank(TENANT, QUERY, TEXTS)
    assert refused.value.code == "weights_absent"
    assert [one.state for one in made.states()] == ["absent"]


async def test_files_that_come_later_are_found(settings: Settings, closing: AsyncExitStack, tmp_path: Path) -> None:
    made = reranking(settings, reranker="mine", models_dir=tmp_path / "models")
    closing.push_async_callback(made.close)
    with pytest.raises(ModelUnavailable):
        await made.rerank(TENANT, QUERY, TEXTS)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(BERT)

    async def works() -> bool:
        try:
            return len((await made.rerank(TENANT, QUERY, TEXTS)).scores) == len(TEXTS)
        except ModelUnavailable:
            return False

    async with asyncio.timeout(PATIENCE):
        while not await works():
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("name", ["ms-marco-MiniLM-L-6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2"])
def test_one_is_known_by_name(settings: Settings, name: str) -> None:
    spec = RerankerCatalogue(settings.model_copy(update={"reranker": name})).resolve(None)
    assert (spec.hub_id, spec.max_tokens) == ("cross-encoder/ms-marco-MiniLM-L-6-v2", 512)


def test_rows_of_the_models_file_may_be_named(settings: Settings, tmp_path: Path) -> None:
    # Given a file with a reranker, and settings that name none
    chosen = settings.model_copy(update=at(tmp_path, "http://127.0.0.1:1")).model_copy(update={"reranker": None})
    catalogue = RerankerCatalogue(chosen)
    # Then it can be asked for by name, and no model of vectors has come of it
    assert catalogue.resolve("theirs").name == "theirs"
    with pytest.raises(NoReranker):
        catalogue.resolve(None)
    with pytest.raises(ModelNotAllowed):
        catalogue.resolve("minilm-l6-v2")
    assert [spec.name for spec in Embedder(chosen).models()] == [settings.model]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "ms-marco-MiniLM-L-6-v2", "kind": "reranker"}, "choose another"),
        ({"kind": "reranker", "dimension": 16}, "no `dimension`"),
        ({"kind": "reranker", "query_prefix": "q: "}, "no `query_prefix`"),
        ({"texts_named": "texts"}, "no `texts_named`"),
        ({"kind": "ranker"}, "kind"),
    ],
)
def test_wrong_rows_are_refused(settings: Settings, tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    file = models_file(tmp_path, "http://127.0.0.1:1", **fields)
    with pytest.raises(SettingsError, match=words):
        RerankerCatalogue(settings.model_copy(update={"models_file": file, "reranker": "x"}))


@pytest.mark.parametrize(
    ("query", "texts", "pointer", "code"),
    [
        (" ", TEXTS, "/query", "blank"),
        ("x" * 200_001, TEXTS, "/query", "too_long"),
        (QUERY, ["a", "\n"], "/texts/1", "blank"),
        (QUERY, ["a", 3], "/texts/1", "wrong_type"),
        (QUERY, "text", "/texts", "wrong_type"),
    ],
)
async def test_what_cannot_be_read_is_named(
    settings: Settings, query: str, texts: Any, pointer: str, code: str
) -> None:
    made = reranking(settings, reranker=str(BERT))
    with pytest.raises(Invalid) as refused:
        await made.rerank(TENANT, query, texts)
    assert [(fault.pointer, fault.code) for fault in refused.value.faults] == [(pointer, code)]


async def test_usage_is_counted_under_its_name(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    made = remote(settings, closing, upstream, tmp_path, price_per_1k_tokens=2.0)
    done = await made.rerank(TENANT, QUERY, TEXTS)
    words = sum(len(QUERY.split()) + len(text.split()) for text in TEXTS)
    assert (int(done.tokens.sum()), done.estimated) == (words, False)
    assert done.cost == pytest.approx(2.0 * words / 1000)
    ((account, used),) = made._ledger.of(TENANT)
    assert (account.model, used.texts, used.generated, used.tokens) == ("theirs", len(TEXTS), len(TEXTS), words)
    assert used.cost == pytest.approx(done.cost)


async def test_who_does_not_count_is_guessed(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.counts = False
    done = await remote(settings, closing, upstream, tmp_path).rerank(TENANT, QUERY, TEXTS)
    assert done.estimated
    assert all(done.tokens > 0)


async def test_a_long_request_goes_in_parts_and_a_short_one_between(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    # Given a reranker that takes ten texts at a time, one request after the other, and a long request
    upstream.gate = asyncio.Event()
    made = remote(settings, closing, upstream, tmp_path, texts_per_request=10, requests_at_once=1)
    texts = [f"silver {'engine ' * place}" for place in range(200)]
    long = asyncio.create_task(made.rerank(TENANT, QUERY, texts))
    await until(lambda: upstream.under_way == 1)
    # When a short one comes
    short = asyncio.create_task(made.rerank(TENANT, QUERY, ["winter"]))
    await asyncio.sleep(0)
    upstream.gate.set()
    await short
    # Then it does not wait for all of the other
    assert not long.done()
    done = await long
    # Which is whole, in order
    alone = await made.rerank(TENANT, QUERY, [texts[7]])
    assert done.scores[7] == pytest.approx(float(alone.scores[0]), abs=1e-6)
    assert max(len(asked.texts) for asked in upstream.asked) == 10
    assert upstream.max_at_once == 1


async def test_what_does_not_fit_is_refused_at_once(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    # Given a queue of 1,000 tokens that a request fills
    upstream.gate = asyncio.Event()
    made = remote(settings, closing, upstream, tmp_path, queue_tokens=1_000)
    first = asyncio.create_task(made.rerank(TENANT, QUERY, ["engine " * 600]))
    await until(lambda: upstream.under_way == 1)
    # When another comes, then it is refused, and told when to come back
    with pytest.raises(Overloaded) as refused:
        await made.rerank(TENANT, QUERY, TEXTS)
    assert refused.value.retry_after is not None
    # And when the first is done there is room
    upstream.gate.set()
    await first
    assert len((await made.rerank(TENANT, QUERY, TEXTS)).scores) == len(TEXTS)


async def test_who_leaves_leaves_no_work(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    # Given a long request, of which one call is under way
    upstream.gate = asyncio.Event()
    made = remote(settings, closing, upstream, tmp_path, texts_per_request=1, requests_at_once=1, queue_tokens=1_000)
    leaving = asyncio.create_task(made.rerank(TENANT, QUERY, TEXTS * 60))
    await until(lambda: upstream.under_way == 1)
    # When its caller leaves
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    # Then nothing of it is asked any more, and its room in the queue is free
    upstream.gate.set()
    await made.rerank(TENANT, QUERY, ["engine " * 500])
    assert len(upstream.asked) == 2
    assert made._pool.budget._held == 0


async def test_closing_fails_those_who_wait(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    upstream.gate = asyncio.Event()
    made = remote(settings, closing, upstream, tmp_path, requests_at_once=1)
    waiting = [asyncio.create_task(made.rerank(TENANT, QUERY, TEXTS)) for _ in range(3)]
    await until(lambda: upstream.under_way == 1)
    await made.close()
    for one in waiting:
        with pytest.raises(ModelUnavailable, match="shutting down"):
            await one
    assert made._pool.budget._held == 0


async def test_closing_while_a_local_model_works_is_safe(settings: Settings) -> None:
    made = reranking(settings, reranker=str(BERT))
    await made.rerank(TENANT, QUERY, TEXTS)
    working = [asyncio.create_task(made.rerank(TENANT, QUERY, ["silver engine " * 40] * 500)) for _ in range(3)]
    await asyncio.sleep(0.02)
    await made.close()
    for one in await asyncio.gather(*working, return_exceptions=True):
        assert not isinstance(one, BaseException) or isinstance(one, ModelUnavailable), one


async def test_it_shares_the_memory_for_models(settings: Settings, closing: AsyncExitStack) -> None:
    # Given too little memory for any model
    made = reranking(settings, reranker=str(BERT), models_bytes=1)
    closing.push_async_callback(made.close)
    with pytest.raises(ModelUnavailable, match="LIKEWISE_MODELS_BYTES") as refused:
        await made.rerank(TENANT, QUERY, TEXTS)
    assert refused.value.code == "model_memory"


WRONG: list[tuple[str, Any]] = [
    ("no results", {}),
    ("one too few", {"results": [{"index": 0, "relevance_score": 0.5}]}),
    ("an index twice", {"results": [{"index": 0, "relevance_score": 0.5}] * 3}),
    ("an index too large", {"results": [{"index": place, "relevance_score": 0.5} for place in (0, 1, 3)]}),
    ("an index that is none", {"results": [{"index": place, "relevance_score": 0.5} for place in (0, 1, True)]}),
    ("a score that is none", {"results": [{"index": place, "relevance_score": "1"} for place in range(3)]}),
    ("no score", {"results": [{"index": place} for place in range(3)]}),
    ("logits", {"results": [{"index": place, "relevance_score": -8.5} for place in range(3)]}),
    ("a list of numbers", [0.1, 0.2, 0.3]),
]


@pytest.mark.parametrize("answer", [one for _, one in WRONG], ids=[name for name, _ in WRONG])
async def test_wrong_answers_are_none(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path, answer: Any
) -> None:
    made = remote(settings, closing, upstream, tmp_path)
    upstream.always = ScriptedReply.of(answer)
    with pytest.raises(ModelUnavailable) as refused:
        await made.rerank(TENANT, QUERY, TEXTS)
    assert refused.value.code == "model_failed"
    upstream.always = None
    assert len((await made.rerank(TENANT, QUERY, TEXTS)).scores) == 3


@pytest.mark.parametrize(
    "reply",
    [
        ScriptedReply(200, b'{"results": [{"index": 0, "relevance_score": NaN}]}'),
        ScriptedReply(200, b"not json"),
        ScriptedReply(200, endless=True),
        ScriptedReply(302, headers={"location": "http://127.0.0.1:1/elsewhere"}),
        ScriptedReply(404),
        ScriptedReply(401),
    ],
    ids=["nan", "no json", "endless", "redirect", "not there", "unauthorized"],
)
async def test_trouble_at_the_address_is_trouble_of_the_model(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path, reply: ScriptedReply
) -> None:
    made = remote(settings, closing, upstream, tmp_path)
    upstream.always = reply
    with pytest.raises(ModelUnavailable) as refused:
        await made.rerank(TENANT, "canary of a query", ["canary of a text"])
    assert "canary" not in str(refused.value)
    # Once; and where this text may be to blame once with others.
    assert len(upstream.asked) == (2 if reply.status == 200 else 1)


async def test_what_heals_is_tried_again(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    made = remote(settings, closing, upstream, tmp_path)
    upstream.next.append(ScriptedReply(503, headers={"retry-after-ms": "10"}))
    assert len((await made.rerank(TENANT, QUERY, TEXTS)).scores) == 3
    assert len(upstream.asked) == 2


async def test_what_does_not_heal_is_trouble_of_the_model_too(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    made = remote(settings, closing, upstream, tmp_path)
    upstream.always = ScriptedReply(500, headers={"retry-after-ms": "10"})
    with pytest.raises(ModelUnavailable):
        await made.rerank(TENANT, QUERY, TEXTS)
    # Three times with these texts, and once with others
    assert len(upstream.asked) == 4


async def test_a_request_that_is_refused_is_the_callers_affair(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    made = remote(settings, closing, upstream, tmp_path)
    upstream.always = ScriptedReply.of({"message": "canary"}, 413)
    with pytest.raises(Invalid, match="fewer or shorter") as refused:
        await made.rerank(TENANT, QUERY, TEXTS)
    assert refused.value.faults[0].code == "text_failed"


async def test_the_key_goes_to_the_address_alone(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = remote(settings, closing, upstream, tmp_path, key_variable="THEIR_KEY", model="rerank-9")
    with pytest.raises(ModelUnavailable, match="THEIR_KEY"):
        await made.rerank(TENANT, QUERY, TEXTS)
    monkeypatch.setenv("THEIR_KEY", "sk-canary")
    made = remote(settings, closing, upstream, tmp_path, key_variable="THEIR_KEY", model="rerank-9")
    await made.rerank(TENANT, QUERY, TEXTS)
    asked = upstream.asked[-1]
    assert (asked.path, asked.headers["authorization"]) == ("/v1/rerank", "Bearer sk-canary")
    assert asked.body == {"model": "rerank-9", "query": QUERY, "documents": sorted(TEXTS, key=len)}


async def test_a_server_that_wants_texts_gets_texts(
    settings: Settings, closing: AsyncExitStack, upstream: Upstream, tmp_path: Path
) -> None:
    made = remote(settings, closing, upstream, tmp_path, texts_named="texts")
    done = await made.rerank(TENANT, QUERY, TEXTS)
    assert done.scores[0] > max(done.scores[1:])
    assert set(upstream.asked[-1].body) == {"query", "texts"}


async def test_no_reranker_has_a_wrong_file(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(LikewiseError, match="LIKEWISE_MODELS_FILE"):
        reranking(settings, models_file=tmp_path / "none.toml")
