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
        routers=("routes:router", "openai:router", "rerank:router", "usage:router"),
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
        job_results={"embed": "accepted:EMBED_RESULT", "segments_search": "hits:SEARCH_RESULT"},
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
