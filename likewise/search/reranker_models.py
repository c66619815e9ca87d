"""The rerankers that there are, and how they are named."""

from pathlib import Path

from likewise.embedding import models_file
from likewise.embedding.models import REMOTE, RERANKERS, ModelSpec, endpoint_of, refuse_known_name
from likewise.errors import ModelNotAllowed, ModelUnavailable
from likewise.settings import PREFIX, Settings

SETTING = f"{PREFIX}RERANKER"


class NoReranker(ModelUnavailable):
    """There is no reranker here."""

    def __init__(self) -> None:
        super().__init__(
            f"There is no reranker here. Set {SETTING}={RERANKERS[0].name} and run `likewise models pull "
            f"{RERANKERS[0].name}`, or name a reranker of {models_file.FILE}.",
            code="reranker_missing",
            retry_after=60,
        )


class RerankerCatalogue:
    """The rerankers that the settings name; SettingsError if the models file is wrong."""

    def __init__(self, settings: Settings) -> None:
        own = [_own_spec(row, settings) for row in models_file.read(settings) if row.kind == "reranker"]
        self.default = None if settings.reranker is None else _find(settings.reranker, own, settings)
        named = [self.default] if self.default else []
        self._specs = list({spec.name: spec for spec in (*named, *own)}.values())

    def specs(self) -> list[ModelSpec]:
        """The rerankers that requests may name, the default first if there is one."""
        return list(self._specs)

    def resolve(self, name: str | None) -> ModelSpec:
        """The reranker of that name, or the default; NoReranker or ModelNotAllowed if there is none."""
        if name is None:
            if self.default is None:
                raise NoReranker
            return self.default
        for spec in self._specs:
            if spec.answers_to(name):
                return spec
        if not self._specs and any(spec.answers_to(name) for spec in RERANKERS):
            # It is one, and could be here.
            raise NoReranker
        raise ModelNotAllowed


def _find(name: str, own: list[ModelSpec], settings: Settings) -> ModelSpec:
    """A row of the models file or of the table, or a local folder that the settings name."""
    for spec in (*own, *RERANKERS):
        if spec.answers_to(name):
            return spec
    folder = Path(name).expanduser()
    if not folder.is_absolute():
        folder = folder.absolute() if len(folder.parts) > 1 else settings.models_folder / name
    return ModelSpec(name, name, 1, 0, own=True, folder=folder, runtime="openvino")


def _own_spec(row: models_file.ModelRow, settings: Settings) -> ModelSpec:
    """A row of the models file; SettingsError if its name is another model's."""
    refuse_known_name(row.name)
    if row.folder is not None:
        return ModelSpec(row.name, row.name, 1, 0, own=True, folder=row.folder, runtime="openvino")
    return ModelSpec(
        row.name, row.name, 1, row.max_tokens, architecture=REMOTE, own=True, endpoint=endpoint_of(row, settings),
        price_per_1k_tokens=row.price_per_1k_tokens,
    )  # fmt: skip
