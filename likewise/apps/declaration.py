"""RouteDeclaration: the body that a route takes, and the load that it is. Its caller is in its signature."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.types import Scope

from likewise.errors import UnsupportedMediaType

F = TypeVar("F", bound=Callable[..., Any])

JSON, NDJSON = "application/json", "application/x-ndjson"
# What a body may be inflated from, by the names that Content-Encoding has for it.
ENCODINGS: Mapping[str, str] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}

_ATTRIBUTE = "likewise_declaration"
# Where a request's scope has what its route declares, from before its body is read.
_SCOPE = "likewise.declaration"


class Load(Enum):
    """A class of load: its routes are admitted together, and keep no others out."""

    # Rows and connections.
    WRITE = "write"
    # The queue of a model.
    EMBEDDING = "embedding"
    # A core, for as long as a text is; such texts are split one after the other.
    SPLITTING = "splitting"
    OTHER = "other"
    # Nothing: always answered, for who watches over a busy server must not take it for a dead one.
    PROBE = "probe"


@dataclass(frozen=True)
class Body:
    """A body that a route takes: as JSON of a model, or of another media type.

    Args:
        model: what JSON is checked against; None for a route that takes none.
        references: optional fields of the model whose schema is one of the document's own, by name.
        others: further media types, each with its JSON Schema.
        streamed: those of the media types that are worked on while they arrive, and may be longer.
        encodings: those of `ENCODINGS` that are inflated while they are read.
        max_bytes: once it is inflated; LIKEWISE_MAX_BODY_BYTES if absent.
    """

    model: type[BaseModel] | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    streamed: tuple[str, ...] = ()
    encodings: tuple[str, ...] = ()
    max_bytes: int | None = None

    def is_streamed(self, headers: Headers) -> bool:
        """Return whether a request's body is worked on while it arrives."""
        return bool(self.streamed) and media_type(headers) in self.streamed

    def encoding(self, headers: Headers) -> str | None:
        """Return what the body is inflated from; None where it comes as it is, or in no encoding that is declared."""
        codings = codings_of(headers)
        found = ENCODINGS.get(codings[0]) if len(codings) == 1 else None
        return found if found in self.encodings else None

    def refuse_other(self, headers: Headers) -> None:
        """Refuse a body of another media type or encoding than are declared, with UnsupportedMediaType."""
        kind = media_type(headers)
        as_json = kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))
        if not (as_json and self.model is not None) and kind not in self.others:
            names = "JSON" if self.model is not None else "a body"
            wanted = JSON if self.model is not None else " or ".join(self.others)
            raise UnsupportedMediaType(f"Send {names} with the header Content-Type: {wanted}.")
        if codings_of(headers) and self.encoding(headers) is None:
            but = f", or with {' or '.join(self.encodings)}" if self.encodings else ""
            raise UnsupportedMediaType(f"Send the body without Content-Encoding{but}.")
        charset = _CHARSET.search(headers.get("content-type", ""))
        if charset and charset[1].lower() not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("Send the body in UTF-8.")


@dataclass(frozen=True)
class RouteDeclaration:
    """A route's class of load, and the body that it takes."""

    load: Load
    body: Body = Body()


def declares(load: Load, body: Body | None = None) -> Callable[[F], F]:
    """Declare a route; this stands under its method and path. A route without it keeps the server from starting."""
    declaration = RouteDeclaration(load, body or Body())

    def mark(function: F) -> F:
        setattr(function, _ATTRIBUTE, declaration)
        return function

    return mark


def declaration_of(function: Any) -> RouteDeclaration | None:
    """Return what a route's function declares; None if nothing."""
    found: RouteDeclaration | None = getattr(function, _ATTRIBUTE, None)
    return found


def declaration_in(scope: Scope) -> RouteDeclaration:
    """Return what the route declares that a request goes to; where it goes to none, one that takes no body."""
    found: RouteDeclaration = scope.get(_SCOPE, _NOWHERE)
    return found


def keep_declaration(scope: Scope, found: RouteDeclaration | None) -> RouteDeclaration:
    """Keep what a request's route declares in its scope, and return it."""
    scope[_SCOPE] = found or _NOWHERE
    return declaration_in(scope)


def media_type(headers: Headers) -> str:
    """Return the body's media type in lower case without parameters, '' if none is given."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def codings_of(headers: Headers) -> list[str]:
    """Return the codings of Content-Encoding, in lower case, without `identity`, which is none."""
    names = [part.strip().lower() for line in headers.getlist("content-encoding") for part in line.split(",")]
    return [name for name in names if name != "identity"]


_NOWHERE = RouteDeclaration(Load.OTHER)
_CHARSET = re.compile(r";\s*charset\s*=\s*\"?([^\s\";]*)", re.IGNORECASE)
