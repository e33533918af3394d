"""DSSE envelopes: bytes with a type and the signatures of those who stand for them.

The format is DSSE v1 (https://github.com/secure-systems-lab/dsse), which cosign, in-toto and others read: an envelope that is
exported needs nothing of holdfast to be checked.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry.proof.keys import PublicKey, is_key_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.registry.proof.keys import SigningKey

__all__ = ["Checked", "Envelope", "Signature", "pae", "strict_json"]

MAX_PAYLOAD_BYTES = 1 << 20
"""An envelope is part of a record, which is one block."""
MAX_SIGNATURES = 64
MAX_DEPTH = 64
"""Lists and objects within each other; whoever shows them, or writes them again, may be deep in a stack of its own."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding: the bytes that are signed. No two pairs have the same."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature; ``keyid`` says whose it claims to be, and is not signed itself."""

    keyid: str
    sig: bytes


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of one signature."""

    keyid: str
    key: PublicKey | None
    """Whose it is; None where that can't be told from ``keyid``."""
    problem: str | None
    """Why it proves nothing; None if it is right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """Signed bytes.

    Raises:
        InvalidInput: The payload or the number of signatures is above the bounds.
    """

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]

    def __post_init__(self) -> None:
        if len(self.payload) > MAX_PAYLOAD_BYTES:
            raise InvalidInput(f"a payload of {len(self.payload)} bytes is too long ({MAX_PAYLOAD_BYTES})")
        if len(self.signatures) > MAX_SIGNATURES:
            raise InvalidInput(f"an envelope has at most {MAX_SIGNATURES} signatures")

    @classmethod
    def signed(cls, payload_type: str, payload: bytes, keys: Iterable[SigningKey]) -> Envelope:
        """The payload with a signature of each key."""
        data = pae(payload_type, payload)
        return cls(
            payload_type=payload_type,
            payload=payload,
            signatures=tuple(Signature(str(key.public), key.sign(data)) for key in keys),
        )

    def check(self, others: Iterable[PublicKey] = ()) -> list[Checked]:
        """Each signature with whose it is and whether it is right, in order; one key counts once.

        Args:
            others: Keys to try for signatures whose ``keyid`` is not the text of a key.
        """
        data = pae(self.payload_type, self.payload)
        others = list(others)
        found: dict[PublicKey, int] = {}
        checked: list[Checked] = []
        for signature in self.signatures:
            one = _checked(signature, data, others)
            if one.key is not None and one.problem is None:
                if one.key in found:
                    continue  # a second signature of the same key says nothing more
                found[one.key] = len(checked)
            checked.append(one)
        return checked

    def to_json(self) -> str:
        """The envelope as the JSON that DSSE defines."""
        body = {
            "payloadType": self.payload_type,
            "payload": base64.b64encode(self.payload).decode(),
            "signatures": [
                {"keyid": one.keyid, "sig": base64.b64encode(one.sig).decode()} for one in self.signatures
            ],
        }
        return json.dumps(body, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Envelope:
        """The envelope of a DSSE JSON text.

        Raises:
            InvalidInput: It is none.
        """
        try:
            body = strict_json(text)
            return cls(
                payload_type=_of_type(body["payloadType"], str),
                payload=_from_base64(body["payload"]),
                signatures=tuple(
                    Signature(_of_type(one.get("keyid") or "", str), _from_base64(one["sig"]))
                    for one in _of_type(body["signatures"], list)
                ),
            )
        except KeyError as error:
            raise InvalidInput(f"this is not a DSSE envelope: it lacks {error}") from error
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidInput(f"this is not a DSSE envelope: {error}") from error

    def to_plain(self) -> dict[str, Any]:
        """The envelope as part of a record: bytes are bytes."""
        return {
            "payloadType": self.payload_type,
            "payload": self.payload,
            "signatures": [{"keyid": one.keyid, "sig": one.sig} for one in self.signatures],
        }

    @classmethod
    def from_plain(cls, value: Any) -> Envelope:
        """The envelope of a record.

        Raises:
            Corrupt: The record has something else there.
        """
        try:
            if set(value) != {"payloadType", "payload", "signatures"}:
                raise Corrupt(f"an envelope has payloadType, payload and signatures, not {sorted(value)}")
            return cls(
                payload_type=_of_type(value["payloadType"], str),
                payload=_of_type(value["payload"], bytes),
                signatures=tuple(
                    Signature(_of_type(one["keyid"], str), _of_type(one["sig"], bytes))
                    for one in _of_type(value["signatures"], list)
                ),
            )
        except (AttributeError, InvalidInput, KeyError, TypeError) as error:
            raise Corrupt(f"the envelope in the record is broken: {error}") from error


def strict_json(text: str | bytes) -> Any:
    """The value of a JSON text that means the same to every reader.

    Raises:
        ValueError: It is no JSON, has one name twice in an object, or is nested deeper than :data:`MAX_DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_once_each)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for one in level for item in _items(one)]
        if not level:
            return value
    raise ValueError("it is nested too deep")


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _once_each(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _checked(signature: Signature, data: bytes, others: list[PublicKey]) -> Checked:
    if is_key_text(signature.keyid):
        try:
            key = PublicKey.parse(signature.keyid)
        except InvalidInput as error:
            return Checked(signature.keyid, None, str(error))
        right = key.matches(signature.sig, data)
        return Checked(signature.keyid, key, None if right else "the signature is wrong")
    for key in others:
        if key.matches(signature.sig, data):
            return Checked(signature.keyid, key, None)
    return Checked(
        signature.keyid, None, f"the key {signature.keyid[:80]!r} is not known here, so nothing is proved"
    )


def _of_type(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.80} is no {kind.__name__}")
    return value


def _from_base64(text: Any) -> bytes:
    """The bytes of standard or URL-safe base64: DSSE allows both."""
    try:
        data = _of_type(text, str).encode("ascii").translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(f"{text!r:.80} is no base64: {error}") from error
