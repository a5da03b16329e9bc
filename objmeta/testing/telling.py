"""Messages as short text, for traces and transcripts: ids by their first bytes, records as ``sequence:id``."""

from __future__ import annotations

from objmeta.core.ballot import ZERO, Ballot
from objmeta.core.configuration import Configuration
from objmeta.core.messages import (
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Erase,
    Erased,
    Fetch,
    Fetched,
    Floors,
    Found,
    Prepare,
    Promise,
    Raised,
    RaiseFloors,
    RaiseTerm,
    Read,
    ReadFloors,
    RecordRef,
    Refused,
    Reply,
    Request,
    Row,
    State,
)


def tell_id(version_id: bytes) -> str:
    """The first bytes of an operation id; the name itself if it was made from one (padded with NUL)."""
    bare = version_id.rstrip(b"\x00")
    if bare.isalnum() and len(version_id) - len(bare) >= 8:
        return bare.decode()
    return version_id[:4].hex() or "-"


def tell_ballot(ballot: Ballot) -> str:
    """``counter.proposer``: incarnations are left out."""
    return "0" if ballot == ZERO else f"{ballot.counter}.{ballot.proposer}"


def tell_ref(ref: RecordRef) -> str:
    """``sequence:id``."""
    return f"{ref.sequence}:{tell_id(ref.version_id)}"


def tell_refs(refs: tuple[RecordRef, ...]) -> str:
    """Several of them."""
    return "[" + " ".join(map(tell_ref, refs)) + "]"


def tell_state(state: State | None) -> str:
    """The tip of a state."""
    return "nothing" if state is None else tell_refs(state.refs)


def tell_row(row: Row) -> str:
    """All of a row."""
    return f"promised {tell_ballot(row.promised)} accepted {tell_ballot(row.accepted)} {tell_state(row.state)}"


def tell_message(message: Request | Reply) -> str:
    """One line for any message."""
    match message:
        case Prepare():
            return f"prepare {tell_ballot(message.ballot)} for {' '.join(map(tell_id, message.operations)) or '-'}"
        case Accept():
            dead = f" dead {tell_refs(message.dead)}" if message.dead else ""
            records = tell_refs(tuple(record.ref for record in message.records))
            following = f" then {tell_ballot(message.following)}" if message.following > message.ballot else ""
            return f"accept {tell_ballot(message.ballot)} {tell_state(message.state)} with {records}{dead}{following}"
        case Read():
            return "read"
        case Fetch():
            return f"fetch {tell_refs(message.refs)}"
        case RaiseTerm():
            return f"raise term {message.term}"
        case Promise():
            held = f" held {tell_refs(message.held)}" if message.held else ""
            base = f"{tell_ballot(message.accepted)} {tell_state(message.state)}"
            return f"promise {tell_ballot(message.ballot)}: {base}{held}"
        case Accepted():
            following = f" then {tell_ballot(message.promised)}" if message.promised > message.ballot else ""
            return f"accepted {tell_ballot(message.ballot)}{following}"
        case Refused():
            held = f" held {tell_refs(message.held)}" if message.held else ""
            return f"refused {tell_ballot(message.ballot)}: {message.reason.name} {tell_ballot(message.greatest)}{held}"
        case Found():
            return f"found {tell_ballot(message.accepted)} {tell_state(message.state)}"
        case Fetched():
            return f"fetched {tell_refs(tuple(record.ref for record in message.records))}"
        case Raised():
            return f"term {message.term}"
        case Erase():
            return f"erase {tell_ballot(message.ballot)}"
        case Erased():
            return f"erased {tell_ballot(message.ballot)} {'gone' if message.gone else 'kept'}"
        case RaiseFloors():
            return f"raise floors: generation {message.generation}, {len(message.scopes)} scopes"
        case ReadFloors():
            return "read floors"
        case Floors():
            return f"floors: generation {message.generation}, {len(message.scopes)} scopes"
        case Adopt():
            return f"adopt {tell_configuration(message.membership.configuration)}"
        case Adopted():
            return f"adopted {tell_configuration(message.membership.configuration)}"


def tell_configuration(configuration: Configuration) -> str:
    """Epoch and member sets."""
    sets = " + ".join(",".join(map(str, members)) for members in configuration.member_sets)
    return f"epoch {configuration.epoch} of {sets}"
