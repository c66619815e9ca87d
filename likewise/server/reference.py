"""`/openapi.json`, and `/docs`: the same as a page, made here, with nothing loaded from elsewhere."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request, Response

from likewise.apps.answers import Answer
from likewise.apps.declaration import Load, declares
from likewise.apps.deps import Anyone

router = APIRouter()

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
        f"{''.join(_operations(document))}<h1>Schemas</h1>\n{''.join(_schemas(document))}</body></html>\n"
    )


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
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


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
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
