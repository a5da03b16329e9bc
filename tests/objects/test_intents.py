"""The changes of a transaction: what each makes of each state of a register."""

from __future__ import annotations

import pytest

from objmeta.core.change import Batch, Change, Keep, Write
from objmeta.core.messages import LIVE, TOMBSTONE, Record, State
from objmeta.model.changes import (
    EXISTS,
    MISSING,
    MOVED,
    PENDING,
    PRECONDITION,
    Conclude,
    Decide,
    Intend,
    PutVersion,
    RemoveVersion,
    Resolve,
)
from objmeta.model.values import (
    INTENT_MARK,
    Head,
    Manifest,
    Pending,
    RegisterValue,
    Removal,
    Step,
    Transaction,
    decode_body,
    decode_value,
    encode,
    holds_intent,
    tip_of,
)
from objmeta.objects.history import by_ref, walk

NAME = b"o/" + bytes(16) + b"key"
ONE, TWO = b"1" * 16, b"2" * 16
MANIFEST = Manifest(3, bytes(32), 7)
MARKER = Manifest(0, bytes(32), 7, delete_marker=True)


class Chain:
    """A register and all records that were ever written."""

    def __init__(self) -> None:
        self.state: State | None = None
        self.records: list[Record] = []

    def apply(self, change: Change) -> str:
        decision = change.apply(NAME, self.state, 0)
        if isinstance(decision, Keep):
            return decision.code or "kept"
        assert isinstance(decision, Write)
        self.state = decision.state
        self.records += decision.records
        return "written"

    @property
    def value(self) -> RegisterValue:
        assert self.state is not None
        return decode_value(self.state.value)

    def versions(self) -> list[bytes]:
        assert self.state is not None
        return [entry.ref.version_id for entry in walk(self.state, by_ref(self.records)).entries]


@pytest.fixture
def chain() -> Chain:
    chain = Chain()
    assert chain.apply(PutVersion(b"v" * 16, MANIFEST)) == "written"
    return chain


def _intend(transaction: bytes = ONE, manifest: Manifest = MANIFEST) -> Intend:
    return Intend(b"i" * 16, manifest, transaction=transaction)


def test_an_intent_names_both_outcomes(chain: Chain) -> None:
    before = chain.value
    assert isinstance(before, Head)
    assert chain.apply(_intend()) == "written"
    intent = chain.value
    assert isinstance(intent, Pending)
    assert (intent.before, intent.current.ref, intent.transaction) == (before.current, tip_of(chain.state), ONE)
    assert holds_intent(chain.state)
    assert chain.state is not None
    assert chain.state.flag == LIVE


@pytest.mark.parametrize("manifest", [MANIFEST, MARKER])
def test_a_listing_meets_every_intent(manifest: Manifest) -> None:
    chain = Chain()
    chain.apply(_intend(manifest=manifest))
    assert chain.state is not None
    assert chain.state.flag == LIVE


def test_what_meets_an_intent_changes_nothing(chain: Chain) -> None:
    chain.apply(_intend())
    state, tip = chain.state, tip_of(chain.state)
    assert tip is not None
    for change in (PutVersion(TWO, MANIFEST, if_absent=True), _intend(TWO), RemoveVersion(TWO, b"v" * 16, tip, None)):
        assert chain.apply(change) == PENDING
        assert chain.state == state


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (Intend(ONE, MANIFEST, if_absent=True, transaction=ONE), EXISTS),
        (Intend(ONE, MANIFEST, if_version=b"x" * 16, transaction=ONE), PRECONDITION),
        (Intend(ONE, MARKER, if_present=True, transaction=ONE), "written"),
    ],
)
def test_conditions_are_those_of_a_put(chain: Chain, change: Intend, code: str) -> None:
    assert chain.apply(change) == code
    assert Chain().apply(Intend(ONE, MARKER, if_present=True, transaction=ONE)) == MISSING


def test_committed(chain: Chain) -> None:
    chain.apply(_intend())
    assert chain.apply(Resolve(TWO, ONE, True)) == "written"
    head = chain.value
    assert isinstance(head, Head)
    assert head.current is not None
    assert head.current.ref.version_id == b"i" * 16
    assert chain.versions() == [b"i" * 16, b"v" * 16]
    assert decode_body(chain.records[-1]) == Step()
    assert chain.apply(PutVersion(TWO, MANIFEST, if_version=b"i" * 16)) == "written"


def test_aborted_leaves_no_trace_in_the_history(chain: Chain) -> None:
    before = chain.value
    chain.apply(_intend())
    assert chain.apply(Resolve(TWO, ONE, False)) == "written"
    assert chain.value == before
    assert chain.versions() == [b"v" * 16]
    assert chain.state is not None
    history = walk(chain.state, by_ref(chain.records))
    assert (history.removals, history.removed) == ((), ())
    assert decode_body(chain.records[-1]) == Removal(b"i" * 16, undone=True)


def test_aborted_where_nothing_was_leaves_a_tombstone() -> None:
    chain = Chain()
    chain.apply(_intend())
    chain.apply(Resolve(TWO, ONE, False))
    assert chain.value == Head(None)
    assert chain.state is not None
    assert chain.state.flag == TOMBSTONE
    assert decode_body(chain.records[-1]) == Removal(b"i" * 16, last=True, undone=True)


@pytest.mark.parametrize("committed", [True, False])
def test_only_the_transaction_s_own_intent_is_replaced(chain: Chain, committed: bool) -> None:
    assert chain.apply(Resolve(TWO, ONE, committed)) == "kept"
    chain.apply(_intend())
    assert chain.apply(Resolve(TWO, TWO, committed)) == "kept"
    assert holds_intent(chain.state)
    assert Chain().apply(Resolve(TWO, ONE, committed)) == "kept"


def test_one_outcome_wins() -> None:
    for first, status, flag in ((True, "committed", LIVE), (False, "aborted", TOMBSTONE)):
        chain = Chain()
        assert chain.apply(Decide(ONE, first, (NAME,) if first else ())) == "written"
        assert chain.value == Transaction(status, (NAME,) if first else ())
        assert chain.state is not None
        assert chain.state.flag == flag
        for second in (True, False):
            assert chain.apply(Decide(TWO, second)) == EXISTS


def test_only_a_committed_transaction_is_concluded() -> None:
    assert Chain().apply(Conclude(TWO)) == MOVED
    aborted, committed = Chain(), Chain()
    aborted.apply(Decide(ONE, False))
    assert aborted.apply(Conclude(TWO)) == MOVED
    committed.apply(Decide(ONE, True, (NAME,)))
    assert committed.apply(Conclude(TWO)) == "written"
    assert committed.value == Transaction("done")
    assert committed.state is not None
    assert committed.state.flag == TOMBSTONE
    assert committed.apply(Decide(TWO, False)) == EXISTS
    assert committed.apply(Conclude(ONE)) == MOVED


def test_what_queues_up_behind_an_intent_waits() -> None:
    chain = Chain()
    batch = Batch([_intend(), PutVersion(TWO, MANIFEST)], 1 << 20)
    assert chain.apply(batch) == "written"
    assert [result.code for result in batch.results] == ["", PENDING]
    assert holds_intent(chain.state)


def test_what_is_no_intent() -> None:
    assert not holds_intent(None)
    assert not holds_intent(State(INTENT_MARK, (), LIVE))
    assert not holds_intent(State(encode(Head(None)), (), TOMBSTONE))
