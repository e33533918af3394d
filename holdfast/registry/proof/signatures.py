"""Who signed what, as one home sees it: its keys, the attestations it can find, and what it requires."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from holdfast.errors import HoldfastError
from holdfast.registry.proof.attestations import read_attestation, sign, store_attestation
from holdfast.registry.proof.envelopes import Envelope
from holdfast.registry.proof.key_ring import USER_KEY
from holdfast.registry.proof.policy import check_signed
from holdfast.registry.proof.statements import VOUCH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from holdfast.registry.proof.attestations import Attestations
    from holdfast.registry.proof.key_ring import KeyRing
    from holdfast.registry.proof.keys import PublicKey
    from holdfast.storage.cid import Cid
    from holdfast.storage.content import ContentStore

__all__ = ["Signatures", "Signed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """One signature that is said to be on something, checked just now."""

    subject: Cid
    attestation: Cid
    keyid: str
    """Whose it is, or claims to be."""
    key: PublicKey | None
    """Whose it is; None where that can't be told."""
    name: str | None
    """What this home calls the key; None for a key that it does not know."""
    predicate_type: str
    """What kind of statement was signed; empty if that can't be read."""
    claims: Mapping[str, Any]
    """What was said; worth nothing where there is a ``problem``."""
    problem: str | None
    """Why it proves nothing; None if it is right."""

    @property
    def vouches(self) -> bool:
        """Whether somebody stands for the subject: a right signature under "I vouch for this"."""
        return self.problem is None and self.predicate_type == VOUCH

    @property
    def who(self) -> str:
        """The signer in words: the name here and the key."""
        return f"{self.name} ({self.keyid})" if self.name else f"the unknown key {self.keyid}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "subject": str(self.subject),
            "attestation": str(self.attestation),
            "keyid": self.keyid,
            "name": self.name,
            "predicate_type": self.predicate_type,
            "claims": dict(self.claims),
            "ok": self.problem is None,
            "problem": self.problem,
        }


class Signatures:
    """Signing, looking up and requiring signatures in one home.

    Args:
        store: Where records are.
        attestations: Finds attestations by what they are about.
        keys: Of the home.
        required: The home's own policy, as ``registry.require_signed_by``: names or keys, of which one must have signed what is
            loaded or served. No caller can ask for less.
    """

    def __init__(
        self,
        store: ContentStore,
        attestations: Attestations,
        keys: KeyRing,
        *,
        required: Sequence[str] = (),
    ) -> None:
        self.store = store
        self.attestations = attestations
        self.keys = keys
        self.required = tuple(required)

    def sign(self, subject: Cid, *, key: str = USER_KEY, claims: Mapping[str, Any] | None = None) -> Cid:
        """Vouch for something, and for everything that it links; gives the attestation's CID.

        Args:
            subject: A model, a dataset, or any other CID that is here.
            key: The name of one of this home's own keys; ``user`` is made at first use.
            claims: What to say with it, as plain JSON values.

        Raises:
            NotFound: There is no such key, or nobody has the subject.
            InvalidInput: The claims are no plain JSON values with names.
        """
        return sign(self.store, self.attestations, subject, self.keys.own(key), predicate=claims)

    def of(self, subjects: Sequence[Cid]) -> dict[Cid, list[Signed]]:
        """Every signature on each of these, checked now; those without any are left out.

        A signature that is missing or wrong is in the list, with its ``problem``: the table may be anybody's work.
        """
        entries = self.attestations.find(subjects)
        names = self.keys.names() if entries else {}
        found: defaultdict[Cid, list[Signed]] = defaultdict(list)
        done: set[tuple[Cid, Cid]] = set()
        for entry in entries:
            if (entry.subject, entry.attestation) not in done:  # one entry for each of its signers
                done.add((entry.subject, entry.attestation))
                found[entry.subject] += self._signed(entry.subject, entry.attestation, entry.keyid, names)
        return dict(found)

    def require(self, subject: Cid, signed_by: Sequence[str] | None = None) -> None:
        """Return if the home's policy, and the caller's, let this be used; see :func:`~holdfast.registry.proof.check_signed`.

        Raises:
            Denied: It is not signed by whom it must be.
        """
        check_signed(self, subject, signed_by)

    def export(self, attestation: Cid) -> str:
        """An attestation as DSSE JSON, which other tools can check."""
        return read_attestation(self.store, attestation).envelope.to_json()

    def add(self, envelope: str | bytes) -> Cid:
        """Keep an attestation that came as DSSE JSON; gives its CID.

        Raises:
            InvalidInput: It is none about CIDs, or nobody's signature on it is right.
            Corrupt: A signature is wrong.
            NotFound: What it is about is not here.
        """
        cid = store_attestation(self.store, Envelope.from_json(envelope))
        self.attestations.add(cid)
        return cid

    def _signed(self, subject: Cid, cid: Cid, keyid: str, names: Mapping[PublicKey, str]) -> list[Signed]:
        def one(
            problem: str | None, keyid: str, key: PublicKey | None, kind: str, claims: Mapping[str, Any]
        ) -> Signed:
            return Signed(
                subject=subject,
                attestation=cid,
                keyid=keyid,
                key=key,
                name=names.get(key) if key is not None else None,
                predicate_type=kind,
                claims=claims,
                problem=problem,
            )

        try:
            found = read_attestation(self.store, cid)
        except HoldfastError as error:
            return [one(str(error), keyid, None, "", {})]
        about = found.statement
        problem = None if subject in about.subjects else f"the attestation {cid} is about something else"
        checked = found.envelope.check(names)
        return [
            one(
                problem or check.problem,
                str(check.key or check.keyid),
                check.key,
                about.predicate_type,
                about.predicate,
            )
            for check in checked
        ] or [one(f"the attestation {cid} has no signature", keyid, None, about.predicate_type, {})]
