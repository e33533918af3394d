"""Keys, signatures and verification as people use them: on the command line, at serving, and on a cluster's master."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import holdfast
from holdfast.errors import Corrupt, Denied, InvalidInput, NotFound
from holdfast.http_client import HttpClient
from holdfast.inference.conversion import conversion_computation
from holdfast.registry import ConversionRecord, Database, verify
from holdfast.registry.records import load_record
from holdfast.storage.cid import Cid
from holdfast.storage.datasets.dataset import open_dataset

from .conftest import cli_json, listening_master, run_cli

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from holdfast.cluster.master import Master


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one named dataset of two shards' worth of rows."""
    with holdfast.connect(home=tmp_path / "home") as client:
        client.datasets.store_dataset({"x": np.arange(100_000.0)}, name="numbers", chunk_size=4096)
    return tmp_path / "home"


def damage(home: Path, cid: Cid) -> None:
    """Put wrong bytes in the place of a block, as a bad disk would."""
    from holdfast.config import load_settings
    from holdfast.storage.opening import open_local

    with open_local(load_settings(home)) as local:
        data = bytes(local.get(cid))
        local.replace_many([(cid, data[:-1] + bytes([data[-1] ^ 1]))])


# ------------------------------------------------------------------------------------------ command line


def test_what_is_whole_verifies_and_what_is_not_gives_the_exact_link(home):
    whole = run_cli("verify", "numbers", "--deep", "--home", str(home))
    assert whole.returncode == 0, whole.stderr
    assert "✓ dataset" in whole.stdout
    assert "✗" not in whole.stdout
    with holdfast.connect(home=home) as client:
        dataset = open_dataset(client.store, client.datasets.resolve("numbers"))
        shard = next(iter(dataset.shards("train"))).cid
        leaf = [cid for cid, _ in client.store.walk(shard)][-1]
    damage(home, leaf)
    assert run_cli("verify", "numbers", "--home", str(home)).returncode == 0, "it is not the first block"
    broken = run_cli("verify", "numbers", "--deep", "--home", str(home))
    assert broken.returncode == 1
    assert "✗ dataset" in broken.stdout
    assert "broken: dataset → train → shards.0.cid → " in broken.stdout
    assert str(leaf) in broken.stdout
    assert broken.stderr.startswith("holdfast: numbers does not verify")
    assert len(broken.stderr.splitlines()) == 1
    told = run_cli("verify", "numbers", "--deep", "--json", "--home", str(home))
    assert told.returncode == 1
    body = json.loads(told.stdout)
    assert body["ok"] is False
    assert [link["cid"] for link in body["broken"]] == [str(leaf)]
    assert told.stderr == ""


def test_signing_and_requiring_on_the_command_line(home, tmp_path):
    def cli(*arguments: str) -> Any:
        return cli_json(*arguments, "--home", str(home))

    key = cli("keys", "show")["key"]
    assert run_cli("signatures", "numbers", "--home", str(home)).stdout.strip() == "signed by nobody"
    refused = run_cli("verify", "numbers", "--require-signed-by", "user", "--home", str(home))
    assert refused.returncode == 1
    assert "signed by nobody" in refused.stdout
    signed = cli("sign", "numbers", "--claims", '{"reviewed": true}')
    assert signed["key"] == key
    assert cli("verify", "numbers", "--require-signed-by", key)["ok"] is True
    (found,) = cli("signatures", "numbers", "--export", str(tmp_path / "out"))
    assert (found["name"], found["claims"], found["ok"]) == ("user", {"reviewed": True}, True)
    file = tmp_path / "out" / f"{signed['attestation']}.dsse.json"
    assert cli("signatures", "--add", str(file))["attestation"] == signed["attestation"]
    cli("keys", "new", "release")
    assert {one["name"]: one["own"] for one in cli("keys", "list")} == {"release": True, "user": True}
    cli("sign", "numbers", "--key", "release")
    assert {one["name"] for one in cli("signatures", "numbers")} == {"user", "release"}

    other = str(tmp_path / "other")
    assert cli_json("keys", "trust", "alice", key, "--home", other)["key"] == key
    assert cli_json("keys", "show", "alice", "--home", other)["did"] == f"did:key:{key}"
    assert cli_json("keys", "untrust", "alice", "--home", other) == {"name": "alice"}


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("keys", "trust", "alice", "no-key"), 2, "not a public key"),
        (("keys", "untrust", "alice"), 3, "no trusted key is named 'alice'"),
        (("keys", "new", "../x"), 2, "can't be the name of a key"),
        (("sign", "nobody"), 3, "no model, index or dataset named 'nobody'"),
        (("sign", "numbers", "--key", "release"), 3, "no key 'release'"),
        (("sign", "numbers", "--claims", "[]"), 2, "--claims must be a JSON object"),
        (("sign", "numbers", "--claims", "{"), 2, "--claims is not JSON"),
        (("signatures",), 2, "--add FILE"),
        (("signatures", "--add", "/no/such/file"), 3, "no file /no/such/file"),
        (("verify", "numbers", "--require-signed-by", "carol"), 3, "no key is named 'carol'"),
        (("serve", "numbers", "--require-signed-by", "carol"), 3, "no model named 'numbers'"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_wrong(home, arguments, status, words):
    done = run_cli(*arguments, "--home", str(home))
    assert done.returncode == status, done.stdout + done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_verbs_of_keys_show_examples_and_list_has_a_short_name(home):
    run_cli("keys", "new", "release", "--home", str(home))
    assert cli_json("keys", "ls", "--home", str(home)) == cli_json("keys", "list", "--home", str(home))
    for verb in ("list", "ls", "new", "show", "trust", "untrust"):
        assert "examples:\n  holdfast keys" in run_cli("keys", verb, "--help").stdout


def test_garbage_collection_forgets_what_was_said_about_things_that_are_gone(home):
    def cli(*arguments: str) -> Any:
        return cli_json(*arguments, "--home", str(home))

    signed = cli("sign", "numbers")
    cli("gc", "--yes", "--grace", "0")
    assert len(cli("signatures", "numbers")) == 1, "it is held as long as what it is about is named"
    with holdfast.connect(home=home) as client:
        client.names.unregister("dataset", "numbers")
    cli("gc", "--yes", "--grace", "0")
    cli("gc", "--yes", "--grace", "0")
    assert cli("signatures", signed["subject"]) == []
    assert run_cli("stat", signed["attestation"], "--home", str(home)).returncode == 3


# ------------------------------------------------------------------------------------------------ serving


def test_where_a_signature_is_required_neither_the_unsigned_nor_a_stranger_s_form_is_served(
    tmp_path, user_code
):
    with holdfast.connect(home=tmp_path / "home") as client:
        data = client.datasets.store_dataset(
            {"train": {"x": np.ones((8, 3), np.float32)}, "test": {"x": np.ones((4, 3), np.float32)}}
        )
        run = client.train(user_code.train, data.cid)
        client.models.register("scale", run.model)
        client.signatures.keys.new("release")
        with pytest.raises(Denied, match=f"{run.model} is signed by nobody"):
            client.serve("scale", require_signed_by=["release"])
        client.sign("scale", key="release")
        with client.serve("scale", require_signed_by=["release"]) as server:
            first = served_conversion(server.url)
        with client.serve("scale") as server:
            assert served_conversion(server.url) == first

        # Somebody who may write names, or to the cache, says that another ONNX file is this model's form.
        record = load_record(client.store, Cid.parse(first), ConversionRecord)
        stranger = replace(record, opset=1, comparison={"max_difference": 0.0}).store(client.store)
        computation = conversion_computation(run.model)
        client.names.unregister("conversion", str(run.model))
        client.cache.remember(computation, stranger)
        with client.serve("scale", require_signed_by=["release"]) as server:
            assert served_conversion(server.url) == first, "the cache is not asked"
        client.cache.remember(computation, replace(record, model=data.cid).store(client.store))
        with pytest.raises(Corrupt, match=f"the ONNX form of {run.model}, but it is one of {data.cid}"):
            client.serve("scale")
        assert client.convert("scale", use_cache=False)[0] == Cid.parse(first)
        with closing(Database(tmp_path / "home" / "registry.db")) as database, database.writing() as sql:
            sql.execute("UPDATE versions SET cid = ? WHERE kind = 'conversion'", (str(stranger),))
        with client.serve("scale") as server:
            assert served_conversion(server.url) == str(stranger), "nobody asked who made it"
        with client.serve("scale", require_signed_by=["release"]) as server:
            assert served_conversion(server.url) == first, (
                "made here again, from the model that is vouched for"
            )
        client.sign(stranger, key="release")
        with client.serve("scale", require_signed_by=["release"]) as server:
            assert served_conversion(server.url) == str(stranger)

    (tmp_path / "home" / "config.toml").write_text('[registry]\nrequire_signed_by = ["user"]\n')
    with holdfast.connect(home=tmp_path / "home") as client:
        client.signatures.keys.own()
        for use in (client.serve, client.convert, client.models.get):
            with pytest.raises(Denied, match="but user"):
                use("scale")
        client.sign("scale")
        assert client.models.get("scale") is not None


def served_conversion(url: str) -> str:
    """The CID of the ONNX form that a server runs, as its metadata tells."""
    import urllib.request

    with urllib.request.urlopen(f"{url}/v2/models/scale") as answer:
        body = json.load(answer)
    return str(json.dumps(body).partition('"conversion": "')[2].partition('"')[0])


# ------------------------------------------------------------------------------------------------ cluster


@pytest.fixture
def master(tmp_path: Path) -> Iterator[Master]:
    """A master that listens; its Ray is not started."""
    with listening_master(tmp_path / "master") as (made, _):
        yield made


def test_what_one_client_signs_another_finds_on_the_master_and_checks_itself(master, tmp_path):
    with holdfast.connect(master.url, home=tmp_path / "alice", token=master.token) as alice:
        data = alice.datasets.store_dataset({"x": [1, 2, 3]}, name="numbers")
        cid = alice.sign("numbers", claims={"reviewed": True})
        key = alice.signatures.keys.own().public
    assert master.blocks.has(cid)
    assert not (master.settings.home / "keys").exists(), "the master signs nothing for others"
    with holdfast.connect(master.url, home=tmp_path / "bob", token=master.token) as bob:
        bob.signatures.keys.trust("alice", key)
        tree = bob.verify("numbers", deep=True, require_signed_by=["alice"])
        assert tree.ok, tree.render()
        assert [one.name for one in tree.signatures] == ["alice"]
        with master.database.writing() as sql:  # the master, or who has its disk, says what it likes
            other = bob.store.put_record({"kind": "attestation"})
            sql.execute("UPDATE attestations SET attestation = ?", (str(other),))
        with pytest.raises(Denied):
            bob.signatures.require(data.cid, ["alice"])
        assert not bob.verify("numbers").ok


def test_the_master_keeps_no_attestation_that_proves_nothing(master, tmp_path):
    from holdfast.registry.proof import Envelope, Signature
    from holdfast.registry.proof.attestations import store_attestation

    api = HttpClient(master.url, master.token)
    with holdfast.connect(master.url, home=tmp_path / "alice", token=master.token) as alice:
        alice.datasets.store_dataset({"x": [1, 2, 3]}, name="numbers")
        right = Envelope.from_json(alice.signatures.export(alice.sign("numbers")))
        forged = Envelope(
            payload_type=right.payload_type,
            payload=right.payload,
            signatures=(Signature(right.signatures[0].keyid, bytes(64)),),
        )
        with pytest.raises(Corrupt, match="signature is wrong"):
            alice.backend.attestations.add(store_attestation(alice.store, forged))
        local = alice.store.add_bytes(b"not on the master")
        with pytest.raises(NotFound, match=str(local)):
            alice.sign(local)
    assert len(master.database.rows("SELECT * FROM attestations")) == 1
    for body in ({"cid": "x"}, {"cid": 5}, {}):
        with pytest.raises(InvalidInput):
            api.post("/api/v0/attestations", body)
    for subjects in ("x", ["x"], [5], ["x"] * 10_001):
        with pytest.raises(InvalidInput):
            api.post("/api/v0/attestations/find", {"subjects": subjects})
    assert api.post("/api/v0/attestations/find", {"subjects": []}) == []


def test_a_block_that_nobody_has_is_told_with_who_was_asked(master, tmp_path):
    with holdfast.connect(master.url, home=tmp_path / "alice", token=master.token) as alice:
        gone = Cid.of(b"nobody has this")
        (link,) = verify(alice.store, gone).broken()
    assert str(gone) in link.problem
    assert master.url in link.problem
