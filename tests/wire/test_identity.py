"""Peer ids, signatures and signed envelopes."""

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from farflung.wire.identity import PEER_ID_LENGTH, BadSignature, Identity, Signed, peer_id, sign, verify

ALICE, BOB = Identity(bytes(32)), Identity(bytes([1]) * 32)


def test_a_peer_id_is_the_hash_of_the_public_key_in_base32() -> None:
    # Computed apart: head -c 32 /dev/zero | openssl dgst -sha256 -binary | base32 | tr -d = | tr A-Z a-z
    assert peer_id(bytes(32)) == "mzuhvlpymk6xo3epygfy5h4oeaejofefn3rdhm4qfjmr2dk7fesq"
    assert len(ALICE.peer) == PEER_ID_LENGTH
    assert ALICE.peer != BOB.peer
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id(b"short")


def test_keys_are_those_of_the_cryptography_package() -> None:
    key = Ed25519PrivateKey.generate()
    identity = Identity(key.private_bytes_raw())
    assert identity.public_key == key.public_key().public_bytes_raw()
    key.public_key().verify(sign(identity.private_key, b"payload"), b"payload")
    assert Identity.generate().peer != Identity.generate().peer


@given(st.binary(max_size=200), st.binary(max_size=64), st.binary(max_size=64))
def test_only_the_owner_signs(payload: bytes, other: bytes, noise: bytes) -> None:
    signature = sign(ALICE.private_key, payload)
    assert verify(ALICE.public_key, payload, signature)
    assert not verify(BOB.public_key, payload, signature)
    assert verify(ALICE.public_key, other, signature) == (other == payload)
    assert verify(ALICE.public_key, payload, noise) == (noise == signature)
    assert not verify(noise[:31], payload, signature)


@given(st.binary(max_size=200))
def test_an_envelope_opens_for_its_purpose_alone(content: bytes) -> None:
    signed = ALICE.sign("record", content)
    assert signed.open("record") == (ALICE.peer, content)
    with pytest.raises(BadSignature):
        signed.open("revocation")
    with pytest.raises(BadSignature):
        Signed(BOB.public_key, signed.content, signed.signature).open("record")
    with pytest.raises(BadSignature):
        Signed(signed.public_key, signed.content + b"x", signed.signature).open("record")


def test_an_envelope_travels() -> None:
    signed = ALICE.sign("record", b"content")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(signed), type=Signed).open("record") == (
        ALICE.peer,
        b"content",
    )


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=100))
def test_noise_never_opens(public_key: bytes, content: bytes, signature: bytes) -> None:
    with pytest.raises(BadSignature):
        Signed(public_key, content, signature).open("record")
