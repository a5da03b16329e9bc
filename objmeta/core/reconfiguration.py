"""Changing the members: which configuration may follow which, and how the configuration is kept (PROTOCOL, "Changing
the members").

::

    settled (epoch e)  --add, remove-->  joint (e + 1: old set, new set)  --copied-->  settled (e + 2: new set)

The configuration lives in a register of its own.  It moves by compare-and-swap on its epoch only: a joint one is chosen
by the old members, the one after it by majorities of both sets.  An empty register stands for the configuration the
store was made with, epoch 1.  Ids of members that leave are retired for good.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from objmeta.core.change import Decision, Keep, Write
from objmeta.core.configuration import OUTSIDE, Configuration, Membership
from objmeta.core.messages import Record, RecordRef, State
from objmeta.core.records import record_digest
from objmeta.errors import Conflict, IntegrityError, InvalidArgument

CONFIGURATION_REGISTER: Final = b"~c/config"
FIRST_EPOCH: Final = 1
MOVED: Final = "moved"
"""Code of a move that found another epoch than it expected."""

MEMBERS_MAX: Final = 9
"""More acceptors make every round slower and protect no better against what happens in practice."""


# -- Which may follow which -------------------------------------------------------------------------------------------


def outside(store_id: bytes, acceptor: int) -> Configuration:
    """What an acceptor is made with that is to join a store: it has no vote in it yet."""
    return Configuration(store_id, OUTSIDE, ((acceptor,),))


def begin(current: Membership, add: Mapping[int, str], remove: Collection[int]) -> Membership:
    """The joint membership that leads from ``current`` to one with ``add`` (addresses by id) and without ``remove``.

    Raises Conflict if a change is under way, InvalidArgument if this one makes no sense; the message says why.
    """
    configuration = current.configuration
    if configuration.is_joint:
        raise Conflict(f"another change of the members is under way ({describe(configuration)}); wait until it is done")
    (old,) = configuration.member_sets
    if not add and not remove:
        raise InvalidArgument("name at least one node to add or to remove")
    for node in sorted(remove):
        if node in configuration.retired:
            raise InvalidArgument(f"node {node} was removed already")
        if node not in old:
            raise InvalidArgument(f"node {node} is no member; the members are {_listed(old)}")
    for node, address in sorted(add.items()):
        if node in old:
            raise InvalidArgument(f"node {node} is a member already; a node that lost its data is replaced by a new id")
        if node in configuration.retired:
            raise InvalidArgument(
                f"node {node} was removed from this cluster and its id is never used again; take an id above "
                f"{max((*old, *configuration.retired))}"
            )
        taken = [member for member, known in current.addresses if known == address and member not in remove]
        if taken or list(add.values()).count(address) > 1:
            raise InvalidArgument(f"{address} is the address of another node; every node needs one of its own")
    new = tuple(sorted((set(old) | set(add)) - set(remove)))
    if not new:
        raise InvalidArgument("the last member cannot be removed: a cluster has at least one node")
    if len(new) > MEMBERS_MAX:
        raise InvalidArgument(f"a cluster has at most {MEMBERS_MAX} nodes, not {len(new)}")
    joint = Configuration(configuration.store_id, configuration.epoch + 1, (old, new), configuration.retired)
    return Membership(joint, _addresses(current.address_of | dict(add), joint))


def complete(joint: Membership) -> Membership:
    """The membership that follows a joint one when everything has been copied."""
    configuration = joint.configuration
    old, new = configuration.member_sets
    retired = tuple(sorted({*configuration.retired, *old} - set(new)))
    settled = Configuration(configuration.store_id, configuration.epoch + 1, (new,), retired)
    return Membership(settled, _addresses(joint.address_of, settled))


def leads_to(membership: Membership) -> tuple[int, ...]:
    """The members there are, or will be when the change under way is done."""
    return membership.configuration.member_sets[-1]


def describe(configuration: Configuration) -> str:
    """The members in words."""
    return " to ".join(_listed(members) for members in configuration.member_sets)


def _listed(members: Collection[int]) -> str:
    return ", ".join(map(str, sorted(members)))


def _addresses(known: Mapping[int, str], configuration: Configuration) -> tuple[tuple[int, str], ...]:
    return tuple((member, known[member]) for member in configuration.quorums.members if member in known)


# -- How it is kept ---------------------------------------------------------------------------------------------------


class _Kept(msgspec.Struct, frozen=True, array_like=True, tag="config1"):
    """The value of the configuration register."""

    membership: Membership


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(_Kept)


def membership_in(state: State | None) -> Membership | None:
    """The membership a state of the register holds; None if it is empty. Raises IntegrityError."""
    if state is None:
        return None
    try:
        return _DECODER.decode(state.value).membership
    except msgspec.MsgspecError as damage:
        raise IntegrityError(f"the configuration register holds bytes that cannot be read: {damage}") from damage


class MoveConfiguration(msgspec.Struct, frozen=True):
    """The change of the register: to ``membership``, if the epoch is the one before it; else code MOVED."""

    version_id: bytes
    membership: Membership

    @property
    def operations(self) -> tuple[bytes, ...]:
        """The one operation id."""
        return (self.version_id,)

    def apply(self, name: bytes, state: State | None, sequence_floor: int) -> Decision:
        """See :class:`objmeta.core.change.Change`."""
        current = membership_in(state)
        epoch = FIRST_EPOCH if current is None else current.configuration.epoch
        if epoch + 1 != self.membership.configuration.epoch:
            return Keep(MOVED)
        parent = state.refs[-1] if state is not None and state.refs else None
        sequence = (parent.sequence if parent else sequence_floor) + 1
        value = _ENCODER.encode(_Kept(self.membership))
        ref = RecordRef(sequence, self.version_id, record_digest(sequence, self.version_id, parent, value))
        return Write(State(value, (ref,)), (Record(ref, parent, value),))
