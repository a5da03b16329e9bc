"""Short ways to say requests."""

from __future__ import annotations

from objmeta.core.ballot import Ballot
from objmeta.core.configuration import single_set
from objmeta.core.listing import ScanAnswer, ScanRequest, ScanRow, decode_rows
from objmeta.core.messages import LIVE, Accept, Record, RecordRef, Reply, Request, State
from objmeta.core.records import record_digest
from objmeta.interfaces import AcceptorStore

CONFIGURATION = single_set(b"store-id-16bytes", (1, 2, 3))
TAG = CONFIGURATION.tag


def ballot(counter: int, proposer: int = 1) -> Ballot:
    return Ballot(counter, proposer, 2**64 - 1)


def version(number: int) -> bytes:
    return number.to_bytes(16)


def record(
    number: int, sequence: int = 1, parent: RecordRef | None = None, body: bytes = b"body", data: bytes = b""
) -> Record:
    digest = record_digest(sequence, version(number), parent, body)
    return Record(RecordRef(sequence, version(number), digest), parent, body, data)


def state(*records: Record, value: bytes = b"value", flag: int = LIVE) -> State:
    return State(value, tuple(each.ref for each in records), flag)


def put(name: bytes, counter: int, *records: Record, value: bytes = b"value", flag: int = LIVE) -> Accept:
    """An accept that brings its records along."""
    return Accept(name, ballot(counter), state(*records, value=value, flag=flag), records)


def ask(store: AcceptorStore, *requests: Request) -> list[Reply]:
    """Apply the requests as one batch."""
    return store.apply([(TAG, request) for request in requests])


def ask_one(store: AcceptorStore, request: Request) -> Reply:
    (reply,) = ask(store, request)
    return reply


def read_one(store: AcceptorStore, request: Request) -> Reply:
    (reply,) = store.read([(TAG, request)])
    return reply


def scan(store: AcceptorStore, request: ScanRequest) -> tuple[list[ScanRow], ScanAnswer]:
    answer = store.scan(TAG, request)
    return decode_rows(answer.rows), answer
