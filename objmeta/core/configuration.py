"""Who votes: the configuration that every message names (DESIGN section 3)."""

from __future__ import annotations

import functools
from typing import Final

import msgspec
from blake3 import blake3

from objmeta.core.quorum import Quorums


class ConfigurationTag(msgspec.Struct, frozen=True, array_like=True):
    """What every message between proposers and acceptors carries; a mismatch is refused, never guessed."""

    store_id: bytes
    epoch: int
    digest: bytes


class Configuration(msgspec.Struct, frozen=True, array_like=True, dict=True):
    """The identity of a store and the acceptors that decide in it.

    ``store_id`` is 16 random bytes drawn when the store was made; ``epoch`` grows by one with each change of members;
    ``member_sets`` holds one set of acceptor ids, or two while a change is under way (joint).  Addresses are not part
    of it: settings locate acceptors, they do not define them.
    """

    store_id: bytes
    epoch: int
    member_sets: tuple[tuple[int, ...], ...]
    retired: tuple[int, ...] = ()
    """Ids of members that were removed: what comes back under one of them has forgotten its promises."""

    @property
    def is_joint(self) -> bool:
        """Whether a change of members is under way."""
        return len(self.member_sets) > 1

    @functools.cached_property
    def tag(self) -> ConfigurationTag:
        """Store id, epoch and digest, as messages carry them."""
        return ConfigurationTag(self.store_id, self.epoch, blake3(msgspec.msgpack.encode(self)).digest(16))

    @functools.cached_property
    def quorums(self) -> Quorums:
        """The quorums of this configuration."""
        return Quorums(self.member_sets)


class Membership(msgspec.Struct, frozen=True, array_like=True):
    """A configuration together with where its members are reached: what a change of members hands out.

    Addresses locate members, they do not define them: two memberships of one epoch may differ in them.
    """

    configuration: Configuration
    addresses: tuple[tuple[int, str], ...] = ()

    @property
    def address_of(self) -> dict[int, str]:
        """Addresses (``host:port``) by member id."""
        return dict(self.addresses)


OUTSIDE: Final = 0
"""The epoch of an acceptor that was made for a store but has not joined it: it has no vote yet."""


def single_set(store_id: bytes, members: tuple[int, ...], epoch: int = 1) -> Configuration:
    """A configuration that is not joint."""
    return Configuration(store_id, epoch, (tuple(sorted(members)),))
