"""Directed schedules as text: commands at the margin, what the core answered indented below them.

``python -m objmeta.testing.transcripts [--rewrite] FILE…`` runs files and compares (or regenerates) the answers; the
diff is the review.  Nothing here knows a clock or a network: each step is a command.  Commands::

    acceptors A B C                       who votes (first command)
    variant NAME                          a broken variant (objmeta.testing.mutations, mutations_upkeep), from here on
    round R BALLOT CHANGE [dead REF…]     start a round; BALLOT is counter.proposer; CHANGE is one of read | renew |
                                          put ID [absent|present|after ID] | delete ID | set ID | clear ID
                                          (set and clear are of a key-value register), or several with & between
                                          them, then [again] (an earlier round proposed one of them), [generation N]
    first R HOME CHANGE                   start a first write at the acceptor HOME
    deliver R A…                          the acceptors take the round's next request; replies are kept
    answer R A…                           the round takes the kept replies
    send R A…                             deliver and answer, one acceptor after the other
    repeat R A…                           the acceptors take the last request once more; the reply is lost
    stragglers R / timeout R              the round's timers
    fastread A…                           one fast read that asks these, in this order
    forget A                              the acceptor's disk loses what it promised beyond what it accepted
    show A…                               rows and records
    outside D                             make an acceptor that has not joined
    members A B C [+ A C D]               the next configuration, joint with two sets: rounds begin under it from now on
    adopt A… / join D…                    acceptors adopt it; those outside join
    floors D from A…                      give an acceptor the floors of others
    generation N A…                       raise the generation floor
    erase BALLOT A…                       the acceptors are asked to forget the tombstone accepted under BALLOT
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from objmeta.core.ballot import Ballot
from objmeta.core.change import Batch, Change, Identity, Renewal
from objmeta.core.configuration import OUTSIDE, Configuration, Membership, single_set
from objmeta.core.fastread import FastRead
from objmeta.core.firstwrite import FirstWrite
from objmeta.core.messages import (
    WRITES,
    Accept,
    Adopt,
    Erase,
    Floors,
    Found,
    Prepare,
    RaiseFloors,
    Read,
    ReadFloors,
    RecordRef,
    Reply,
    Request,
    Row,
)
from objmeta.core.proposer import (
    AwaitStragglers,
    Denied,
    Done,
    Effect,
    HeldElsewhere,
    Lost,
    NotFirst,
    Outcome,
    Round,
    Send,
    Settled,
)
from objmeta.model.changes import PutVersion, SetValue
from objmeta.model.values import Manifest
from objmeta.testing.checkers import Violation
from objmeta.testing.disk import SimStore
from objmeta.testing.mutations import MUTATIONS, NONE
from objmeta.testing.mutations_upkeep import UPKEEP_MUTATIONS
from objmeta.testing.telling import tell_ballot, tell_message, tell_ref, tell_refs, tell_row, tell_state
from objmeta.testing.watch import Watch

NAME = b"x"
RECORD_BYTES_MAX = 1 << 20
INDENT = "    "


class _Running:
    """A round in a transcript: its requests on the way and the replies not yet taken."""

    def __init__(
        self, round_: Round | FirstWrite, configuration: Configuration, operations: tuple[bytes, ...] = ()
    ) -> None:
        self.round = round_
        self.configuration = configuration
        self.operations = operations
        """What its answer is about, if that is one operation."""
        self.requests: dict[int, list[Request]] = {}
        self.last: dict[int, Request] = {}
        self.replies: dict[int, list[Reply]] = {}


class Transcript:
    """Runs the commands of one file."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._ids: dict[str, int] = {}
        self._rounds: dict[str, _Running] = {}
        self._mutation = NONE
        self._factory: Callable[..., Round] = Round
        self._stores: dict[int, SimStore] = {}
        self._refused: set[bytes] = set()

    def run(self, text: str) -> str:
        """The same file with fresh answers."""
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith(INDENT):
                continue
            lines.append(line.rstrip())
            if line.strip() and not line.startswith("#"):
                self._out = []
                self._command(line.split())
                lines.extend(f"{INDENT}{answer}".rstrip() for answer in self._out)
        return "\n".join(lines) + "\n"

    # -- Commands -----------------------------------------------------------------------------------------------------

    def _command(self, words: list[str]) -> None:
        verb, arguments = words[0], words[1:]
        try:
            getattr(self, f"_do_{verb}")(*arguments)
        except Violation as violation:
            self._out.append(f"VIOLATION: {violation}")

    def _do_acceptors(self, *names: str) -> None:
        self._ids = {name: i for i, name in enumerate(names, 1)}
        self._configuration = single_set(bytes(16), tuple(self._ids.values()))
        self._stores = {i: SimStore(i, self._configuration, self._mutation.acceptor()) for i in self._ids.values()}
        self._tables = {i: store.disk.durable for i, store in self._stores.items()}
        self._watch = Watch(self._configuration, self._tables)

    def _do_outside(self, name: str) -> None:
        i = self._ids[name] = len(self._ids) + 1
        configuration = Configuration(bytes(16), OUTSIDE, ((i,),))
        self._stores[i] = SimStore(i, configuration, self._mutation.acceptor())
        self._tables[i] = self._stores[i].disk.durable

    def _do_members(self, *names: str) -> None:
        at = names.index("+") if "+" in names else len(names)
        sets = [tuple(sorted(self._ids[name] for name in part)) for part in (names[:at], names[at + 1 :]) if part]
        self._configuration = Configuration(bytes(16), self._configuration.epoch + 1, tuple(sets))

    def _do_adopt(self, *acceptors: str) -> None:
        for acceptor in acceptors:
            self._step(acceptor, Adopt(Membership(self._configuration)), self._configuration)

    def _do_join(self, *acceptors: str) -> None:
        for acceptor in acceptors:
            self._step(acceptor, Adopt(Membership(self._configuration), joining=True), self._configuration)

    def _do_floors(self, name: str, _from: str, *acceptors: str) -> None:
        for acceptor in acceptors:
            floors = self._stores[self._ids[acceptor]].read(self._configuration.tag, ReadFloors())
            assert isinstance(floors, Floors)
            self._step(name, RaiseFloors(floors.generation, floors.scopes), self._configuration)

    def _do_generation(self, generation: str, *acceptors: str) -> None:
        for acceptor in acceptors:
            self._step(acceptor, RaiseFloors(int(generation)), self._configuration)

    def _do_erase(self, ballot: str, *acceptors: str) -> None:
        for acceptor in acceptors:
            self._step(acceptor, Erase(NAME, _ballot(ballot)), self._configuration)

    def _do_variant(self, name: str) -> None:
        self._mutation = {**MUTATIONS, **UPKEEP_MUTATIONS}[name]
        self._factory = self._mutation.rounds()
        for store in self._stores.values():
            store.hooks = self._mutation.acceptor()

    def _do_round(self, name: str, ballot: str, *words: str) -> None:
        generation = int(words[-1]) if "generation" in words else 0
        at = words.index("dead") if "dead" in words else len(words)
        told = " ".join(word for word in words[:at] if word != "again")
        changes = [_change(each.split()) for each in told.split(" & ")]
        round_ = self._factory(
            self._configuration.quorums,
            NAME,
            _ballot(ballot),
            changes[0] if len(changes) == 1 else Batch(changes, RECORD_BYTES_MAX),
            generation=generation,
            dead=tuple(map(self._ref, words[at + 1 :])),
            earlier="again" in words,
        )
        self._start(name, round_, changes[0].operations if len(changes) == 1 else ())

    def _do_first(self, name: str, home: str, *words: str) -> None:
        quorums, epoch = self._configuration.quorums, self._configuration.epoch
        self._start(name, self._mutation.first_write(quorums, epoch, self._ids[home], NAME, _change(words)))

    def _do_deliver(self, name: str, *acceptors: str) -> None:
        running = self._rounds[name]
        for acceptor in acceptors:
            i = self._ids[acceptor]
            if not running.requests.get(i):
                self._out.append(f"{acceptor}: nothing is on the way")
                continue
            request = running.requests[i].pop(0)
            running.last[i] = request
            running.replies.setdefault(i, []).append(self._step(acceptor, request, running.configuration))

    def _do_answer(self, name: str, *acceptors: str) -> None:
        running = self._rounds[name]
        for acceptor in acceptors:
            i = self._ids[acceptor]
            if running.replies.get(i):
                self._perform(running, running.round.on_reply(i, running.replies[i].pop(0)))

    def _do_send(self, name: str, *acceptors: str) -> None:
        for acceptor in acceptors:
            self._do_deliver(name, acceptor)
            self._do_answer(name, acceptor)

    def _do_repeat(self, name: str, *acceptors: str) -> None:
        for acceptor in acceptors:
            running = self._rounds[name]
            self._step(acceptor, running.last[self._ids[acceptor]], running.configuration)

    def _do_stragglers(self, name: str) -> None:
        running = self._rounds[name]
        self._perform(running, running.round.on_stragglers_late())

    def _do_timeout(self, name: str) -> None:
        running = self._rounds[name]
        self._perform(running, running.round.on_timeout())

    def _do_fastread(self, *acceptors: str) -> None:
        reading = FastRead(self._configuration.quorums)
        for acceptor in acceptors:
            reply = self._stores[self._ids[acceptor]].read(self._configuration.tag, Read(NAME))
            assert isinstance(reply, Found)
            known = reading.on_reply(self._ids[acceptor], reply)
            self._out.append(f"{acceptor}: {tell_message(reply)}; {known.name.lower()}")
        self._out.append(f"-> {tell_state(reading.state)}")

    def _do_forget(self, acceptor: str) -> None:
        for table in (self._stores[self._ids[acceptor]].disk.durable, self._stores[self._ids[acceptor]].disk.volatile):
            row = table.rows[NAME]
            table.rows[NAME] = Row(row.accepted, row.accepted, row.state)
        self._watch.on_restart(self._ids[acceptor])

    def _do_show(self, *acceptors: str) -> None:
        for acceptor in acceptors:
            table = self._stores[self._ids[acceptor]].disk.durable
            kept = tell_refs(tuple(sorted(table.kept.get(NAME, {}))))
            self._out.append(f"{acceptor}: {tell_row(table.rows.get(NAME) or Row())}; holds {kept}")

    # -- Helpers ------------------------------------------------------------------------------------------------------

    def _start(self, name: str, round_: Round | FirstWrite, operations: tuple[bytes, ...] = ()) -> None:
        running = self._rounds[name] = _Running(round_, self._configuration, operations)
        self._perform(running, round_.start())

    def _perform(self, running: _Running, effects: Sequence[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                for i in effect.to:
                    running.requests[i] = [effect.request]
                to = " ".join(name for name, i in self._ids.items() if i in effect.to)
                self._out.append(f"-> {tell_message(effect.request)} to {to}")
            elif isinstance(effect, AwaitStragglers):
                self._out.append("-> wait for the answers still out")
            else:
                self._out.append(f"-> {_tell_outcome(effect.outcome)}")
                if isinstance(effect.outcome, Done):
                    self._watch.on_answered(NAME, effect.outcome.state)
                    if effect.outcome.code:
                        self._refused.update(running.operations)

    def _step(self, acceptor: str, request: Request, configuration: Configuration) -> Reply:
        store = self._stores[self._ids[acceptor]]
        tag = configuration.tag
        if not isinstance(request, WRITES):
            reply = store.read(tag, request)
            self._out.append(f"{acceptor}: {tell_message(reply)}")
            return reply
        before = store.disk.volatile.row(NAME) or Row()
        reply = store.apply(tag, request)
        after = store.disk.volatile.row(NAME) or Row()
        self._out.append(f"{acceptor}: {tell_message(reply)}")
        written = store.disk.sync(1)
        if isinstance(request, Prepare | Accept):
            self._watch.on_step(store.acceptor_id, configuration, request, reply, before, after)
        self._watch.on_durable(store.acceptor_id, written)
        self._watch.on_told(store.acceptor_id, request, reply)
        for ref in self._watch.chain(NAME):
            if ref.version_id in self._refused:
                raise Violation(f"{tell_ref(ref)} is on the chain, and its operation was refused")
        return reply

    def _ref(self, told: str) -> RecordRef:
        held = {ref for store in self._stores.values() for ref in store.disk.durable.kept.get(NAME, {})}
        return next(ref for ref in sorted(held) if tell_ref(ref) == told)


def _ballot(told: str) -> Ballot:
    counter, proposer = map(int, told.split("."))
    return Ballot(counter, proposer, 0)


def _change(words: Sequence[str]) -> Change:
    if words[0] == "read":
        return Identity()
    if words[0] == "renew":
        return Renewal()
    operation = words[1].encode().ljust(16, b"\x00")
    if words[0] in ("set", "clear"):
        return SetValue(operation, b"" if words[0] == "set" else None)
    condition = words[2] if len(words) > 2 else ""
    return PutVersion(
        operation,
        Manifest(0, b"", 1, delete_marker=words[0] == "delete"),
        if_absent=condition == "absent",
        if_present=condition == "present" or words[0] == "delete",
        if_version=words[3].encode().ljust(16, b"\x00") if condition == "after" else b"",
    )


def _tell_outcome(outcome: Outcome) -> str:
    match outcome:
        case Done(code="", wrote=wrote):
            return f"done: {'wrote' if wrote else 'found'} {tell_state(outcome.state)}"
        case Done():
            return f"done: {outcome.code} on {tell_state(outcome.state)}"
        case Lost():
            known = "outcome unknown" if outcome.proposed else "not applied"
            return f"lost: {known}, greatest ballot seen {tell_ballot(outcome.greatest)}"
        case Settled():
            return "settled: try again under a new ballot"
        case HeldElsewhere():
            return f"held: {tell_refs(outcome.held)} against the chain of {tell_state(outcome.state)}"
        case Denied():
            return f"denied: {outcome.reason.name}"
        case NotFirst():
            return "not the first write"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 if a file's answers differ."""
    parser = argparse.ArgumentParser(prog="python -m objmeta.testing.transcripts")
    parser.add_argument("--rewrite", action="store_true", help="write the answers into the files")
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    differing = 0
    for path in options.files:
        text = path.read_text()
        fresh = Transcript().run(text)
        if fresh != text:
            differing += 1
            print(f"{'rewrote' if options.rewrite else 'differs:'} {path}")
            if options.rewrite:
                path.write_text(fresh)
    return 1 if differing and not options.rewrite else 0


if __name__ == "__main__":
    sys.exit(main())
