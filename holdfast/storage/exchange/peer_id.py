"""The PeerID of a home: the name that Delegated Routing wants every provider to have.

A node of holdfast speaks HTTP and no libp2p, but a routing record without a PeerID is not one. So each home has a real Ed25519
key (RFC 8032), made when it is first needed, and its PeerID is that of the public key, as the libp2p specification says: nobody
else can prove to be it, and it stays the same as long as the home does. Nothing is signed with the key today: inside a cluster the
token says who may announce.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from typing import TYPE_CHECKING

import libipld

from holdfast.errors import Corrupt, disk_errors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ed25519_public_key", "peer_id_of", "peer_id_of_key"]

_FILE = "node-key"
_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_BASE_Y = 4 * pow(5, -1, _P) % _P
_BASE_X = 15112221349535400772501151409588531511454012693041857206046113283949847762202
_PREFIX = bytes((0x00, 36, 0x08, 0x01, 0x12, 32))
"""Multihash "identity" of 36 bytes: the protobuf {1: Ed25519, 2: the 32 bytes of the key}."""

_Point = tuple[int, int, int, int]
"""On the curve, in extended coordinates: X/Z, Y/Z and T = XY/Z."""


def peer_id_of(home: Path) -> str:
    """The PeerID of a home, in base58; its secret key is made if there is none yet, in ``<home>/node-key``, mode 0600.

    Raises:
        Corrupt: The file holds no key.
        Denied: The home can't be written.
    """
    path = home / _FILE
    with disk_errors(home):
        if not path.exists():
            home.mkdir(parents=True, exist_ok=True)
            partial = home / f".{_FILE}.{secrets.token_hex(4)}.part"
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(partial, path)  # two processes may make it at once: the first one's stays
            except FileExistsError:
                pass
            finally:
                partial.unlink()
        text = path.read_text(encoding="ascii", errors="replace").strip()
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise Corrupt(
            f"{path} does not hold the 32 bytes of a key in hexadecimal: remove it to get a new one"
        )
    return peer_id_of_key(ed25519_public_key(secret))


def peer_id_of_key(public_key: bytes) -> str:
    """The PeerID of an Ed25519 public key: ``12D3KooW...``."""
    text: str = libipld.encode_multibase("z", _PREFIX + public_key)
    return text[1:]


def ed25519_public_key(secret: bytes) -> bytes:
    """The public key that belongs to a secret of 32 bytes, as RFC 8032 section 5.1.5 derives it."""
    number = int.from_bytes(hashlib.sha512(secret).digest()[:32], "little")
    number = number & ~7 & (2**254 - 1) | 2**254
    point: _Point = (0, 1, 1, 0)
    power: _Point = (_BASE_X, _BASE_Y, 1, _BASE_X * _BASE_Y % _P)
    while number:
        if number & 1:
            point = _add(point, power)
        power = _add(power, power)
        number >>= 1
    inverse = pow(point[2], -1, _P)
    x, y = point[0] * inverse % _P, point[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _add(first: _Point, second: _Point) -> _Point:
    a = (first[1] - first[0]) * (second[1] - second[0]) % _P
    b = (first[1] + first[0]) * (second[1] + second[0]) % _P
    c = 2 * _D * first[3] * second[3] % _P
    d = 2 * first[2] * second[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P
