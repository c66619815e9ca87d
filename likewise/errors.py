"""Every error that Likewise raises on purpose.

LikewiseError
├── Malformed               400  the request cannot be read at all
├── Invalid                 422  it can be read, and a field is wrong
│   ├── ModelNotAllowed     422  a model that the settings do not allow
│   └── NotSupported        422  a field or value that this version does not do
├── Unauthorized            401
├── Forbidden               403
├── NotFound                404  missing, or another tenant's
├── MethodNotAllowed        405
├── Conflict                409
│   └── InProgress          409  the same request is still running
├── TooLarge                413
│   └── LargerThanQuota     413  more at once than the caller may send in a whole minute
├── UnsupportedMediaType    415
├── TooManyRequests         429
├── Unavailable             503  a part is away; what was asked for can be tried again
│   ├── Overloaded
│   ├── DatabaseUnavailable
│   ├── IssuerUnavailable
│   ├── ModelUnavailable
│   │   └── ModelFails           it is there, and fails on this
│   └── TextKeyUnavailable       the key that a waiting text is sealed with is not here
├── Internal                500
│   └── SealBroken          500  a sealed text that does not open
└── StartError              exit code 3: the process could not start
    ├── SettingsError
    │   └── WrongTextKey         the key of texts that wait sealed is missing, or another than the database's
    ├── ServerStartError         the database: an embedded one that does not start, or none that answers
    │   └── StorageFault         the disk under it
    ├── SchemaError              a schema that is missing, newer or changed
    └── WrongModel               the default model is not the one that it should be

A message says what is wrong and how to fix it. It never repeats a value that a caller sent: that may be private.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Fault:
    """One wrong place in a request: a JSON pointer, a stable code and a sentence."""

    pointer: str
    code: str
    message: str

    @property
    def index(self) -> int | None:
        """The index that the pointer begins with, as 3 of `/3/text`."""
        first = self.pointer.removeprefix("/").partition("/")[0]
        return int(first) if first.isdecimal() else None

    def moved(self, old: str, new: str | Callable[[int], str]) -> "Fault":
        """Return the fault as the caller knows the place: at `new` in place of `old`, or unchanged outside `old`.

        Args:
            new: where it is a function, it maps the index that follows `old`.
        """
        rest = self.pointer.removeprefix(old)
        if not self.pointer.startswith(old) or rest[:1] not in ("", "/"):
            return self
        if isinstance(new, str):
            return replace(self, pointer=new + rest)
        index, slash, below = rest.removeprefix("/").partition("/")
        return replace(self, pointer=new(int(index)) + slash + below) if index.isdecimal() else self


class LikewiseError(Exception):
    """Something went wrong in Likewise."""

    status = 500
    code = "internal"
    retryable = False
    retry_after: int | None = None
    # The detail for callers over the network, where it differs: without paths and addresses that only operators need.
    public_detail: str | None = None

    def __init__(
        self,
        detail: str | None = None,
        *,
        code: str | None = None,
        faults: Sequence[Fault] = (),
        retry_after: int | None = None,
        public_detail: str | None = None,
    ) -> None:
        self.detail = detail or (type(self).__doc__ or "").partition("\n")[0]
        self.faults = tuple(faults)
        # What is not given is the class's.
        self.code = code or self.code
        self.retry_after = retry_after or self.retry_after
        self.public_detail = public_detail or self.public_detail
        super().__init__(self.detail)


class Malformed(LikewiseError):
    """The request cannot be read."""

    status = 400
    code = "malformed"


class Unauthorized(LikewiseError):
    """The request has no valid credentials."""

    status = 401
    code = "unauthorized"


class Forbidden(LikewiseError):
    """The credentials do not allow this."""

    status = 403
    code = "forbidden"


class NotFound(LikewiseError):
    """There is nothing at this address."""

    status = 404
    code = "not_found"


class MethodNotAllowed(LikewiseError):
    """This address does not take that method."""

    status = 405
    code = "method_not_allowed"


class Conflict(LikewiseError):
    """The request does not fit the present state."""

    status = 409
    code = "conflict"


class InProgress(Conflict):
    """An equal request is still running; ask again for its answer."""

    code = "request_in_progress"
    retryable = True
    retry_after = 1


class TooLarge(LikewiseError):
    """The body is larger than this server takes."""

    status = 413
    code = "too_large"


class LargerThanQuota(TooLarge):
    """The request alone is more than the quota of its caller."""

    code = "larger_than_quota"


class UnsupportedMediaType(LikewiseError):
    """The body is of a media type that this address does not read."""

    status = 415
    code = "unsupported_media_type"


class Invalid(LikewiseError):
    """A field of the request is wrong."""

    status = 422
    code = "invalid"

    @classmethod
    def at(cls, pointer: str, message: str, code: str = "invalid_value") -> "Invalid":
        """Return the error for one wrong place."""
        return cls(message, faults=[Fault(pointer, code, message)])

    def moved(self, old: str, new: str | Callable[[int], str]) -> Self:
        """Return the same error, its class included, with each fault moved from `old` to `new`."""
        # Not by the constructor: those of subclasses take other arguments.
        error = type(self).__new__(type(self), *self.args)
        error.__dict__.update(self.__dict__, faults=tuple(fault.moved(old, new) for fault in self.faults))
        return error


class ModelNotAllowed(Invalid):
    """This model is not allowed here. Name one that is listed, or add it to LIKEWISE_MODELS_ALLOWED."""

    code = "model_not_allowed"

    def __init__(self) -> None:
        super().__init__(faults=[Fault("/model", self.code, type(self).__doc__ or "")])


class NotSupported(Invalid):
    """This version does not do that."""

    code = "not_supported"


class TooManyRequests(LikewiseError):
    """This caller has used up its quota or its share."""

    status = 429
    code = "too_many_requests"
    retryable = True


class Unavailable(LikewiseError):
    """A part of the server is away."""

    status = 503
    code = "unavailable"
    retryable = True
    retry_after = 1


class Overloaded(Unavailable):
    """The server has as much work as it can hold."""

    code = "overloaded"


class DatabaseUnavailable(Unavailable):
    """The database cannot be reached."""

    code = "database_unavailable"


class IssuerUnavailable(Unavailable):
    """The issuer of tokens has not told its keys yet, so nobody can tell whose token this is."""

    code = "issuer_unavailable"


class ModelUnavailable(Unavailable):
    """The model is not there yet."""

    code = "model_unavailable"

    @classmethod
    def because(cls, error: LikewiseError, retry_after: int) -> "ModelUnavailable":
        """Return the error for one more caller: whatever it was, to a caller the model is away."""
        return ModelUnavailable(
            error.detail, code=error.code, retry_after=retry_after, public_detail=error.public_detail
        )


class ModelFails(ModelUnavailable):
    """The model fails on this. Try again, or send something else."""

    code = "model_failed"


class TextKeyUnavailable(Unavailable):
    """The key that this text waits sealed with is not the one of this process. Restart it with the present key."""

    code = "text_key_unavailable"


class Internal(LikewiseError):
    """The server failed; the log has the reason under this request's id."""


class SealBroken(Internal):
    """A text that waited sealed has been changed. Send it again."""

    code = "text_unreadable"


class StartError(LikewiseError):
    """Likewise could not start."""

    code = "start"


class SettingsError(StartError):
    """A setting is wrong."""

    code = "settings"


class WrongTextKey(SettingsError):
    """The text key is missing, or another than the database's."""

    code = "text_key"

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix


class ServerStartError(StartError):
    """The embedded Postgres could not start."""

    code = "postgres_start"


class StorageFault(ServerStartError):
    """The storage of the database cannot be used."""

    public_detail = __doc__


class SchemaError(StartError):
    """The database's schema does not fit this program."""

    code = "schema"


class WrongModel(StartError):
    """The default model is not the one that the stored vectors were made with."""

    code = "wrong_model"
