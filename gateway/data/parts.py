"""One object written in parts, by several workers or processes, and completed once.

``begin`` gives an id; whoever knows it may put parts, numbered from 1 to ``PARTS_MAX``, in any order and at once; one
that is put again replaces what it was.  ``complete`` makes the object of all parts, in the order of their numbers;
until then nothing is visible, and afterwards the id is gone.

What is known of an upload lives in key-value registers, ``~gateway/uploads/<id>`` and one below it for each part.
The collector keeps the chunks that these name (:func:`chunks_of_parts`).  A part that is put touches those before it
whose generation is no longer the newest, and ``complete`` touches all, for its commit states that generation; should a
part have lost a chunk, it says which.  What was begun more than ``UPLOAD_AGE_S`` ago and never completed is forgotten
by :func:`forget_old`, before each collection, and then collected.

The etag of an object is the digest of its content, whoever wrote it, so ``complete`` reads all of it once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
from blake3 import blake3

from gateway.blobs.files import update
from gateway.data.commits import Content
from gateway.data.uploading import ChunkWriter, Progress
from objmeta import AsyncClient, Chunk, ObjectVersion, errors

if TYPE_CHECKING:
    from gateway.data.transfer import Store

UPLOADS: Final = "~gateway/uploads/"
PARTS_MAX: Final = 10_000
PART_CHUNKS_MAX: Final = 4096
"""5 GiB or so: what is known of a part is one value of a register."""
UPLOAD_AGE_S: Final = 7 * 86_400.0
_PAGE: Final = 100
"""What is known of so many parts is held at a time: some 300 KiB, 16 MiB at the most."""

_ID: Final = re.compile("[0-9a-f]{32}")

_T = TypeVar("_T")


class NoSuchUpload(errors.NotFound):
    """There is no upload with this id: it was completed or aborted, is too old, or was never begun."""

    kind = "no_such_upload"


class Begun(msgspec.Struct, frozen=True, array_like=True):
    """An upload in parts: what it is to become."""

    bucket: str
    key: str
    begun_s: float
    content_type: str = ""
    metadata: dict[str, str] = {}


class Part(msgspec.Struct, frozen=True, array_like=True):
    """A part that is stored. ``generation``: under which all of its chunks were touched last."""

    size: int
    etag: str
    generation: int
    chunks: tuple[Chunk, ...]


class Open(msgspec.Struct, frozen=True):
    """An upload that is neither completed nor aborted; ``size`` is that of its ``parts`` together."""

    upload_id: str
    begun: Begun
    parts: int
    size: int


async def begin(
    store: Store, bucket: str, key: str, *, content_type: str = "", metadata: Mapping[str, str] | None = None
) -> str:
    """Begin an object in parts; its id. Raises NoSuchBucket, InvalidArgument if no object may have this name."""
    with suppress(errors.NoSuchKey):
        await store.client.head_object(bucket, key)
    upload_id = os.urandom(16).hex()
    begun = Begun(bucket, key, time.time(), content_type, dict(metadata or {}))
    await store.client.put(UPLOADS + upload_id, msgspec.msgpack.encode(begun))
    return upload_id


async def put_part(
    store: Store,
    upload_id: str,
    number: int,
    source: AsyncIterable[bytes] | bytes,
    *,
    expected_etag: str | None = None,
    progress: Progress | None = None,
) -> Part:
    """Store a part, in bounded memory. Several may be put at once.

    Raises NoSuchUpload, InvalidArgument (the number, or it is too long), IntegrityError if the content is not what was
    expected, and what BlobStore.put raises.
    """
    if not 1 <= number <= PARTS_MAX:
        raise errors.InvalidArgument(f"parts are numbered from 1 to {PARTS_MAX}, not {number}")
    begun = await _begun(store, upload_id)
    writer = ChunkWriter(store.commits, begun.bucket, progress or (lambda count: None))
    try:
        if isinstance(source, bytes):
            await writer.write(source)
        else:
            async for data in source:
                await writer.write(data)
        content = await writer.finish()
    finally:
        await writer.stop()
    if expected_etag is not None and content.etag != expected_etag.lower():
        raise errors.IntegrityError(f"part {number} has BLAKE3 {content.etag}, not the expected {expected_etag}")
    if len(content.chunks) > PART_CHUNKS_MAX:
        raise errors.InvalidArgument(f"a part has at most {PART_CHUNKS_MAX} chunks, not {len(content.chunks)}")
    part = Part(content.size, content.etag, content.generation, tuple(content.chunks))
    await _begun(store, upload_id)  # completed or aborted meanwhile
    await store.client.put(_name(upload_id, number), msgspec.msgpack.encode(part))
    await _touch(store, begun, upload_id)
    return part


async def complete(
    store: Store,
    upload_id: str,
    *,
    count: int | None = None,
    if_absent: bool = False,
    if_version: str | None = None,
    expected_etag: str | None = None,
) -> ObjectVersion:
    """Make an object of all parts, in the order of their numbers; with ``count``, of exactly those from 1 to ``count``.

    Several who complete it at the same moment make a version each, of the same content, unless ``if_absent`` or
    ``if_version`` says that only one may; whoever comes later is told that there is no such upload.

    Raises NoSuchUpload, InvalidArgument (it has no parts, or not those that ``count`` says), Unavailable (a part was
    deleted, or is in too few places: put it again), IntegrityError, and what AsyncClient.put_object raises; unless that
    is UnknownOutcome the upload is still there.
    """
    begun = await _begun(store, upload_id)
    epoch = store.commits.epoch
    parts = await _touch(store, begun, upload_id, everything=True)
    if not parts:
        raise errors.InvalidArgument(f"upload {upload_id} has no parts")
    if count is not None:
        _check_numbers(upload_id, set(map(int, parts)), count)
    chunks = [chunk for part in parts.values() for chunk in part.chunks]
    size = sum(part.size for part in parts.values())
    etag = await _digest(store, begun, chunks, size)
    if expected_etag is not None and etag != expected_etag.lower():
        raise errors.IntegrityError(f"the parts together have BLAKE3 {etag}, not the expected {expected_etag}")
    options: dict[str, Any] = {
        "content_type": begun.content_type,
        "metadata": begun.metadata,
        "if_absent": if_absent,
        "if_version": if_version,
    }
    if chunks:
        content = Content(chunks, size, etag, min(part.generation for part in parts.values()), epoch)
        version = await store.commits.commit(begun.bucket, begun.key, content, **options)
    else:
        version = await store.client.put_object(begun.bucket, begun.key, data=b"", **options)
    await abort(store, upload_id)
    return version


async def abort(store: Store, upload_id: str) -> None:
    """Forget an upload and its parts; their chunks are collected. One that is not there is forgotten already."""
    if _ID.fullmatch(upload_id):
        await _forget(store.client, upload_id)


async def uploads(client: AsyncClient) -> AsyncGenerator[Open, None]:
    """Those that are neither completed nor aborted. Raises NoQuorum, IntegrityError."""
    last: Open | None = None
    async for key, value in _registers(client, UPLOADS):
        upload_id, is_part, _ = key.decode().removeprefix(UPLOADS).partition("/")
        if not is_part:
            if last is not None:
                yield last
            last = Open(upload_id, _decoded(value, Begun, upload_id), 0, 0)
        elif last is not None and last.upload_id == upload_id:
            size = last.size + _decoded(value, Part, upload_id).size
            last = msgspec.structs.replace(last, parts=last.parts + 1, size=size)
    if last is not None:
        yield last


async def parts_of(store: Store, upload_id: str) -> AsyncGenerator[tuple[int, Part], None]:
    """The parts that an upload has, and their numbers, in this order. Raises NoSuchUpload, NoQuorum, IntegrityError."""
    await _begun(store, upload_id)
    async for key, value in _registers(store.client, f"{UPLOADS}{upload_id}/"):
        number = key.decode().rpartition("/")[2]
        yield int(number), _decoded(value, Part, number)


async def forget_old(client: AsyncClient, age_s: float | None = None) -> int:
    """Forget uploads that were begun longer ago, and parts that came after the end of theirs; how many uploads.

    ``age_s`` is ``UPLOAD_AGE_S`` if it is not given. Raises NoQuorum; IntegrityError if an upload cannot be read.
    """
    if age_s is None:
        age_s = UPLOAD_AGE_S
    old: set[str] = set()
    there: set[str] = set()
    strays: set[str] = set()
    async for key, value in _registers(client, UPLOADS):
        upload_id, is_part, _ = key.decode().removeprefix(UPLOADS).partition("/")
        if not is_part:
            there.add(upload_id)
            if time.time() - _decoded(value, Begun, upload_id).begun_s > age_s:
                old.add(upload_id)
        elif upload_id not in there:
            strays.add(upload_id)
    for upload_id in old:
        await _forget(client, upload_id)
    for upload_id in strays:
        # It begins before it has parts: one that is not there now, after a part was seen, has ended.
        if await client.get(UPLOADS + upload_id) is None:
            await _forget(client, upload_id)
    return len(old)


async def chunks_of_parts(client: AsyncClient) -> AsyncGenerator[Chunk, None]:
    """The chunks of all parts that were put before this is called. Raises NoQuorum, IntegrityError."""
    async for key, value in _registers(client, UPLOADS):
        upload_id, is_part, _ = key.decode().removeprefix(UPLOADS).partition("/")
        if is_part:
            for chunk in _decoded(value, Part, upload_id).chunks:
                yield chunk


# -- Helpers ----------------------------------------------------------------------------------------------------------


def _name(upload_id: str, number: int) -> str:
    return f"{UPLOADS}{upload_id}/{number:05d}"


async def _begun(store: Store, upload_id: str) -> Begun:
    found = await store.client.get(UPLOADS + upload_id) if _ID.fullmatch(upload_id) else None
    if found is None:
        raise NoSuchUpload(f"there is no upload {upload_id}: it was completed, aborted or never begun")
    return _decoded(found.value, Begun, upload_id)


def _check_numbers(upload_id: str, numbers: set[int], count: int) -> None:
    wanted = set(range(1, count + 1))
    for what, some in (("lacks", wanted - numbers), ("has beside them", numbers - wanted)):
        if some:
            named = ", ".join(map(str, sorted(some)[:10])) + (", ..." if len(some) > 10 else "")
            raise errors.InvalidArgument(
                f"upload {upload_id} is to be made of parts 1 to {count}, and {what} part {named}"
            )


async def _touch(store: Store, begun: Begun, upload_id: str, everything: bool = False) -> dict[str, Part]:
    """The parts by their numbers, touched under the newest generation if they were not."""
    found: dict[str, Part] = {}
    newest = await store.commits.generation()
    replicas = await store.commits.replicas(begun.bucket)
    async for key, value in _registers(store.client, f"{UPLOADS}{upload_id}/"):
        number = key.decode().rpartition("/")[2]
        part = _decoded(value, Part, number)
        if everything or part.generation < newest:
            generation, there = await store.commits.touch(part.chunks, replicas)
            if all(there):
                part = msgspec.structs.replace(part, generation=generation)
                if not everything:
                    await store.client.put(key, msgspec.msgpack.encode(part))
            elif everything:
                raise errors.Unavailable(f"part {int(number)} is in too few places, or deleted: put it again")
        found[number] = part
    return found


async def _digest(store: Store, begun: Begun, chunks: list[Chunk], size: int) -> str:
    if not chunks:
        return blake3(b"").hexdigest()
    version = ObjectVersion(
        bucket=begun.bucket, key=begun.key, version_id="", sequence=0, size=size, etag="", modified_us=0,
        chunks=tuple(chunks),
    )  # fmt: skip
    hasher = blake3()
    async with aclosing(store.pieces(version, 0, None)) as pieces:
        async for piece in pieces:
            await update(hasher, piece)
    return hasher.hexdigest()


async def _forget(client: AsyncClient, upload_id: str) -> None:
    await client.delete(UPLOADS + upload_id)
    async for key, _ in _registers(client, f"{UPLOADS}{upload_id}/"):
        await client.delete(key)


async def _registers(client: AsyncClient, prefix: str) -> AsyncIterator[tuple[bytes, bytes]]:
    start = b""
    while page := await client.scan(prefix, start=start, limit=_PAGE):
        for register in page:
            yield register.key, register.value
        start = page[-1].key + b"\0"


def _decoded(value: bytes, kind: type[_T], name: str) -> _T:
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.MsgspecError as wrong:
        raise errors.IntegrityError(f"what is known of upload {name} cannot be read: {wrong}") from None
