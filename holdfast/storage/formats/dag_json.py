"""DAG-JSON: records as JSON that people can read, with links and bytes in it.

The values are those of :mod:`~holdfast.storage.formats.dag_cbor`, and equal values give equal bytes. Source:
https://ipld.io/specs/codecs/dag-json/spec/. As that asks for, the reader takes whitespace and unsorted keys, which older
writers left; ``canonical=True`` refuses them.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections import Counter
from typing import Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.storage.cid import Buffer, Cid

__all__ = ["decode", "encode"]

MAX_DEPTH = 128
_LEAST, _MOST = -(1 << 64), (1 << 64) - 1  # what DAG-CBOR can hold
_MAX_INT_CHARS = 21
_quoted = json.JSONEncoder(ensure_ascii=False).encode


def encode(value: Any) -> bytes:
    """``value`` as canonical DAG-JSON.

    Args:
        value: None, bool, int (64 bits), finite float, str, bytes, Cid, and lists, tuples and
            dicts (text keys) of these.

    Raises:
        InvalidInput: Something else is in it, or a dict that would be read as a link or as bytes; the message says where.
    """
    out: list[str] = []
    _encode(value, out, "", 0)
    text = "".join(out)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"a text in the record is not valid Unicode: {error}") from error


def _encode(  # noqa: C901 -- one branch for each type
    value: Any, out: list[str], path: str, depth: int
) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"a record is nested deeper than {MAX_DEPTH} at {path[:80]!r}")
    if value is None or isinstance(value, bool):
        out.append({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, int):
        if not _LEAST <= value <= _MOST:
            raise InvalidInput(f"the integer at {path!r} does not fit into 64 bits")
        out.append(str(int(value)))
    elif isinstance(value, float):
        out.append(_float_text(value, path))
    elif isinstance(value, str):
        out.append(_quoted(value))
    elif isinstance(value, (bytes, bytearray, memoryview)):
        out.append(f'{{"/":{{"bytes":"{_base64(memoryview(value).tobytes())}"}}}}')
    elif isinstance(value, Cid):
        out.append(f'{{"/":"{value}"}}')
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            out.append("," if index else "[")
            _encode(item, out, f"{path}/{index}", depth + 1)
        out.append("]" if value else "[]")
    elif isinstance(value, dict):
        _encode_map(value, out, path, depth)
    else:
        raise InvalidInput(f"a record can't hold a {type(value).__name__} (at {path!r}): {str(value)[:60]}")


def _encode_map(value: dict[Any, Any], out: list[str], path: str, depth: int) -> None:
    for key in value:
        if not isinstance(key, str):
            raise InvalidInput(f"a key at {path!r} is {type(key).__name__}, not text: {key!r}")
    keys = sorted(value, key=_utf8)
    if keys and keys[0] == "/" and _is_reserved(value["/"]):
        raise InvalidInput(
            f"the map at {path!r} would be read as a link or as bytes in DAG-JSON, because its first key is '/'"
        )
    for index, key in enumerate(keys):
        out.append(("," if index else "{") + _quoted(key) + ":")
        _encode(value[key], out, f"{path}/{key}", depth + 1)
    out.append("}" if keys else "{}")


def _utf8(key: str) -> bytes:
    return key.encode("utf-8", "surrogatepass")


def _is_reserved(value: Any) -> bool:
    """Whether a first key ``/`` with this value says that the map is a link or bytes."""
    if isinstance(value, dict) and isinstance(value.get("bytes"), str):
        return bool(min(value, key=_utf8) == "bytes")
    return isinstance(value, str)


def _float_text(value: float, path: str) -> str:
    """The shortest digits that give the number, laid out as JavaScript does, with a point if there is none."""
    if not math.isfinite(value):
        raise InvalidInput(f"a record can't hold {value} (at {path!r}): DAG-JSON has finite floats only")
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    digits, _, exponent_text = f"{abs(value)!r}".partition("e")
    whole, _, fraction = digits.partition(".")
    fraction = "" if fraction == "0" else fraction
    point = len(whole) + int(exponent_text or 0)  # where the point is in the digits
    digits = whole + fraction
    point -= len(digits) - len(digits.lstrip("0"))
    digits = digits.strip("0")
    if not digits:
        return f"{sign}0.0"
    if 0 < point <= 21:
        return f"{sign}{digits[:point].ljust(point, '0')}.{digits[point:] or '0'}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else "")
    return f"{sign}{mantissa}e{point - 1:+d}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()


def decode(data: Buffer, *, canonical: bool = False) -> Any:
    """The value of a DAG-JSON block.

    Args:
        data: The block.
        canonical: Refuse bytes that :func:`encode` would not give for the value.

    Raises:
        Corrupt: The bytes are not DAG-JSON; for example a key is there twice, or a link is no CID.
    """
    try:
        value = json.loads(
            bytes(data).decode(),
            object_pairs_hook=_map,
            parse_int=_int,
            parse_float=_float,
            parse_constant=_constant,
        )
        written = encode(value)  # what can't be written must not be read either
    except Corrupt:
        raise
    except (ValueError, RecursionError) as error:
        raise Corrupt(f"the block is not DAG-JSON: {error}") from error
    if canonical and written != data:
        raise Corrupt(
            "the DAG-JSON block is not canonical: keys out of order, whitespace, or another spelling"
        )
    return value


def _map(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise Corrupt(f"the key {twice[:100]!r} of a DAG-JSON map is there twice")
    if len(value) == 1 and "/" in value:
        inner = value["/"]
        if isinstance(inner, str):
            return _link(inner)
        if isinstance(inner, dict) and len(inner) == 1 and isinstance(inner.get("bytes"), str):
            return _bytes(inner["bytes"])
    return value


def _link(text: str) -> Cid:
    try:
        cid = Cid.parse(text)
    except InvalidInput as error:
        raise Corrupt(f"a link in the DAG-JSON block is broken: {error}") from error
    if str(cid) != text:
        raise Corrupt(f"a link in the DAG-JSON block is not in base32 (version 0: base58): {text[:100]!r}")
    return cid


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Corrupt(f"bytes in the DAG-JSON block are not base64: {error}") from error
    if _base64(data) != text:
        raise Corrupt("bytes in the DAG-JSON block have padding, or bits behind their end")
    return data


def _int(text: str) -> int:
    if len(text) > _MAX_INT_CHARS or not _LEAST <= int(text) <= _MOST:
        raise Corrupt(f"the integer {text[:40]} in the DAG-JSON block does not fit into 64 bits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Corrupt(f"the number {text[:40]} in the DAG-JSON block is too large")
    return number


def _constant(text: str) -> float:
    raise Corrupt(f"DAG-JSON has no {text}")
