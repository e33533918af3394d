"""Keys: a secret stays one, a text means one key, and two processes never make two keys of one name."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import Conflict, Corrupt, Denied, InvalidInput, NotFound
from holdfast.registry import KeyRing, PublicKey
from holdfast.registry.proof import SigningKey

RFC_8032 = (
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
    "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
)
"""Test 1 of section 7.1: secret, public key, signature of nothing."""


def test_the_text_of_a_key_is_the_one_that_did_key_documents():
    # The first example of https://w3c-ccg.github.io/did-key-spec/, and its bytes.
    text = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK"
    key = PublicKey.parse(f"did:key:{text}")
    assert key == PublicKey.parse(text)
    assert str(key) == text
    assert key.raw.hex() == "2e6fcce36701dc791488e0d0b1745cc1e33a4c1c9fcc41c63bd343dbbe0970e6"


def test_a_signature_is_the_one_of_the_standard():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret, public, signature = map(bytes.fromhex, RFC_8032)
    key = SigningKey("k", Ed25519PrivateKey.from_private_bytes(secret))
    assert key.public.raw == public
    assert key.sign(b"") == signature
    assert key.public.matches(signature, b"")
    assert not key.public.matches(signature, b"x")
    assert not key.public.matches(signature[:-1], b"")
    assert secret.hex() not in repr(key)


@given(st.binary(min_size=32, max_size=32))
def test_a_key_comes_back_from_its_text(raw):
    key = PublicKey(raw)
    assert str(key).startswith("z6Mk")
    assert PublicKey.parse(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "z",
        "z6Mk",
        "alice",
        "did:key:",
        "did:web:example.com",
        "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2do0",  # 0 is no digit of base 58
        "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2do",
        "z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc",  # X25519, which can't sign
        "zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",  # secp256k1
        "z" * 5000,
    ],
)
def test_another_kind_of_key_is_refused(text):
    with pytest.raises(InvalidInput):
        PublicKey.parse(text)
    with pytest.raises(InvalidInput):
        PublicKey(text.encode())


def test_a_key_is_made_at_first_use_and_only_its_owner_can_read_it(tmp_path):
    umask = os.umask(0)
    try:
        ring = KeyRing(tmp_path / "home")
        key = ring.own()
    finally:
        os.umask(umask)
    path = tmp_path / "home" / "keys" / "user.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert KeyRing(tmp_path / "home").own().public == key.public
    assert ring.own("node").public != key.public
    assert sorted(one.name for one in path.parent.iterdir()) == ["node.pem", "user.pem"]


def test_a_key_that_others_can_read_is_no_secret_any_more(tmp_path):
    ring = KeyRing(tmp_path)
    ring.own()
    path = tmp_path / "keys" / "user.pem"
    path.chmod(0o640)
    with pytest.raises(Denied, match="chmod 600"):
        ring.own()


def test_looking_at_keys_makes_none(tmp_path):
    ring = KeyRing(tmp_path / "home")
    assert (ring.known(), ring.names(), ring.own_names()) == ({}, {}, [])
    assert not (tmp_path / "home").exists()


MAKE = """
import sys, time
from pathlib import Path
from holdfast.registry import KeyRing
home, start = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
print(KeyRing(home).own().public)
"""


def test_two_processes_that_make_the_first_key_at_once_have_the_same(tmp_path):
    import time

    for turn in range(3):
        start = time.time() + 1.0
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", MAKE, str(tmp_path / str(turn)), str(start)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        keys = {process.communicate(timeout=60)[0].strip() for process in processes}
        assert keys == {str(KeyRing(tmp_path / str(turn)).own().public)}
        assert [one.name for one in (tmp_path / str(turn) / "keys").iterdir()] == ["user.pem"]


def test_a_key_is_never_replaced(tmp_path):
    ring = KeyRing(tmp_path)
    key = ring.new("release").public
    with pytest.raises(Conflict, match="never replaced"):
        ring.new("release")
    assert ring.own("release").public == key


def test_a_key_of_another_kind_or_with_a_password_or_none_at_all_is_named(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    def put(name, data):
        path = tmp_path / "keys" / f"{name}.pem"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o600)

    form = (Encoding.PEM, PrivateFormat.PKCS8)
    put("curve", ec.generate_private_key(ec.SECP256R1()).private_bytes(*form, NoEncryption()))
    put(
        "locked",
        ed25519.Ed25519PrivateKey.generate().private_bytes(*form, BestAvailableEncryption(b"secret")),
    )
    put("empty", b"")
    put("text", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    ring = KeyRing(tmp_path)
    for name, error, words in (
        ("curve", InvalidInput, "another kind of key"),
        ("locked", Denied, "encrypted"),
        ("empty", Corrupt, "does not hold a private key"),
        ("text", Corrupt, "does not hold a private key"),
    ):
        with pytest.raises(error, match=words):
            ring.own(name)


def test_a_name_means_one_key(tmp_path):
    ring, other = KeyRing(tmp_path / "a"), KeyRing(tmp_path / "b")
    key, second = other.own().public, other.own("node").public
    ring.trust("alice", key)
    ring.trust("alice", str(key))
    with pytest.raises(Conflict, match="name of z6Mk"):
        ring.trust("alice", second)
    assert ring.trusted() == {"alice": key}
    with pytest.raises(Conflict, match="trusted key"):
        ring.new("alice")
    for own in ("user", "node"):  # made at first use: somebody else's must not stand in for it before
        with pytest.raises(Conflict, match="own"):
            ring.trust(own, key)
    ring.new("release")
    with pytest.raises(Conflict, match="own"):
        ring.trust("release", key)
    assert ring.resolve("alice") == ring.resolve(str(key)) == ring.resolve(f"did:key:{key}") == key
    ring.untrust("alice")
    assert ring.trusted() == {}
    with pytest.raises(NotFound, match="no trusted key is named 'alice'"):
        ring.untrust("alice")


@pytest.mark.parametrize(
    "name", ["", ".hidden", "../token", "a/b", "a b", "z6Mkalice", "x" * 65, "did:key:z6Mk"]
)
def test_a_name_can_be_no_path_and_no_key(tmp_path, name):
    ring = KeyRing(tmp_path)
    key = KeyRing(tmp_path / "other").own().public
    for use in (ring.own, ring.new, lambda name: ring.trust(name, key), ring.untrust, ring.resolve):
        with pytest.raises(InvalidInput):
            use(name)


def test_an_unknown_name_gets_the_nearest_one(tmp_path):
    ring = KeyRing(tmp_path)
    ring.trust("alice", KeyRing(tmp_path / "other").own().public)
    with pytest.raises(NotFound, match="did you mean 'alice'"):
        ring.resolve("alise")
    with pytest.raises(NotFound, match="'holdfast keys show user' makes it"):
        ring.resolve("user")
    with pytest.raises(NotFound, match="holdfast keys new release"):
        ring.own("release")


def test_a_trusted_file_that_holds_no_key_stops_everything_rather_than_being_passed_over(tmp_path):
    ring = KeyRing(tmp_path)
    ring.trust("alice", KeyRing(tmp_path / "other").own().public)
    (tmp_path / "keys" / "trusted" / "alice.pub").write_text("z6Mkfoo\n")
    with pytest.raises(Corrupt, match=r"alice\.pub"):
        ring.names()
