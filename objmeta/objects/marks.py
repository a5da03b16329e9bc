"""Marks: every chunk that one acceptor names, in what it has accepted, chosen or not (DESIGN section 5, "Collection").

Rules.  An acceptor names the chunks of every manifest that it holds, except of versions of which it is *proven* that
nothing can ever make them readable again:

* the chain of a **chosen** state says so: a removal on it names the version, or a removal of the last version lies
  above it, or the version's place in the chain is taken by another record;
* the bucket is gone: its id, which is never used again, is not among all buckets, listed after the object was seen.

Why chosen, and why that is enough.  Every later chosen state is built on this one, so its chain stays as it is, and
what it proves stays true, whenever the other acceptors are asked.  A state that only this acceptor is known to have
accepted proves nothing, however many acceptors do likewise: each may be asked at the moment when it holds a removal
that a later round overrides there.  So a version that can still become current is named by every acceptor that held it
when the generation floor was raised and is asked later; and one that nobody held then cannot appear any more, for its
accepts state a generation below the floor.

What is known to be chosen costs nothing, mostly: a round builds only on a chosen base (rule 7), so of the state that is
accepted here all but the records of its last round lie on the chain of a chosen one.  Only where these would make a
difference is the register read.

Damage stops it: what cannot be read might name anything.  Memory is bounded by one page, and by what is held of a
single register.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from objmeta.core.configuration import ConfigurationTag
from objmeta.core.home import describe
from objmeta.core.listing import ScanAnswer, ScanRequest, ScanRow, decode_records, decode_rows, successor
from objmeta.core.messages import Record, RecordRef, State
from objmeta.errors import Fenced, IntegrityError, NoSuchBucket, ObjmetaError, RowDamaged, Unavailable
from objmeta.model.names import BUCKET_ID_BYTES, OBJECTS
from objmeta.model.values import Manifest, Removal, decode_body, tip_of
from objmeta.objects.context import Context
from objmeta.objects.fences import BucketFences

PAGE_OBJECTS: Final = 500
"""Objects looked at together: a page of an acceptor has about a megabyte at most, its records included."""
_READS_MAX: Final = 64
"""Registers read at a time."""
_TRIES: Final = 5


class Named(NamedTuple):
    """A chunk that a version names: BLAKE3 digest and length in bytes; ``is_list``: it holds a list of chunks."""

    bucket_id: bytes
    digest: bytes
    length: int
    is_list: bool


class Marked(msgspec.Struct, frozen=True, gc=False):
    """What a page of ``objects`` names, each chunk once; a later page may name it again."""

    objects: int
    named: tuple[Named, ...]


class Acceptor(Protocol):
    """The acceptor that is asked, in this process (``store.lane.Lane``)."""

    async def scan(self, tag: ConfigurationTag, request: ScanRequest) -> ScanAnswer:
        """One page. Raises ConfigurationMismatch, Unavailable, StoreError."""
        ...


async def marks(
    context: Context, acceptor: Acceptor, tag: ConfigurationTag, alone: bool = False
) -> AsyncGenerator[Marked, None]:
    """What ``acceptor`` names, page by page, all under the configuration of ``tag``; ``alone``: it has no other member.

    Raises ConfigurationMismatch when the members change, NoQuorum, and IntegrityError where something is damaged (a
    register that can be mended from others is read then, which has it mended); then nothing can be said of what the
    acceptor names as a whole.
    """
    naming = _Naming(context, alone)
    start: bytes = OBJECTS
    while start:
        request = ScanRequest(start, successor(OBJECTS), PAGE_OBJECTS, with_records=True)
        page = await acceptor.scan(tag, request)
        if page.unknown:
            await naming.meet(page.unknown)
        yield await naming.page(page)
        start = page.covered


class _Object(NamedTuple):
    """One register as the acceptor has it."""

    row: ScanRow
    records: dict[RecordRef, Record]
    manifests: dict[RecordRef, Manifest]
    """Those of the records that name chunks."""

    @property
    def name(self) -> bytes:
        return self.row.name


class _Proof(NamedTuple):
    """What the chain of a chosen state says. Places from ``bottom`` to ``top`` are taken by the records ``on`` it."""

    on: frozenset[RecordRef] = frozenset()
    removed: frozenset[bytes] = frozenset()
    top: int = 0
    bottom: int = 1

    def excludes(self, ref: RecordRef) -> bool:
        """Whether this version can never be read again."""
        if ref in self.on:
            return ref.version_id in self.removed
        return self.bottom <= ref.sequence <= self.top


class _Naming:
    """One acceptor's pages."""

    def __init__(self, context: Context, alone: bool) -> None:
        self._context = context
        self._alone = alone
        self._fences = BucketFences(context)

    async def meet(self, damaged: Iterable[bytes]) -> None:
        """Have damaged registers read, so that whoever can mends them. Raises RowDamaged."""
        named = list(damaged)
        for name in named:
            try:
                fence = await self._fences.fence_of(name, False)
                await self._context.registers.read((name,), self._context.timeout_s, fence)
            except ObjmetaError:
                continue  # it is damaged, and that is what is reported
        raise RowDamaged(f"what is stored of {describe(named[0])} is damaged, so nobody can say which chunks it names")

    async def page(self, page: ScanAnswer) -> Marked:
        """What the objects of one page name. Raises NoQuorum, IntegrityError."""
        try:
            rows = decode_rows(page.rows)
            records: dict[bytes, dict[RecordRef, Record]] = {}
            for each in decode_records(page.records):
                records.setdefault(each.name, {})[each.record.ref] = each.record
        except msgspec.MsgspecError as damage:
            raise IntegrityError(f"what an acceptor stores cannot be read: {damage}") from damage
        named: dict[Named, None] = {}
        open_: list[tuple[_Object, _Proof]] = []
        for row in rows:
            found = await self._object(row, records.get(row.name, {}))
            if not found.manifests or await self._is_gone(row.name):
                continue
            if len(found.manifests) == len(found.records) == len(row.state.refs):
                _name(named, found, _Proof())  # all of it is in the last round: by far the most
                continue
            settled = _settled(found)
            if_chosen = _proof(tip_of(row.state), found.records)
            if any(if_chosen.excludes(ref) and not settled.excludes(ref) for ref in found.manifests):
                open_.append((found, settled))
            else:
                _name(named, found, settled)
        for at in range(0, len(open_), _READS_MAX):
            for found, proof in await self._read_all(open_[at : at + _READS_MAX]):
                _name(named, found, proof)
        return Marked(len(rows), tuple(named))

    async def _object(self, row: ScanRow, records: dict[RecordRef, Record]) -> _Object:
        """What is held of one object. Raises IntegrityError if something that must be is not."""
        missing = tuple(ref for ref in row.state.refs if ref not in records)
        if missing:
            await self._fetch(row.name, missing, records)
        if self._alone and _proof(tip_of(row.state), records).bottom:
            raise IntegrityError(
                f"a record of {describe(row.name)} is missing or damaged, so nobody can say which chunks it names"
            )
        bodies = ((ref, decode_body(record)) for ref, record in records.items())
        manifests = {ref: body for ref, body in bodies if isinstance(body, Manifest) and (body.chunks or body.lists)}
        return _Object(row, records, manifests)

    async def _fetch(self, name: bytes, refs: Sequence[RecordRef], records: dict[RecordRef, Record]) -> None:
        """Add records from whoever has them. Raises IntegrityError, NoQuorum."""
        found = await self._context.registers.records(name, refs, self._context.timeout_s, with_data=False)
        records.update((record.ref, record) for record in found)

    async def _is_gone(self, name: bytes) -> bool:
        """Whether the bucket is. It was there before anything in it, and its id is never used again."""
        try:
            await self._fences.fence_of(name, False)
        except NoSuchBucket:
            return True
        return False

    async def _read_all(self, objects: Sequence[tuple[_Object, _Proof]]) -> list[tuple[_Object, _Proof]]:
        """The same with what is chosen now; where that proves nothing, with what was known. Raises what fails."""
        proofs = await asyncio.gather(*(self._chosen(found) for found, _ in objects), return_exceptions=True)
        read: list[tuple[_Object, _Proof]] = []
        for (found, settled), proof in zip(objects, proofs, strict=True):
            if isinstance(proof, BaseException):
                raise proof
            read.append((found, settled if proof is None else proof))
        return read

    async def _chosen(self, found: _Object) -> _Proof | None:
        """What the chain of what is chosen now says; None: there is nothing. Raises NoQuorum, IntegrityError."""
        for attempt in range(_TRIES):
            try:
                state = await self._read(found.name)
                return None if state is None else await self._whole_proof(found, state)
            except NoSuchBucket:
                return None
            except IntegrityError:  # it may have been erased between the two questions
                if attempt + 1 == _TRIES:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _read(self, name: bytes) -> State | None:
        for attempt in range(_TRIES):
            fence = await self._fences.fence_of(name, attempt > 0)
            try:
                (state,) = await self._context.registers.read((name,), self._context.timeout_s, fence)
            except Fenced:
                continue
            return state
        raise Unavailable("a bucket is being removed again and again; try again later")

    async def _whole_proof(self, found: _Object, state: State) -> _Proof:
        """The proof of a chosen state; what is not held of its chain is fetched."""
        cursor = tip_of(state)
        while cursor is not None:
            if cursor not in found.records:
                await self._fetch(found.name, (cursor,), found.records)
            record = found.records[cursor]
            body = decode_body(record)
            if isinstance(body, Removal) and body.last:
                break
            cursor = record.parent
        return _proof(tip_of(state), found.records)


def _name(named: dict[Named, None], found: _Object, proof: _Proof) -> None:
    bucket_id = found.name[len(OBJECTS) : len(OBJECTS) + BUCKET_ID_BYTES]
    for ref, manifest in found.manifests.items():
        if not proof.excludes(ref):
            named.update((Named(bucket_id, chunk.digest, chunk.length, False), None) for chunk in manifest.chunks)
            named.update((Named(bucket_id, chunk.digest, chunk.length, True), None) for chunk in manifest.lists)


def _settled(found: _Object) -> _Proof:
    """What the base says on which the accepted state was built: it was chosen (rule 7)."""
    refs = found.row.state.refs
    return _proof(found.records[refs[0]].parent, found.records) if refs else _Proof()


def _proof(tip: RecordRef | None, records: Mapping[RecordRef, Record]) -> _Proof:
    """What the chain below ``tip``, which must be one of a chosen state, says, as far as its records are held."""
    on: set[RecordRef] = set()
    removed: set[bytes] = set()
    bottom = tip.sequence + 1 if tip is not None else 1
    cursor = tip
    while cursor is not None:
        record = records.get(cursor)
        if record is None:
            break
        on.add(cursor)
        bottom = cursor.sequence
        body = decode_body(record)
        if isinstance(body, Removal):
            removed.add(body.version_id)
            if body.last:
                bottom = 0  # whatever there was below is removed
                break
        cursor = record.parent
    else:
        bottom = 0
    return _Proof(frozenset(on), frozenset(removed), tip.sequence if tip is not None else 0, bottom)
