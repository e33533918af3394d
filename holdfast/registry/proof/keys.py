"""Ed25519 keys: what signs, what checks, and the text by which people tell keys apart.

A public key is written as ``z6Mk...``: base 58 of the multicodec number of Ed25519 and the 32 bytes, which is what stands behind
``did:key:`` (https://w3c-ccg.github.io/did-key-spec/). The text is the key: whoever has it needs to look nothing up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import libipld

from holdfast.errors import Corrupt, Denied, InvalidInput

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["PublicKey", "SigningKey", "is_key_text"]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_ED25519_PUB = b"\xed\x01"
"""The multicodec number 0xed as a varint."""
_DID = "did:key:"
_PREFIX = "z6Mk"
"""How every Ed25519 key begins in this form."""
_MAX_TEXT_CHARS = 100


def is_key_text(text: str) -> bool:
    """Whether a text is meant to be a public key, and not somebody's name."""
    return text.startswith((_DID, _PREFIX))


@dataclass(frozen=True, slots=True)
class PublicKey:
    """Who somebody is: 32 bytes that check signatures.

    Raises:
        InvalidInput: These are not 32 bytes.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != KEY_BYTES:
            raise InvalidInput(f"an Ed25519 public key has {KEY_BYTES} bytes: {self.raw!r:.100}")

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """The key of ``z6Mk...`` or ``did:key:z6Mk...``.

        Raises:
            InvalidInput: It is no such text, or another kind of key.
        """
        body = text.strip().removeprefix(_DID)
        if len(body) > _MAX_TEXT_CHARS or not body.startswith("z"):
            raise InvalidInput(f"{text[:_MAX_TEXT_CHARS]!r} is not a public key such as z6Mk...")
        try:
            raw: bytes = libipld.decode_multibase(body)[1]
        except ValueError as error:
            raise InvalidInput(f"{text!r} is not a public key: {error}") from error
        if raw[:2] != _ED25519_PUB or len(raw) != len(_ED25519_PUB) + KEY_BYTES:
            raise InvalidInput(f"{text!r} is not an Ed25519 public key, which begins with {_PREFIX}")
        return cls(raw[2:])

    def __str__(self) -> str:
        text: str = libipld.encode_multibase("z", _ED25519_PUB + self.raw)
        return text

    def matches(self, signature: bytes, data: bytes) -> bool:
        """Whether the owner of this key signed ``data``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        if len(signature) != SIGNATURE_BYTES:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, data)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """A key that signs; its secret never leaves it but as the PEM of its file.

    Args:
        name: What the home calls it.
        private: The key itself.
    """

    def __init__(self, name: str, private: Ed25519PrivateKey) -> None:
        self.name = name
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw())
        """What others check with."""

    def __repr__(self) -> str:
        return f"SigningKey({self.name!r}, {self.public})"

    @classmethod
    def generate(cls, name: str) -> SigningKey:
        """A new key."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(name, Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, name: str, pem: bytes, *, where: str) -> SigningKey:
        """The key in a PKCS #8 file.

        Args:
            name: What the home calls it.
            pem: The file's bytes.
            where: The file, for errors.

        Raises:
            Corrupt: It holds no key.
            Denied: The key is encrypted.
            InvalidInput: It is a key of another kind.
        """
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key = load_pem_private_key(pem, password=None)
        except TypeError as error:
            raise Denied(
                f"the key in {where} is encrypted: keep it without a password, mode 0600 ('openssl pkey')"
            ) from error
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Corrupt(f"{where} does not hold a private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(
                f"{where} holds another kind of key ({type(key).__name__}); holdfast signs with Ed25519"
            )
        return cls(name, key)

    def to_pem(self) -> bytes:
        """The key as a PKCS #8 file, not encrypted: who can read it can sign."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """The 64 bytes that prove that the owner of this key saw ``data``; the same for the same data."""
        return self._private.sign(data)
