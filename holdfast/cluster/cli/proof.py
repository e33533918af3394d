"""``verify``, ``sign``, ``signatures``, ``keys``: what something is made of, and who stands for it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.cluster.cli.output import Progress, open_client, show, table
from holdfast.config import load_settings
from holdfast.errors import InvalidInput, NotFound, disk_errors

if TYPE_CHECKING:
    import argparse

    from holdfast.registry.proof import KeyRing

__all__ = ["add_commands"]

_REF = "a CID, name, name:1.0.0 or name@alias"
_FAILED = 1
"""The exit status of a verification that found something wrong: nothing failed but what was looked at."""
_VERIFY_HELP = """\
Reads and hashes every record that a model was made from, and looks whether they agree, who signed them, and whether files and rows
are there. A wrong byte in the middle of a file is found with --deep only. Exit status 1 where anything is wrong, with the exact way
to it. Where a dataset and a model have one name, dataset/wine means the dataset; the model is meant otherwise.

examples:
  holdfast verify digits@champion
  holdfast verify digits@champion --deep                      hash every byte, on all processors
  holdfast verify dataset/wine:1.0.0                          the dataset, where a model is called so, too
  holdfast verify digits@champion --require-signed-by alice   and it must be alice who stands for it
"""
_SIGN_HELP = """\
Says "I vouch for this" about a CID, which covers everything that it links.

examples:
  holdfast sign digits@champion
  holdfast sign digits:1.0.0 --key release --claims '{"reviewed": "2026-05-02"}'
"""
_SIGNATURES_HELP = """\
examples:
  holdfast signatures digits@champion                  who signed it
  holdfast signatures digits@champion --export DIR     each as a DSSE file, which other tools can check
  holdfast signatures --add FILE                       keep one that came as a DSSE file
"""
_KEYS_HELP = """\
examples:
  holdfast keys list
  holdfast keys show                       your public key, for others to trust
  holdfast keys new release                one more key of your own
  holdfast keys trust alice z6Mk...        from now on alice is somebody
  holdfast keys untrust alice
"""


def add_commands(commands: Any, common: argparse.ArgumentParser, connected: argparse.ArgumentParser) -> None:
    """Add this module's commands."""
    verify = commands.add_parser(
        "verify",
        parents=[connected],
        help="check everything that a model was made from, and print the tree",
        epilog=_VERIFY_HELP,
    )
    verify.add_argument("ref", help=_REF)
    verify.add_argument("--deep", action="store_true", help="hash every byte below, not only the records")
    verify.add_argument(
        "--require-signed-by",
        action="append",
        metavar="SIGNER",
        help="a name or a key: one of those given must have signed it (besides registry.require_signed_by)",
    )
    verify.set_defaults(run=_verify)

    sign = commands.add_parser(
        "sign",
        parents=[connected],
        help="vouch for a model or any CID",
        epilog=_SIGN_HELP,
    )
    sign.add_argument("ref", help=_REF)
    sign.add_argument("--key", default="user", help="which of this home's keys (default: user)")
    sign.add_argument("--claims", default="{}", metavar="JSON", help="what to say with it, as a JSON object")
    sign.set_defaults(run=_sign)

    signatures = commands.add_parser(
        "signatures",
        parents=[connected],
        help="who signed something, checked",
        epilog=_SIGNATURES_HELP,
    )
    signatures.add_argument("ref", nargs="?", help=_REF)
    signatures.add_argument("--export", metavar="DIR", help="write each as <attestation's CID>.dsse.json")
    signatures.add_argument("--add", metavar="FILE", help="keep a signature that came as a DSSE file")
    signatures.set_defaults(run=_signatures)

    keys = commands.add_parser(
        "keys",
        help="this home's keys, and those that it trusts",
        epilog=_KEYS_HELP,
    )
    verbs = keys.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, help_line: str, *examples: str, **options: Any) -> argparse.ArgumentParser:
        epilog = "\n".join(("examples:", *(f"  holdfast keys {name}{example}" for example in examples)))
        parser: argparse.ArgumentParser = verbs.add_parser(
            name, parents=[common], help=help_line, epilog=epilog, **options
        )
        return parser

    listed = verb("list", "all keys that have a name here", "", " --json", aliases=["ls"])
    listed.set_defaults(run=_keys_list)
    new = verb("new", "make one more key of this home's own", " release")
    new.add_argument("name")
    new.set_defaults(run=_keys_new)
    shown = verb("show", "a public key, for others to trust", "", " release")
    shown.add_argument("name", nargs="?", default="user", help="default: user, which is made at first use")
    shown.set_defaults(run=_keys_show)
    trust = verb("trust", "trust somebody's key, and give it a name", " alice z6Mk...")
    trust.add_argument("name")
    trust.add_argument("key", help="as 'holdfast keys show' prints it: z6Mk...")
    trust.set_defaults(run=_keys_trust)
    untrust = verb("untrust", "trust a key no longer", " alice")
    untrust.add_argument("name")
    untrust.set_defaults(run=_keys_untrust)


def _verify(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client, Progress("verify", quiet=not arguments.deep) as progress:

        def tell(more: int, total: int) -> None:
            progress.total = total
            progress(more)

        tree = client.verify(
            arguments.ref,
            deep=arguments.deep,
            require_signed_by=arguments.require_signed_by,
            progress=tell,
        )
    nodes = list(tree.flat())
    blocks, size = sum(node.blocks for node in nodes), sum(node.size_bytes for node in nodes)
    broken = list(tree.broken())
    what = (
        "every byte"
        if arguments.deep
        else "records and the first block of each file; --deep takes every byte"
    )
    lines = [tree.render(), f"{blocks} blocks, {size:,} bytes hashed ({what}): "]
    lines[-1] += f"{len(broken)} WRONG" if broken else "all as their CIDs say"
    lines += [f"broken: {link}" for link in broken]
    show(arguments, tree.to_json(), "\n".join(lines))
    if broken and not arguments.json:
        told = f"{len(broken)} link{'s' * (len(broken) != 1)} of {len(nodes)} parts"
        print(f"holdfast: {arguments.ref} does not verify: {told} broken, see above", file=sys.stderr)
    return _FAILED if broken else 0


def _sign(arguments: argparse.Namespace) -> None:
    try:
        claims = json.loads(arguments.claims)
    except ValueError as error:
        raise InvalidInput(f"--claims is not JSON: {error}") from error
    if not isinstance(claims, dict):
        raise InvalidInput("--claims must be a JSON object")
    with open_client(arguments) as client:
        subject = client.resolve(arguments.ref)
        attestation = client.sign(subject, key=arguments.key, claims=claims)
        key = client.signatures.keys.own(arguments.key).public
    value = {"subject": str(subject), "attestation": str(attestation), "key": str(key), "name": arguments.key}
    show(
        arguments,
        value,
        f"signed       {subject}\nby           {arguments.key} ({key})\nattestation  {attestation}",
    )


def _signatures(arguments: argparse.Namespace) -> None:
    if (arguments.ref is None) == (arguments.add is None):
        raise InvalidInput("give either something that may be signed, or --add FILE")
    with open_client(arguments) as client:
        if arguments.add is not None:
            try:
                envelope = Path(arguments.add).read_bytes()
            except FileNotFoundError:
                raise NotFound(f"there is no file {arguments.add}") from None
            cid = client.signatures.add(envelope)
            show(arguments, {"attestation": str(cid)}, str(cid))
            return
        found = client.signatures.of([client.resolve(arguments.ref)])
        signed = [one for several in found.values() for one in several]
        if arguments.export is not None:
            folder = Path(arguments.export)
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                for cid in {one.attestation for one in signed}:
                    (folder / f"{cid}.dsse.json").write_text(client.signatures.export(cid), encoding="utf-8")
    rows = [
        [
            one.name or "unknown",
            one.keyid,
            one.problem or ("vouches" if one.vouches else one.predicate_type),
            one.attestation,
        ]
        for one in signed
    ]
    text = table(["NAME", "KEY", "SAYS", "ATTESTATION"], rows) if rows else "signed by nobody"
    show(arguments, [one.to_json() for one in signed], text)


def _ring(arguments: argparse.Namespace) -> KeyRing:
    from holdfast.registry.proof import KeyRing

    return KeyRing(load_settings(arguments.home).home)


def _keys_list(arguments: argparse.Namespace) -> None:
    ring = _ring(arguments)
    own = set(ring.own_names())
    plain = [
        {"name": name, "key": str(key), "own": name in own} for name, key in sorted(ring.known().items())
    ]
    rows = [[one["name"], "own" if one["own"] else "trusted", one["key"]] for one in plain]
    show(arguments, plain, table(["NAME", "", "KEY"], rows))


def _show_key(arguments: argparse.Namespace, key: object) -> None:
    show(arguments, {"name": arguments.name, "key": str(key), "did": f"did:key:{key}"}, str(key))


def _keys_new(arguments: argparse.Namespace) -> None:
    _show_key(arguments, _ring(arguments).new(arguments.name).public)


def _keys_show(arguments: argparse.Namespace) -> None:
    ring = _ring(arguments)
    trusted = ring.trusted()
    key = trusted[arguments.name] if arguments.name in trusted else ring.own(arguments.name).public
    _show_key(arguments, key)


def _keys_trust(arguments: argparse.Namespace) -> None:
    _show_key(arguments, _ring(arguments).trust(arguments.name, arguments.key))


def _keys_untrust(arguments: argparse.Namespace) -> None:
    _ring(arguments).untrust(arguments.name)
    show(arguments, {"name": arguments.name}, f"{arguments.name} is not trusted any more")
