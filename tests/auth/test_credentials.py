"""Credentials: what a key looks like, and which headers carry one."""

import pytest

from likewise.auth.api_keys import digest_of, new_key, prefix_of
from likewise.auth.authentication import credential_of


def test_a_key_tells_its_prefix_and_nothing_else() -> None:
    key, other = new_key(), new_key()
    assert key.token.startswith(f"lw_{key.prefix}_")
    assert prefix_of(key.token) == key.prefix
    assert len(key.token) == 57
    assert key.prefix != other.prefix
    assert digest_of(key.token) != digest_of(other.token)
    assert key.token not in repr(key)
    assert key.token.rpartition("_")[2] not in repr(key)


@pytest.mark.parametrize(
    "token",
    ["", "lw_", "lw__", "lw_abc_def", "Lw_0123456789_" + "a" * 43, "lw_0123456789_" + "a" * 42,
     "lw_0123456789_" + "a" * 44, "lw_0123456789_" + "a" * 42 + "\n", "lw_012345678é_" + "a" * 43, "x" * 30_000],
)  # fmt: skip
def test_what_is_no_key_has_no_prefix(token: str) -> None:
    assert prefix_of(token) is None


@pytest.mark.parametrize(
    ("authorization", "api_key", "token"),
    [
        ([], [], None),
        (["Bearer abc"], [], "abc"),
        (["bearer   abc "], [], "abc"),
        ([], ["abc"], "abc"),
        (["Bearer abc"], ["abc"], "abc"),
        (["Bearer abc"], [" "], "abc"),
        (["Basic eDp5"], ["abc"], "abc"),
        (["Basic eDp5"], [], None),
        (["Bearer"], [], None),
        (["Bearer "], [], None),
        (["Bearer a b"], [], None),
        (["Bearer a", "Bearer b"], [], None),
        (["Bearer a"], ["b"], None),
        (["abc"], [], None),
        (["Bearer \xff"], [], None),
    ],
)
def test_one_credential_is_taken_and_two_are_none(
    authorization: list[str], api_key: list[str], token: str | None
) -> None:
    assert credential_of(authorization, api_key) == token
