"""Names against plain dicts, in any order of calls: for the table of a home, and for a master's over HTTP."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry.names import UNCHECKED, facts_of_model
from holdfast.registry.versions import VersionRange, version_key

kinds = st.sampled_from(["model", "dataset"])
some_names = st.sampled_from(["m", "n", "o"])
some_versions = st.sampled_from(["1.0.0", "1.0.0-rc.1", "0.9.0", "2.0.0"])
some_things = st.integers(0, 2)
some_aliases = st.sampled_from(["champion", "best"])
some_values = st.sampled_from(["prod", "test"])
some_ranges = st.sampled_from(["1", "<1", "^1.0.0-rc.1", "*", ">=0.9,<2"])
anything = st.just(UNCHECKED)


class NamesMachine(RuleBasedStateMachine):
    """A subclass opens ``names``, opens them anew, closes them, and gives the CIDs of stored records."""

    names: Any

    def open_names(self):
        """Open new, empty names."""
        raise AssertionError

    def reopen_names(self):
        """Open the same names anew."""

    def close_names(self):
        """Close them."""

    def thing(self, kind, number):
        """The CID of a stored record."""
        raise AssertionError(kind, number)

    @initialize()
    def begin(self):
        self.names = None
        self.names = self.open_names()
        self.versions = {}  # by kind and name: the version's thing, facts and tags
        self.aliases = {}  # by kind and name: alias to version
        self.removed = {}
        self.changes = 0
        self.moments = []  # a commit, and the entries then

    def teardown(self):
        if hasattr(self, "names"):
            self.close_names()

    @rule(
        kind=kinds,
        name=some_names,
        version=some_versions | st.none(),
        number=some_things,
        metric=st.none() | st.sampled_from([0.1, 0.9]),
    )
    def register(self, kind, name, version, number, metric):
        known = self.versions.setdefault((kind, name), {})
        removed = self.removed.get((kind, name), {})
        facts = None if metric is None else facts_of_model(metrics={"a": metric})
        try:
            entry = self.names.register(kind, name, version, self.thing(kind, number), facts)
        except Conflict:
            was = known[version]["thing"] if version in known else removed[version]
            assert was != number
            return
        if version is None:
            same = [v for v, each in known.items() if each["thing"] == number]
            newest = max({*known, *removed}, key=version_key, default="0.0.0")
            if same:
                assert entry.version == max(same, key=version_key)
            else:
                assert version_key(entry.version) > version_key(newest)
        assert version in (None, entry.version)
        assert removed.get(entry.version, number) == number
        if entry.version not in known:
            known[entry.version] = {"thing": number, "metric": metric, "tags": {}}
            self.changes += 1
        else:
            assert known[entry.version]["thing"] == number
            if metric not in (None, known[entry.version]["metric"]):
                known[entry.version]["metric"] = metric
                self.changes += 1
        self.check(entry)

    @rule(kind=kinds, name=some_names, version=some_versions | st.none())
    def remove(self, kind, name, version):
        known = self.versions.get((kind, name), {})
        wanted = [version] if version is not None else list(known)
        try:
            gone = self.names.unregister(kind, name, version)
        except NotFound:
            assert not set(wanted) & set(known)
            return
        assert [entry.version for entry in gone] == sorted(wanted, key=version_key)
        for each in wanted:
            self.removed.setdefault((kind, name), {})[each] = known.pop(each)["thing"]
        aliases = self.aliases.get((kind, name), {})
        self.aliases[kind, name] = {a: v for a, v in aliases.items() if v not in wanted}
        self.changes += len(wanted)

    @rule(kind=kinds, old=some_names, new=some_names)
    def rename(self, kind, old, new):
        known, there = self.versions.get((kind, old), {}), self.versions.get((kind, new), {})
        removed = self.removed.setdefault((kind, new), {})
        try:
            moved = self.names.rename(kind, old, new)
        except NotFound:
            assert not known
            return
        except Conflict:
            assert there or any(removed.get(v, each["thing"]) != each["thing"] for v, each in known.items())
            return
        assert not there
        assert known
        assert [entry.version for entry in moved] == sorted(known, key=version_key)
        self.versions[kind, new] = self.versions.pop((kind, old))
        self.removed.setdefault((kind, old), {}).update({v: each["thing"] for v, each in known.items()})
        self.aliases[kind, new] = self.aliases.pop((kind, old), {})
        self.changes += 1

    @rule(
        kind=kinds,
        name=some_names,
        alias=some_aliases,
        version=some_versions,
        expected=some_versions | st.none() | anything,
    )
    def move(self, kind, name, alias, version, expected):
        aliases = self.aliases.setdefault((kind, name), {})
        now = aliases.get(alias)
        try:
            entry = self.names.set_alias(kind, name, alias, version, expected=expected)
        except NotFound:
            assert version not in self.versions.get((kind, name), {})
            return
        except Conflict:
            assert expected not in (now, UNCHECKED)
            return
        assert expected in (now, UNCHECKED)
        self.changes += now != version
        aliases[alias] = version
        self.check(entry)

    @rule(kind=kinds, name=some_names, alias=some_aliases, expected=some_versions | anything)
    def forget_alias(self, kind, name, alias, expected):
        aliases = self.aliases.get((kind, name), {})
        now = aliases.get(alias)
        try:
            entry = self.names.delete_alias(kind, name, alias, expected=expected)
        except NotFound:
            assert now is None
            return
        except Conflict:
            assert expected not in (now, UNCHECKED)
            return
        assert expected in (now, UNCHECKED)
        assert aliases.pop(alias) == entry.version
        self.changes += 1
        self.check(entry)

    @rule(
        kind=kinds,
        name=some_names,
        version=some_versions,
        value=some_values | st.none(),
        expected=some_values | st.none() | anything,
    )
    def tag(self, kind, name, version, value, expected):
        known = self.versions.get((kind, name), {}).get(version)
        try:
            entry = self.names.set_tag(kind, name, version, "stage", value, expected=expected)
        except NotFound:
            assert known is None
            return
        except Conflict:
            assert expected not in (known["tags"].get("stage"), UNCHECKED)
            return
        now = known["tags"].pop("stage", None)
        assert expected in (now, UNCHECKED)
        self.changes += now != value
        if value is not None:
            known["tags"]["stage"] = value
        self.check(entry)

    @rule(kind=kinds, name=some_names, text=some_ranges)
    def resolve(self, kind, name, text):
        among = VersionRange.parse(text)
        inside = [v for v in self.versions.get((kind, name), {}) if v in among]
        try:
            entry = self.names.resolve(kind, f"{name}:{text}")
        except NotFound:
            assert not inside
            return
        assert entry.version == max(inside, key=version_key)
        self.check(entry)

    @rule(value=some_values, least=st.sampled_from([0.5, 0.95]))
    def search(self, value, least):
        found = {(e.kind, e.name, e.version) for e in self.names.search(tag={"stage": value})}
        assert found == {key for key, each in self.all() if each["tags"].get("stage") == value}
        found = {(e.kind, e.name, e.version) for e in self.names.search("model", metric={"a": (">", least)})}
        assert found == {
            key for key, each in self.all() if key[0] == "model" and (each["metric"] or 0) > least
        }

    @rule(name=st.sampled_from(["", "a b c:d", "x" * 200]))
    def refuse(self, name):
        for call in (
            lambda: self.names.register("model", name, None, self.thing("model", 0)),
            lambda: self.names.rename("model", "m", name),
            lambda: self.names.set_alias("model", "m", name, "1.0.0"),
        ):
            try:
                call()
            except InvalidInput:
                continue
            raise AssertionError(name)

    @rule()
    def reopen(self):
        self.reopen_names()

    @rule()
    def remember(self):
        history = self.names.history()
        if history:
            self.moments.append((history[0].cid, self.names.entries()))

    @rule()
    def look_back(self):
        for commit, entries in self.moments:
            assert self.names.at(commit).entries() == entries

    def all(self):
        """Every version that must be there, with what is known of it."""
        return [
            ((kind, name, version), each)
            for (kind, name), known in self.versions.items()
            for version, each in known.items()
        ]

    def check(self, entry):
        """Compare an entry with what it must be."""
        each = self.versions[entry.kind, entry.name][entry.version]
        aliases = self.aliases.get((entry.kind, entry.name), {})
        assert entry.cid == self.thing(entry.kind, each["thing"])
        assert entry.tags == each["tags"]
        assert entry.aliases == tuple(sorted(a for a, v in aliases.items() if v == entry.version))

    @invariant()
    def nothing_else_is_there(self):
        if getattr(self, "names", None) is None:
            return
        entries = self.names.entries()
        order = [(entry.kind, entry.name, version_key(entry.version)) for entry in entries]
        assert order == sorted(order)
        assert {(e.kind, e.name, e.version) for e in entries} == {key for key, _ in self.all()}
        for entry in entries:
            self.check(entry)
        check = self.names.verify_history()
        assert (check.commits, check.versions) == (self.changes, len(entries))
        self.holds_are_right(entries)

    def holds_are_right(self, entries):
        """Compare what the store keeps with what is named, where it can be seen."""
