"""Which configuration may follow which (PROTOCOL, "Changing the members"), and the register that holds it."""

from __future__ import annotations

import pytest

from objmeta.core.change import Keep, Write
from objmeta.core.configuration import OUTSIDE, Configuration, Membership, single_set
from objmeta.core.messages import State
from objmeta.core.reconfiguration import (
    CONFIGURATION_REGISTER,
    MEMBERS_MAX,
    MOVED,
    MoveConfiguration,
    begin,
    complete,
    leads_to,
    membership_in,
    outside,
)
from objmeta.core.records import is_intact
from objmeta.errors import Conflict, IntegrityError, InvalidArgument

STORE = b"s" * 16
OPERATION = b"o" * 16


def members(*ids: int, epoch: int = 1, retired: tuple[int, ...] = ()) -> Membership:
    configuration = Configuration(STORE, epoch, (ids,), retired)
    return Membership(configuration, tuple((node, f"host{node}:1") for node in ids))


def test_a_change_goes_by_way_of_joint() -> None:
    joint = begin(members(1, 2, 3), {4: "host4:1"}, [2])
    assert joint.configuration == Configuration(STORE, 2, ((1, 2, 3), (1, 3, 4)))
    assert joint.address_of == {node: f"host{node}:1" for node in (1, 2, 3, 4)}
    new = complete(joint)
    assert new.configuration == Configuration(STORE, 3, ((1, 3, 4),), (2,))
    assert new.address_of == {node: f"host{node}:1" for node in (1, 3, 4)}
    assert leads_to(joint) == leads_to(new) == (1, 3, 4)


def test_ids_stay_retired() -> None:
    once = complete(begin(members(1, 2, 3), {}, [3]))
    twice = complete(begin(once, {4: "host4:1"}, [1]))
    assert twice.configuration.retired == (1, 3)
    with pytest.raises(InvalidArgument, match=r"never used again.*above 4"):
        begin(twice, {3: "host3:1"}, [])
    with pytest.raises(InvalidArgument, match="removed already"):
        begin(twice, {}, [1])


@pytest.mark.parametrize(
    ("add", "remove", "says"),
    [
        ({}, [], "at least one"),
        ({}, [4], "no member; the members are 1, 2, 3"),
        ({2: "host9:1"}, [], "member already"),
        ({2: "host9:1"}, [2], "member already"),
        ({4: "host1:1"}, [], "address of another node"),
        ({4: "host9:1", 5: "host9:1"}, [], "address of another node"),
        ({}, [1, 2, 3], "last member"),
        ({node: f"host{node}:1" for node in range(4, MEMBERS_MAX + 2)}, [], "at most"),
    ],
)
def test_changes_that_make_no_sense(add: dict[int, str], remove: list[int], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        begin(members(1, 2, 3), add, remove)


def test_the_address_of_a_node_that_leaves_is_free() -> None:
    assert begin(members(1, 2, 3), {4: "host2:1"}, [2]).address_of[4] == "host2:1"


def test_one_change_at_a_time() -> None:
    with pytest.raises(Conflict, match="1 to 1, 2"):
        begin(begin(members(1), {2: "host2:1"}, []), {3: "host3:1"}, [])


def test_who_is_to_join_has_no_vote_in_the_store() -> None:
    configuration = outside(STORE, 4)
    assert configuration.epoch == OUTSIDE
    assert configuration.tag != single_set(STORE, (4,)).tag


def test_the_register_moves_by_compare_and_swap() -> None:
    joint = begin(members(1, 2, 3), {}, [3])
    first = MoveConfiguration(OPERATION, joint).apply(CONFIGURATION_REGISTER, None, 7)
    assert isinstance(first, Write)
    assert membership_in(first.state) == joint
    assert [record.ref for record in first.records] == list(first.state.refs)
    assert first.records[0].ref.sequence == 8
    assert all(is_intact(record) for record in first.records)
    again = MoveConfiguration(b"p" * 16, begin(members(1, 2, 3), {}, [2]))
    assert again.apply(CONFIGURATION_REGISTER, first.state, 0) == Keep(MOVED)
    second = MoveConfiguration(OPERATION, complete(joint)).apply(CONFIGURATION_REGISTER, first.state, 0)
    assert isinstance(second, Write)
    assert membership_in(second.state) == complete(joint)
    assert second.records[0].parent == first.records[0].ref
    assert MoveConfiguration(OPERATION, complete(joint)).apply(CONFIGURATION_REGISTER, None, 0) == Keep(MOVED)


def test_an_empty_register_says_nothing_and_a_damaged_one_says_so() -> None:
    assert membership_in(None) is None
    with pytest.raises(IntegrityError):
        membership_in(State(b"nonsense", ()))
