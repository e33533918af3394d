"""in-toto statements about CIDs: what was said, about what, in the form that other tools read.

A subject's name is its CID, and its digest that of the CID's block, so ``sha256sum`` of the block is all that a stranger needs.
The format is in-toto's Statement v1 (https://in-toto.io/Statement/v1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from holdfast.errors import Corrupt, InvalidInput
from holdfast.registry.proof.envelopes import strict_json
from holdfast.registry.records import ModelRecord, RunRecord, load_record
from holdfast.storage.cid import Cid, read_varint

if TYPE_CHECKING:
    from holdfast.storage.content import ContentStore

__all__ = ["PAYLOAD_TYPE", "SLSA_PROVENANCE", "VOUCH", "Statement", "slsa_provenance"]

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
VOUCH = "urn:holdfast:vouch:v1"
"""The predicate "I vouch for this", with whatever claims the signer adds. The one kind of statement that lets a policy pass."""
SLSA_PROVENANCE = "https://slsa.dev/provenance/v1"
TRAINING = "urn:holdfast:training:v1"
"""The ``buildType`` of a training run in SLSA provenance."""
MAX_SUBJECTS = 1024
_ALGORITHMS = {"sha2-256": "sha256", "blake3": "blake3"}
"""Names of hash functions in a digest set, by our names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """Something that is said about some CIDs.

    Raises:
        InvalidInput: It is about nothing, or about too much; its type is no URI, or what is said has no names.
    """

    subjects: tuple[Cid, ...]
    predicate_type: str = VOUCH
    """A URI: what kind of statement it is."""
    predicate: Mapping[str, Any] = field(default_factory=dict)
    """What is said; of a :data:`VOUCH`, the claims."""

    def __post_init__(self) -> None:
        if not 0 < len(self.subjects) <= MAX_SUBJECTS:
            raise InvalidInput(f"a statement is about 1 to {MAX_SUBJECTS} things, not {len(self.subjects)}")
        if len(set(self.subjects)) != len(self.subjects):
            raise InvalidInput("a statement names each of its subjects once")
        # People read it beside the signer's name, so it may not look like something else.
        if not _is_uri(self.predicate_type):
            raise InvalidInput(f"the type of a statement is a URI, not {self.predicate_type!r:.200}")
        if not isinstance(self.predicate, Mapping):
            raise InvalidInput(
                f"claims are names with values, such as {{'reviewed': True}}, not {self.predicate!r:.100}"
            )

    def to_payload(self) -> bytes:
        """The statement as the bytes to sign; the same for the same statement.

        Raises:
            InvalidInput: A claim is no plain JSON value, or a subject's hash is none that others know.
        """
        body = {
            "_type": STATEMENT,
            "subject": [{"name": str(cid), "digest": _digest(cid)} for cid in self.subjects],
            "predicateType": self.predicate_type,
            "predicate": dict(self.predicate),
        }
        try:
            text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
            if strict_json(text) != body:
                raise InvalidInput("claims have text keys and plain JSON values only")
        except (RecursionError, TypeError, ValueError) as error:
            raise InvalidInput(f"claims have text keys and plain JSON values only: {error}") from error
        return text.encode()

    @classmethod
    def from_payload(cls, payload: bytes) -> Statement:
        """The statement in signed bytes.

        Raises:
            Corrupt: It is no statement about CIDs, or a subject's digest is not that of its CID.
        """
        try:
            body = strict_json(payload)
            kind, predicate_type, predicate = (
                body["_type"],
                body["predicateType"],
                body.get("predicate"),
            )
            subjects = tuple(_subject(one) for one in body["subject"])
        except Corrupt:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Corrupt(f"this is not an in-toto statement about CIDs: {error!r:.200}") from error
        if kind != STATEMENT:
            raise Corrupt(f"the statement has the type {kind!r:.80}, not {STATEMENT}")
        predicate = {} if predicate is None else predicate
        if not isinstance(predicate, dict) or not isinstance(predicate_type, str):
            raise Corrupt("the statement's predicate is no object, or its type no text")
        try:
            return cls(subjects=subjects, predicate_type=predicate_type, predicate=predicate)
        except InvalidInput as error:
            raise Corrupt(str(error)) from error


def _is_uri(text: Any) -> bool:
    return isinstance(text, str) and ":" in text and text.isprintable() and " " not in text


def _digest(cid: Cid) -> dict[str, str]:
    algorithm = _ALGORITHMS.get(cid.hash_name)
    if algorithm is None:
        raise InvalidInput(
            f"{cid} can't be signed: its hash is {cid.hash_name}, not {' or '.join(_ALGORITHMS)}"
        )
    _, at = read_varint(cid.multihash, 1)
    return {algorithm: cid.multihash[at:].hex()}


def _subject(value: dict[str, Any]) -> Cid:
    cid = Cid.parse(value["name"])
    if value["digest"] != _digest(cid):
        raise Corrupt(
            f"the statement gives {cid} the digest {value['digest']!r:.100}, which is another one's"
        )
    return cid


def slsa_provenance(store: ContentStore, model: Cid, *, builder: str) -> dict[str, Any]:
    """The SLSA v1 provenance of a model: how its run made it, for :data:`SLSA_PROVENANCE`.

    Args:
        store: Has the model's manifest and its run.
        model: The manifest.
        builder: Who says so, as a URI or a key.

    Raises:
        InvalidInput: The model was not made by a recorded run.
    """
    record = load_record(store, model, ModelRecord)
    if record.run is None:
        raise InvalidInput(f"model {model} has no recorded run, so nothing is known of how it was made")
    run = load_record(store, record.run, RunRecord)
    made_from = {"code": run.code, "data": run.data, "environment": run.environment}
    return {
        "buildDefinition": {
            "buildType": TRAINING,
            "externalParameters": {
                "config": dict(run.config),
                "seed": run.seed,
                "workers": run.workers,
                "threads_per_worker": run.threads_per_worker,
            },
            "resolvedDependencies": [
                {"name": name, "uri": f"ipfs://{cid}", "digest": _digest(cid)}
                for name, cid in made_from.items()
            ],
        },
        "runDetails": {
            "builder": {"id": builder},
            "byproducts": [
                {"name": "run", "uri": f"ipfs://{record.run}", "digest": _digest(record.run)},
            ],
        },
    }
