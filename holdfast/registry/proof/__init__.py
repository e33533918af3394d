"""Proof: who stands for a model, and whether it is made of what it says.

:mod:`.keys` and :mod:`.key_ring` hold keys, :mod:`.envelopes` and :mod:`.statements` are the public formats, :mod:`.attestations`
keeps signed statements by CID, :mod:`.signatures` is what one home sees of them, :mod:`.policy` what it lets in, and
:mod:`.verifying` walks everything that a CID was made from.
"""

from __future__ import annotations

from holdfast.registry.proof.attestations import (
    Attestation,
    AttestationEntry,
    Attestations,
    SqliteAttestations,
    read_attestation,
    sign,
)
from holdfast.registry.proof.envelopes import Envelope, Signature, pae
from holdfast.registry.proof.key_ring import NODE_KEY, USER_KEY, KeyRing
from holdfast.registry.proof.keys import PublicKey, SigningKey
from holdfast.registry.proof.lineage_node import LineageNode
from holdfast.registry.proof.policy import check_signed, check_trusted
from holdfast.registry.proof.signatures import Signatures, Signed
from holdfast.registry.proof.statements import SLSA_PROVENANCE, VOUCH, Statement, slsa_provenance
from holdfast.registry.proof.verifying import verify

__all__ = [
    "NODE_KEY",
    "SLSA_PROVENANCE",
    "USER_KEY",
    "VOUCH",
    "Attestation",
    "AttestationEntry",
    "Attestations",
    "Envelope",
    "KeyRing",
    "LineageNode",
    "PublicKey",
    "Signature",
    "Signatures",
    "Signed",
    "SigningKey",
    "SqliteAttestations",
    "Statement",
    "check_signed",
    "check_trusted",
    "pae",
    "read_attestation",
    "sign",
    "slsa_provenance",
    "verify",
]
