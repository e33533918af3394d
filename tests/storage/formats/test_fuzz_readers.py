import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SPEC = importlib.util.spec_from_file_location("fuzz_readers", Path(__file__).with_name("fuzz_readers.py"))
assert SPEC is not None
assert SPEC.loader is not None
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_what_is_not_damaged_is_accepted(name):
    for data in fuzz.TARGETS[name][1]:
        assert fuzz.attack(name, data)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_damage_never_gives_a_foreign_error_or_wrong_bytes(seed):
    fuzz.run(0, seed, rounds=400)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [10, 11])
def test_much_damage_never_gives_a_foreign_error_or_wrong_bytes(seed):
    accepted = fuzz.run(0, seed, rounds=5_000)
    assert all(accepted.values())  # damage that a reader takes is part of what is tested


@pytest.mark.parametrize("name", fuzz.TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_chosen_damage_never_gives_a_foreign_error(name, data):
    raw = bytearray(data.draw(st.sampled_from(fuzz.TARGETS[name][1])))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=12))
    fuzz.attack(name, bytes(raw))


def test_a_seed_repeats_its_inputs():
    corpus = fuzz.TARGETS["car"][1]
    assert fuzz.mutated(random.Random(5), corpus) == fuzz.mutated(random.Random(5), corpus)
