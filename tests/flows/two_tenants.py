"""Two tenants on one server, who make calls at random: what comes back is one's own."""

import asyncio
import base64
import io
import json
import random
import re
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, count
from typing import Any

import httpx2
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from likewise.auth.caller import Scope
from likewise.observe import logs

# In everything that a tenant stores, sends and names; no word of ours has them.
CANARIES = ("zqamber", "zqbasalt")
AT_ONCE = 10

# What a call does depends on those before it: fewer of them would be another story, so none is looked for.
SETTINGS = hypothesis_settings(
    database=None,
    print_blob=False,
    phases=(Phase.generate,),
)

WORDS = "pump valve rotor cold freeze leak start stop alarm oil".split()
REQUEST_ID = re.compile(r"rid-zq\w+-\d+")
UUIDS = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


@dataclass
class House:
    """A server with two tenants, each with a credential that reads, one that may do everything, and one that is none.

    `jobs` and `points` have the ids that each was told of: the other never is. `statuses` counts the answers, and
    `foreign` the requests for what is the other's.
    """

    client: httpx2.AsyncClient
    paths: frozenset[str]
    readers: list[str]
    keepers: list[str]
    forged: list[str]
    log: io.StringIO = field(default_factory=io.StringIO)
    cursors: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    jobs: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    points: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    numbers: Any = field(default_factory=count)
    statuses: dict[int, int] = field(default_factory=dict)
    foreign: int = 0

    def of(self, tenant: int, shown: str) -> set[str]:
        """The ids in a text that are this tenant's."""
        return set(UUIDS.findall(shown)).intersection(chain(self.jobs[tenant], self.points[tenant]))


@dataclass(frozen=True)
class Call:
    """One request: whose it is, by which key, and dice for all the rest."""

    tenant: int
    key: str
    what: str
    dice: int


@dataclass(frozen=True)
class Sent:
    """A request as it goes out, and the scope that it needs (None: nobody is asked)."""

    method: str
    path: str
    scope: Scope | None
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Teller:
    """Makes up requests of one tenant: it stores its own canary, and asks for anybody's. One method for each kind."""

    def __init__(self, house: House, call: Call) -> None:
        self.house = house
        self.dice = random.Random(call.dice)
        self.own = CANARIES[call.tenant]
        self.tenant = call.tenant

    def somebody(self) -> str:
        return self.dice.choice([self.own, self.own, *CANARIES])

    def text(self, canary: str) -> str:
        return " ".join([canary, *self.dice.choices(WORDS, k=self.dice.randint(1, 4))])

    def idempotency(self) -> dict[str, str]:
        key = f"{self.somebody()}-{self.dice.randint(0, 30)}"
        return {"idempotency-key": key} if self.dice.random() < 0.5 else {}

    def cursor(self) -> str:
        return self.dice.choice([*self.house.cursors[0][-5:], *self.house.cursors[1][-5:], "zz", ""])


def calls(what: tuple[str, ...], most: int) -> st.SearchStrategy[list[Call]]:
    """Lists of so many calls of these kinds, by whoever."""
    one = st.builds(
        Call,
        tenant=st.integers(0, 1),
        key=st.sampled_from(["keeper", "keeper", "keeper", "keeper", "reader", "reader", "none", "wrong"]),
        what=st.sampled_from(what),
        dice=st.integers(0, 2**32 - 1),
    )
    return st.lists(one, min_size=most, max_size=most)


async def all_made(house: House, teller: type[Teller], made_up: list[Call]) -> None:
    """Make calls, several at once, and look at all that comes back and at what is logged."""
    logs.configure("debug", house.log)
    house.log.seek(0)
    house.log.truncate()
    for start in range(0, len(made_up), AT_ONCE):
        await asyncio.gather(*(_made(house, teller, call) for call in made_up[start : start + AT_ONCE]))
    # No log line says anything of either, but for the ids that they gave their requests
    assert [line for line in house.log.getvalue().splitlines() if "zq" in REQUEST_ID.sub("", line)] == []


async def _made(house: House, teller: type[Teller], call: Call) -> None:
    """Make a call, and look at all that comes back."""
    sent = getattr(teller(house, call), call.what)()
    request_id = f"rid-{CANARIES[call.tenant]}-{next(house.numbers)}"
    token = {name: of[call.tenant] for name, of in _credentials(house).items()}
    headers = {"x-request-id": request_id, "content-type": "application/json"} | sent.headers
    if call.key in token:
        headers["authorization"] = f"Bearer {token[call.key]}"
    content = sent.body if isinstance(sent.body, str) else json.dumps(sent.body)
    ask = partial(house.client.request, sent.method, sent.path, headers=headers, content=content)
    # A busy server says so to anybody, before it asks who that is.
    while (answer := await ask()).status_code == 503:
        _shows_ones_own(house, call, sent, answer.text + str(answer.headers), request_id)
        await asyncio.sleep(0.05)
    house.statuses[answer.status_code] = house.statuses.get(answer.status_code, 0) + 1
    _as_who_may(house, call, sent, answer)
    said = answer.json() if answer.headers.get("content-type") == "application/json" else None
    shown = answer.text + str(answer.headers)
    if answer.status_code in (200, 202) and isinstance(said, dict) and (cursor := said.get("cursor")):
        house.cursors[call.tenant].append(cursor)
        shown += base64.urlsafe_b64decode(cursor + "==").decode(errors="replace")
    _shows_ones_own(house, call, sent, shown, request_id)
    if answer.status_code in (200, 202) and isinstance(said, dict):
        _remembered(house, call.tenant, said)


def _credentials(house: House) -> dict[str, list[str]]:
    return {"reader": house.readers, "keeper": house.keepers, "wrong": house.forged}


def _as_who_may(house: House, call: Call, sent: Sent, answer: httpx2.Response) -> None:
    """Who may not call hears just that, and what is the other's is not there."""
    other = 1 - call.tenant
    if sent.scope is not None and call.key in ("none", "wrong"):
        assert answer.status_code == 401, sent
    elif sent.scope in (Scope.WRITE, Scope.ADMIN) and call.key == "reader":
        assert answer.status_code == 403, sent
    elif house.of(other, sent.path) or (sent.method == "DELETE" and CANARIES[other] in sent.path):
        assert answer.status_code == 404, (sent, answer.text)
        house.foreign += 1
    else:
        assert answer.status_code not in (401, 403, 500), (sent, answer.text)


def _shows_ones_own(house: House, call: Call, sent: Sent, shown: str, request_id: str) -> None:
    """What comes back is one's own; but for what one had sent, as the path in a problem."""
    other = 1 - call.tenant
    assert CANARIES[other] not in shown, sent
    assert house.of(other, shown) <= house.of(other, sent.path), sent
    if call.key in ("none", "wrong"):
        assert "zq" not in shown.replace(request_id, ""), sent
        assert house.of(call.tenant, shown) <= house.of(call.tenant, sent.path), sent


def _remembered(house: House, tenant: int, said: dict[str, Any]) -> None:
    """The ids of an answer, for later calls, whosever they will be."""
    told = [said, *said.get("results", [])]
    house.jobs[tenant].extend(one["job_id"] for one in told if "job_id" in one)
    house.points[tenant].extend(one["point_id"] for one in told if "point_id" in one)
