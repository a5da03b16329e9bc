"""What travels is what arrives."""

from __future__ import annotations

import inspect

import pytest

from objmeta import errors
from objmeta.core.ballot import Ballot
from objmeta.core.configuration import Configuration, Membership, single_set
from objmeta.core.listing import ScanAnswer, ScanRequest
from objmeta.core.messages import (
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Erase,
    Erased,
    Fence,
    Fetch,
    Floors,
    Found,
    Prepare,
    Promise,
    RaiseFloors,
    RaiseTerm,
    Read,
    ReadFloors,
    Record,
    RecordRef,
    Refusal,
    Refused,
    Reply,
    Request,
    ScopeFloor,
    State,
)
from objmeta.interfaces import ChangeProgress, ChangeReply, MembersStatus, NodeStatus
from objmeta.model.changes import ModelChange, PutVersion, RemoveVersion, SetValue
from objmeta.model.values import Manifest, Version
from objmeta.rpc import wire

BALLOT = Ballot(2**64 - 1, 2**63, 7)
REF = RecordRef(3, b"v" * 16, b"d" * 32)
STATE = State(b"value", (REF,), 1)
RECORD = Record(REF, None, b"body", b"data")
MEMBERSHIP = Membership(Configuration(b"s" * 16, 2, ((1,), (1, 2)), (3,)), ((1, "host:1"), (2, "host:2")))
ERRORS = [error for _, error in inspect.getmembers(errors, inspect.isclass) if issubclass(error, errors.ObjmetaError)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.kind)
def test_an_error_comes_back_as_the_same_class(error: type[errors.ObjmetaError]) -> None:
    back = wire.error(wire.failure(error("why")))
    assert type(back) is error
    assert str(back) == "why"


def test_kinds_are_unique() -> None:
    assert len({error.kind for error in ERRORS}) == len(ERRORS)


def test_an_error_of_a_later_version_is_an_error() -> None:
    assert type(wire.error(wire.Failure("from_the_future", "why"))) is errors.ObjmetaError


@pytest.mark.parametrize(
    "request_",
    [
        Prepare(b"n", BALLOT, (b"v" * 16,)),
        Accept(b"n", BALLOT, STATE, (RECORD,), Fence(b"s", 4), 5, (REF,)),
        Accept(b"n", BALLOT, STATE),
        Read(b"n"),
        Fetch(b"n", (REF,), False),
        RaiseTerm(b"s", 9),
        Erase(b"n", BALLOT),
        RaiseFloors(3, ((b"s", ScopeFloor(4, BALLOT, 5)),)),
        ReadFloors(b"s", 9),
        Adopt(MEMBERSHIP, joining=True),
    ],
    ids=lambda request_: type(request_).__name__,
)
def test_requests_travel(request_: Request) -> None:
    tag = single_set(b"s" * 16, (1, 2, 3)).tag
    message = wire.encode((tag, wire.raw([wire.encode((8, (request_, request_)))])))
    assert wire.decode_peer_batch(message) == wire.PeerBatch(tag, [(8, [request_, request_])])


@pytest.mark.parametrize(
    "reply",
    [
        Promise(BALLOT, BALLOT, STATE, (REF,), 6),
        Accepted(BALLOT),
        Refused(BALLOT, Refusal.CONFLICT, BALLOT, (REF,), "why"),
        Refused(BALLOT, Refusal.CONFIGURATION, membership=MEMBERSHIP),
        Refused(BALLOT, Refusal.CONFIGURATION, behind=True),
        Found(BALLOT, None),
        Erased(BALLOT, True),
        Floors(3, ((b"s", ScopeFloor(4, BALLOT, 5)),), True),
        Adopted(MEMBERSHIP),
    ],
    ids=lambda reply: type(reply).__name__,
)
def test_replies_travel(reply: Reply) -> None:
    message = wire.encode((wire.raw([wire.encode((8, (reply,)))]),))
    assert wire.decode_peer_replies(message) == wire.PeerReplies([(8, [reply])])


@pytest.mark.parametrize(
    "change",
    [
        PutVersion(b"v" * 16, Manifest(1, b"e", 2, "text", {"a": "b"}), b"data", if_absent=True),
        RemoveVersion(b"v" * 16, b"t" * 16, REF, Version(REF, 1, b"e", 2)),
        SetValue(b"v" * 16, None),
    ],
    ids=lambda change: type(change).__name__,
)
def test_changes_travel(change: ModelChange) -> None:
    operation = wire.ChangeName(b"n", change, Fence(b"s", 1), 2)
    message = wire.encode((wire.raw([wire.encode((4, 1.5, operation))]),))
    assert wire.decode_client_batch(message) == wire.ClientBatch([(4, 1.5, operation)])


def test_results_travel() -> None:
    results: list[tuple[int, wire.Result]] = [
        (1, wire.States([STATE, None])),
        (2, wire.Changed(ChangeReply("code", STATE, RECORD))),
        (3, wire.Failure("no_quorum", "why")),
        (4, wire.Records([RECORD])),
        (5, wire.Raised()),
        (6, wire.Members(MembersStatus(MEMBERSHIP, (NodeStatus(1, "host:1", "up"),), ChangeProgress(1, "copying", 2)))),
        (7, wire.MembersChanging(MEMBERSHIP)),
    ]
    message = wire.encode((wire.raw([wire.encode(item) for item in results]), False, 3))
    assert wire.decode_client_replies(message) == wire.ClientReplies(results, False, 3)


def test_replies_of_an_earlier_version_are_read() -> None:
    assert wire.decode_client_replies(wire.encode(([], True))) == wire.ClientReplies([], True, 0)
    hello = (1, (1, 2), wire.ESTABLISHED, None, True, "")
    assert wire.decode_hello(wire.encode(hello)) == wire.Hello(1, (1, 2), wire.ESTABLISHED, None, True)


def test_a_page_travels() -> None:
    answer = ScanAnswer(b"rows", b"to")
    assert wire.decode_peer_scanned(wire.encode(wire.PeerScanned(answer))).answer == answer
    asked = wire.PeerScan(single_set(b"s", (1,)).tag, ScanRequest(b"a", b"b", 5, b"/", 2, True), 3)
    assert wire.decode_peer_scan(wire.encode(asked)) == asked
