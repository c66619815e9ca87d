"""`likewise models`: list models, fetch their files, try them."""

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import typer

from likewise.cli.running import AsJson, command_settings, in_loop
from likewise.cli.terminal import answer
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.embedding.models import MODELS, REMOTE, RERANKERS, Catalogue, ModelSpec
from likewise.embedding.providers import openai
from likewise.embedding.remote.errors import RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy
from likewise.embedding.runtimes import follows_device
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import Invalid, ModelUnavailable, NotFound, NotSupported, SettingsError, StartError
from likewise.progress import in_mebibytes, progress
from likewise.search.reranking import SETTING as RERANKER
from likewise.search.reranking import RerankerCatalogue, Rerankers
from likewise.settings import PREFIX, Settings

# Enough for a speed: two batches of a local model.
TEXTS = (PROBE_TEXTS * 64)[:64]
# What is told of an embedding model that works.
FACTS = ("dimension", "max_tokens", "numerics", "space")

ModelArgument = Annotated[
    str | None, typer.Argument(help="Short name, hub id or bare name; absent: the default model.")
]

models = typer.Typer()


@models.command("list")
def list_models(as_json: AsJson = False) -> None:
    """Show the models and whether their files are here, or they are remote."""
    found = model_rows(command_settings())
    note = "\n* the default. Requests may also name those that LIKEWISE_MODELS_ALLOWED and LIKEWISE_MODELS_FILE list."
    answer({"models": found}, *map(_line, found), note, as_json=as_json)


@models.command()
def pull(name: ModelArgument = None, as_json: AsJson = False) -> None:
    """Fetch a model's files, if they are not here, and check them."""
    settings = command_settings()
    spec = model_named(settings, name)
    folder = fetch_model(spec, settings, quiet=as_json) if spec.provider == "local" else None
    line = "is a remote model: there is nothing to pull." if folder is None else f"is in {folder}."
    answer({"model": spec.name, "folder": folder}, f"{spec.name} {line}", as_json=as_json)


@models.command()
@in_loop
async def check(name: ModelArgument = None, as_json: AsJson = False) -> None:
    """Load a model whose files are here, or ask the one that serves it, and let it work."""
    facts = await try_model(command_settings(), name)
    answer(facts, _verdict(facts), as_json=as_json)


def model_rows(settings: Settings) -> list[dict[str, Any]]:
    """List every model, those that the settings allow first; rerankers last."""
    allowed, scoring = Catalogue(settings).specs(), RerankerCatalogue(settings)
    embedding = {spec.name: spec for spec in (*allowed, *MODELS)}
    names = {spec.name for spec in (*allowed, *scoring.specs())}
    defaults = (allowed[0], scoring.default)
    kinds = [("embedding", spec) for spec in embedding.values()] + [("reranker", spec) for spec in rerankers(settings)]
    return [
        {
            "name": spec.name,
            "kind": kind,
            "hub_id": spec.hub_id,
            "dimension": spec.dimension,
            "max_tokens": spec.max_tokens,
            "default": spec in defaults,
            "allowed": spec.name in names,
            "state": _state(spec, settings),
        }
        for kind, spec in kinds
    ]


def _state(spec: ModelSpec, settings: Settings) -> str:
    if spec.architecture == REMOTE:
        return "remote"
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported:
        return "needs torch"
    return "here" if weights.locate(spec, settings) else "not here"


def rerankers(settings: Settings) -> list[ModelSpec]:
    """List the rerankers that requests may name, then the others that are known by name."""
    allowed = RerankerCatalogue(settings).specs()
    return list({spec.name: spec for spec in (*allowed, *RERANKERS)}.values())


def model_named(settings: Settings, name: str | None) -> ModelSpec:
    """Find a model by any of its names, allowed for requests or not; NotFound if there is none."""
    allowed = Catalogue(settings).specs()
    if name is None:
        return allowed[0]
    for spec in (*allowed, *MODELS, *rerankers(settings)):
        if spec.answers_to(name):
            return spec
    raise NotFound("There is no such model; `likewise models list` shows those there are.")


def require_runnable(settings: Settings) -> ModelSpec:
    """Find the default model; SettingsError if there is none of that name, or this version cannot run it."""
    spec = require_model(settings)
    if spec.endpoint is not None:
        return spec
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported as error:
        setting = "DEVICE" if follows_device(spec.architecture, spec.runtime) else "MODEL"
        raise SettingsError(f"{PREFIX}{setting}: {error.detail}") from None
    return spec


def require_model(settings: Settings) -> ModelSpec:
    """Find the default model; SettingsError if there is none of that name."""
    spec = model_named(settings, None)
    _refuse_no_folder(spec, f"{PREFIX}MODEL", "model")
    return spec


def require_reranker(settings: Settings) -> None:
    """Refuse a reranker that the settings name and that is none, with SettingsError."""
    spec = RerankerCatalogue(settings).default
    if spec is not None:
        _refuse_no_folder(spec, RERANKER, "reranker")


def _refuse_no_folder(spec: ModelSpec, setting: str, what: str) -> None:
    if spec.folder is not None and not os.path.isdir(spec.folder):  # noqa: PTH112 - false, too, where one may not look
        raise SettingsError(
            f"{setting}: there is no such {what}, nor a folder {spec.folder}. "
            f"`likewise models list` shows the {what}s there are."
        )


def require_model_files(settings: Settings, model: str | None, *, quiet: bool) -> None:
    """Fetch the files of a model that the settings allow, if they are not here; StartError if they cannot be had."""
    spec = require_runnable(settings) if model is None else Catalogue(settings).resolve(model)
    if spec.endpoint is not None:
        return
    try:
        fetch_model(spec, settings, quiet=quiet)
    except ModelUnavailable as error:
        raise StartError(error.detail) from None


def fetch_model(spec: ModelSpec, settings: Settings, *, quiet: bool) -> str:
    """Fetch a model's files if they are not here; returns their folder."""
    with progress(f"Fetching {spec.name} (MiB)", quiet=quiet) as report:
        return str(weights.obtain(spec, settings, in_mebibytes(report)))


async def try_model(settings: Settings, name: str | None) -> dict[str, Any]:
    """Load a model or reranker, or ask the one that serves it, and let it work; ModelUnavailable says what is wrong."""
    spec = model_named(settings, name)
    if spec in rerankers(settings):
        return await try_reranker(settings, spec)
    chosen = settings.model_copy(update={"model": spec.name, "models_allowed": (), "redis_url": None})
    spec = Catalogue(chosen).specs()[0]
    return await _ask_remote(spec) if spec.endpoint is not None else await _try_local(spec, chosen)


async def _ask_remote(spec: ModelSpec) -> dict[str, Any]:
    provider = openai.load(spec, RetryPolicy(tries=1))
    started = time.perf_counter()
    try:
        made = await provider.embed(PROBE_TEXTS, "document")
    except (RequestRefused, WrongAnswer) as error:
        raise ModelUnavailable(f"{spec.name} does not work: {error}.", code="provider_wrong") from None
    finally:
        await provider.close()
    answered = {"tokens": int(made.tokens.sum()), "answer_seconds": round(time.perf_counter() - started, 2)}
    address = spec.endpoint and spec.endpoint.base_url
    return {"model": spec.name, "address": address} | _facts(provider, *FACTS) | answered


async def _try_local(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    folder = _folder(spec, settings)
    embedder = Embedder(settings)
    try:
        started = time.perf_counter()
        model = await embedder.opened(patience=ONE_USE_SECONDS)
        loaded = time.perf_counter()
        await embedder.embed(0, TEXTS, use_cache=False)
        done = time.perf_counter()
    finally:
        await embedder.close()
    speed = {"load_seconds": round(loaded - started, 2), "texts_per_second": round(len(TEXTS) / (done - loaded), 1)}
    return {"model": spec.name, "folder": folder} | _facts(model, *FACTS) | speed


def _facts(model: object, *names: str) -> dict[str, Any]:
    return {name: getattr(model, name) for name in names}


async def try_reranker(settings: Settings, spec: ModelSpec) -> dict[str, Any]:
    """Load a reranker, or ask the one that serves it, and let it score; ModelUnavailable says what is wrong."""
    folder = None if spec.endpoint else _folder(spec, settings)
    texts = PROBE_TEXTS if spec.endpoint else TEXTS
    chosen = settings.model_copy(update={"reranker": spec.name, "redis_url": None})
    async with _opened(chosen) as reranking:
        started = time.perf_counter()
        reranker = await reranking.opened(patience=ONE_USE_SECONDS)
        loaded = time.perf_counter()
        try:
            await reranking.rerank(0, PROBE_TEXTS[0], texts)
        except Invalid as error:
            raise ModelUnavailable(f"{spec.name} does not work: {error.detail}", code="provider_wrong") from None
        done = time.perf_counter()
    facts = {"model": spec.name, "kind": "reranker"} | _facts(reranker, "max_tokens", "numerics")
    if spec.endpoint is not None:
        return facts | {"address": spec.endpoint.base_url, "answer_seconds": round(done - loaded, 2)}
    speed = {"load_seconds": round(loaded - started, 2), "pairs_per_second": round(len(texts) / (done - loaded), 1)}
    return facts | {"folder": folder} | speed


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[Rerankers]:
    """Open the rerankers with the queue and the memory of an embedder that does nothing."""
    embedder = Embedder(settings)
    reranking = Rerankers(settings, embedder.ledger, embedder.budget, embedder.memory)
    try:
        yield reranking
    finally:
        await reranking.close()
        await embedder.close()


def _folder(spec: ModelSpec, settings: Settings) -> str:
    found = weights.locate(spec, settings)
    if found is None:
        raise weights.absent(spec, settings)
    return str(found)


def _line(row: dict[str, Any]) -> str:
    kind = f"{row['dimension']:>5} dimensions" if row["kind"] == "embedding" else f"{row['kind']:>16}"
    return f"{'*' if row['default'] else ' '} {row['name']:<24} {kind} {row['max_tokens']:>5} tokens  {row['state']}"


def _verdict(facts: dict[str, Any]) -> str:
    kind = f"{facts['dimension']} dimensions" if "dimension" in facts else "a reranker"
    first = f"{facts['model']} works: {kind}, {facts['max_tokens']} tokens"
    if "address" in facts:
        return f"{first}, at {facts['address']}, which answered in {facts['answer_seconds']:.1f} s."
    unit = "texts" if "texts_per_second" in facts else "pairs"
    speed = f"{facts[f'{unit}_per_second']:.0f} {unit}/s"
    return f"{first}, {facts['numerics']}, loaded in {facts['load_seconds']:.1f} s, {speed}."
