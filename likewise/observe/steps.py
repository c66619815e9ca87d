"""What conductors call: each step as one span and its metrics, by numbers alone."""

import asyncio
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from opentelemetry.trace import SpanKind

from likewise.errors import Internal, LikewiseError, Overloaded, Unavailable
from likewise.observe import metrics, tracing
from likewise.observe.logs import get_logger

# Of the requests whose texts are in one claim, so many are named.
MOST_REQUEST_IDS = 16
NO_ROUTE = "none"

log = get_logger(__name__)

E = TypeVar("E", bound="Embeddings")
F = TypeVar("F", bound="Hits")


class Embeddings(Protocol):
    """What became of texts, as far as it is counted: arrays of one number for each."""

    @property
    def tokens(self) -> Any: ...

    @property
    def cached(self) -> Any: ...


class Hits(Protocol):
    """What a search found, as far as it is counted."""

    @property
    def hits(self) -> Collection[Any]: ...

    @property
    def degraded(self) -> Collection[str]: ...


class _Step:
    """A span and a stopwatch around a block; `_count` is told how it went."""

    def __init__(self, span: tracing.Span) -> None:
        self._span = span
        self._started = 0.0

    def __enter__(self) -> Self:
        self._span.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count(time.perf_counter() - self._started, error)
        self._span.__exit__(kind, error, trace)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        raise NotImplementedError


class Answering(_Step):
    """One HTTP request; `headers` may name the trace that it belongs to."""

    def __init__(self, method: str, headers: Mapping[str, str], request_id: str) -> None:
        self._method = metrics.one_of(method, metrics.METHODS)
        super().__init__(tracing.Span(self._method, kind=SpanKind.SERVER, incoming=headers))
        self._span.set(http__request__method=self._method, request_id=request_id)
        self._route = NO_ROUTE
        self._status: int | None = None

    def answered(self, route: str | None, status: int | None) -> None:
        """The route's template, and the status; None for a client that left before its answer."""
        self._route, self._status = route or NO_ROUTE, status

    def _count(self, seconds: float, error: BaseException | None) -> None:
        status = "left" if self._status is None else f"{self._status // 100}xx"
        metrics.HTTP_REQUESTS.labels(self._route, self._method, metrics.one_of(status, metrics.STATUSES)).inc()
        metrics.HTTP_SECONDS.labels(self._route).observe(seconds)
        self._span.rename(f"{self._method} {self._route}")
        self._span.set(http__route=self._route, http__response__status_code=self._status)
        if status == "5xx":
            self._span.failed(str(self._status))


class Embedding(_Step):
    """Texts that a caller wants the vectors of. `model` is one that the settings allow."""

    def __init__(self, model: str, role: str, lane: str) -> None:
        super().__init__(tracing.Span("embed"))
        self._model, self._lane = model, metrics.one_of(lane, metrics.LANES)
        self._span.set(model=model, role=role, lane=lane)

    def done(self, made: E) -> E:
        """Their vectors, passed on."""
        cached, texts = int(made.cached.sum()), len(made.tokens)
        metrics.EMBED_TEXTS.labels(self._model, self._lane).inc(texts)
        metrics.CACHE_MISSES.inc(texts - cached)
        self._span.set(texts=texts, tokens=int(made.tokens.sum()), cached=cached)
        return made

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.EMBED_REQUESTS.labels(self._model, self._lane, outcome(error)).inc()


class Reranking(_Step):
    """Texts that a caller wants scored for a query. `model` is one that the settings name."""

    def __init__(self, model: str) -> None:
        super().__init__(tracing.Span("rerank"))
        self._model = model
        self._span.set(model=model)

    def done(self, texts: int, tokens: int) -> None:
        """So many texts have their scores, of so many tokens with the query."""
        metrics.RERANK_TEXTS.labels(self._model).inc(texts)
        self._span.set(texts=texts, tokens=tokens)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.RERANK_REQUESTS.labels(self._model, outcome(error)).inc()
        metrics.RERANK_SECONDS.labels(self._model).observe(seconds)


class RerankerCall(_Step):
    """One call of a reranker; one that fails counts by its time alone."""

    def __init__(self, model: str) -> None:
        super().__init__(tracing.Span("reranker"))
        self._model = model

    def done(self, texts: int, tokens: Any, truncated: Any) -> None:
        """So many texts, with arrays of the tokens read and cut off of each."""
        read, cut = int(sum(tokens)), int(sum(truncated))
        metrics.RERANK_TOKENS.labels(self._model).inc(read)
        metrics.RERANK_TRUNCATED.labels(self._model).inc(cut)
        self._span.set(model=self._model, texts=texts, tokens=read)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.RERANK_CALL_SECONDS.labels(self._model).observe(seconds)


class Searching(_Step):
    """One search."""

    def __init__(self, mode: str) -> None:
        super().__init__(tracing.Span("search"))
        self._mode = metrics.one_of(mode, metrics.MODES)
        self._span.set(mode=self._mode)

    def done(self, found: F) -> F:
        """What it found, passed on."""
        metrics.SEARCH_RESULTS.labels(self._mode).inc(len(found.hits))
        if found.degraded:
            metrics.SEARCH_DEGRADED.inc()
        self._span.set(hits=len(found.hits), degraded=bool(found.degraded))
        return found

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.SEARCHES.labels(self._mode, outcome(error)).inc()
        metrics.SEARCH_SECONDS.labels(self._mode).observe(seconds)


class WorkerStep(_Step):
    """A claim that is worked on: a span and a log line that name the requests whose texts are in it."""

    def __init__(self, contents: int, request_ids: Collection[str | None] = ()) -> None:
        super().__init__(tracing.Span("worker"))
        known = dict.fromkeys(one for one in request_ids if one is not None)
        self._contents, self._requests, self._named = contents, len(known), list(known)[:MOST_REQUEST_IDS]
        metrics.WORKER_CLAIMS.inc()
        self._span.set(contents=contents, requests=self._requests, request_ids=self._named)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.WORKER_SECONDS.observe(seconds)
        log.info(
            "claim_worked_on",
            contents=self._contents,
            ms=round(seconds * 1000, 1),
            outcome=outcome(error),
            requests=self._requests,
            request_ids=self._named,
        )


class ModelBatch(_Step):
    """One batch in a model; one that fails counts by its time alone."""

    def __init__(self, model: str, lane: str) -> None:
        super().__init__(tracing.Span("model"))
        self._labels = (model, metrics.one_of(lane, metrics.LANES))

    def done(self, texts: int, tokens: Any, truncated: Any) -> None:
        """So many texts, with arrays of the tokens read and cut off of each."""
        read, cut = int(sum(tokens)), int(sum(truncated))
        metrics.MODEL_TEXTS.labels(*self._labels).inc(texts)
        metrics.MODEL_TOKENS.labels(*self._labels).inc(read)
        metrics.MODEL_TRUNCATED.labels(*self._labels).inc(cut)
        self._span.set(model=self._labels[0], lane=self._labels[1], texts=texts, tokens=read)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.MODEL_SECONDS.labels(*self._labels).observe(seconds)


class ProviderRequest(_Step):
    """One try of a request to a remote model; one that raises after a good status had no good answer."""

    def __init__(self, model: str, texts: int) -> None:
        super().__init__(tracing.Span("provider", kind=SpanKind.CLIENT))
        self._model = model
        self._status: int | None = None
        self._span.set(model=model, texts=texts)

    def answered(self, status: int) -> None:
        """With this status."""
        self._status = status
        self._span.set(http__response__status_code=status)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.PROVIDER_REQUESTS.labels(self._model, self._outcome(error)).inc()
        metrics.PROVIDER_SECONDS.labels(self._model).observe(seconds)

    def _outcome(self, error: BaseException | None) -> str:
        if isinstance(error, asyncio.CancelledError):
            return "cancelled"
        if self._status is None:
            # An answer that is too large is one that is wrong, before its end.
            return "wrong" if isinstance(error, ValueError) else "unreachable"
        if self._status < 300:
            return "ok" if error is None else "wrong"
        if self._status == 429:
            return "limited"
        return "failed" if self._status == 408 or self._status >= 500 else "refused"


def paid(model: str, cost: float, estimated: int) -> None:
    """A model read a text: what that costs in US dollars, and how many of its tokens nobody counted."""
    metrics.EMBED_COST.labels(model).inc(cost)
    if estimated:
        metrics.EMBED_ESTIMATED.labels(model).inc(estimated)


def avoided(model: str, cost: float) -> None:
    """What a model need not read, in US dollars."""
    metrics.EMBED_COST_AVOIDED.labels(model).inc(cost)


def cache_hits(tier: str, count: int) -> None:
    """A tier of `metrics.CACHE_TIERS` knew so many vectors."""
    if count:
        metrics.CACHE_HITS.labels(tier).inc(count)


def cache_failed(kind: str) -> None:
    """A tier of the cache was no help: one of `metrics.CACHE_ERRORS`."""
    metrics.CACHE_FAILED.labels(metrics.one_of(kind, metrics.CACHE_ERRORS)).inc()


def cache_dropped() -> None:
    """A vector did not fit among those that wait to be written."""
    metrics.CACHE_DROPPED.inc()


def search_plan(plan: str) -> None:
    """How the vectors of the current search are compared: one of `metrics.PLANS`."""
    metrics.SEARCH_PLANS.labels(metrics.one_of(plan, metrics.PLANS)).inc()
    tracing.note(plan=plan)


def stored(created: int, changed: int, unchanged: int, text_bytes: int) -> None:
    """A batch of records that is committed."""
    for became, count in (("created", created), ("changed", changed), ("unchanged", unchanged)):
        metrics.INGEST_RECORDS.labels(became).inc(count)
    metrics.INGEST_BYTES.inc(text_bytes)


def refused(records: int) -> None:
    """So many records were not stored, for what they say."""
    metrics.INGEST_RECORDS.labels("refused").inc(records)


def contents_became(became: str, count: int) -> None:
    """What became of claimed contents: one of `metrics.CONTENTS`."""
    metrics.WORKER_CONTENTS.labels(became).inc(count)


def outcome(error: BaseException | None) -> str:
    """The word of `metrics.OUTCOMES` for how something ended."""
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, Unavailable):
        return "away"
    return "refused" if isinstance(error, LikewiseError) and error.status < Internal.status else "failed"
