"""Remote models: a real server on the loopback that answers well, badly or not at all."""

import asyncio
import base64
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from likewise import backoff
from likewise.backoff import Backoff
from likewise.embedding.embedder import Embedder
from likewise.embedding.models import Endpoint, ModelSpec
from likewise.embedding.providers.openai import RemoteProvider, load
from likewise.embedding.remote.errors import RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy, duration, rate_reset, retry_after
from likewise.errors import Invalid, ModelUnavailable
from likewise.settings import Settings
from likewise.testing import ReceivedRequest, ScriptedReply, Upstream
from likewise.testing.provider import written
from likewise.testing.scripted import Behaviour
from tests.models_file import models_file
from tests.patience import until

KEY = "sk-canary-of-a-key"
TEXT = "canary of a text"
D = 16
# As patient as one needs to be with a server in the same process.
QUICK = RetryPolicy(between=Backoff(0.01, 0.02), max_hold=0.4, rest=Backoff(0.1, 0.2))
# Leaves a provider alone for longer than any test takes.
PATIENT = replace(QUICK, rest=Backoff(600.0, 600.0))

MakeProvider = Callable[..., RemoteProvider]
MakeEmbedder = Callable[..., Embedder]


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    """The server that is asked."""
    async with Upstream(D).running() as running:
        yield running


def spec_of(
    upstream: Upstream, *, query_prefix: str = "", document_prefix: str = "", dimension: int = D, **changes: Any
) -> ModelSpec:
    """A model at that server; `changes` are of its endpoint."""
    endpoint = Endpoint(**{"base_url": upstream.url, "model": "theirs", "key": KEY, "key_name": "THEIR_KEY", **changes})
    return ModelSpec(
        "ours",
        "ours",
        dimension,
        512,
        query_prefix=query_prefix,
        document_prefix=document_prefix,
        architecture="remote",
        own=True,
        endpoint=endpoint,
    )


@pytest.fixture
async def remote(upstream: Upstream) -> AsyncIterator[MakeProvider]:
    """Makes providers of a model at the server."""
    async with AsyncExitStack() as stack:

        def make(policy: RetryPolicy = QUICK, **changes: Any) -> RemoteProvider:
            provider = load(spec_of(upstream, **changes), policy)
            stack.push_async_callback(provider.close)
            return provider

        yield make


@pytest.fixture
async def embedder(upstream: Upstream, settings: Settings, tmp_path: Path) -> AsyncIterator[MakeEmbedder]:
    """Makes embedders whose default model is at the server."""
    async with AsyncExitStack() as stack:

        def make(policy: RetryPolicy = QUICK, **changes: Any) -> Embedder:
            file = models_file(tmp_path, upstream.url, dimension=D)
            chosen = settings.model_copy(update={"model": "ours", "models_file": file})
            made = Embedder(chosen, providers={"ours": lambda _: load(spec_of(upstream, **changes), policy)})
            stack.push_async_callback(made.close)
            return made

        yield make


def spoilt(**changes: Any) -> Callable[[ReceivedRequest], ScriptedReply]:
    """A good answer, changed."""
    return lambda asked: ScriptedReply.of({**asked.good, **changes})


# What is asked


async def test_what_is_sent(upstream: Upstream, remote: MakeProvider) -> None:
    # Given a model with prefixes
    provider = remote(query_prefix="query: ", document_prefix="passage: ")
    # When a query and a document are embedded
    await provider.embed(["a"], "query")
    await provider.embed(["a", "b\ud800"], "document")
    # Then they are sent with the key, the model's name there, and their prefix
    query, document = upstream.asked
    assert query.path == "/v1/embeddings"
    assert query.headers["authorization"] == f"Bearer {KEY}"
    assert query.headers["accept-encoding"] == "identity"
    assert query.body == {"model": "theirs", "input": ["query: a"], "encoding_format": "base64"}
    assert document.body["input"] == ["passage: a", "passage: b\ufffd"]
    assert upstream.connections == 1


async def test_azure_wants_its_version_and_the_key_elsewhere(upstream: Upstream, remote: MakeProvider) -> None:
    await remote(api_version="2024-10-21").embed(["a"], "document")
    (asked,) = upstream.asked
    assert asked.path == "/v1/embeddings?api-version=2024-10-21"
    assert asked.headers["api-key"] == KEY
    assert "authorization" not in asked.headers


async def test_a_server_without_keys_is_sent_none(upstream: Upstream, remote: MakeProvider) -> None:
    await remote(key=None, key_name=None).embed(["a"], "document")
    assert {"authorization", "api-key"} & set(upstream.asked[0].headers) == set()


async def test_the_space_is_what_was_declared(upstream: Upstream, remote: MakeProvider) -> None:
    one = remote()
    assert one.space == remote(key="another", calls=3).space
    others = (
        remote(base_url="http://127.0.0.1:9/v1"),
        remote(dimension=8),
        remote(query_prefix="q"),
        remote(document_prefix="q"),
    )
    assert len({one.space, *(other.space for other in others)}) == 5
    assert not upstream.asked


# What is answered


@pytest.mark.parametrize("in_base64", [True, False])
async def test_vectors_come_in_the_order_of_their_index(
    upstream: Upstream, remote: MakeProvider, in_base64: bool
) -> None:
    # Given a server that answers backwards, with vectors that are not of unit length
    def backwards(asked: ReceivedRequest) -> ScriptedReply:
        data = [
            {"index": place, "embedding": written(np.eye(D)[place] * 3, in_base64=in_base64)}
            for place in reversed(range(len(asked.texts)))
        ]
        return ScriptedReply.of({"data": data})

    upstream.always = backwards
    made = await remote().embed(["a", "b", "c"], "document")
    assert made.vectors.dtype == np.float32
    assert np.array_equal(made.vectors, np.eye(3, D, dtype=np.float32))


async def test_tokens_are_the_servers_sum(upstream: Upstream, remote: MakeProvider) -> None:
    texts = ["x" * 7, "x", "x" * 100]
    upstream.next.append(spoilt(usage={"prompt_tokens": 29, "total_tokens": 40}))
    made = await remote().embed(texts, "document")
    assert made.tokens.tolist() == [1, 1, 27]
    assert made.chars_read.tolist() == [7, 1, 100]
    assert (made.truncated.sum(), made.estimated) == (0, False)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 0}, {"prompt_tokens": -1}, {"prompt_tokens": True}, 7])
async def test_tokens_that_nobody_counted_are_guessed(upstream: Upstream, remote: MakeProvider, usage: Any) -> None:
    provider, texts = remote(), ["x" * 7, "x" * 100]
    upstream.next.append(spoilt(usage=usage))
    made = await provider.embed(texts, "document")
    assert made.estimated
    assert made.tokens.tolist() == await provider.lengths(texts)


async def test_a_count_that_cannot_be_is_not_believed(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.always = spoilt(usage={"prompt_tokens": 2_147_483_647})
    made = await remote().embed(["three short words"], "document")
    assert made.estimated
    assert made.tokens.tolist() == [5]


async def test_what_another_likewise_cut_off_is_told(upstream: Upstream, remote: MakeProvider) -> None:
    def cut(asked: ReceivedRequest) -> ScriptedReply:
        cut_off = zip(asked.good["data"], (5, -1, "7"), strict=True)
        return ScriptedReply.of(
            {**asked.good, "data": [{**item, "truncated_tokens": tokens} for item, tokens in cut_off]}
        )

    upstream.next.append(cut)
    made = await remote().embed(["x" * 40] * 3, "document")
    assert made.truncated.tolist() == [5, 0, 0]
    assert 0 < made.chars_read[0] < 40
    assert made.chars_read[1:].tolist() == [40, 40]


async def test_a_server_that_refuses_base64_is_asked_without(upstream: Upstream, remote: MakeProvider) -> None:
    refusal = ScriptedReply.of({"error": "what is encoding_format?"}, 400)
    upstream.always = lambda asked: refusal if "encoding_format" in asked.body else None
    provider = remote()
    for _ in range(3):
        await provider.embed(["a", "b"], "document")
    assert len(upstream.asked) == 4


NOT_ANSWERS: dict[str, Behaviour] = {
    "no JSON": ScriptedReply(body=b"<html>"),
    "half of it": ScriptedReply(body=b'{"data": [{"index": 0, "embe'),
    "no object": ScriptedReply(body=b"[]"),
    "no data": ScriptedReply.of({"error": {"message": TEXT}}),
    "data of another kind": ScriptedReply.of({"data": [TEXT]}),
    "too few": ScriptedReply.of({"data": []}),
    "too many": lambda asked: ScriptedReply.of({"data": 2 * asked.good["data"]}),
    "no index": spoilt(data=[{"embedding": [1.0] * D}]),
    "an index of another kind": spoilt(data=[{"index": True, "embedding": [1.0] * D}]),
    "an index that is none": spoilt(data=[{"index": 1, "embedding": [1.0] * D}]),
    "no vector": spoilt(data=[{"index": 0}]),
    "null in it": spoilt(data=[{"index": 0, "embedding": [None] + [1.0] * (D - 1)}]),
    "words in it": spoilt(data=[{"index": 0, "embedding": ["1.0"] * D}]),
    "lists in it": spoilt(data=[{"index": 0, "embedding": [[1.0] * D]}]),
    "ragged lists in it": spoilt(data=[{"index": 0, "embedding": [[1.0], 1.0]}]),
    "NaN in it": ScriptedReply(body=b'{"data": [{"index": 0, "embedding": [NaN]}]}'),
    "1e999 in it": ScriptedReply(body=b'{"data": [{"index": 0, "embedding": [%s]}]}' % b",".join([b"1e999"] * D)),
    "NaN in base64": spoilt(data=[{"index": 0, "embedding": written([np.nan] * D, in_base64=True)}]),
    "infinity in base64": spoilt(data=[{"index": 0, "embedding": written([np.inf] * D, in_base64=True)}]),
    "no base64": spoilt(data=[{"index": 0, "embedding": "***"}]),
    "base64 of a part": spoilt(data=[{"index": 0, "embedding": base64.b64encode(b"abc").decode()}]),
    "zeros": spoilt(data=[{"index": 0, "embedding": [0.0] * D}]),
    "nothing in it": spoilt(data=[{"index": 0, "embedding": []}]),
    "too large": ScriptedReply(body=b" " * 2**20),
    "without an end": ScriptedReply(endless=True),
    "compressed": ScriptedReply(body=b"x", headers={"content-encoding": "gzip"}),
}


@pytest.mark.parametrize("reply", NOT_ANSWERS.values(), ids=NOT_ANSWERS.keys())
async def test_what_is_no_answer_makes_no_vector(upstream: Upstream, remote: MakeProvider, reply: Any) -> None:
    # Given a server that answers with that
    upstream.next.append(reply)
    provider = remote()
    # When it is asked, then it is asked once, and says nothing of the text
    with pytest.raises(WrongAnswer) as wrong:
        await provider.embed([TEXT], "document")
    assert "canary" not in str(wrong.value)
    assert len(upstream.asked) == 1
    # And then the next request is served
    assert (await provider.embed([TEXT], "document")).vectors.shape == (1, D)


async def test_a_duplicate_index_is_no_answer(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.next.append(lambda asked: ScriptedReply.of({"data": 2 * asked.good["data"][:1]}))
    with pytest.raises(WrongAnswer):
        await remote().embed(["a", "b"], "document")


async def test_vectors_of_another_dimension_are_said_at_once(upstream: Upstream, embedder: MakeEmbedder) -> None:
    upstream.always = spoilt(data=[{"index": 0, "embedding": [1.0] * 8}])
    ours = embedder()
    with pytest.raises(ModelUnavailable, match="8 numbers a vector and not with 16") as away:
        await ours.embed(1, ["a"])
    assert away.value.code == "provider_dimension"
    assert len(upstream.asked) == 1
    assert (ours.states()[0].state, "8 numbers" in str(ours.states()[0].reason)) == ("failed", True)


async def test_a_provider_that_always_answers_wrongly_ends_soon(upstream: Upstream, embedder: MakeEmbedder) -> None:
    # Given a server that answers all with a page of its own
    upstream.always = ScriptedReply(body=b"<html>")
    ours = embedder(RetryPolicy(rest=Backoff(60.0, 60.0)))
    # When ten batches of many texts come, one after the other
    for batch in range(10):
        with pytest.raises(ModelUnavailable):
            await ours.embed(1, [f"{batch} {place}" for place in range(100)])
    # Then it was asked a few times, and is left alone
    assert len(upstream.asked) <= 2 * QUICK.failures
    assert ours.states()[0].state == "failed"


# What heals, and what does not

HEALS: dict[str, ScriptedReply] = {
    "502": ScriptedReply(502),
    "503": ScriptedReply(503, headers={"retry-after": "0"}),
    "408": ScriptedReply(408),
    "429": ScriptedReply(429),
    "dropped before the answer": ScriptedReply(cut=0),
    "dropped in the head": ScriptedReply(body=b"{}", cut=20),
    "dropped in the body": ScriptedReply(body=b" " * 1_000, cut=500),
}


@pytest.mark.parametrize("reply", HEALS.values(), ids=HEALS.keys())
async def test_what_heals_is_tried_three_times(upstream: Upstream, remote: MakeProvider, reply: ScriptedReply) -> None:
    # Given two that fail, then a good one
    upstream.next.extend([reply, reply])
    provider = remote()
    assert (await provider.embed([TEXT], "document")).vectors.shape == (1, D)
    assert len(upstream.asked) == 3
    # And given one failure more
    upstream.next.extend([reply] * 3)
    with pytest.raises(ModelUnavailable) as away:
        await provider.embed([TEXT], "document")
    assert len(upstream.asked) == 6
    # Then it is said where, and to callers over the network not
    assert upstream.url in away.value.detail
    assert upstream.url not in str(away.value.public_detail)
    assert "ours" in str(away.value.public_detail)


async def test_a_server_that_hangs_has_so_much_time(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.always = ScriptedReply(hangs=True)
    with pytest.raises(ModelUnavailable, match=r"within 0.5 s") as away:
        await remote(seconds=0.5).embed([TEXT], "document")
    assert away.value.code == "provider_unreachable"
    assert len(upstream.asked) == 3


async def test_nobody_listens(remote: MakeProvider) -> None:
    with pytest.raises(ModelUnavailable, match="ConnectError") as away:
        await remote(base_url="http://127.0.0.1:9/v1").embed([TEXT], "document")
    assert away.value.code == "provider_unreachable"


REFUSES = {
    "provider_unauthorized": ScriptedReply.of({"error": {"message": KEY}}, 401),
    "provider_model_missing": ScriptedReply(404),
    "provider_refuses": ScriptedReply(308, headers={"location": "/v1/elsewhere"}),
    "provider_spent": ScriptedReply.of({"error": {"code": "insufficient_quota"}}, 429),
}


@pytest.mark.parametrize(("code", "reply"), REFUSES.items(), ids=REFUSES.keys())
async def test_what_does_not_heal_is_asked_once(
    upstream: Upstream, remote: MakeProvider, code: str, reply: ScriptedReply
) -> None:
    upstream.next.append(reply)
    provider = remote(PATIENT)
    for _ in range(3):
        with pytest.raises(ModelUnavailable) as away:
            await provider.embed([TEXT], "document")
        assert away.value.code == code
        assert KEY not in away.value.detail
    # Neither again, nor where a redirect leads to
    assert len(upstream.asked) == 1
    assert provider.fault == away.value.public_detail


async def test_a_refused_key_is_named_by_its_variable(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.next.append(ScriptedReply(403))
    with pytest.raises(ModelUnavailable, match="THEIR_KEY"):
        await remote().embed([TEXT], "document")


@pytest.mark.parametrize("key", [None, "  ", "sk-\u00e9", "sk-\x07"])
async def test_without_a_key_the_model_does_not_load(
    upstream: Upstream, embedder: MakeEmbedder, key: str | None
) -> None:
    ours = embedder(key=key)
    with pytest.raises(ModelUnavailable, match="THEIR_KEY") as away:
        await ours.embed(1, [TEXT])
    assert away.value.code == "provider_key_missing"
    assert (ours.states()[0].state, "THEIR_KEY" in str(ours.states()[0].reason)) == ("failed", True)
    assert not upstream.asked


async def test_an_address_that_is_none_does_not_load(remote: MakeProvider) -> None:
    with pytest.raises(ModelUnavailable) as away:
        remote(base_url="http://[::1/v1")
    assert away.value.code == "provider_address"


async def test_a_broken_proxy_does_not_load_and_is_not_repeated(
    remote: MakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"gopher://me:{KEY}@127.0.0.1:9")
    with pytest.raises(ModelUnavailable, match="HTTPS_PROXY") as away:
        remote()
    assert KEY not in away.value.detail


async def test_a_text_that_is_refused_fails_alone(upstream: Upstream, embedder: MakeEmbedder) -> None:
    # Given a server that refuses whatever has one text in it
    refusal = ScriptedReply.of({"error": {"message": TEXT}}, 400)
    upstream.always = lambda asked: refusal if any("poison" in text for text in asked.texts) else None
    ours = embedder()
    texts = [f"text {place}" for place in range(32)]
    with pytest.raises(Invalid) as refused:
        await ours.embed(1, [*texts, "poison", *texts[::-1]])
    # Then that one is named, and the others are known
    assert [fault.pointer for fault in refused.value.faults] == ["/texts/32"]
    assert (await ours.embed(1, texts)).cached.all()
    assert ours.states()[0].state == "ready"


@pytest.mark.parametrize("place", [0, 16, 32])
async def test_a_text_that_breaks_the_server_fails_alone(
    upstream: Upstream, embedder: MakeEmbedder, place: int
) -> None:
    # Given a server that answers 500 to whatever has one text in it
    upstream.always = lambda asked: ScriptedReply(500) if any("poison" in text for text in asked.texts) else None
    ours = embedder()
    texts = [f"text {place:02}" for place in range(32)]
    with pytest.raises(Invalid) as refused:
        await ours.embed(1, [*texts[:place], "poison!", *texts[place:]])
    # Then that one is named, the others are known, and the provider is not left alone
    assert [fault.pointer for fault in refused.value.faults] == [f"/texts/{place}"]
    assert (await ours.embed(1, texts)).cached.all()
    assert ours.states()[0].state == "ready"


async def test_a_server_that_answers_500_to_everything_is_left_alone(
    upstream: Upstream, embedder: MakeEmbedder
) -> None:
    upstream.always = ScriptedReply(500)
    ours = embedder(PATIENT)
    for batch in range(5):
        with pytest.raises(ModelUnavailable):
            await ours.embed(1, [f"{batch} {place}" for place in range(100)])
    assert len(upstream.asked) < 15
    assert "500" in str(ours.states()[0].reason)


async def test_a_refusal_holds_nothing_of_the_answer(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.always = ScriptedReply.of({"error": {"message": TEXT}}, 422)
    with pytest.raises(RequestRefused) as refused:
        await remote().embed([TEXT, TEXT], "document")
    assert "canary" not in repr(refused.value)


# Its rate


async def test_all_wait_for_what_one_is_told(upstream: Upstream, remote: MakeProvider) -> None:
    # Given a server that wants to be left alone
    upstream.next.append(ScriptedReply(429, headers={"retry-after-ms": "250"}))
    provider = remote()
    first = asyncio.create_task(provider.embed(["a"], "document"))
    await until(lambda: provider._client._gate._until > 0)
    # When others come meanwhile
    others = [asyncio.create_task(provider.embed([f"{place}"], "document")) for place in range(5)]
    # Then nobody asks it before, and everybody then
    for made in await asyncio.gather(first, *others):
        assert made.vectors.shape == (1, D)
    assert len(upstream.asked) == 7
    assert min(asked.at for asked in upstream.asked[1:]) - upstream.asked[0].at >= 0.25


async def test_a_rate_that_is_used_up_is_waited_for(upstream: Upstream, remote: MakeProvider) -> None:
    used = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "200ms"}
    upstream.next.append(lambda asked: ScriptedReply.of(asked.good, **used))
    provider = remote()
    for text in ("a", "b"):
        assert (await provider.embed([text], "document")).vectors.shape == (1, D)
    first, second = upstream.asked
    assert second.at - first.at >= 0.2


async def test_what_takes_too_long_is_not_waited_for(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.next.append(ScriptedReply(429, headers={"retry-after": "3000"}))
    provider = remote()
    for _ in range(3):
        with pytest.raises(ModelUnavailable) as away:
            await provider.embed(["a"], "document")
        assert away.value.code == "provider_limited"
        assert 2_990 < int(away.value.retry_after or 0) <= 3_000
    assert len(upstream.asked) == 1
    assert "takes no more requests" in str(provider.fault)


def test_headers_of_rates_are_read() -> None:
    assert [duration(text) for text in ("1s", "6m0s", "120ms", "1h2m3.5s", "7", " 0 ")] == [1, 360, 0.12, 3723.5, 7, 0]
    assert [duration(text) for text in ("", "soon", "1 s", "-1s", "1700000000", "9" * 50, "25h", "1s;")] == [None] * 8
    assert retry_after({"retry-after": "12"}) == 12
    assert retry_after({"retry-after": "12", "retry-after-ms": "500"}) == 0.5
    assert retry_after({"retry-after": "later"}) is retry_after({}) is None
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < (retry_after({"retry-after": soon}) or 0) <= 100
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 99999 07:28:00 GMT"}) is None
    reset = {"x-ratelimit-reset-requests": "9s", "x-ratelimit-reset-tokens": "6m0s"}
    assert rate_reset({"x-ratelimit-remaining-tokens": "0", **reset}) == 360
    assert rate_reset({"x-ratelimit-remaining-requests": "0", "x-ratelimit-remaining-tokens": "1", **reset}) == 9
    assert rate_reset({"x-ratelimit-remaining-requests": "1", **reset}) is rate_reset({}) is None


async def test_so_many_requests_are_under_way(upstream: Upstream, embedder: MakeEmbedder) -> None:
    # Given more requests than may be under way, at a server that answers none
    upstream.always = lambda asked: replace(ScriptedReply.of(asked.good), delay=0.01)
    upstream.gate = asyncio.Event()
    ours = embedder(calls=4, texts=1)
    asking = [
        asyncio.create_task(ours.embed(1, [f"{place}"], role=role, lane=lane, use_cache=False))
        for place in range(13) for role in ("query", "document") for lane in ("interactive", "bulk")
    ]  # fmt: skip
    # Then as many are, and no more, also when it answers
    await until(lambda: upstream.under_way == 4)
    upstream.gate.set()
    assert len(await asyncio.gather(*asking)) == 52
    assert upstream.max_at_once == 4


# The breaker


class Clock:
    """The clock of breakers, put forward by `ahead` seconds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """So that a rest can be so long that nothing outlasts it, and be over at once."""
    made = Clock()
    monkeypatch.setattr(backoff, "time", made)
    return made


async def test_a_broken_provider_is_left_alone_and_asked_once(
    upstream: Upstream, remote: MakeProvider, clock: Clock
) -> None:
    # Given a server that fails
    upstream.always = ScriptedReply(503)
    provider = remote(PATIENT)
    while provider.fault is None:
        with pytest.raises(ModelUnavailable):
            await provider.embed(["a"], "document")
    assert len(upstream.asked) == QUICK.failures
    assert (upstream.url in provider.fault, "503" in provider.fault) == (False, True)
    # When many ask it while it is left alone, then none reaches it
    clock.ahead = PATIENT.rest.first / 2
    refused = await asyncio.gather(*(provider.embed(["a"], "document") for _ in range(20)), return_exceptions=True)
    assert all(isinstance(error, ModelUnavailable) and error.retry_after for error in refused)
    assert len(upstream.asked) == QUICK.failures
    # When it was long enough, then one does, and the others hear at once that it is away
    upstream.always, upstream.gate = None, asyncio.Event()
    clock.ahead = PATIENT.rest.first
    asking = [asyncio.create_task(provider.embed(["a"], "document")) for _ in range(20)]
    await until(lambda: sum(task.done() for task in asking) == 19)
    await until(lambda: len(upstream.asked) == QUICK.failures + 1)
    assert provider.fault is not None
    # When that one is answered all is well
    upstream.gate.set()
    done = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(one, ModelUnavailable) for one in done) == 19
    assert provider.fault is None
    assert (await provider.embed(["a"], "document")).vectors.shape == (1, D)


async def test_a_probe_that_fails_is_one_request(upstream: Upstream, remote: MakeProvider, clock: Clock) -> None:
    upstream.always = ScriptedReply(401)
    provider = remote()
    for times in (1, 2, 3):
        with pytest.raises(ModelUnavailable, match="THEIR_KEY"):
            await provider.embed(["a"], "document")
        assert len(upstream.asked) == times
        clock.ahead += QUICK.rest.longest


async def test_a_probe_that_is_cancelled_makes_room_for_another(
    upstream: Upstream, remote: MakeProvider, clock: Clock
) -> None:
    upstream.next.append(ScriptedReply(401))
    provider = remote()
    with pytest.raises(ModelUnavailable):
        await provider.embed(["a"], "document")
    clock.ahead = QUICK.rest.first
    upstream.next.append(ScriptedReply(hangs=True))
    probe = asyncio.create_task(provider.embed(["a"], "document"))
    await until(lambda: len(upstream.asked) == 2)
    probe.cancel()
    await asyncio.gather(probe, return_exceptions=True)
    assert (await provider.embed(["a"], "document")).vectors.shape == (1, D)
    assert provider.fault is None


async def test_one_moment_of_trouble_is_not_many(upstream: Upstream, remote: MakeProvider) -> None:
    # Given a server that drops all connections once
    upstream.gate = asyncio.Event()
    upstream.next.extend([ScriptedReply(cut=0)] * 8)
    provider = remote(calls=8)
    asking = [asyncio.create_task(provider.embed([f"{place}"], "document")) for place in range(8)]
    await until(lambda: upstream.under_way == 8)
    upstream.gate.set()
    # Then all are tried again and answered
    for made in await asyncio.gather(*asking):
        assert made.vectors.shape == (1, D)


async def test_texts_of_callers_who_left_are_let_go(upstream: Upstream, embedder: MakeEmbedder) -> None:
    upstream.gate = asyncio.Event()
    ours = embedder(calls=1)
    asking = [asyncio.create_task(ours.embed(1, [f"{place}"])) for place in range(10)]
    await until(lambda: bool(upstream.asked))
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    upstream.gate.set()
    assert (await ours.embed(1, ["after"])).vectors.shape == (1, D)
    assert len(upstream.asked) <= 3


# What nobody may see


TROUBLES: dict[str, Behaviour] = {
    **NOT_ANSWERS,
    **HEALS,
    **REFUSES,
    "hangs": ScriptedReply(hangs=True),
    "refuses and repeats the text": ScriptedReply(400, TEXT.encode()),
}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
async def test_neither_key_nor_text_is_told(
    upstream: Upstream, embedder: MakeEmbedder, caplog: pytest.LogCaptureFixture, trouble: Behaviour
) -> None:
    # Given a server with that trouble
    caplog.set_level(logging.DEBUG)
    upstream.always = trouble
    ours = embedder(PATIENT, seconds=0.5)
    said = [repr(spec_of(upstream))]
    # When it is asked, and again, when it may be left alone
    for _ in range(2):
        with pytest.raises((ModelUnavailable, Invalid)) as failed:
            await ours.embed(1, [TEXT, f"{TEXT} too"])
        error = failed.value
        said += [repr(error), str(error), repr(error.faults), str(error.public_detail), repr(error.__context__)]
        said += [repr(state) for state in ours.states()]
    # Then it was asked for the text, with the key, and nothing repeats either
    assert TEXT in upstream.asked[0].texts
    assert KEY in upstream.asked[0].headers["authorization"]
    assert [words for words in [*said, caplog.text] if "canary" in words] == []


async def test_cookies_are_not_kept(upstream: Upstream, remote: MakeProvider) -> None:
    upstream.next.append(lambda asked: ScriptedReply.of(asked.good, set_cookie="a=b; Path=/"))
    provider = remote()
    for _ in range(2):
        await provider.embed(["a"], "document")
    assert "cookie" not in upstream.asked[1].headers


async def test_the_default_models_of_openai_are_served_where_the_settings_say(
    settings: Settings, tmp_path: Path
) -> None:
    # Given settings with a key and an address, and nothing else
    async with Upstream(1536).running() as openai:
        changed = {"model": "text-embedding-3-small", "openai_base_url": openai.url, "openai_api_key": KEY}
        embedder = Embedder(settings.model_copy(update=changed))
        assert embedder.states()[0].state == "present"
        # When texts are embedded
        made = await embedder.embed(1, ["red fox", "blue whale"], dimensions=256)
        # Then they have the vectors, shortened, and cost what the price says
        assert made.vectors.shape == (2, 256)
        assert np.allclose(np.linalg.norm(made.vectors, axis=1), 1)
        assert made.cost == pytest.approx(8 * 0.00002 / 1000)
        assert (embedder.states()[0].state, made.numerics) == ("ready", "remote")
        assert await embedder.probe() is not None
        await embedder.close()
