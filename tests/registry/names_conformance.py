"""What every kind of names must do: the table of a home, and a master's over HTTP, run these same tests.

A subclass has the fixtures ``names`` (empty), and ``thing``, which gives the CID of a stored record by number and kind.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest

from holdfast.errors import Conflict, InvalidInput, NotFound
from holdfast.registry.names import facts_of_model


class NamesConformance:
    # ------------------------------------------------------------------------------------------ resolving

    def test_a_reference_means_the_version_that_it_says(self, names, thing):
        for number, version in enumerate(("1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1", "2.0.0")):
            names.register("model", "m", version, thing(number))
        names.set_alias("model", "m", "champion", "1.2.0")
        for ref, version in {
            "m": "2.0.0",
            "m:1.0.0": "1.0.0",
            "m@champion": "1.2.0",
            "m:1": "1.10.0",
            "m:1.x": "1.10.0",
            "m:^1.0": "1.10.0",
            "m:~1.2.0": "1.2.0",
            "m:>=1.0,<1.10": "1.2.0",
            "m:<2": "1.10.0",
            "m:<2.0.0": "1.10.0",
            "m:<2.0.0-z": "2.0.0-rc.1",
            "m:*": "2.0.0",
        }.items():
            assert names.resolve("model", ref).version == version, ref
        with pytest.raises(NotFound, match=r"no model m:\^3"):
            names.resolve("model", "m:^3")
        for ref in ("m:", "m:^", "m:1.0.0 || 2", "m:>x", "m@", "m:1,,2", "m:a"):
            with pytest.raises(InvalidInput):
                names.resolve("model", ref)

    def test_a_range_is_never_taken_for_the_version_that_is_to_be_changed(self, names, thing):
        names.register("model", "m", "1.0.0", thing(0))
        for call in (
            lambda: names.register("model", "m", "^1", thing(1)),
            lambda: names.unregister("model", "m", "1"),
            lambda: names.unregister("model", "m", ""),
            lambda: names.set_alias("model", "m", "champion", "1.x"),
            lambda: names.set_tag("model", "m", "*", "stage", "prod"),
        ):
            with pytest.raises(InvalidInput, match="is not a version"):
                call()
        assert [entry.version for entry in names.entries()] == ["1.0.0"]
        assert len(names.history()) == 1

    def test_a_reference_without_a_kind_means_the_first_kind_that_has_it(self, names, thing):
        model, index = thing(1), thing(2, "index")
        names.register("index", "digits", "1.0.0", index)
        names.register("index", "digits", "2.0.0", index)
        names.register("model", "digits", "1.0.0", model)
        names.register("index", "neighbours", "1.0.0", index)
        assert names.resolve(None, "digits").cid == model
        assert names.resolve(None, "digits:2.0.0").cid == index
        assert names.resolve(None, "neighbours").cid == index
        with pytest.raises(
            NotFound, match=r"no model digits:3\.0\.0; digits has :1\.0\.0; there is no index digits:3"
        ):
            names.resolve(None, "digits:3.0.0")
        with pytest.raises(
            NotFound,
            match="no model, index or dataset named 'digit'; there is model digits, index digits, index neighbours",
        ):
            names.resolve(None, "digit")
        for number in range(30):
            names.register("model", f"other{number}", "1.0.0", model)
        with pytest.raises(NotFound, match="the nearest are index digits, model digits"):
            names.resolve(None, "digit")
        names.rename("index", "digits", "numbers")
        names.rename("model", "digits", "net")
        with pytest.raises(NotFound, match="named 'digits' any more: the model was renamed to 'net'"):
            names.resolve(None, "digits")

    def test_an_unknown_name_is_answered_with_what_is_like_it(self, names, thing):
        for number in range(30):
            names.register("model", f"digits-{number:02}", None, thing(number))
        names.register("dataset", "rows", None, thing(0, "dataset"))
        for wrong, right in {
            "digts-07": "digits-07",
            "digits_07": "digits-07",
            "xigits-29": "digits-29",
        }.items():
            with pytest.raises(NotFound, match=f"the nearest are .*{right}"):
                names.resolve("model", wrong)
        with pytest.raises(NotFound, match="none is like it; there is a dataset of this name"):
            names.resolve("model", "rows")
        names.set_alias("model", "digits-00", "champion", "1.0.0")
        with pytest.raises(NotFound, match=r"digits-00@champoin; digits-00 has :1\.0\.0, @champion$"):
            names.resolve("model", "digits-00@champoin")

    def test_an_unknown_version_of_many_is_answered_with_those_around_it(self, names, thing):
        for number in range(30):
            names.register("model", "m", f"1.{number}.0", thing(number))
        with pytest.raises(
            NotFound, match=r"m has .*:1\.7\.0, :1\.8\.0.* around it, and :1\.29\.0 is the newest"
        ):
            names.resolve("model", "m:1.7.5")
        names.set_alias("model", "m", "champion", "1.3.0")
        with pytest.raises(NotFound, match=r"m has @champion, and :1\.29\.0"):
            names.resolve("model", "m@champoin")

    # --------------------------------------------------------------------------------------- changing

    def test_a_conflict_says_what_is_there_and_what_was_wanted(self, names, thing):
        a, b = thing(0), thing(1)
        names.register("model", "m", "1.0.0", a)
        names.register("model", "m", "2.0.0", b)
        with pytest.raises(Conflict, match=rf"m:1\.0\.0 is {a} already.*register {b} under"):
            names.register("model", "m", "1.0.0", b)
        names.set_alias("model", "m", "champion", "1.0.0", expected=None)
        with pytest.raises(
            Conflict, match=r"points to 1\.0\.0, not to nothing, so it was not moved to 2\.0\.0"
        ):
            names.set_alias("model", "m", "champion", "2.0.0", expected=None)
        with pytest.raises(Conflict, match=r"points to 1\.0\.0, not to 2\.0\.0, so it was not removed"):
            names.delete_alias("model", "m", "champion", expected="2.0.0")
        names.set_tag("model", "m", "1.0.0", "stage", "prod", expected=None)
        with pytest.raises(Conflict, match="has 'prod', not 'test', so it did not get 'old'"):
            names.set_tag("model", "m", "1.0.0", "stage", "old", expected="test")
        with pytest.raises(Conflict, match="has 'prod', not no value"):
            names.set_tag("model", "m", "1.0.0", "stage", None, expected=None)
        entry = names.resolve("model", "m@champion")
        assert (entry.version, entry.tags) == ("1.0.0", {"stage": "prod"})
        assert len(names.history()) == 4

    def test_an_alias_that_is_removed_is_gone_and_its_version_is_not(self, names, thing):
        names.register("model", "m", "1.0.0", thing(0))
        names.set_alias("model", "m", "champion", "1.0.0")
        names.set_alias("model", "m", "best", "1.0.0")
        entry = names.delete_alias("model", "m", "champion", expected="1.0.0")
        assert (entry.version, entry.aliases) == ("1.0.0", ("best",))
        with pytest.raises(NotFound, match="m@champion"):
            names.delete_alias("model", "m", "champion")
        with pytest.raises(NotFound, match="m@champion"):
            names.delete_alias("model", "m", "champion", expected=None)
        with pytest.raises(NotFound, match="no model named 'n'"):
            names.delete_alias("model", "n", "champion")
        assert names.history()[0].change["op"] == "unalias"

    def test_a_tag_is_of_one_version_and_may_change(self, names, thing):
        for number in (1, 2):
            names.register("model", "m", f"{number}.0.0", thing(number))
        names.set_tag("model", "m", "1.0.0", "stage", "test")
        assert names.set_tag("model", "m", "1.0.0", "stage", "prod", expected="test").tags == {
            "stage": "prod"
        }
        names.set_tag("model", "m", "1.0.0", "stage", "prod")
        assert names.resolve("model", "m").tags == {}
        assert names.set_tag("model", "m", "1.0.0", "stage", None).tags == {}
        names.set_tag("model", "m", "1.0.0", "stage", None)
        assert [c.change["op"] for c in names.history()].count("tag") == 3, "nothing changed the other times"
        with pytest.raises(NotFound):
            names.set_tag("model", "m", "3.0.0", "stage", "prod")
        for key, value in (("a b", "x"), ("", "x"), ("k", ""), ("k", "*"), ("k", "a\nb"), ("k", "x" * 1001)):
            with pytest.raises(InvalidInput):
                names.set_tag("model", "m", "1.0.0", key, value)

    def test_a_removed_version_comes_back_without_what_was_said_of_it(self, names, thing):
        names.register("model", "m", "1.0.0", thing(0), {"metric.accuracy": 0.5})
        names.set_tag("model", "m", "1.0.0", "stage", "prod")
        names.set_alias("model", "m", "champion", "1.0.0")
        (gone,) = names.unregister("model", "m")
        assert (gone.tags, gone.aliases) == ({"stage": "prod"}, ("champion",))
        entry = names.register("model", "m", "1.0.0", thing(0))
        assert (entry.tags, entry.aliases) == ({}, ())
        assert names.search(metric={"accuracy": 0.5}) == []

    # --------------------------------------------------------------------------------------- renaming

    def test_what_is_renamed_keeps_everything_and_the_old_name_says_where_it_went(self, names, thing):
        names.register("model", "old", "1.0.0", thing(1), {"metric.accuracy": 0.5})
        names.register("model", "old", "2.0.0", thing(2))
        names.register("dataset", "old", "1.0.0", thing(3, "dataset"))
        names.set_alias("model", "old", "champion", "1.0.0")
        names.set_tag("model", "old", "1.0.0", "stage", "prod")
        before = names.entries("model")
        moved = names.rename("model", "old", "new")
        assert moved == names.entries("model")
        assert [(e.version, e.cid, e.aliases, e.tags, e.created) for e in moved] == [
            (e.version, e.cid, e.aliases, e.tags, e.created) for e in before
        ]
        assert {entry.name for entry in moved} == {"new"}
        assert names.resolve("model", "new@champion").version == "1.0.0"
        assert [entry.name for entry in names.search(metric={"accuracy": 0.5})] == ["new"]
        assert names.resolve("dataset", "old").version == "1.0.0"
        for ref in ("old", "old:1.0.0", "old@champion"):
            with pytest.raises(NotFound, match="no model named 'old' any more: it was renamed to 'new'"):
                names.resolve("model", ref)
        names.rename("model", "new", "newest")
        with pytest.raises(NotFound, match="renamed to 'newest'"):
            names.resolve("model", "old")
        with pytest.raises(NotFound, match="renamed to 'newest'"):
            names.rename("model", "old", "other")
        assert names.verify_history().versions == 3

    def test_a_renamed_version_never_comes_back_as_something_else(self, names, thing):
        names.register("model", "old", "1.0.0", thing(1))
        names.rename("model", "old", "new")
        with pytest.raises(Conflict, match=f"old:1.0.0 was {thing(1)} before it was removed"):
            names.register("model", "old", "1.0.0", thing(2))
        assert names.register("model", "old", None, thing(2)).version == "1.1.0"
        assert names.resolve("model", "old").cid == thing(2)

    def test_a_name_is_not_renamed_over_another_thing(self, names, thing):
        names.register("model", "a", "1.0.0", thing(1))
        names.register("model", "b", "1.0.0", thing(2))
        with pytest.raises(Conflict, match="there is a model of this name"):
            names.rename("model", "a", "b")
        with pytest.raises(Conflict):
            names.rename("model", "a", "a")
        names.unregister("model", "b")
        with pytest.raises(Conflict, match=f"b:1.0.0 was {thing(2)} .* a:1.0.0 is {thing(1)}"):
            names.rename("model", "a", "b")
        with pytest.raises(InvalidInput, match="not a name of a model"):
            names.rename("model", "a", "two words")
        with pytest.raises(NotFound):
            names.rename("model", "c", "d")
        assert [entry.name for entry in names.entries()] == ["a"]
        names.rename("model", "a", "c")
        assert [entry.name for entry in names.rename("model", "c", "a")] == ["a"], "back again is fine"

    # -------------------------------------------------------------------------------------- searching

    @pytest.fixture
    def filled(self, names, thing):
        data = [thing(number, "dataset") for number in (100, 101)]
        for number, name in enumerate(("digits", "digital", "letters")):
            for major in (1, 2):
                facts = facts_of_model(
                    metrics={
                        "accuracy": 0.5 + 0.1 * number + 0.05 * major,
                        "task": name[:3],
                        "curve": [1, 2],
                    },
                    datasets=[data[number % 2], data[1]],
                )
                names.register("model", name, f"{major}.0.0", thing(10 * number + major), facts)
        names.register("dataset", "digits", "1.0.0", data[0])
        names.set_tag("model", "digits", "2.0.0", "stage", "prod")
        names.set_tag("model", "letters", "1.0.0", "stage", "test")
        names.set_alias("model", "letters", "champion", "1.0.0")
        return names, data

    def test_a_search_finds_what_it_describes_and_nothing_else(self, filled):
        names, data = filled

        def found(*kind, **search):
            return [f"{entry.name}:{entry.version[0]}" for entry in names.search(*kind, **search)]

        everything = ["digital:1", "digital:2", "digits:1", "digits:2", "letters:1", "letters:2"]
        assert found("model") == everything
        assert found(name="digits") == ["digits:1", "digits:1", "digits:2"]
        assert found("model", name="dig*") == everything[:4]
        assert found("model", name="*t?rs") == everything[4:]
        assert found(tag={"stage": "prod"}) == ["digits:2"]
        assert found(tag={"stage": "*"}) == ["digits:2", "letters:1"]
        assert found(tag={"stage": "prod", "other": "*"}) == []
        assert found(alias="champ*") == ["letters:1"]
        assert found(cid=names.resolve("model", "digits").cid) == ["digits:2"]
        assert found("model", cid=str(data[0])) == []
        assert found("dataset", cid=str(data[0])) == ["digits:1"]
        assert found(metric={"accuracy": (">", 0.65)}) == ["digital:2", "letters:1", "letters:2"]
        assert found(metric={"accuracy": (">=", 0.65)}, name="d*") == ["digital:1", "digital:2"]
        assert found(metric={"accuracy": ("<", 0.6)}) == ["digits:1"]
        assert found(metric={"accuracy": 0.55}) == found(metric={"accuracy": ("==", 0.55)}) == ["digits:1"]
        assert len(found(metric={"accuracy": ("!=", 0.55)})) == 5
        assert found(metric={"task": "let"}) == everything[4:]
        assert found(fact={"metric.task": "let"}) == everything[4:]
        assert found(metric={"curve": (">", 0)}) == []
        assert (
            found(dataset=data[0]) == found(dataset=str(data[0])) == ["digits:1", "digits:2", *everything[4:]]
        )
        assert found(dataset=data[0], tag={"stage": "test"}) == ["letters:1"]
        assert found(dataset=data) == everything
        assert found(dataset=[]) == []
        assert found("model", limit=2) == everything[:2]
        assert found("model", limit=None) == everything
        assert found(
            "model", name="dig*", tag={"stage": "prod"}, dataset=data[0], metric={"accuracy": ("<", 1)}
        ) == ["digits:2"]

    def test_a_search_that_can_not_be_is_refused(self, names):
        for search in (
            {"metric": {"accuracy": (">>", 1)}},
            {"metric": {"accuracy": None}},
            {"metric": {"accuracy": (">", float("nan"))}},
            {"tag": {"stage": 1}},
            {"name": 1},
            {"dataset": "no CID"},
            {"cid": "no CID"},
            {"limit": -1},
            {"limit": "1"},
        ):
            with pytest.raises(InvalidInput):
                names.search(**search)

    def test_facts_that_were_not_known_are_known_after_the_next_registration(self, names, thing):
        names.register("model", "m", "1.0.0", thing(0))
        names.register("model", "m", None, thing(0), {"metric.loss": 2, "framework": "pytorch"})
        names.register("model", "m", None, thing(0), {"framework": ["pytorch"], "metric.loss": 2.0})
        names.register("model", "m", None, thing(0))
        assert [c.change["op"] for c in names.history()] == ["facts", "register"]
        assert [entry.version for entry in names.search(fact={"framework": "pytorch"})] == ["1.0.0"]
        assert names.search(metric={"loss": ("<", 2)}) == []
        names.verify_history()
        for key, value in (
            ("", 1),
            ("k", float("inf")),
            ("k", True),
            ("k", None),
            ("k", "x" * 1001),
            ("k\n", 1),
        ):
            with pytest.raises(InvalidInput):
                names.register("model", "n", None, thing(1), {key: value})
        assert len(names.entries()) == 1

    # ---------------------------------------------------------------------------------------- history

    def test_the_names_of_then_are_what_they_were(self, names, thing):
        names.register("model", "m", "1.0.0", thing(1), {"metric.accuracy": 0.5})
        names.set_alias("model", "m", "champion", "1.0.0")
        names.set_tag("model", "m", "1.0.0", "stage", "prod")
        then, commit = names.entries(), names.history()[0].cid
        time.sleep(0.02)
        moment = time.time()
        time.sleep(0.02)
        names.register("model", "m", "2.0.0", thing(2))
        names.set_alias("model", "m", "champion", "2.0.0")
        names.set_tag("model", "m", "1.0.0", "stage", None)
        names.rename("model", "m", "n")
        names.unregister("model", "n")
        for when in (moment, datetime.fromtimestamp(moment, UTC), commit):
            past = names.at(when)
            assert past.entries() == then
            assert past.resolve("model", "m@champion").cid == thing(1)
            assert past.search(name="m*", tag={"stage": "prod"}, metric={"accuracy": 0.5}) == then
            with pytest.raises(NotFound, match=r"m has :1\.0\.0, @champion"):
                past.resolve("model", "m:2.0.0")
            assert not hasattr(past, "register")
        assert names.at(0).entries() == []
        assert names.at(time.time() + 1).entries() == names.entries() == []
        with pytest.raises(NotFound, match="there is no commit"):
            names.at(thing(1)).entries()

    def test_the_history_of_a_name_goes_back_through_its_other_names(self, names, thing):
        names.register("model", "a", "1.0.0", thing(1))
        names.register("model", "x", "1.0.0", thing(1))
        names.register("dataset", "a", "1.0.0", thing(3, "dataset"))
        names.rename("model", "a", "b")
        names.set_alias("model", "b", "champion", "1.0.0")
        names.register("model", "a", "5.0.0", thing(5))
        ops = [(c.change["op"], c.change["name"]) for c in names.history("model", "b")]
        assert ops == [("alias", "b"), ("rename", "a"), ("register", "a")]
        assert [c.change["name"] for c in names.history("dataset")] == ["a"]
        assert len(names.history()) == 6
        assert names.history("model", "nothing") == []

    def test_a_commit_says_who_and_when(self, names, thing):
        before = time.time()
        names.register("model", "m", "1.0.0", thing(1))
        (commit,) = names.history()
        assert before - 0.001 <= commit.time <= time.time()
        assert "ann@laptop" in commit.who
        assert (commit.previous, commit.change["cid"]) == (None, thing(1))
        check = names.verify_history()
        assert (check.commits, check.newest, check.versions) == (1, commit.cid, 1)
