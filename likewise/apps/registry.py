"""The apps that there are: a row each, which is all that the rest of the house knows of an app."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any

from likewise.errors import StartError
from likewise.kind import Kinds


@dataclass(frozen=True)
class App:
    """An app: its folder, and by name what is in it, which is imported when somebody asks for it.

    Names are written `module:object`, the module within the app's package: the command line reads the rows too, and
    has no time for a web framework.

    Args:
        name: what the service is called as an attribute of `Likewise`.
        package: the folder, as Python imports it.
        kinds: the `Kind`s of its collections.
        routers: FastAPI's routers, of which every route is an `endpoint`.
        service: called with the open `Runtime`.
        tasks: by their kind, functions of the service, the tenant, the input and the progress.
        job_results: by the kind of a job, its `JobResult`.
        job_errors: words for the codes that its jobs fail with, by code.
        errors: by the beginning of a path, the `ErrorShape` of what is refused there; RFC 9457's problem elsewhere.
        commands: by their names on the command line, groups of commands. These modules are named in full.
    """

    name: str
    package: str
    kinds: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    service: str | None = None
    tasks: Mapping[str, str] = field(default_factory=dict)
    job_results: Mapping[str, str] = field(default_factory=dict)
    job_errors: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)

    def load(self, reference: str) -> Any:
        """Return an object of the app's package by its name in the row; StartError if there is none."""
        return load(f"{self.package}.{reference}")


def load(reference: str) -> Any:
    """Return the object that `package.module:object` names; StartError if there is none."""
    module, _, name = reference.partition(":")
    try:
        return attrgetter(name)(import_module(module))
    except (ImportError, AttributeError) as error:
        raise StartError(f"An app names {reference}, which cannot be imported: {error}.") from error


APPS = (
    App(
        name="collections",
        package="likewise.apps.collections",
        kinds=("service:KIND",),
        routers=("routes:router",),
        service="service:CollectionsService",
    ),
    App(
        name="embed",
        package="likewise.apps.embed",
        routers=("routes:router", "openai:router", "rerank:router", "usage_routes:router"),
        service="usage:UsageService",
        errors={"/v1/": "openai:openai_error"},
    ),
    App(
        name="segments",
        package="likewise.apps.segments",
        kinds=("kind:KIND",),
        routers=("routes:router",),
        service="service:SegmentsService",
        tasks={"segments_search": "service:SegmentsService.run_search"},
        job_results={"embed": "results:EMBED_RESULT", "segments_search": "results:SEARCH_RESULT"},
        job_errors={
            "terms_not_kept": "No words are kept of these segments; search in mode dense.",
            "rerank_needs_text": "No texts are kept of these segments, and a reranker reads texts; "
            "search without rerank.",
        },
    ),
    App(
        name="jobs",
        package="likewise.apps.jobs",
        routers=("routes:router",),
    ),
)


def kinds_of(apps: Iterable[App]) -> Kinds:
    """Return the kinds of all apps."""
    return Kinds(app.load(name) for app in apps for name in app.kinds)


def tasks_of(app: App, service: Any) -> dict[str, Any]:
    """Return the handlers of an app's tasks, by the kind of the task."""
    return {kind: partial(app.load(name), service) for kind, name in app.tasks.items()}


def loaded(apps: Iterable[App], column: str) -> dict[str, Any]:
    """Return what the rows name in one of their mappings (`job_results`, `errors`), all together."""
    return {key: app.load(name) for app in apps for key, name in getattr(app, column).items()}
