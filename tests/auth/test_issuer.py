"""An issuer's keys: fetched seldom, in time and by one, kept while it is away, forgotten when it has forgotten them."""

import asyncio
import gzip
import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import pytest

from likewise.auth import issuer as issuer_module
from likewise.auth.issuer import FRESH_SECONDS, LONGEST_REST_SECONDS, OLD_SECONDS, UNKNOWN_SECONDS, Issuer
from likewise.errors import IssuerUnavailable
from likewise.observe import logs
from likewise.testing import FakeIssuer, ScriptedReply, Signer
from tests.auth.clock import Clock
from tests.patience import until


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
async def upstream() -> AsyncIterator[FakeIssuer]:
    async with FakeIssuer().running() as server:
        yield server


@pytest.fixture
async def server(upstream: FakeIssuer) -> AsyncIterator[FakeIssuer]:
    """The issuer, well again after each test."""
    upstream.asked.clear()
    yield upstream
    upstream.next.clear()
    upstream.always = upstream.gate = None
    upstream.published = [upstream.rsa.jwk, upstream.ec.jwk]


@pytest.fixture
async def issuer(server: FakeIssuer, clock: Clock) -> AsyncIterator[Issuer]:
    issuer = Issuer(server.url, clock)
    yield issuer
    await issuer.close()


@contextmanager
def hurry() -> Iterator[None]:
    """In the block the issuer has a moment, and not five seconds: for an answer that does not come."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(issuer_module, "FETCH_SECONDS", 0.2)
        yield


async def test_the_keys_are_fetched_once_and_asked_for_by_name(issuer: Issuer, server: FakeIssuer) -> None:
    keys = [await issuer.key("RS256", "rsa") for _ in range(3)]
    assert keys[0] is not None
    assert keys[0] is keys[1] is keys[2]
    assert await issuer.key("ES256", "rsa") is None
    assert await issuer.key("ES256", None) is await issuer.key("ES256", "ec")
    assert len(server.asked) == 1
    assert server.asked[0].headers["accept-encoding"] == "identity"
    assert "cookie" not in server.asked[0].headers


async def test_two_hundred_callers_are_one_request(issuer: Issuer, server: FakeIssuer) -> None:
    # Given
    server.gate = asyncio.Event()
    asking = [asyncio.create_task(issuer.key("RS256", "rsa")) for _ in range(200)]
    await until(lambda: len(server.asked) == 1)
    # When some of them leave, the first one too
    for one in asking[:50]:
        one.cancel()
    await asyncio.sleep(0)
    server.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    # Then
    assert sum(isinstance(one, asyncio.CancelledError) for one in found) == 50
    assert all(found[50:])
    assert len(server.asked) == 1


async def test_a_flood_of_unknown_names_is_one_request_in_half_a_minute(
    issuer: Issuer, server: FakeIssuer, clock: Clock
) -> None:
    await issuer.key("RS256", "rsa")
    for step in range(1, 4):
        clock.now += UNKNOWN_SECONDS - 1
        assert await asyncio.gather(*(issuer.key("RS256", f"none-{n}") for n in range(100))) == [None] * 100
        assert len(server.asked) == step
        clock.now += 1
        assert await asyncio.gather(*(issuer.key("RS256", f"none-{n}") for n in range(100))) == [None] * 100
        assert len(server.asked) == step + 1
    # A token without a name is no reason at all.
    clock.now += UNKNOWN_SECONDS
    server.published = [server.rsa.jwk, Signer.ec("a").jwk, Signer.ec("b").jwk]
    assert await issuer.key("ES256", "a") is not None
    clock.now += UNKNOWN_SECONDS
    assert await issuer.key("ES256", None) is None
    assert len(server.asked) == 5


async def test_new_keys_are_taken_and_old_ones_end(issuer: Issuer, server: FakeIssuer, clock: Clock) -> None:
    # Given
    await issuer.key("RS256", "rsa")
    version, new = issuer.version, Signer.ec("new")
    server.published = [new.jwk]
    clock.now += UNKNOWN_SECONDS
    # When
    found = await asyncio.gather(*(issuer.key("ES256", "new") for _ in range(20)))
    # Then
    assert all(found)
    assert len(server.asked) == 2
    assert issuer.version > version
    assert await issuer.key("RS256", "rsa") is None
    assert len(server.asked) == 2


async def test_keys_are_fetched_anew_beside_the_requests(issuer: Issuer, server: FakeIssuer, clock: Clock) -> None:
    # Given
    await issuer.key("RS256", "rsa")
    server.gate, server.published = asyncio.Event(), [server.ec.jwk]
    # When they are not fresh any more, and the issuer takes its time
    clock.now += FRESH_SECONDS
    meanwhile = [await issuer.key("RS256", "rsa") for _ in range(5)]
    server.gate.set()
    # Then
    assert all(meanwhile)
    await until(lambda: issuer.version == 2)
    assert await issuer.key("RS256", "rsa") is None
    assert len(server.asked) == 2


async def test_old_keys_are_not_used_before_the_issuer_was_asked(
    issuer: Issuer, server: FakeIssuer, clock: Clock
) -> None:
    await issuer.key("RS256", "rsa")
    server.published = [server.ec.jwk]
    clock.now += OLD_SECONDS
    assert await issuer.key("RS256", "rsa") is None


async def test_an_issuer_that_takes_all_its_keys_back_is_believed(
    issuer: Issuer, server: FakeIssuer, clock: Clock
) -> None:
    lines = io.StringIO()
    logs.configure("info", lines)
    await issuer.key("RS256", "rsa")
    server.published = []
    clock.now += OLD_SECONDS
    assert await issuer.key("RS256", "rsa") is None
    assert issuer.fault is None
    assert "issuer_has_no_keys" in lines.getvalue()


BOMB = gzip.compress(b'{"keys":[' + b" " * 20_000_000 + b"]}")

TROUBLE: dict[str, ScriptedReply] = {
    "fails": ScriptedReply(500),
    "is not there": ScriptedReply(404),
    "wants a login": ScriptedReply(401, headers={"www-authenticate": "Basic"}),
    "is silent": ScriptedReply(hangs=True),
    "is slow": ScriptedReply(delay=30),
    "is cut": ScriptedReply(body=b"x" * 1_000, cut=100),
    "has no head": ScriptedReply(cut=5),
    "is huge": ScriptedReply(body=b'{"keys":[],"x":"' + b"x" * 300 * 2**10 + b'"}'),
    "is endless": ScriptedReply(endless=True),
    "is a bomb": ScriptedReply(body=BOMB, headers={"content-encoding": "gzip"}),
    "is compressed": ScriptedReply(body=gzip.compress(b'{"keys":[]}'), headers={"content-encoding": "GZIP"}),
    "says it is compressed twice": ScriptedReply(body=b'{"keys":[]}', headers={"content-encoding": "gzip, br"}),
    "is rubbish": ScriptedReply(body=b"<html>maintenance</html>"),
    "is empty": ScriptedReply(body=b""),
    "is a list": ScriptedReply(body=b"[]"),
    "has no keys": ScriptedReply(body=b"{}"),
    "has keys that are none": ScriptedReply(body=b'{"keys":{"kty":"RSA"}}'),
    "has keys twice": ScriptedReply(body=b'{"keys":[],"keys":[]}'),
    "has too many keys": ScriptedReply.of({"keys": [{"kty": "RSA"}] * 101}),
    "is nested": ScriptedReply(body=b'{"keys":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "has a number without end": ScriptedReply(body=b'{"keys":[],"n":' + b"9" * 200_000 + b"}"),
    "has NaN": ScriptedReply(body=b'{"keys":[],"n":NaN}'),
    "has a byte order mark": ScriptedReply(body=b'\xef\xbb\xbf{"keys":[]}'),
    "is in UTF-16": ScriptedReply(body='{"keys":[]}'.encode("utf-16")),
}


@pytest.mark.parametrize("reply", TROUBLE.values(), ids=TROUBLE)
async def test_whatever_an_issuer_does_the_keys_that_it_told_go_on(
    issuer: Issuer, server: FakeIssuer, clock: Clock, reply: ScriptedReply
) -> None:
    # Given one that never told any; its client is made beforehand, with the usual limits
    issuer._address._opened()
    server.always = reply
    with hurry(), pytest.raises(IssuerUnavailable) as away:
        await issuer.key("RS256", "rsa")
    assert away.value.code == "issuer_unavailable"
    assert issuer.fault is not None
    assert issuer.fault.startswith("The issuer of tokens ")
    assert server.url not in issuer.fault
    # When it told them once
    server.always = None
    clock.now += LONGEST_REST_SECONDS
    assert await issuer.key("RS256", "rsa") is not None
    server.always = reply
    # Then
    with hurry():
        for _ in range(3):
            clock.now += OLD_SECONDS
            asked = len(server.asked)
            assert await issuer.key("RS256", "rsa") is not None
            assert await issuer.key("RS256", "unknown") is None
            await until(lambda: issuer._breaker.fault is not None and not issuer._is_fetching)
            assert len(server.asked) - asked <= 2
    assert issuer.fault is None
    assert issuer.version == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed_nowhere(issuer: Issuer, server: FakeIssuer, status: int) -> None:
    async with FakeIssuer().running() as elsewhere:
        server.always = ScriptedReply(status, headers={"location": elsewhere.url})
        with pytest.raises(IssuerUnavailable):
            await issuer.key("RS256", "rsa")
        assert elsewhere.asked == []
    assert len(server.asked) == 1
    assert issuer.fault == f"The issuer of tokens answers {status}."


async def test_any_media_type_is_taken(issuer: Issuer, server: FakeIssuer) -> None:
    good = ScriptedReply.of({"keys": server.published}).body
    server.next.append(ScriptedReply(body=good, headers={"content-type": "application/octet-stream"}))
    assert await issuer.key("RS256", "rsa") is not None


async def test_nobody_there_is_asked_less_and_less_often(clock: Clock, server: FakeIssuer) -> None:
    # Given
    lines = io.StringIO()
    logs.configure("info", lines)
    server.always = ScriptedReply(503)
    issuer = Issuer(server.url, clock)
    # When
    asked = []
    for _ in range(120):
        clock.now += 1
        with pytest.raises(IssuerUnavailable) as away:
            await issuer.key("RS256", "rsa")
        assert 1 <= (away.value.retry_after or 0) <= LONGEST_REST_SECONDS
        asked.append(len(server.asked))
    server.always = None
    clock.now += LONGEST_REST_SECONDS
    assert await issuer.key("RS256", "rsa") is not None
    await issuer.close()
    # Then: after 1, 2, 4, 8, 16 and then each 30 seconds, and told once
    assert asked[-1] == 8
    assert lines.getvalue().count("issuer_away") == lines.getvalue().count("issuer_back") == 1


async def test_an_outage_holds_up_nobody_once_it_is_known(issuer: Issuer, server: FakeIssuer, clock: Clock) -> None:
    # Given
    await issuer.key("RS256", "rsa")
    server.always = ScriptedReply(500)
    clock.now += OLD_SECONDS
    await issuer.key("RS256", "rsa")
    assert (issuer._breaker.fault, issuer._breaker.pause) == ("The issuer of tokens answers 500.", 1.0)
    # When it hangs from now on
    server.always = ScriptedReply(hangs=True)
    clock.now += LONGEST_REST_SECONDS
    # Then
    asking = [asyncio.create_task(issuer.key("RS256", "rsa")) for _ in range(50)]
    assert all(await asyncio.gather(*asking))
    assert issuer._is_fetching


async def test_no_more_than_half_of_the_requests_wait(
    issuer: Issuer, server: FakeIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer_module, "MAX_WAITING", 10)
    server.gate = asyncio.Event()
    asking = [asyncio.create_task(issuer.key("RS256", "rsa")) for _ in range(30)]
    await until(lambda: sum(one.done() for one in asking) == 20)
    server.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert sum(isinstance(one, IssuerUnavailable) for one in found) == 20
    assert len(server.asked) == 1


async def test_one_that_is_closed_leaves_nothing_behind(server: FakeIssuer, clock: Clock) -> None:
    server.always = ScriptedReply(hangs=True)
    issuer = Issuer(server.url, clock)
    fetching = issuer._fetch()
    await until(lambda: len(server.asked) == 1)
    await issuer.close()
    assert fetching.cancelled()


@pytest.mark.parametrize("make", [lambda: "http://127.0.0.1:1/keys", lambda: "https://127.0.0.1:1/keys"])
async def test_no_answer_at_all(clock: Clock, make: Callable[[], str]) -> None:
    issuer = Issuer(make(), clock)
    with pytest.raises(IssuerUnavailable):
        await issuer.key("RS256", "rsa")
    assert issuer.fault == "The issuer of tokens does not answer (ConnectError)."
    await issuer.close()
