"""The OpenAPI document keeps its word: schemathesis makes requests from it, good and bad, for every operation.

What fails is printed with the request as a curl command, and comes again: examples follow from the document alone.
"""

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pytest
import requests
import schemathesis
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import GenerationConfig
from schemathesis.core import NOT_SET
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

import likewise
from likewise.apps.declaration import NDJSON
from likewise.auth.caller import Scope
from likewise.embedding.embedder import Embedder
from likewise.server.app import create_app
from likewise.server.process import bind, serve, url_of
from likewise.settings import Settings, load_settings
from likewise.testing import FakeProvider, ThrowawayPostgres
from tests.auth.keys import make_key
from tests.patience import PATIENCE
from tests.search.rerankers import BERT

# Hypothesis sees that somebody uses `random` while it draws: that is the server, in its thread.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

COLLECTIONS = "/api/v1/collections"
NAME, RECORD = "notes", {"id": "a", "text": "the pump fails when it is cold", "payload": {"site": "north"}}
MODEL = load_settings().model
METRICS_TOKEN = "a token for the scraper"

# The fields with texts, by the models that have them.
TEXTS = (
    ("RecordIn", "text"),
    ("SearchIn", "query"),
    ("TextIn", "text"),
    ("QueryIn", "query"),
    ("BatchIn", "texts"),
    ("EmbeddingsIn", "input"),
    ("SegmentIn", "text"),
    ("SegmentEmbedIn", "text"),
    ("SegmentDocumentIn", "text"),
    ("SegmentSearchIn", "query_text"),
    ("RerankIn", "query"),
    ("RerankIn", "documents"),
    ("DocumentIn", "text"),
)
CONFIG: dict[str, Any] = {
    # Made-up credentials beside the good ones would have every request refused; `ignored_auth` tries them by itself.
    "generation": {"with-security-parameters": False},
    "phases": {"stateful": {"generation": {"mode": "positive"}}},
    # Or the request could not be repeated from what is printed.
    "output": {"sanitization": {"enabled": False}, "truncation": {"enabled": False}},
    "cache": {"enabled": False},
    # What it takes for a refusal, and 413: a text that is too long may make a body that is.
    "checks": {
        "negative_data_rejection": {
            "expected-statuses": [
                "400",
                "401",
                "403",
                "404",
                "405",
                "406",
                "409",
                "413",
                "415",
                "422",
                "428",
                "429",
                "5xx",
            ]
        }
    },
}
GENERATED = hypothesis_settings(
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
)
SCENARIOS = hypothesis_settings(GENERATED, max_examples=40, stateful_step_count=8)


def labels(document: Mapping[str, Any]) -> list[str]:
    """The operations of a document, as `GET /livez`."""
    return [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]


OPERATIONS = labels(create_app(nullcontext, load_settings()).openapi())


@dataclass
class Running:
    """A server that is being asked."""

    url: str
    key: str | None
    session: requests.Session = field(default_factory=requests.Session)
    furnished: bool = False

    def __post_init__(self) -> None:
        # The server closes a connection on which nothing is asked for seconds, such as those of thinking up requests.
        self.session.headers["Connection"] = "close"

    @property
    def document(self) -> dict[str, Any]:
        """What it says of itself."""
        answer: dict[str, Any] = self.session.get(f"{self.url}/openapi.json").json()
        return answer

    def schema(self, document: dict[str, Any]) -> Any:
        """The document as schemathesis reads it."""
        models = document["components"]["schemas"]
        for model, name in TEXTS:
            _forget_pattern(models[model]["properties"][name])
        return schemathesis.openapi.from_dict(document, config=schemathesis.Config.from_dict(CONFIG))

    def credentials(self, path: str) -> dict[str, str]:
        """The headers that a caller of a path has who may do everything."""
        if self.key is None:
            return {}
        return {"Authorization": f"Bearer {METRICS_TOKEN if path == '/metrics' else self.key}"}

    def furnish(self) -> None:
        """Have the collection and the record that requests are about."""
        if not self.furnished:
            self._ask("POST", COLLECTIONS, {"name": NAME})
            self._ask("POST", f"{COLLECTIONS}/{NAME}/records", [RECORD])
            self.furnished = True

    def clear(self) -> None:
        """Drop all collections but those of apps, which no caller may drop."""
        for one in self._listed():
            self._ask("DELETE", f"{COLLECTIONS}/{one['name']}")
        assert not self._listed(), "Collections that were dropped are still there."
        self.furnished = False

    def _listed(self) -> list[dict[str, Any]]:
        url = f"{self.url}{COLLECTIONS}?limit=100"
        found: list[dict[str, Any]] = self.session.get(url, headers=self.credentials(COLLECTIONS)).json()["collections"]
        return [one for one in found if one["kind"] == "collection"]

    def tidy(self, case: schemathesis.Case, answer: schemathesis.Response) -> None:
        """Have it again after a deletion, and no more collections than a tenant may."""
        if case.operation.method == "delete":
            self.furnished = False
        if answer.status_code == 201 and answer.json()["name"] != NAME:
            self._ask("DELETE", f"{COLLECTIONS}/{answer.json()['name']}")

    def _ask(self, method: str, path: str, body: Any = None) -> None:
        answer = self.session.request(method, self.url + path, json=body, headers=self.credentials(path))
        # There already, or gone: a key for doing a thing once had the answer of an earlier request.
        assert answer.status_code < 300 or answer.status_code in (404, 409), answer.text


@pytest.fixture(scope="module", params=["none", "keys"])
async def running(
    request: pytest.FixtureRequest, postgres: ThrowawayPostgres, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """A server on a socket, in a thread of its own: schemathesis calls it and waits."""
    async with postgres.database() as urls:
        settings = load_settings(
            data_dir=tmp_path_factory.mktemp("data"),
            database_url=urls.owner,
            database_serving_url=urls.serving,
            shutdown_seconds=1.0,
            auth=request.param,
            metrics_token=METRICS_TOKEN,
            segments_keep_text=True,
            segments_keep_terms=True,
            reranker=str(BERT),
        )
        key = await make_key(settings, "acme", *Scope) if settings.asks_who_calls else None
        with served(settings) as url:
            yield Running(url, key)


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The address of a server with the deterministic model."""
    listener = bind("127.0.0.1", 0)
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serving() -> None:
        embedder = Embedder(settings, providers={settings.model: lambda spec: FakeProvider()})
        async with likewise.open(settings, embedder=embedder) as opened:
            await serve(create_app(opened, settings), settings, listener, stop, ready.set)

    thread = threading.Thread(target=loop.run_until_complete, args=[serving()])
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield url_of(listener)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


@pytest.fixture
def schema(running: Running) -> Any:
    """The document of the running server, anew for each test: schemathesis keeps in it what it has tried."""
    return running.schema(running.document)


@schemathesis.serializer(NDJSON)
def lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A body of one line."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def _forget_pattern(schema: dict[str, Any]) -> None:
    """That a text is not blank: schemathesis has no texts of 200,000 characters of a pattern, and then none at all."""
    schema.pop("pattern", None)
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *([schema["items"]] if "items" in schema else ())):
        _forget_pattern(one)


# The least values, which schemathesis puts beside the field that it is about, and what is sent in their place: they are
# refused, which would hide whether that field is.
LEAST = {"cursor": ("", None), "model": ("0", None), "like": ("0", RECORD["id"])}


# Which there are, and which times are before which others.
SERVER_KNOWS = ("cursor", "model", "dimensions", "since", "until", "rerank", "overlap")


def make_possible(case: schemathesis.Case) -> None:
    """Put in what a document cannot say, unless just this part is meant to be wrong.

    Which collections and records there are is known to the server alone; that the ids of a list differ, and that a key
    for doing a thing once belongs to one request, is beyond JSON Schema.
    """
    wrong = case.meta.is_negative_at
    if not wrong(ParameterLocation.PATH):
        there = {"name": NAME, "record_id": RECORD["id"], "model": MODEL}
        case.path_parameters.update({name: there[name] for name in case.path_parameters if name in there})
    for part in (case.query, case.body):
        if isinstance(part, dict):
            part.update({name: known for name, (least, known) in LEAST.items() if part.get(name) == least})
    if not wrong(ParameterLocation.BODY):
        _make_body_possible(case.body)
    if not wrong(ParameterLocation.HEADER) and "Idempotency-Key" in case.headers:
        body = None if case.body is NOT_SET else case.body
        request = repr((case.media_type, body)).encode(errors="surrogatepass")
        case.headers["Idempotency-Key"] = hashlib.sha256(request).hexdigest()


def _make_body_possible(body: Any) -> None:
    if isinstance(body, dict):
        body.update({name: _with_words(body[name]) for _, name in TEXTS if name in body})
        if isinstance(body.get("like"), str):
            body["like"] = RECORD["id"]
    segments = body.get("segments") if isinstance(body, dict) else None
    for place, segment in enumerate(segments if isinstance(segments, list) else []):
        segment["segment_id"] = f"{place}{segment['segment_id']}"[:512]
        segment["text"] = _with_words(segment["text"])
    records = body.get("records", []) if isinstance(body, dict) else body
    for place, record in enumerate(records if isinstance(records, list) else []):
        record["id"] = f"{place}{record['id']}"[:512]
        record["text"] = _with_words(record["text"])


def _with_words(text: Any) -> Any:
    if isinstance(text, list):
        return [_with_words(one) for one in text]
    if isinstance(text, dict) and "text" in text:
        return text | {"text": _with_words(text["text"])}
    return text if not isinstance(text, str) or text.strip() else "pump"


def names_what_may_not_be(case: schemathesis.Case) -> bool:
    """Whether there is a model, cursor, size or time of which only the server knows if it may be: a 422 is right."""
    given = [part for part in (case.query, case.body) if isinstance(part, dict)]
    return any(isinstance(part.get(name), str | int | float) for part in given for name in SERVER_KNOWS)


def repeats_no_value(ctx: schemathesis.CheckContext, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """No refusal says what was sent: it may be private, and refusals are logged and shown."""
    if answer.status_code < 400:
        return
    known = json.dumps(case.operation.schema.raw_schema)
    for value in _strings([case.body, case.query, case.path_parameters, case.headers]):
        # Shorter ones, and words of the document such as `hybrid`, stand in the sentences of refusals.
        if len(value) >= 5 and json.dumps(value)[1:-1] not in known:
            assert value not in answer.text, f"The answer repeats the value {value!r} of the request."


def names_bad_lines(ctx: schemathesis.CheckContext, answer: schemathesis.Response, case: schemathesis.Case) -> None:
    """A line that is wrong is named in the answer."""
    assert case.meta is not None
    if case.meta.is_negative_at(ParameterLocation.BODY) and answer.status_code == 200 and answer.request.body:
        assert answer.json()["failed"], "A bad line was stored."


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_operation_does_what_the_document_says(label: str, schema: Any, running: Running) -> None:
    operation = schema.find_operation_by_label(label)
    for case in operation.schema.iter_coverage_cases(
        operation,
        generation_modes=modes(label, running),
        generation_config=GenerationConfig(with_security_parameters=False),
    ):
        ask(case, running)
    for mode in GenerationMode:
        asking = GENERATED(given(operation.as_strategy(generation_mode=mode))(lambda case: ask(case, running)))
        # A request without parameters and body has nothing that could be wrong.
        with suppress(Unsatisfiable) if mode.is_negative else nullcontext():
            asking()


def test_there_is_a_test_for_every_operation(running: Running) -> None:
    assert labels(running.document) == OPERATIONS


def modes(label: str, running: Running) -> list[GenerationMode]:
    """A search's filter has a thousand ways to be wrong, which are tried once: who calls is known before a body is."""
    searches = label.endswith(("/search", "/search/async"))
    return [GenerationMode.POSITIVE] if running.key and searches else list(GenerationMode)


def ask(case: schemathesis.Case, running: Running) -> None:
    """Make the request and look at what is answered."""
    running.furnish()
    make_possible(case)
    excluded, additional = [], [repeats_no_value]
    if names_what_may_not_be(case):
        excluded.append(positive_data_acceptance)
    if case.media_type == NDJSON:
        # A bad line is named in a 200, so that the others are stored: docs/api.md, "Line by line".
        excluded.append(negative_data_rejection)
        additional.append(names_bad_lines)
    answer = case.call_and_validate(
        base_url=running.url,
        session=running.session,
        headers=running.credentials(case.operation.path),
        additional_checks=additional,
        excluded_checks=excluded,
    )
    running.tidy(case, answer)


def _link(method: str, path: str, **parameters: str) -> dict[str, Any]:
    reference = path.replace("~", "~0").replace("/", "~1")
    return {"operationRef": f"#/paths/{reference}/{method}", "parameters": parameters}


ONE, RECORDS = f"{COLLECTIONS}/{{name}}", f"{COLLECTIONS}/{{name}}/records"
ONE_RECORD = f"{RECORDS}/{{record_id}}"
OF_REQUEST = {"name": "$request.path.name"}
IN_BODY = {"name": "$request.body#/name"}
FIRST = {**OF_REQUEST, "record_id": "$request.body#/records/0/id"}
SAME = {**OF_REQUEST, "record_id": "$request.path.record_id"}
# What can be asked with what an answer, or its request, says.
LINKS = {
    ("post", COLLECTIONS, "201"): {
        "get": _link("get", ONE, **IN_BODY),
        "drop": _link("delete", ONE, **IN_BODY),
        "write": _link("post", RECORDS, **IN_BODY),
        "search": _link("post", f"{ONE}/search", **IN_BODY),
        "count": _link("get", f"{ONE}/stats", **IN_BODY),
    },
    ("post", RECORDS, "200"): {
        "get": _link("get", ONE_RECORD, **FIRST),
        "delete": _link("delete", ONE_RECORD, **FIRST),
        "search": _link("post", f"{ONE}/search", **OF_REQUEST),
        "count": _link("get", f"{ONE}/stats", **OF_REQUEST),
        "drop": _link("delete", ONE, **OF_REQUEST),
    },
    ("delete", ONE_RECORD, "204"): {"get": _link("get", ONE_RECORD, **SAME)},
    ("delete", ONE, "204"): {
        "get": _link("get", ONE, **OF_REQUEST),
        "count": _link("get", f"{ONE}/stats", **OF_REQUEST),
    },
}


def make_answerable(case: schemathesis.Case) -> None:
    """Leave out what only the server knows: a refusal of it would look as if the collection were not there."""
    case.query.pop("cursor", None)
    case.headers.pop("Idempotency-Key", None)
    _make_body_possible(case.body)
    if isinstance(case.body, dict):
        case.body |= {name: None for name in ("cursor", "model") if name in case.body}
        if case.body.get("like"):
            case.body |= {"like": None, "query": "pump"}


def _listed(body: Any) -> list[dict[str, Any]]:
    """The records of a body, whichever form it has."""
    return body if isinstance(body, list) else body.get("records", [body])


class Known:
    """What must be there, by the requests that were answered with success."""

    def __init__(self) -> None:
        self.there: dict[str, set[str]] = {NAME: {RECORD["id"]}}
        self.made = {NAME}

    def has(self, case: schemathesis.Case) -> bool:
        """Whether what the address names is there."""
        name, record = case.path_parameters.get("name"), case.path_parameters.get("record_id")
        return name is None or (name in self.there and (record is None or unquote(record) in self.there[name]))

    def learn(self, case: schemathesis.Case) -> None:
        """Take in that a request had success."""
        name, asked = case.path_parameters.get("name"), case.operation.label
        if asked == f"POST {COLLECTIONS}":
            self.there[case.body["name"]] = set()
            self.made.add(case.body["name"])
        elif asked == f"POST {RECORDS}":
            self.there[name] |= {record["id"] for record in case.body["records"]}
        elif asked == f"DELETE {ONE}":
            del self.there[name]
        elif asked == f"DELETE {ONE_RECORD}":
            self.there[name].remove(unquote(case.path_parameters["record_id"]))


def test_what_was_made_is_there_until_it_is_deleted(running: Running) -> None:
    # Given
    document = running.document
    for (method, path, status), links in LINKS.items():
        document["paths"][path][method]["responses"][status]["links"] = links
    schema = running.schema(document).include(path_regex=f"^{COLLECTIONS}")
    schema.config.update(base_url=running.url)
    wrong: list[str] = []

    class Callers(schema.as_state_machine()):  # type: ignore[misc]
        def setup(self) -> None:
            running.clear()
            running.furnish()
            self.known = Known()

        def before_call(self, case: schemathesis.Case) -> None:
            if case.path_parameters.get("name", NAME) not in self.known.made:
                # Another than those that were made is of no use.
                case.path_parameters["name"] = NAME
            if case.operation.label == f"POST {RECORDS}":
                # A form that the links above can point into.
                case.media_type, case.body = "application/json", {"records": _listed(case.body) or [dict(RECORD)]}
            make_answerable(case)

        def after_call(self, response: schemathesis.Response, case: schemathesis.Case) -> None:
            if self.known.has(case) != (response.status_code != 404):
                wrong.append(f"{response.status_code}, but {self.known.there}: {case.as_curl_command()}")
                raise AssertionError(wrong[-1])
            if response.status_code < 300:
                self.known.learn(case)

        def get_call_kwargs(self, case: schemathesis.Case) -> dict[str, Any]:
            return {"session": running.session, "headers": running.credentials(case.operation.path)}

    # When
    try:
        Callers.run(settings=SCENARIOS)
    finally:
        # Then
        # Hypothesis tries it again, and if the server kept what was dropped, says no more than that it was different.
        assert not wrong, wrong[0]
