"""A model's files, fetched with a progress bar before anything starts that needs them."""

from likewise.cli.models import require_runnable
from likewise.embedding.files import weights
from likewise.embedding.models import Catalogue, ModelSpec
from likewise.errors import ModelUnavailable, StartError
from likewise.progress import in_mebibytes, progress
from likewise.settings import Settings


def fetch(settings: Settings, model: str | None, *, quiet: bool) -> ModelSpec:
    """Make sure that the files of a model that the settings allow are here; StartError if they cannot be had.

    A remote one has none.
    """
    spec = require_runnable(settings) if model is None else Catalogue(settings).resolve(model)
    if spec.endpoint is not None:
        return spec
    try:
        obtain(spec, settings, quiet=quiet)
    except ModelUnavailable as error:
        raise StartError(error.detail) from None
    return spec


def obtain(spec: ModelSpec, settings: Settings, *, quiet: bool) -> str:
    """Fetch a model's files if they are not here; returns their folder."""
    with progress(f"Fetching {spec.name} (MiB)", quiet=quiet) as report:
        return str(weights.obtain(spec, settings, in_mebibytes(report)))
