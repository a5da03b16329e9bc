"""Who votes: the configuration that every message names (DESIGN section 3)."""

from __future__ import annotations

import functools

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

    @functools.cached_property
    def tag(self) -> ConfigurationTag:
        """Store id, epoch and digest, as messages carry them."""
        return ConfigurationTag(self.store_id, self.epoch, blake3(msgspec.msgpack.encode(self)).digest(16))

    @functools.cached_property
    def quorums(self) -> Quorums:
        """The quorums of this configuration."""
        return Quorums(self.member_sets)


def single_set(store_id: bytes, members: tuple[int, ...], epoch: int = 1) -> Configuration:
    """A configuration that is not joint."""
    return Configuration(store_id, epoch, (tuple(sorted(members)),))
