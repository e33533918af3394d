"""What a home lets in: models that somebody it names has signed, and pickles only of those it trusts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from holdfast.errors import Denied, InvalidInput
from holdfast.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from holdfast.registry.proof.keys import PublicKey
    from holdfast.registry.proof.signatures import Signatures, Signed
    from holdfast.storage.cid import Cid

__all__ = ["check_signed", "check_trusted", "required_signers"]


def check_signed(
    signatures: Signatures, subject: Cid, signed_by: Sequence[str | PublicKey] | None = None
) -> list[Signed]:
    """The signatures because of which ``subject`` may be used; an empty list where nothing is required.

    The home's own policy (``registry.require_signed_by``) always holds; the caller's comes on top of it. Of each, one signer
    is enough, and only "I vouch for this" counts: a signed warning is no permission.

    Args:
        signatures: Of the home.
        subject: What is about to be used; what it links is covered, because its CID covers it.
        signed_by: The caller's policy: names or keys; None requires no more than the home does.

    Raises:
        Denied: Nobody of them signed it; the message says who did, and who would have to.
        NotFound: A name in the policy is no key's.
        InvalidInput: The caller's policy names nobody, or is a text in place of a list.
    """
    policies = required_signers(signatures, signed_by)
    if not policies:
        return []
    found = signatures.of([subject]).get(subject, [])
    passed: list[Signed] = []
    for wanted in policies:
        right = [one for one in found if one.vouches and one.key in wanted]
        if not right:
            raise Denied(
                f"{subject} {_who_signed(found)}, but {_any_of(wanted)} must have signed it: let the owner of such a key run "
                f"'holdfast sign {subject}', or change the policy (require_signed_by)"
            )
        passed += right
    return passed


def check_trusted(signatures: Signatures, subject: Cid, *, what: str) -> list[Signed]:
    """The right signatures on ``subject`` of keys that this home trusts, or owns: there is at least one.

    For what can run code when it is read, such as a pickle: that somebody asked for it is not enough.

    Args:
        signatures: Of the home.
        subject: What is about to be read.
        what: What it is, as the subject of a sentence: ``"the pickle in model bafy..."``.

    Raises:
        Denied: Nobody whom this home trusts vouches for it; the message says how that is done.
    """
    passed = [
        one for one in signatures.of([subject]).get(subject, []) if one.vouches and one.name is not None
    ]
    if not passed:
        raise Denied(
            f"{what} can run any code when it is read, so it is read only if somebody trusted vouches for {subject}, which "
            f"{_who_signed(signatures.of([subject]).get(subject, []))}: 'holdfast keys trust NAME KEY' trusts a signer, "
            f"'holdfast sign {subject}' vouches for it yourself"
        )
    return passed


def required_signers(
    signatures: Signatures, signed_by: Sequence[str | PublicKey] | None = None
) -> list[dict[PublicKey, str]]:
    """The home's policy and the caller's, as far as there are any: the keys of each, with the words for them.

    Raises:
        NotFound: A name is no key's.
        InvalidInput: The caller's names nobody, or is a text in place of a list.
    """
    if signed_by is not None:
        if not isinstance(signed_by, Collection) or isinstance(signed_by, str):
            raise InvalidInput(f"require_signed_by is a list of names or keys: [{signed_by!r}]")
        if not signed_by:
            raise InvalidInput(
                "require_signed_by names nobody, so nothing could pass: leave it out, or name somebody"
            )
    return [_resolved(signatures, policy) for policy in (signatures.required, signed_by) if policy]


def _resolved(signatures: Signatures, policy: Iterable[str | PublicKey]) -> dict[PublicKey, str]:
    """The keys that a policy names, each with the words for it."""
    from holdfast.registry.proof.keys import PublicKey

    names = signatures.keys.names()
    for one in policy:
        if not isinstance(one, (str, PublicKey)):
            raise InvalidInput(f"require_signed_by has {one!r:.80} in it, which is no name and no key")
    keys = [one if isinstance(one, PublicKey) else signatures.keys.resolve(one) for one in policy]
    return {key: f"{names[key]} ({key})" if key in names else str(key) for key in keys}


def _any_of(wanted: dict[PublicKey, str]) -> str:
    words = list(wanted.values())
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _who_signed(found: Sequence[Signed]) -> str:
    if not found:
        return "is signed by nobody"
    right = dict.fromkeys(one.who for one in found if one.vouches)
    other = dict.fromkeys(
        f"{one.who} (who does not vouch for it, but states {one.predicate_type})"
        for one in found
        if one.problem is None and not one.vouches
    )
    wrong = [f"wrongly as {one.keyid}: {one.problem}" for one in found if one.problem is not None]
    return printable(f"is signed by {', '.join([*right, *other, *wrong])}")
