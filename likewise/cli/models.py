"""The models as the command line shows and tries them."""

import os
import time
from typing import Any

from likewise.cli import rerankers
from likewise.cli.rerankers import named_by
from likewise.embedding.embedder import Embedder
from likewise.embedding.files import weights
from likewise.embedding.loading import ONE_USE_SECONDS
from likewise.embedding.models import MODELS, REMOTE, Catalogue, ModelSpec
from likewise.embedding.providers import openai
from likewise.embedding.remote.errors import RequestRefused, WrongAnswer
from likewise.embedding.remote.limits import RetryPolicy
from likewise.embedding.space import PROBE_TEXTS
from likewise.errors import ModelUnavailable, NotFound, NotSupported, SettingsError
from likewise.search.reranking import RerankerCatalogue
from likewise.settings import Settings

TRIED_TEXTS = 64


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every model, those that the settings allow first; rerankers last."""
    allowed, scoring = Catalogue(settings).specs(), RerankerCatalogue(settings)
    embedding = {spec.name: spec for spec in (*allowed, *MODELS)}
    names = {spec.name for spec in (*allowed, *scoring.specs())}
    defaults = (allowed[0], scoring.default)
    kinds = [("embedding", spec) for spec in embedding.values()] + [("reranker", spec) for spec in named_by(settings)]
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


def named(settings: Settings, name: str | None) -> ModelSpec:
    """A model by any of its names, allowed for requests or not; NotFound if there is none."""
    allowed = Catalogue(settings).specs()
    if name is None:
        return allowed[0]
    for spec in (*allowed, *MODELS, *named_by(settings)):
        if spec.answers_to(name):
            return spec
    raise NotFound("There is no such model; `likewise models list` shows those there are.")


def require_runnable(settings: Settings) -> ModelSpec:
    """The default model; SettingsError if there is none of that name, or this version cannot run it."""
    spec = named(settings, None)
    if spec.folder is not None and not os.path.isdir(spec.folder):  # noqa: PTH112 - false, too, where one may not look
        raise SettingsError(
            f"LIKEWISE_MODEL: there is no such model, nor a folder {spec.folder}. "
            "`likewise models list` shows the models there are."
        )
    if spec.endpoint is not None:
        return spec
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported as error:
        raise SettingsError(f"LIKEWISE_MODEL: {error.detail}") from None
    return spec


async def tried(settings: Settings, name: str | None) -> dict[str, Any]:
    """Load a model, or ask the one that serves it, and let it work; ModelUnavailable says what is wrong with it."""
    found = named(settings, name)
    if found in named_by(settings):
        return await rerankers.tried(settings, found)
    chosen = settings.model_copy(update={"model": found.name, "models_allowed": ()})
    spec = Catalogue(chosen).specs()[0]
    return await _asked(spec) if spec.endpoint is not None else await _loaded(spec, chosen)


async def _asked(spec: ModelSpec) -> dict[str, Any]:
    """One request to a remote model."""
    provider = openai.load(spec, RetryPolicy(tries=1))
    started = time.perf_counter()
    try:
        made = await provider.embed(PROBE_TEXTS, "document")
    except (RequestRefused, WrongAnswer) as error:
        raise ModelUnavailable(f"{spec.name} does not work: {error}.", code="provider_wrong") from None
    finally:
        await provider.close()
    return {
        "model": spec.name,
        "address": spec.endpoint and spec.endpoint.base_url,
        "dimension": provider.dimension,
        "max_tokens": provider.max_tokens,
        "numerics": provider.numerics,
        "space": provider.space,
        "tokens": int(made.tokens.sum()),
        "answer_seconds": round(time.perf_counter() - started, 2),
    }


async def _loaded(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """A model's files, loaded and at work."""
    if weights.locate(spec, settings) is None:
        raise weights.absent(spec, settings)
    embedder = Embedder(settings.model_copy(update={"redis_url": None}))
    try:
        started = time.perf_counter()
        model = await embedder.opened(patience=ONE_USE_SECONDS)
        loaded = time.perf_counter()
        await embedder.embed(0, (PROBE_TEXTS * TRIED_TEXTS)[:TRIED_TEXTS], use_cache=False)
        done = time.perf_counter()
    finally:
        await embedder.close()
    return {
        "model": spec.name,
        "folder": str(weights.locate(spec, settings)),
        "dimension": model.dimension,
        "max_tokens": model.max_tokens,
        "numerics": model.numerics,
        "space": model.space,
        "load_seconds": round(loaded - started, 2),
        "texts_per_second": round(TRIED_TEXTS / (done - loaded), 1),
    }


def _state(spec: ModelSpec, settings: Settings) -> str:
    if spec.architecture == REMOTE:
        return "remote"
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported:
        return "needs torch"
    return "here" if weights.locate(spec, settings) else "not here"
