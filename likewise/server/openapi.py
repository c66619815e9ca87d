"""The OpenAPI document: FastAPI's own, completed with the bodies and callers that routes declare; and its two routes.

`/openapi.json` is for programs. `/docs` is the same as a page, made here, with nothing loaded from elsewhere.
"""

from collections.abc import Collection, Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi

from likewise.apps.answers import Answer, Problem, refusals
from likewise.apps.declaration import JSON, Body, Load, declaration_of, declares
from likewise.apps.deps import Anyone
from likewise.apps.fields import FILTER_SCHEMAS
from likewise.server.endpoints import all_routes, scope_of

router = APIRouter()

_REFERENCE = "#/components/schemas/{model}"
_WORDS = "An API key. `LIKEWISE_AUTH=none` asks for none."
_BEARER_WORDS = "An API key, or a JWT, as `LIKEWISE_AUTH` says; `none` asks for neither."
_SCHEMES = {
    "key": {"type": "http", "scheme": "bearer", "description": _BEARER_WORDS},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": _WORDS},
    "metrics": {"type": "http", "scheme": "bearer", "description": "The value of `LIKEWISE_METRICS_TOKEN`."},
}

# The page shows; it runs nothing and asks nobody for anything.
_HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8884; padding: .5rem 0; }
code { font-size: .95em; }
h2 { font-size: 1rem; margin: .5rem 0; }
td { padding-right: 1.5rem; vertical-align: top; }
:root { color-scheme: light dark; }
"""


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


@router.get("/openapi.json", include_in_schema=False)
@declares(Load.OTHER)
async def openapi(_: Anyone, request: Request) -> Answer:
    """Return the OpenAPI document, for programs."""
    return Answer(request.app.openapi())


@router.get("/docs", include_in_schema=False)
@declares(Load.OTHER)
async def docs(_: Anyone, request: Request) -> Response:
    """Return the OpenAPI document as a page, for people."""
    return Response(page(request.app.openapi()), media_type="text/html", headers=_HEADERS)


def page(document: Mapping[str, Any]) -> str:
    """Return the page of an OpenAPI document: every operation, then the fields of every schema."""
    title, version = escape(document["info"]["title"]), escape(document["info"]["version"])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>\n'
        f"<body><h1>{title} {version}</h1>\n"
        '<p>For programs the same is in <a href="/openapi.json">openapi.json</a>.</p>\n'
        f"{''.join(_shown_operations(document))}<h1>Schemas</h1>\n{''.join(_shown_schemas(document))}</body></html>\n"
    )


def _shown_operations(document: Mapping[str, Any]) -> Iterator[str]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            words = operation.get("description") or operation.get("summary", "")
            rows = [*_parameters(operation), *_bodies(operation), *_answers(operation)]
            yield (
                f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2>\n"
                f"<p>{escape(words)}</p>\n<table>{''.join(rows)}</table></section>\n"
            )


def _parameters(operation: Mapping[str, Any]) -> Iterator[str]:
    for one in operation.get("parameters", ()):
        yield _row(f"{one['in']} {one['name']}", _kind(one.get("schema", {})), one.get("description", ""))


def _bodies(operation: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield _row("body", _kind(content.get("schema", {})), kind)


def _answers(operation: Mapping[str, Any]) -> Iterator[str]:
    for status, answer in operation["responses"].items():
        kinds = [_kind(content.get("schema", {})) for content in answer.get("content", {}).values()]
        yield _row(status, ", ".join(kinds), answer.get("description", ""))


def _shown_schemas(document: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in document["components"]["schemas"].items():
        required = schema.get("required", ())
        rows = [
            _row(field + ("" if field in required else "?"), _kind(value), value.get("description", ""))
            for field, value in schema.get("properties", {}).items()
        ]
        yield (
            f'<section id="{escape(name)}"><h2>{escape(name)}</h2>\n'
            f"<p>{escape(schema.get('description', ''))}</p>\n<table>{''.join(rows)}</table></section>\n"
        )


def _row(name: str, kind: str, words: str) -> str:
    return f"<tr><td><code>{escape(name)}</code></td><td>{escape(kind)}</td><td>{escape(words)}</td></tr>\n"


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words: its name, or its type."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(str(one) for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type", "anything"))
