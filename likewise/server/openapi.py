"""The OpenAPI document: FastAPI's own, completed with the bodies and callers that routes declare."""

from collections.abc import Collection
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from likewise.apps.answers import Problem, refusals
from likewise.apps.declaration import JSON, Body, declaration_of
from likewise.apps.fields import FILTER_SCHEMAS
from likewise.server.endpoints import all_routes, scope_of

_REFERENCE = "#/components/schemas/{model}"
_WORDS = "An API key. `LIKEWISE_AUTH=none` asks for none."
_BEARER_WORDS = "An API key, or a JWT, as `LIKEWISE_AUTH` says; `none` asks for neither."
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": _BEARER_WORDS},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": _WORDS},
    "metrics": {"type": "http", "scheme": "bearer", "description": "The value of `LIKEWISE_METRICS_TOKEN`."},
}


def describe(app: FastAPI, ways: Collection[str]) -> None:
    """Make `app` answer the completed document; `ways` are those of LIKEWISE_AUTH."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, ways)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI, ways: Collection[str]) -> dict[str, Any]:
    _say_what_bodies_may_be(app)
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = _hoisted(Problem.model_json_schema(ref_template=_REFERENCE), schemas)
    schemas |= FILTER_SCHEMAS
    for path in document["paths"].values():
        for operation in path.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                content["schema"] = _named(content["schema"], schemas)
            _drop_assumed_refusal(operation["responses"])
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    _say_who_may_call(app, document, by_key="keys" in ways or "none" in ways)
    if "none" in ways:
        _let_everybody_call(document)
    return document


def _say_what_bodies_may_be(app: FastAPI) -> None:
    for route in all_routes(app.routes):
        declared = declaration_of(route.endpoint)
        contents = _contents(declared.body) if declared else {}
        if contents:
            body = {"required": True, "content": contents}
            route.openapi_extra = {**(route.openapi_extra or {}), "requestBody": body}


def _contents(body: Body) -> dict[str, Any]:
    """By media type, the schema of what a route takes."""
    contents: dict[str, Any] = {}
    if body.model is not None:
        schema = body.model.model_json_schema(ref_template=_REFERENCE)
        for field, name in body.references.items():
            schema["properties"][field]["anyOf"] = [{"$ref": _REFERENCE.format(model=name)}, {"type": "null"}]
        contents[JSON] = {"schema": schema}
    return contents | {kind: {"schema": dict(schema)} for kind, schema in body.others.items()}


def _say_who_may_call(app: FastAPI, document: dict[str, Any], *, by_key: bool) -> None:
    # A JWT goes in one header, a key in either.
    headers = ("key", "header") if by_key else ("key",)
    document["components"]["securitySchemes"] = {name: _SCHEMES[name] for name in (*headers, "metrics")}
    for route in all_routes(app.routes):
        scope = scope_of(route)
        for method in route.methods if scope else ():
            # The document names a parameter without its kind, as in `{id}` of `{id:path}`.
            operation = document["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None:
                operation["security"] = [{name: [scope]} for name in headers]
                operation["responses"] |= {str(status): words for status, words in refusals(401, 403).items()}


def _let_everybody_call(document: dict[str, Any]) -> None:
    for path in document["paths"].values():
        for operation in path.values():
            if "security" in operation:
                # OpenAPI's way to say that none of the others is needed.
                operation["security"] = [{}, *operation["security"]]


def _drop_assumed_refusal(responses: dict[str, Any]) -> None:
    """FastAPI assumes a 422 in its own shape for every parameter; ours are declared by the routes that have them."""
    content = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(content.get("application/json")):
        del responses["422"]


def _named(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """A reference to a body's schema, which moves to where the others are."""
    schemas[schema["title"]] = _hoisted(schema, schemas)
    return {"$ref": _REFERENCE.format(model=schema["title"])}


def _hoisted(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The schema without its own definitions, which move to where its references point."""
    schemas.update(schema.get("$defs", {}))
    return {name: value for name, value in schema.items() if name != "$defs"}
