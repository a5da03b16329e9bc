"""What a coordinator of changes refuses; changes themselves are in ``tests/node`` and the simulator."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from objmeta.core.configuration import Configuration, Membership, single_set
from objmeta.core.reconfiguration import begin
from objmeta.errors import Conflict, Unavailable
from objmeta.register.membership import Coordinator

JOINT = begin(Membership(single_set(b"store-id-16bytes", (1, 2, 3))), {4: "127.0.0.1:4"}, ())


async def prepared(node_id: int, address: str, configuration: Configuration) -> None:
    raise AssertionError("nothing is begun")


@pytest.mark.parametrize(("epoch", "error"), [(1, Conflict), (3, Unavailable)])
async def test_a_node_that_was_away_passes_a_change_on(epoch: int, error: type[Exception]) -> None:
    # it knows of a change that has been completed since, so what it knows is no reason to refuse
    engine = cast(Any, SimpleNamespace(configuration=JOINT.configuration, membership=JOINT))
    coordinator = Coordinator(engine, random.Random(1))
    with pytest.raises(error):
        await coordinator.begin({}, (2,), prepared, 1.0, epoch=epoch)
