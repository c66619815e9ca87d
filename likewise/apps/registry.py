"""The apps that there are: a row each, beside its folder all that an app needs."""

from likewise.apps.app import App

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
        routers=("routes:router", "openai_routes:router", "rerank_routes:router", "usage_routes:router"),
        service="usage:UsageService",
        errors={"/v1/": "openai_routes:openai_error"},
    ),
    App(
        name="segments",
        package="likewise.apps.segments",
        kinds=("kind:KIND",),
        routers=("routes:router",),
        service="service:SegmentsService",
        tasks={"segments_search": "service:SegmentsService.run_search"},
        job_results={"segments_search": "hits:rehydrate"},
    ),
    App(
        name="jobs",
        package="likewise.apps.jobs",
        routers=("routes:router",),
    ),
)
