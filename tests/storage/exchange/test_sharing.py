"""The division of work among nodes that fetch the same: alike on all of them, and never a reason to wait for ever."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.storage.exchange.block_client import Provider
from holdfast.storage.exchange.peers import Peer
from holdfast.storage.exchange.sharing import Sharing

SOURCE = "http://source"


def node(url: str, mean_s: float | None = None) -> Peer:
    peer = Peer(Provider(url), 16)
    peer.mean_s = mean_s
    return peer


def sharing_of(own: str, others: list[Peer], groups: list[bytes]) -> Sharing:
    sharing = Sharing(own, groups)
    sharing.members(set(others))
    return sharing


@given(count=st.integers(2, 6), groups=st.lists(st.binary(min_size=1, max_size=8), min_size=1, max_size=20))
def test_each_group_is_got_from_the_source_by_one_node(count, groups):
    urls = [f"http://node-{number}" for number in range(count)]
    owners: list[set[str]] = [set() for _ in groups]
    for own in urls:
        source = node(SOURCE, mean_s=1.0)
        others = [node(url) for url in urls if url != own]
        sharing = sharing_of(own, others, groups)
        for index in range(len(groups)):
            choice = sharing.choose(index, [source, *others], head=False)
            if choice.early is None:
                assert choice.peers == [source]
                owners[index].add(own)
            else:
                owners[index].add(choice.early.provider.url)
    assert all(len(each) == 1 for each in owners)


def test_the_work_is_divided_about_evenly():
    urls = [f"http://node-{number}" for number in range(4)]
    others = [node(url) for url in urls[1:]]
    groups = [os.urandom(32) for _ in range(2000)]
    sharing = sharing_of(urls[0], others, groups)
    own = sum(
        sharing.choose(index, [node(SOURCE, 1.0), *others], head=False).early is None for index in range(2000)
    )
    assert 300 < own < 700


def test_a_quick_source_is_asked_at_once():
    source, other = node(SOURCE, mean_s=0.001), node("http://other")
    sharing = sharing_of("http://own", [other], [b"%d" % i for i in range(50)])
    assert all(sharing.choose(i, [source, other], head=False).peers == [source] for i in range(50))


def test_without_others_or_groups_nothing_is_shared():
    source, other = node(SOURCE, mean_s=1.0), node("http://other")
    assert sharing_of("http://own", [], [b"x"]).choose(0, [source], head=True).peers == [source]
    alone = Sharing("http://own", None)
    alone.members({other})
    assert alone.choose(0, [source, other], head=True).peers == [source, other]


@pytest.fixture
def shared(monkeypatch):
    """A group of another node, a clock to turn, and whom there is to ask."""
    now = [100.0]
    monkeypatch.setattr("holdfast.storage.exchange.sharing.time.monotonic", lambda: now[0])
    source, other = node(SOURCE, mean_s=1.0), node("http://other")
    sharing = sharing_of("", [other], [b"x", b"y"])  # a node that serves nothing has no part of its own
    return sharing, now, source, other


def test_a_node_that_has_it_not_yet_is_asked_again_later_and_less_often(shared):
    sharing, now, source, other = shared
    assert sharing.choose(0, [source, other], head=True).early is other
    waits = []
    for _ in range(12):
        sharing.answered(other, here=False)
        assert sharing.choose(0, [source, other], head=False).wait
        waits.append(sharing.next_try_s())
        now[0] += waits[-1] + 0.001
        assert sharing.choose(0, [source, other], head=False).early is other
    assert waits == sorted(waits)
    assert waits[-1] <= 0.5
    sharing.answered(other, here=True)
    sharing.answered(other, here=False)
    assert sharing.next_try_s() < 0.1


def test_a_node_that_does_not_do_its_part_is_passed_over_for_a_while(shared):
    sharing, now, source, other = shared
    assert sharing.choose(0, [source, other], head=True).early is other
    sharing.answered(other, here=False)
    now[0] += 6
    assert sharing.choose(0, [source, other], head=True).peers == [source]
    sharing.members({other})
    assert sharing.choose(1, [source, other], head=True).early is None
    now[0] += 11
    sharing.members({other})
    assert sharing.choose(1, [source, other], head=True).early is other


def test_a_node_that_refused_is_not_waited_for(shared):
    sharing, _, source, other = shared
    assert sharing.choose(0, [source], head=True).peers == [source]
    assert sharing.choose(0, [other], head=True).peers == [
        other
    ]  # and with no source at all, others are asked
