"""Policies: what is not signed by whom it must be is not loaded, and the refusal says who would have to."""

from __future__ import annotations

from contextlib import closing

import pytest

from holdfast.config import load_settings
from holdfast.errors import Denied, InvalidInput, NotFound
from holdfast.registry import KeyRing, ModelRegistry, Signatures
from holdfast.registry.proof import SLSA_PROVENANCE, check_signed, check_trusted, sign

MODULE = """
    from torch import nn

    class Net(nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
"""


@pytest.fixture
def model(store):
    return store.add_bytes(b"model")


@pytest.fixture
def both(alice, bob):
    """Bob, who knows alice."""
    bob.keys.trust("alice", alice.keys.own().public)
    return alice, bob


def requiring(signatures, *required):
    return Signatures(signatures.store, signatures.attestations, signatures.keys, required=required)


def test_where_nothing_is_required_everything_passes(alice, model):
    assert check_signed(alice, model) == []


def test_the_unsigned_is_refused_with_what_to_do(both, model):
    _, bob = both
    with pytest.raises(Denied) as caught:
        check_signed(bob, model, ["alice"])
    text = str(caught.value)
    for part in (
        str(model),
        "signed by nobody",
        "alice (z6Mk",
        f"holdfast sign {model}",
        "require_signed_by",
    ):
        assert part in text


def test_one_of_several_is_enough_and_another_is_not(both, model):
    alice, bob = both
    bob.sign(model)
    assert check_signed(bob, model, ["alice", "user"])[0].name == "user"
    with pytest.raises(Denied, match=r"is signed by user \(z6Mk.*but alice \(z6Mk.*must have signed it"):
        check_signed(bob, model, ["alice"])
    alice.sign(model)
    (passed,) = check_signed(bob, model, ["alice"])
    assert passed.name == "alice"
    assert check_signed(bob, model, [str(alice.keys.own().public)]) == [passed]
    assert check_signed(bob, model, [alice.keys.own().public]) == [passed]


def test_a_key_without_a_name_can_be_required_and_an_unknown_signer_is_called_so(alice, bob, model):
    alice.sign(model)
    key = alice.keys.own().public
    assert check_signed(bob, model, [f"did:key:{key}"])[0].key == key
    with pytest.raises(Denied, match=f"is signed by the unknown key {key}"):
        check_signed(bob, model, [bob.keys.own().public])


def test_who_is_not_trusted_any_more_lets_nothing_pass(both, model):
    alice, bob = both
    alice.sign(model)
    assert check_signed(bob, model, ["alice"])
    bob.keys.untrust("alice")
    with pytest.raises(NotFound, match="no key is named 'alice'"):
        check_signed(bob, model, ["alice"])


def test_the_policy_of_a_home_holds_whatever_the_caller_asks_for(both, model):
    alice, bob = both
    strict = requiring(bob, "alice")
    bob.keys.own("node")
    bob.sign(model)
    for asked in (None, ["user"], ["user", "node"]):
        with pytest.raises(Denied, match="but alice"):
            strict.require(model, asked)
    alice.sign(model)
    strict.require(model)
    strict.require(model, ["user"])
    with pytest.raises(Denied, match="but node"):
        strict.require(model, ["node"])


@pytest.mark.parametrize("policy", [[], ()])
def test_a_policy_that_names_nobody_is_a_mistake_and_not_a_way_around(alice, model, policy):
    with pytest.raises(InvalidInput, match="names nobody"):
        check_signed(alice, model, policy)


def test_a_policy_is_a_list_of_names_or_keys(alice, model):
    with pytest.raises(InvalidInput, match=r"\['user'\]"):
        check_signed(alice, model, "user")
    for policy in (3, [3], ["user", None], alice.keys.own().public):
        with pytest.raises(InvalidInput, match="require_signed_by"):
            check_signed(alice, model, policy)  # type: ignore[arg-type]


def test_a_misspelt_name_in_the_policy_of_a_home_lets_nothing_pass(both, model):
    alice, bob = both
    alice.sign(model)
    with pytest.raises(NotFound, match="did you mean 'alice'"):
        requiring(bob, "alcie").require(model)


def test_a_signed_statement_of_another_kind_is_no_permission(both, model):
    alice, bob = both
    kind = "urn:example:warning:v1"
    sign(
        alice.store,
        alice.attestations,
        model,
        alice.keys.own(),
        predicate={"text": "broken"},
        predicate_type=kind,
    )
    with pytest.raises(Denied, match=f"does not vouch for it, but states {kind}"):
        check_signed(bob, model, ["alice"])
    with pytest.raises(Denied):
        check_trusted(bob, model, what="the pickle")


def test_the_node_s_own_statements_vouch_for_nothing(alice, model):
    sign(
        alice.store,
        alice.attestations,
        model,
        alice.keys.own("node"),
        predicate={},
        predicate_type=SLSA_PROVENANCE,
    )
    with pytest.raises(Denied):
        check_trusted(alice, model, what="the pickle")


def test_a_pickle_is_read_only_where_somebody_trusted_vouches_for_it(alice, bob, model):
    what = f"the pickle in {model}"
    with pytest.raises(Denied, match=f"{what} can run any code.*signed by nobody.*holdfast keys trust"):
        check_trusted(bob, model, what=what)
    alice.sign(model)
    with pytest.raises(Denied, match="the unknown key z6Mk"):
        check_trusted(bob, model, what=what)
    bob.keys.trust("alice", alice.keys.own().public)
    assert [one.name for one in check_trusted(bob, model, what=what)] == ["alice"]
    bob.keys.untrust("alice")
    with pytest.raises(Denied):
        check_trusted(bob, model, what=what)
    assert [one.name for one in check_trusted(alice, model, what=what)] == ["user"], "one trusts oneself"


def test_a_model_is_loaded_only_if_it_is_signed_by_whom_it_must_be(module, store, names, both):
    alice, bob = both
    net = module("net_of_a_user", MODULE).Net()
    registry = ModelRegistry(store, names, signatures=bob)
    entry = registry.register("net", net)
    assert registry.get("net") is not None
    for load in (
        lambda: registry.get("net", require_signed_by=["alice"]),
        lambda: registry.load(entry.cid, require_signed_by=["alice"]),
        lambda: registry.get(str(entry.cid), require_signed_by=["alice"]),
        lambda: ModelRegistry(store, names, signatures=requiring(bob, "alice")).get("net"),
    ):
        with pytest.raises(Denied, match=str(entry.cid)):
            load()
    alice.sign(entry.cid)
    assert registry.get("net", require_signed_by=["alice"]) is not None
    assert ModelRegistry(store, names, signatures=requiring(bob, "alice")).get("net") is not None


def test_a_registry_without_signatures_does_not_pretend_to_check(module, store, names):
    registry = ModelRegistry(store, names)
    entry = registry.register("net", module("net_of_a_user", MODULE).Net())
    with pytest.raises(InvalidInput, match="without signatures"):
        registry.load(entry.cid, require_signed_by=["alice"])


def test_the_setting_of_a_home_is_the_policy_of_its_registry(module, tmp_path, monkeypatch):
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "home"))
    net = module("net_of_a_user", MODULE).Net()
    entry = ModelRegistry().register("net", net)
    (tmp_path / "home" / "config.toml").write_text('[registry]\nrequire_signed_by = ["user"]\n')
    with pytest.raises(NotFound, match="no key is named 'user'"):
        ModelRegistry().get("net")
    KeyRing(tmp_path / "home").own()
    with pytest.raises(Denied, match="signed by nobody"):
        ModelRegistry().get("net")
    import holdfast

    with closing(holdfast.connect(home=tmp_path / "home")) as client:
        client.sign(entry.cid)
    assert ModelRegistry().get("net") is not None
    assert load_settings().registry.require_signed_by == ("user",)


def test_a_pickle_of_a_stranger_is_not_opened_whatever_the_caller_says(store, names, both):
    alice, bob = both
    registry = ModelRegistry(store, names, signatures=bob)
    entry = registry.register("anything", {"a": [1, 2]}, framework="pickle")
    for load in (registry.load, ModelRegistry(store, names).load):
        with pytest.raises(Denied, match=f"{entry.cid}"):
            load(entry.cid, allow_pickle=True)
    alice.sign(entry.cid)
    with pytest.raises(Denied):
        registry.load(entry.cid)
    assert registry.load(entry.cid, allow_pickle=True) == {"a": [1, 2]}
    bob.keys.untrust("alice")
    with pytest.raises(Denied, match="the unknown key"):
        registry.load(entry.cid, allow_pickle=True)
