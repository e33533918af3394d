"""Attestations: signed statements as records, and the table that finds them by what they are about."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from holdfast.errors import Corrupt, InvalidInput, NotFound
from holdfast.registry.proof.envelopes import Envelope
from holdfast.registry.proof.keys import SigningKey
from holdfast.registry.proof.statements import PAYLOAD_TYPE, VOUCH, Statement
from holdfast.registry.records import AttestationRecord, load_record
from holdfast.storage.cid import DAG_CBOR, Cid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from holdfast.registry.database import Database
    from holdfast.registry.proof.keys import PublicKey
    from holdfast.storage.content import ContentStore

__all__ = [
    "Attestation",
    "AttestationEntry",
    "Attestations",
    "SqliteAttestations",
    "read_attestation",
    "sign",
    "store_attestation",
]

_AT_ONCE = 500
MAX_FIND = 10_000
"""Subjects that can be asked for in one call."""
_MARK = b"dkindkattestation"
"""The kind, as canonical DAG-CBOR writes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationEntry:
    """One row of the table: this key signed that attestation, which is about this subject."""

    subject: Cid
    attestation: Cid
    keyid: str
    """The key's text."""
    time: float
    """When it came into the table, in seconds since 1970; signed by nobody."""

    def to_json(self) -> dict[str, Any]:
        """Plain values; :meth:`from_json` reads them."""
        return {
            "subject": str(self.subject),
            "attestation": str(self.attestation),
            "keyid": self.keyid,
            "time": self.time,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> AttestationEntry:
        """The entry that :meth:`to_json` wrote."""
        cids = {name: Cid.parse(body[name]) for name in ("subject", "attestation")}
        return cls(**{**body, **cids})


class Attestations(Protocol):
    """Where attestations are found: a home's own table, or a master's over HTTP. Neither is believed: who finds one checks it."""

    def add(self, attestation: Cid) -> list[AttestationEntry]:
        """Note a stored attestation, and keep it; doing it twice is fine.

        Raises:
            InvalidInput: It is no attestation, or nobody's signature on it is right.
            Corrupt: It contradicts itself, or a signature is wrong.
            NotFound: A subject is not where the names are.
        """
        ...

    def find(self, subjects: Sequence[Cid]) -> list[AttestationEntry]:
        """The entries that are about any of these, oldest first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """One attestation, read and in agreement with itself; its signatures are not checked yet."""

    cid: Cid
    envelope: Envelope
    statement: Statement

    @classmethod
    def of_record(cls, cid: Cid, record: AttestationRecord) -> Attestation:
        """The attestation in a record.

        Raises:
            Corrupt: Its links are not the subjects of what was signed, or it is broken in another way.
        """
        try:
            envelope = Envelope.from_plain(record.envelope)
            statement = _statement_of(envelope)
        except (Corrupt, InvalidInput) as error:
            raise Corrupt(f"the attestation {cid} is broken: {error}") from error
        if statement.subjects != tuple(record.subjects):
            raise Corrupt(
                f"the attestation {cid} links {', '.join(map(str, record.subjects)) or 'nothing'}, but what was signed is about "
                f"{', '.join(map(str, statement.subjects))}"
            )
        return cls(cid=cid, envelope=envelope, statement=statement)

    @property
    def vouches(self) -> bool:
        """Whether it says "I vouch for this", and not something else."""
        return self.statement.predicate_type == VOUCH

    def check(self) -> list[PublicKey]:
        """The keys that signed it, where it can be kept.

        Raises:
            Corrupt: A signature is wrong.
            InvalidInput: No signature is by a key that it names.
        """
        by_key = [one for one in self.envelope.check() if one.key is not None]
        wrong = next((one for one in by_key if one.problem), None)
        if wrong is not None:
            raise Corrupt(f"the attestation {self.cid} can't be kept: {wrong.keyid}: {wrong.problem}")
        if not (signers := [one.key for one in by_key if one.key is not None]):
            raise InvalidInput(
                f"the attestation {self.cid} can't be kept: none of its signatures is by an Ed25519 key that it names"
            )
        return signers

    def signers(self, others: Iterable[PublicKey] = ()) -> list[PublicKey]:
        """The keys whose signatures are right.

        Args:
            others: Keys to try for signatures that don't say whose they are.
        """
        return [one.key for one in self.envelope.check(others) if one.key is not None and not one.problem]


def store_attestation(store: ContentStore, envelope: Envelope) -> Cid:
    """Store an envelope as a record that links its subjects.

    Raises:
        InvalidInput: Its payload is no in-toto statement.
        Corrupt: As above, or it is not about CIDs.
    """
    subjects = _statement_of(envelope).subjects
    return AttestationRecord(subjects=subjects, envelope=envelope.to_plain()).store(store)


def read_attestation(store: ContentStore, cid: Cid) -> Attestation:
    """The attestation of a CID.

    Raises:
        NotFound: Nobody has it.
        InvalidInput: It is another kind of record.
        Corrupt: Its links are not the subjects of what was signed, or it is broken in another way.
    """
    return Attestation.of_record(cid, load_record(store, cid, AttestationRecord))


def _statement_of(envelope: Envelope) -> Statement:
    if envelope.payload_type != PAYLOAD_TYPE:
        raise InvalidInput(
            f"the envelope holds {envelope.payload_type[:80]!r}, not a statement ({PAYLOAD_TYPE})"
        )
    return Statement.from_payload(envelope.payload)


def sign(
    store: ContentStore,
    attestations: Attestations,
    subjects: Cid | Sequence[Cid],
    key: SigningKey | Sequence[SigningKey],
    *,
    predicate: Mapping[str, Any] | None = None,
    predicate_type: str = VOUCH,
) -> Cid:
    """Sign a statement about one or more CIDs; gives the attestation's CID, which is the same for the same statement and keys.

    Args:
        store: Has the subjects, and gets the attestation.
        attestations: Where it is found again.
        subjects: What it is about, each with everything that it links.
        key: Whose signature; several sign the same statement.
        predicate: What is said; of a :data:`VOUCH`, free claims.
        predicate_type: What kind of statement it is.

    Raises:
        NotFound: Nobody has a subject.
        InvalidInput: The claims are no plain JSON values with names.
    """
    about = (subjects,) if isinstance(subjects, Cid) else tuple(subjects)
    keys = [key] if isinstance(key, SigningKey) else list(key)
    statement = Statement(
        subjects=about, predicate_type=predicate_type, predicate={} if predicate is None else predicate
    )
    payload = statement.to_payload()
    for cid in about:
        store.stat(cid)  # nobody should sign what is not there to be looked at
    cid = store_attestation(store, Envelope.signed(PAYLOAD_TYPE, payload, keys))
    attestations.add(cid)
    return cid


class SqliteAttestations:
    """The attestations of one home: a table that can be made again from the records."""

    def __init__(self, database: Database, store: ContentStore) -> None:
        self._database = database
        self._store = store

    def add(self, attestation: Cid) -> list[AttestationEntry]:
        """Note a stored attestation, and keep it; see :class:`Attestations`."""
        found = read_attestation(self._store, attestation)
        signers = found.check()
        for subject in found.statement.subjects:
            if not self._store.blocks.has(subject):
                raise NotFound(f"{subject} is not in this store, so what is said about it can't be kept here")
        # Held before it is noted: a crash between the two keeps too much, never too little.
        self._store.hold(_label(attestation), attestation, recursive=False)
        now = time.time()
        with self._database.writing() as sql:
            sql.executemany(
                "INSERT OR IGNORE INTO attestations VALUES (?, ?, ?, ?)",
                [
                    (str(subject), str(attestation), str(key), now)
                    for subject in found.statement.subjects
                    for key in signers
                ],
            )
        return [entry for entry in self.find(found.statement.subjects) if entry.attestation == attestation]

    def find(self, subjects: Sequence[Cid]) -> list[AttestationEntry]:
        """The entries that are about any of these, oldest first; see :class:`Attestations`."""
        found: list[AttestationEntry] = []
        wanted = [str(cid) for cid in dict.fromkeys(subjects)]
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            rows = self._database.rows(
                f"SELECT * FROM attestations WHERE subject IN ({marks})",  # noqa: S608 -- question marks only
                tuple(some),
            )
            found += [_entry(row) for row in rows]
        return sorted(found, key=lambda one: (one.time, one.attestation, one.keyid))

    def tidy(self) -> list[Cid]:
        """Forget attestations none of whose subjects are in this store any more; gives those.

        Their bytes go with the next garbage collection.
        """
        about: defaultdict[Cid, set[Cid]] = defaultdict(set)
        for row in self._database.rows("SELECT DISTINCT subject, attestation FROM attestations"):
            about[Cid.parse(row["attestation"])].add(Cid.parse(row["subject"]))
        gone = [
            cid for cid, subjects in about.items() if not any(self._store.blocks.has(one) for one in subjects)
        ]
        with self._database.writing() as sql:
            sql.executemany("DELETE FROM attestations WHERE attestation = ?", [(str(cid),) for cid in gone])
        for cid in gone:
            if self._store.pins is not None:
                self._store.pins.release(_label(cid))
        return gone

    def rebuild(self) -> int:
        """Look through every block of the store for attestations, and note those that can be kept; gives their number."""
        kept = 0
        for multihash in self._store.blocks.multihashes():
            cid = Cid(bytes((1, DAG_CBOR)) + multihash)
            try:
                if _MARK not in bytes(memoryview(self._store.blocks.get(cid))):
                    continue
                self.add(cid)
            except (Corrupt, InvalidInput, NotFound):
                continue  # it only looks like one, what it is about is not here, or the block is bad: 'fsck' tells
            kept += 1
        return kept


def _label(attestation: Cid) -> str:
    return f"attestation {attestation}"


def _entry(row: Any) -> AttestationEntry:
    return AttestationEntry(
        subject=Cid.parse(row["subject"]),
        attestation=Cid.parse(row["attestation"]),
        keyid=row["keyid"],
        time=row["time"],
    )
