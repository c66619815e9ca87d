"""The OpenAPI document says what the routes do."""

import json
import re
from typing import Any

import httpx2

from likewise.server.openapi import page


async def test_every_reference_leads_somewhere(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert names <= set(document["components"]["schemas"])
    assert "$defs" not in json.dumps(document)
    assert "HTTPValidationError" not in json.dumps(document)


async def test_every_route_documents_its_body_and_its_refusals(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
        if path.startswith("/api/")
    }
    assert len(operations) == 10
    for name, operation in operations.items():
        assert operation["description"], name
        assert {"500", "503"} <= set(operation["responses"]), name
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert list(response["content"]) == ["application/problem+json"], name
        if name.startswith("POST"):
            assert {"400", "413", "415", "422"} <= set(operation["responses"]), name
            assert "application/json" in operation["requestBody"]["content"], name


async def test_refusals_before_the_body_is_read_are_documented(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            # An address may hold control characters, and a parameter be of another type.
            assert "{" not in path or "400" in operation["responses"], path
            asks = any(one["in"] == "query" for one in operation.get("parameters", ()))
            assert not asks or "422" in operation["responses"], path
    refused = [
        await client.get("/readyz", params={"strict": "perhaps"}),
        await client.get("/api/v1/collections/a%00"),
        await client.get("/api/v1/collections/notes/records/a%1F"),
    ]
    assert [answer.status_code for answer in refused] == [422, 400, 400]
    assert refused[1].json()["title"] == "The request cannot be read."


async def test_without_authentication_no_route_needs_a_key(client: httpx2.AsyncClient) -> None:
    paths = (await client.get("/openapi.json")).json()["paths"]
    asked = [one["security"] for methods in paths.values() for one in methods.values() if "security" in one]
    assert len(asked) == 32
    assert all({} in ways for ways in asked)


async def test_what_a_body_may_be_is_documented(client: httpx2.AsyncClient) -> None:
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    assert [one.get("type", one.get("$ref")) for one in schemas["RecordsBody"]["anyOf"]] == [
        "#/components/schemas/RecordsIn",
        "array",
    ]
    assert schemas["SearchIn"]["properties"]["filters"]["anyOf"][0] == {"$ref": "#/components/schemas/Filter"}
    assert [one["required"] for one in schemas["SearchIn"]["oneOf"]] == [["query"], ["like"]]
    for model, name in (("RecordIn", "id"), ("RecordIn", "text"), ("CollectionIn", "name")):
        assert "pattern" in schemas[model]["properties"][name], name


async def test_fields_of_later_versions_are_not_documented(client: httpx2.AsyncClient) -> None:
    schemas: dict[str, Any] = (await client.get("/openapi.json")).json()
    text = json.dumps(schemas)
    assert "retention_days" not in text


async def test_the_page_of_routes_needs_nothing_from_elsewhere(client: httpx2.AsyncClient) -> None:
    # When
    shown = await client.get("/docs")
    # Then
    assert shown.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in shown.headers["content-security-policy"]
    assert "<script" not in shown.text
    assert re.findall(r"(?:src|href)=.([^'\"]*)", shown.text) == ["/openapi.json"]
    for path, operations in (await client.get("/openapi.json")).json()["paths"].items():
        for method in operations:
            assert f"<code>{method.upper()} {path}</code>" in shown.text
    for words in ("RecordsIn", "WriteAnswer", "application/x-ndjson", "threshold?", "hybrid, dense, lexical"):
        assert words in shown.text
    assert (await client.get("/redoc")).status_code == 404


def test_the_page_of_routes_escapes_what_it_shows() -> None:
    evil = "<script>alert('x')</script>\"&"
    operation = {
        "description": evil,
        "parameters": [{"in": "query", "name": evil, "schema": {"enum": [evil]}, "description": evil}],
        "requestBody": {"content": {evil: {"schema": {"$ref": f"#/{evil}"}}}},
        "responses": {evil: {"description": evil, "content": {evil: {"schema": {"type": evil}}}}},
    }
    schema = {"description": evil, "properties": {evil: {"description": evil, "anyOf": [{"type": evil}]}}}
    document = {
        "info": {"title": evil, "version": evil},
        "paths": {evil: {evil: operation}},
        "components": {"schemas": {evil: schema}},
    }
    shown = page(document)
    assert "<script" not in shown
    assert "alert(&#x27;x" in shown
