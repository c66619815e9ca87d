"""The steps of each flow, each as one span with its metrics, by numbers alone."""

import asyncio
import time
from collections.abc import Collection, Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from likewise.errors import Internal, LikewiseError, Overloaded, Unavailable
from likewise.observe import metrics, tracing
from likewise.observe.logs import get_logger

# Of the requests whose texts are in one claim, so many are named.
MAX_REQUEST_IDS = 16
NO_ROUTE = "none"

log = get_logger(__name__)

F = TypeVar("F", bound="SearchCounts")


class SearchCounts(Protocol):
    """The counts of a search."""

    @property
    def hits(self) -> Collection[Any]: ...

    @property
    def degraded(self) -> Collection[str]: ...


class _Step:
    """A span and a stopwatch around a block; `_count` counts its end."""

    def __init__(self, span: tracing.Span | str, **attributes: AttributeValue | None) -> None:
        self._span = tracing.Span(span) if isinstance(span, str) else span
        self._span.set(**attributes)
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


class RequestStep(_Step):
    """One HTTP request; `headers` may name the trace that it belongs to."""

    def __init__(self, method: str, headers: Mapping[str, str], request_id: str) -> None:
        self._method = metrics.one_of(method, metrics.METHODS)
        span = tracing.Span(self._method, kind=SpanKind.SERVER, incoming=headers)
        super().__init__(span, http__request__method=self._method, request_id=request_id)
        self._route = NO_ROUTE
        self._status: int | None = None

    def answered(self, route: str | None, status: int | None) -> None:
        """Note the route's template, and the status; None for a client that left before its answer."""
        self._route, self._status = route or NO_ROUTE, status

    def _count(self, seconds: float, error: BaseException | None) -> None:
        status = "left" if self._status is None else f"{self._status // 100}xx"
        metrics.HTTP_REQUESTS.labels(self._route, self._method, metrics.one_of(status, metrics.STATUSES)).inc()
        metrics.HTTP_SECONDS.labels(self._route).observe(seconds)
        self._span.rename(f"{self._method} {self._route}")
        self._span.set(http__route=self._route, http__response__status_code=self._status)
        if status == "5xx":
            self._span.failed(str(self._status))


class EmbedStep(_Step):
    """A request for the vectors of texts. `model` is one that the settings allow."""

    def __init__(self, model: str, role: str, lane: str) -> None:
        super().__init__("embed", model=model, role=role, lane=lane)
        self._model, self._lane = model, metrics.one_of(lane, metrics.LANES)

    def done(self, texts: int, tokens: int, cached: int) -> None:
        """Count texts with their vectors, their tokens, and those of them that were cached."""
        metrics.EMBED_TEXTS.labels(self._model, self._lane).inc(texts)
        metrics.CACHE_MISSES.inc(texts - cached)
        self._span.set(texts=texts, tokens=tokens, cached=cached)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.EMBED_REQUESTS.labels(self._model, self._lane, outcome(error)).inc()


class RerankStep(_Step):
    """A request for the scores of texts. `model` is one that the settings name."""

    def __init__(self, model: str) -> None:
        super().__init__("rerank", model=model)
        self._model = model

    def done(self, texts: int, tokens: int) -> None:
        """Count texts with their scores, and their tokens with the query."""
        metrics.RERANK_TEXTS.labels(self._model).inc(texts)
        self._span.set(texts=texts, tokens=tokens)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.RERANK_REQUESTS.labels(self._model, outcome(error)).inc()
        metrics.RERANK_SECONDS.labels(self._model).observe(seconds)


class RerankerStep(_Step):
    """One call of a reranker; one that fails counts by its time alone."""

    def __init__(self, model: str) -> None:
        super().__init__("reranker")
        self._model = model

    def done(self, texts: int, tokens: Any, truncated: Any) -> None:
        """Count texts, by arrays of the tokens read and cut off of each."""
        read, cut = int(sum(tokens)), int(sum(truncated))
        metrics.RERANK_TOKENS.labels(self._model).inc(read)
        metrics.RERANK_TRUNCATED.labels(self._model).inc(cut)
        self._span.set(model=self._model, texts=texts, tokens=read)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.RERANK_CALL_SECONDS.labels(self._model).observe(seconds)


class SearchStep(_Step):
    """One search."""

    def __init__(self, mode: str) -> None:
        self._mode = metrics.one_of(mode, metrics.MODES)
        super().__init__("search", mode=self._mode)

    def done(self, found: F) -> F:
        """Count the hits, and pass them on."""
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

    def __init__(self, contents: int, request_ids: Collection[str | None]) -> None:
        known = dict.fromkeys(one for one in request_ids if one is not None)
        self._contents, self._requests, self._named = contents, len(known), list(known)[:MAX_REQUEST_IDS]
        super().__init__("worker", contents=contents, requests=self._requests, request_ids=self._named)
        metrics.WORKER_CLAIMS.inc()

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


class TaskStep(_Step):
    """A claimed task; one that is left without a word goes back to the others."""

    def __init__(self, kind: str) -> None:
        super().__init__("task", kind=kind)
        self._kind = kind
        self._became = "released"

    def became(self, word: str) -> None:
        """Note its end: one of `metrics.TASKS`."""
        self._became = word

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.TASKS_ENDED.labels(self._kind, metrics.one_of(self._became, metrics.TASKS)).inc()
        metrics.TASK_SECONDS.labels(self._kind).observe(seconds)
        log.info("task_worked_on", kind=self._kind, ms=round(seconds * 1000, 1), outcome=self._became)


class ModelStep(_Step):
    """One batch in a model; one that fails counts by its time alone."""

    def __init__(self, model: str, lane: str) -> None:
        super().__init__("model")
        self._labels = (model, metrics.one_of(lane, metrics.LANES))

    def done(self, texts: int, tokens: Any, truncated: Any) -> None:
        """Count texts, by arrays of the tokens read and cut off of each."""
        read, cut = int(sum(tokens)), int(sum(truncated))
        metrics.MODEL_TEXTS.labels(*self._labels).inc(texts)
        metrics.MODEL_TOKENS.labels(*self._labels).inc(read)
        metrics.MODEL_TRUNCATED.labels(*self._labels).inc(cut)
        self._span.set(model=self._labels[0], lane=self._labels[1], texts=texts, tokens=read)

    def _count(self, seconds: float, error: BaseException | None) -> None:
        metrics.MODEL_SECONDS.labels(*self._labels).observe(seconds)


class ProviderStep(_Step):
    """One try of a request to a remote model; one that raises after a good status had no good answer."""

    def __init__(self, model: str, texts: int) -> None:
        super().__init__(tracing.Span("provider", kind=SpanKind.CLIENT), model=model, texts=texts)
        self._model = model
        self._status: int | None = None

    def answered(self, status: int) -> None:
        """Note the status."""
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
    """Count the cost in US dollars of a text that a model read, and the tokens of it that are an estimate."""
    metrics.EMBED_COST.labels(model).inc(cost)
    if estimated:
        metrics.EMBED_ESTIMATED.labels(model).inc(estimated)


def avoided(model: str, cost: float) -> None:
    """Count the cost in US dollars that a cached vector has saved."""
    metrics.EMBED_COST_AVOIDED.labels(model).inc(cost)


def cache_hits(tier: str, count: int) -> None:
    """Count the vectors that a tier of `metrics.CACHE_TIERS` knew."""
    if count:
        metrics.CACHE_HITS.labels(tier).inc(count)


def cache_failed(kind: str) -> None:
    """Count a failure of the cache: one of `metrics.CACHE_ERRORS`."""
    metrics.CACHE_FAILED.labels(metrics.one_of(kind, metrics.CACHE_ERRORS)).inc()


def cache_dropped() -> None:
    """Count a vector that did not fit among those that wait to be written."""
    metrics.CACHE_DROPPED.inc()


def search_plan(plan: str) -> None:
    """Count a way of comparing the vectors of the current search: one of `metrics.PLANS`."""
    metrics.SEARCH_PLANS.labels(metrics.one_of(plan, metrics.PLANS)).inc()
    tracing.note(plan=plan)


def stored(created: int, changed: int, unchanged: int, text_bytes: int) -> None:
    """Count a batch of records that is committed."""
    for became, count in (("created", created), ("changed", changed), ("unchanged", unchanged)):
        metrics.INGEST_RECORDS.labels(became).inc(count)
    metrics.INGEST_BYTES.inc(text_bytes)


def refused(records: int) -> None:
    """Count records that were not stored, for what they say."""
    metrics.INGEST_RECORDS.labels("refused").inc(records)


def kind_of_task(kind: str) -> None:
    """Begin to count tasks of this kind: a rate needs a value to rise from."""
    for word in metrics.TASKS:
        metrics.TASKS_ENDED.labels(kind, word)


def contents_became(became: str, count: int) -> None:
    """Count the end of claimed contents: one of `metrics.CONTENTS`."""
    metrics.WORKER_CONTENTS.labels(became).inc(count)


def outcome(error: BaseException | None) -> str:
    """Return the word of `metrics.OUTCOMES` for an ending."""
    if error is None:
        return "ok"
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    if isinstance(error, Overloaded):
        return "overloaded"
    if isinstance(error, Unavailable):
        return "away"
    return "refused" if isinstance(error, LikewiseError) and error.status < Internal.status else "failed"
