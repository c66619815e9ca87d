"""Every metric, once: its name, its sentence, its labels.

Labels come from closed sets: the routes that there are, the models that the settings allow, and the words in this file.
Nothing that a caller chose is ever one, and no tenant and no collection is told apart.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from likewise.observe.version import program_version

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx", "left")
LANES = ("interactive", "bulk")
MODES = ("hybrid", "dense", "lexical")
# How the vectors of a search were compared: all of them, by the index, or just those that a filter left.
PLANS = ("scan", "index", "among")
# What became of a call: done, refused for what it said, refused for load, a part was away, our fault, nobody waited.
OUTCOMES = ("ok", "refused", "overloaded", "away", "failed", "cancelled")
# What became of a claimed content: a vector, a failed attempt, back to the queue, or taken over by another worker.
CONTENTS = ("embedded", "failed", "released", "lost")
RECORDS = ("created", "changed", "unchanged", "refused")
# What became of a claimed task: a result, an error for good, a failed try, back to the others as a part was away or the
# worker stopped, or taken over by another worker or cancelled.
TASKS = ("done", "given up", "failed", "released", "lost")
# Where the cache knew a vector from.
CACHE_TIERS = ("memory", "redis")
# Why a tier was no help: nobody answers, not in time, no room, not allowed, a value that is none of ours.
CACHE_ERRORS = ("away", "slow", "full", "refused", "rubbish")
MODEL_STATES = ("absent", "present", "loading", "ready", "failed")
# What became of one request to a remote model: vectors, refused for what it said or by whom it came, too many, an error
# of the provider, no answer, one that is none, nobody waited.
PROVIDER_OUTCOMES = ("ok", "refused", "limited", "failed", "unreachable", "wrong", "cancelled")
# Why a JWT was refused; who sent it is told nothing of it.
TOKEN_FAULTS = (
    *("malformed", "header", "algorithm", "claims", "time", "audience", "issuer", "tenant", "scopes", "key"),
    "signature",
)
OTHER = "other"

# From a search in memory to what a client still waits for.
_REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
# From one query to the time that a provider has for a batch.
_BATCH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)

# From a search that nobody waits for to a clean-up.
_TASK_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0, 600.0)

REGISTRY = CollectorRegistry()
ProcessCollector(namespace="likewise", registry=REGISTRY)


def _counter(name: str, words: str, *labels: str) -> Counter:
    return Counter(f"likewise_{name}", words, labels, registry=REGISTRY)


def _seconds(name: str, words: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
    return Histogram(f"likewise_{name}_seconds", words, labels, buckets=buckets, registry=REGISTRY)


HTTP_REQUESTS = _counter("http_requests", "Requests by the route's template.", "route", "method", "status")
HTTP_SECONDS = _seconds("http_request", "From a request's head to its answer's end.", _REQUEST_SECONDS, "route")
TOKENS_REFUSED = _counter("tokens_refused", "JWTs that were refused.", "reason")

EMBED_REQUESTS = _counter("embed_requests", "Lists of texts that vectors were asked of.", "model", "lane", "outcome")
EMBED_TEXTS = _counter("embed_texts", "Texts that were answered with a vector.", "model", "lane")
EMBED_COST = _counter("embed_cost_dollars", "US dollars for the tokens that remote models read.", "model")
EMBED_COST_AVOIDED = _counter("embed_cost_avoided_dollars", "What texts would have cost that were known.", "model")
EMBED_ESTIMATED = _counter("embed_estimated_tokens", "Tokens read of which only the characters were counted.", "model")
CACHE_HITS = _counter("cache_hits", "Texts whose vectors the cache knew.", "tier")
CACHE_MISSES = _counter("cache_misses", "Texts whose vectors the cache did not know.")
CACHE_FAILED = _counter("cache_errors", "Times that a tier of the cache was no help.", "kind")
CACHE_DROPPED = _counter("cache_dropped_writes", "Vectors that did not fit among those that wait to be written.")
MODEL_TEXTS = _counter("model_texts", "Texts that a model embedded.", "model", "lane")
MODEL_TOKENS = _counter("model_tokens", "Tokens that a model read.", "model", "lane")
MODEL_TRUNCATED = _counter("model_truncated_tokens", "Tokens that were cut off before a model.", "model", "lane")
MODEL_SECONDS = _seconds("model_batch", "One batch in the model.", _BATCH_SECONDS, "model", "lane")

RERANK_REQUESTS = _counter("rerank_requests", "Queries with texts that scores were asked of.", "model", "outcome")
RERANK_TEXTS = _counter("rerank_texts", "Texts that were answered with a score.", "model")
RERANK_TOKENS = _counter("rerank_tokens", "Tokens of queries and texts that a reranker read.", "model")
RERANK_TRUNCATED = _counter("rerank_truncated_tokens", "Tokens that were cut off before a reranker.", "model")
RERANK_SECONDS = _seconds("rerank", "One query with its texts, waiting included.", _REQUEST_SECONDS, "model")
RERANK_CALL_SECONDS = _seconds("rerank_call", "One call of a reranker.", _BATCH_SECONDS, "model")

PROVIDER_REQUESTS = _counter("provider_requests", "Requests to a remote model, each try.", "model", "outcome")
PROVIDER_SECONDS = _seconds("provider", "One try of a request to a remote model.", _BATCH_SECONDS, "model")
PROVIDER_OPEN = Gauge(
    "likewise_provider_open", "1 while a remote model is left alone, since it failed.", ("model",), registry=REGISTRY
)

SEARCHES = _counter("search_requests", "Searches.", "mode", "outcome")
SEARCH_SECONDS = _seconds("search", "One search.", _REQUEST_SECONDS, "mode")
SEARCH_RESULTS = _counter("search_results", "Hits that searches answered.", "mode")
SEARCH_DEGRADED = _counter("search_degraded", "Searches that words alone answered, as the model was away.")
SEARCH_PLANS = _counter("search_plans", "How the vectors of a search were compared.", "plan")

INGEST_RECORDS = _counter("ingest_records", "Records that were sent.", "outcome")
INGEST_BYTES = _counter("ingest_text_bytes", "Text of stored records, in UTF-8.")

WORKER_CLAIMS = _counter("worker_claims", "Claims on waiting contents that found some.")
WORKER_CONTENTS = _counter("worker_contents", "Contents that a worker had claimed.", "outcome")
WORKER_LEASES_LOST = _counter("worker_leases_lost", "Contents whose worker was silent for longer than its lease.")
WORKER_SECONDS = _seconds("worker_step", "One claim, from its contents to their vectors.", _BATCH_SECONDS)


# The kinds of tasks are those that a program registers: words of ours.
TASKS_ENDED = _counter("tasks", "Tasks that a worker had claimed.", "kind", "outcome")
TASK_SECONDS = _seconds("task", "One try of a task.", _TASK_SECONDS, "kind")


def begin_at_zero() -> None:
    """Make the series of small sets exist before their first event: a rate needs a value to rise from."""
    for metric, *sets in (
        (SEARCHES, MODES, OUTCOMES),
        (SEARCH_RESULTS, MODES),
        (SEARCH_PLANS, PLANS),
        (INGEST_RECORDS, RECORDS),
        (WORKER_CONTENTS, CONTENTS),
        (CACHE_HITS, CACHE_TIERS),
        (CACHE_FAILED, CACHE_ERRORS),
        (TOKENS_REFUSED, TOKEN_FAULTS),
    ):
        for values in product(*sets):
            metric.labels(*values)


def one_of(value: str, known: Iterable[str]) -> str:
    """Return the value as a label, if it is a known one, else `other`."""
    return value if value in known else OTHER


@dataclass(frozen=True)
class MetricsSnapshot:
    """The values at the moment of a scrape. None, or an absent model: it could not be learnt in time.

    `oldest_waiting` is in seconds, by model; `models` has each allowed model's state; times of the pool in seconds.
    """

    database_up: bool
    storage_fault: bool
    oldest_waiting: Mapping[str, float] = field(default_factory=dict)
    waiting: int | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    cache_bytes: int | None = None
    redis_up: bool | None = None
    pool_in_use: int = 0
    pool_idle: int = 0
    pool_max: int = 0
    pool_waiting: int = 0
    pool_waits: int = 0
    pool_wait_seconds: float = 0.0


def exposition(now: MetricsSnapshot) -> bytes:
    """Return all metrics in Prometheus's text format."""
    return generate_latest(_Shown(now))


class _Shown(Collector):
    def __init__(self, now: MetricsSnapshot) -> None:
        self._now = now

    def collect(self) -> Iterator[Metric]:
        """Yield the counters, then the values of the moment."""
        for metric in REGISTRY.collect():
            # The library tells of each series when it began, which doubles the page and helps nobody here.
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
        yield from _metrics_of(self._now)


def _metrics_of(now: MetricsSnapshot) -> Iterator[Metric]:
    yield _gauge("build_info", "The version that runs.", {(program_version(),): 1}, "version")
    yield _gauge("database_up", "1 while the database answers.", {(): now.database_up})
    yield _gauge(
        "storage_fault",
        "1 after a write or a start of Postgres that the storage could not take.",
        {(): now.storage_fault},
    )
    yield _gauge(
        "queue_oldest_waiting_seconds",
        "How long the oldest content of a model has waited for its vector.",
        {(model,): seconds for model, seconds in now.oldest_waiting.items()},
        "model",
    )
    if now.waiting is not None:
        words = "Contents that wait for a vector, as the database's statistics estimate it."
        yield _gauge("queue_waiting", words, {(): now.waiting})
    yield _gauge("model_state", "1 for the state that a model is in.", _states(now.models), "model", "state")
    if now.cache_bytes is not None:
        yield _gauge("cache_bytes", "Memory of the cache of vectors.", {(): now.cache_bytes})
    if now.redis_up is not None:
        words = "1 while a tier of the cache is asked, and takes what is new."
        yield _gauge("cache_up", words, {("redis",): now.redis_up}, "tier")
    words = "Connections to the database."
    yield _gauge("pool_connections", words, {("in_use",): now.pool_in_use, ("idle",): now.pool_idle}, "state")
    yield _gauge("pool_connections_max", "Connections that this process keeps at most.", {(): now.pool_max})
    yield _gauge("pool_waiting", "Callers that wait for a connection.", {(): now.pool_waiting})
    yield _sum("pool_waits", "Times that a connection had to be waited for.", now.pool_waits)
    yield _sum("pool_wait_seconds", "Time that connections were waited for.", now.pool_wait_seconds)


def _states(models: Mapping[str, str]) -> dict[tuple[str, ...], float]:
    return {(model, state): state == one for model, one in models.items() for state in MODEL_STATES}


def _gauge(name: str, words: str, values: Mapping[tuple[str, ...], float], *labels: str) -> Metric:
    metric = GaugeMetricFamily(f"likewise_{name}", words, labels=labels)
    for of_labels, value in values.items():
        metric.add_metric(of_labels, float(value))
    return metric


def _sum(name: str, words: str, value: float) -> Metric:
    return CounterMetricFamily(f"likewise_{name}", words, value=value)


begin_at_zero()
