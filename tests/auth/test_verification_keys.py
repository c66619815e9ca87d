"""Which keys of a set are taken: those that may check a signature of ours, and no other."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey

from likewise.auth.verification_keys import PublishedKeys, published_keys
from likewise.testing import Signer

RSA, EC = Signer.rsa("rsa"), Signer.ec("ec")
OTHER = Signer.rsa("other")


def without(jwk: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in names}


def the_set(*keys: Any) -> PublishedKeys:
    return published_keys(orjson.dumps({"keys": keys}))


@pytest.mark.parametrize(
    "jwk",
    [
        RSA.jwk,
        without(RSA.jwk, "alg"),
        without(RSA.jwk, "use"),
        {**without(RSA.jwk, "use"), "key_ops": ["verify"]},
        {**RSA.jwk, "x5c": ["MIIB"], "x5t": "abc", "unknown": {"a": 1}},
        EC.jwk,
        without(EC.jwk, "alg", "use"),
    ],
)
def test_a_key_for_signatures_is_taken(jwk: dict[str, Any]) -> None:
    algorithm = "RS256" if jwk["kty"] == "RSA" else "ES256"
    keys = the_set(jwk)
    assert keys.find(algorithm, jwk["kid"]) is not None
    assert keys.find("ES256" if algorithm == "RS256" else "RS256", jwk["kid"]) is None


NOT_TAKEN: dict[str, Any] = {
    "for encryption": {**RSA.jwk, "use": "enc"},
    "for another algorithm": {**RSA.jwk, "alg": "RS512"},
    "for PSS": {**RSA.jwk, "alg": "PS256"},
    "for HS256": {**RSA.jwk, "alg": "HS256"},
    "for none": {**RSA.jwk, "alg": "none"},
    "for other operations": {**RSA.jwk, "key_ops": ["wrapKey"]},
    "for no list of operations": {**RSA.jwk, "key_ops": "verify"},
    "of 1,024 bits": {**RSA.jwk, "n": "3" + RSA.jwk["n"][: len(RSA.jwk["n"]) // 2]},
    "of 1,024 bits with zeros before": {**RSA.jwk, "n": "A" * 171 + RSA.jwk["n"][: len(RSA.jwk["n"]) // 2 + 1]},
    "of 16,384 bits": {**RSA.jwk, "n": "3" + "A" * 2_729 + "B"},
    "with an exponent of 1": {**RSA.jwk, "e": "AQ"},
    "with an even exponent": {**RSA.jwk, "e": "BA"},
    "with an exponent of 2,048 bits": {**RSA.jwk, "e": OTHER.jwk["n"]},
    "with its private half": {**dict(RSA.key.as_dict(private=True)), "kid": "rsa"},
    "with another private half": {**EC.jwk, "d": "AAAA"},
    "with padding": {**RSA.jwk, "n": RSA.jwk["n"] + "=="},
    "without a modulus": without(RSA.jwk, "n"),
    "with a number for a modulus": {**RSA.jwk, "n": 65_537},
    "without an exponent": without(RSA.jwk, "e"),
    "symmetric": {**dict(OctKey.generate_key(256).as_dict(private=True)), "kid": "rsa", "alg": "RS256"},
    "symmetric, by its own algorithm": {"kty": "oct", "k": "A" * 43, "kid": "rsa", "alg": "HS256"},
    "Ed25519": {**dict(OKPKey.generate_key("Ed25519").as_dict(private=False)), "kid": "rsa"},
    "of P-384": {**dict(ECKey.generate_key("P-384").as_dict(private=False)), "kid": "ec"},
    "of secp256k1": {**dict(ECKey.generate_key("secp256k1").as_dict(private=False)), "kid": "ec"},
    "of another curve by the name of ours": {
        **dict(ECKey.generate_key("P-384").as_dict(private=False)),
        "crv": "P-256",
        "kid": "ec",
    },
    "no point of its curve": {**EC.jwk, "x": EC.jwk["y"], "y": EC.jwk["y"]},
    "of no curve": without(EC.jwk, "crv"),
    "with a curve that is a list": {**EC.jwk, "crv": ["P-256"]},
    "with a name that is a number": {**RSA.jwk, "kid": 1},
    "of no kind": without(RSA.jwk, "kty"),
    "of an unknown kind": {**RSA.jwk, "kty": "AKP"},
    "of a kind that is a list": {**RSA.jwk, "kty": ["RSA"]},
    "no object": "RSA",
    "null": None,
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("jwk", NOT_TAKEN.values(), ids=NOT_TAKEN)
def test_another_key_is_passed_over_and_the_rest_of_the_set_is_taken(jwk: Any) -> None:
    keys = the_set(jwk, OTHER.jwk, jwk)
    assert [key.kid for usable in keys.by_algorithm.values() for key in usable] == ["other"]


def test_of_equal_names_the_first_counts_and_without_one_the_only_key() -> None:
    second = {**OTHER.jwk, "kid": "rsa"}
    keys = the_set(RSA.jwk, second, EC.jwk, {**EC.jwk, "kid": None})
    assert keys.find("RS256", "rsa") == the_set(RSA.jwk).find("RS256", "rsa")
    assert keys.find("RS256", None) is None
    assert the_set(RSA.jwk, EC.jwk).find("RS256", None) is not None


def test_the_digest_tells_one_set_from_another() -> None:
    assert the_set(RSA.jwk).digest == the_set(RSA.jwk).digest != the_set(EC.jwk).digest


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text()
    | st.sampled_from(list(RSA.jwk.values())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = st.sampled_from(["kty", "n", "e", "crv", "x", "y", "d", "alg", "use", "kid", "key_ops", "k"])


@given(st.sampled_from([RSA.jwk, EC.jwk]), st.dictionaries(MEMBERS, VALUES, max_size=3))
def test_no_key_breaks_the_set(jwk: dict[str, Any], members: dict[str, Any]) -> None:
    document = orjson.dumps({"keys": [{**jwk, **members}, OTHER.jwk]}, default=str)
    assert published_keys(document).find("RS256", "other") is not None
