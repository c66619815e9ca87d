"""Check the models: that there are such, that their files are here and the right ones, that they work."""

import asyncio
import difflib
import mmap
import os
from collections.abc import AsyncIterator, Sequence

from likewise.cli.doctor.finding import Finding
from likewise.cli.models import require_model, require_reranker, try_model, try_reranker
from likewise.embedding.files import weights
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.models import MODELS, RERANKERS, Catalogue, ModelSpec
from likewise.embedding.models_file import FILE
from likewise.embedding.runtimes import follows_device
from likewise.errors import LikewiseError, NotSupported, SettingsError
from likewise.search.reranking import SETTING, RerankerCatalogue
from likewise.settings import PREFIX, Settings

# Reading, compiling and trying a model; on two busy cores some seconds.
MODEL_SECONDS = 90.0


async def models(settings: Settings) -> AsyncIterator[Finding]:
    """Check the default model at work, then the others that requests may name, and the reranker of the settings."""
    try:
        specs, reranker = Catalogue(settings).specs(), RerankerCatalogue(settings).default
    except SettingsError as error:
        yield Finding("models file", error.detail, f"Fix it, or unset {FILE}.")
        return
    yield await _default(settings)
    for spec in specs[1:]:
        if spec.endpoint is not None:
            yield await _remote(settings, spec, "models allowed")
        else:
            yield await asyncio.to_thread(_allowed, settings, spec)
    if reranker is not None:
        yield await _reranker(settings, reranker)


async def _reranker(settings: Settings, spec: ModelSpec) -> Finding:
    try:
        require_reranker(settings)
    except SettingsError as error:
        what = error.detail + _meant(spec.name, RERANKERS)
        return Finding("reranker", what, f"Set {SETTING} to one of these, or unset it; without it nothing is reranked.")
    try:
        async with asyncio.timeout(MODEL_SECONDS):
            facts = await try_reranker(settings, spec)
    except TimeoutError:
        what = f"{spec.name} was not loaded in {MODEL_SECONDS:.0f} s"
        return Finding("reranker", what, f"See what else keeps this machine busy, or unset {SETTING}.")
    except LikewiseError as error:
        return Finding("reranker", error.detail, f"Fix that, or unset {SETTING}; without it nothing is reranked.")
    return Finding("reranker", f"{facts['model']} works ({facts['numerics']})")


async def _default(settings: Settings) -> Finding:
    try:
        spec = require_model(settings)
    except SettingsError as error:
        mend = f"Set {PREFIX}MODEL to one of these, or unset it for the default."
        return Finding("model", error.detail + _meant(settings.model), mend)
    if spec.endpoint is not None:
        return await _remote(settings, spec, "model")
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported as error:
        return Finding("model", error.detail, _runtime_mend(spec, f"set {PREFIX}MODEL to another model"))
    try:
        async with asyncio.timeout(MODEL_SECONDS):
            facts = await try_model(settings, None)
    except TimeoutError:
        what = f"{spec.name} was not loaded in {MODEL_SECONDS:.0f} s"
        return Finding("model", what, "See what else keeps this machine busy, then run `likewise models check`.")
    except LikewiseError as error:
        return Finding("model", error.detail, _mend(settings, spec, error))
    return Finding("model", f"{facts['model']} works ({facts['numerics']}, {facts['texts_per_second']:.0f} texts/s)")


async def _remote(settings: Settings, spec: ModelSpec, part: str) -> Finding:
    try:
        facts = await try_model(settings, spec.name)
    except LikewiseError as error:
        return Finding(part, error.detail, _provider_mend(spec, error.code))
    return Finding(
        part, f"{spec.name} works (at {facts['address']}, which answered in {facts['answer_seconds']:.1f} s)"
    )


def _provider_mend(spec: ModelSpec, code: str) -> str:
    key = spec.endpoint and spec.endpoint.key_name
    row = f"its row in {FILE}" if spec.own else f"{PREFIX}OPENAI_BASE_URL"
    mends = {
        "provider_key_missing": f"Set {key} in the environment or in .env.",
        "provider_unauthorized": f"Set {key} to a key that its provider takes." if key else f"Name a key in {row}.",
        "provider_unreachable": f"See that it runs and can be reached from here, or fix {row}.",
        "provider_model_missing": f"Fix the address or the model's name there: {row}.",
        "provider_address": f"Fix {row}.",
        "provider_dimension": f"Fix the dimension: {row}.",
        "provider_proxy": "Fix these variables, or unset them.",
        "provider_spent": "Look at the account with its provider.",
    }
    return mends.get(code, f"See what its provider says of it, or fix {row}.") + " Without it only words are searched."


def _allowed(settings: Settings, spec: ModelSpec) -> Finding:
    """Check the files of a model that the settings allow, without loading it."""
    part, name = "models allowed", spec.name
    setting = f"{PREFIX}MODELS_ALLOWED" if name in settings.models_allowed else FILE
    if spec.folder is not None and not os.path.isdir(spec.folder):  # noqa: PTH112 - false, too, where one may not look
        what = f"{setting}: there is no model {name}, nor a folder {spec.folder}{_meant(name)}"
        return Finding(part, what, "Fix its name, or leave it out; `likewise models list` shows the models there are.")
    try:
        Catalogue(settings).runtime(spec)
    except NotSupported as error:
        setting = f"{PREFIX}DEVICE" if follows_device(spec.architecture, spec.runtime) else setting
        return Finding(part, f"{setting}: {error.detail}", _runtime_mend(spec, f"leave {spec.name} out"))
    try:
        _check_files(settings, spec)
    except NotSupported as error:
        return Finding(part, f"{setting}: {error.detail}", f"Fix that, or leave {spec.name} out.")
    except LikewiseError as error:
        return Finding(part, error.detail, _mend(settings, spec, error))
    return Finding(part, f"the files of {spec.name} are here")


def _check_files(settings: Settings, spec: ModelSpec) -> None:
    found = weights.locate(spec, settings)
    if found is None:
        raise weights.absent(spec, settings)
    for module, path in TorchFolder.read(found).weights.items():  # it reads what has a graph, too
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            weights.check_weights(spec, path, content, settings, module)


def _mend(settings: Settings, spec: ModelSpec, error: LikewiseError) -> str:
    if error.code == "weights_checksum":
        return f"Remove that file, then run `likewise models pull {spec.name}`."
    if error.code != "weights_absent":
        return "Fix that; without the model only words are searched."
    if spec.folder is not None:
        return f"Put the model's files in {spec.folder}; without them only words are searched."
    first = "Unset LIKEWISE_OFFLINE, then run" if settings.offline else "Run"
    return f"{first} `likewise models pull {spec.name}`; without it only words are searched."


def _runtime_mend(spec: ModelSpec, otherwise: str) -> str:
    """Say what gives a runtime to a model that has none here; `otherwise` is how to do without that model."""
    if spec.runtime == "openvino":
        return f"Fix its row in {FILE}, or {otherwise}."
    by_device = follows_device(spec.architecture, spec.runtime)
    return f"Install that extra, or {f'unset {PREFIX}DEVICE' if by_device else otherwise}."


def _meant(name: str, among: Sequence[ModelSpec] = MODELS) -> str:
    known = {word.lower(): spec.name for spec in among for word in (spec.name, spec.hub_id, spec.bare_name)}
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return f" (is {known[near[0]]} meant?)" if near and known[near[0]] != name else ""
