"""What a write may be made conditional on, verb by verb, and what a move promises."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.data import moving
from gateway.data.transfer import Store
from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import ObjectVersion, errors


def write(fs: ObjmetaFileSystem, mode: str, **condition: Any) -> None:
    with fs.open("bucket/file", mode, **condition) as file:
        file.write(b"new")


VERBS: dict[str, Callable[..., Any]] = {
    "pipe_file": lambda fs, **condition: fs.pipe_file("bucket/file", b"new", **condition),
    "pipe": lambda fs, **condition: fs.pipe("bucket/file", b"new", **condition),
    "put_file": lambda fs, **condition: fs.put_file(__file__, "bucket/file", **condition),
    "put": lambda fs, **condition: fs.put(__file__, "bucket/file", **condition),
    "open": lambda fs, **condition: write(fs, "wb", **condition),
    "touch": lambda fs, **condition: fs.touch("bucket/file", **condition),
    "touch and keep": lambda fs, **condition: fs.touch("bucket/file", truncate=False, **condition),
    "cp_file": lambda fs, **condition: fs.cp_file("bucket/other", "bucket/file", **condition),
    "copy": lambda fs, **condition: fs.copy("bucket/other", "bucket/file", **condition),
    "mv_file": lambda fs, **condition: fs.mv_file("bucket/other", "bucket/file", **condition),
    "mv": lambda fs, **condition: fs.mv("bucket/other", "bucket/file", **condition),
}
IF_MATCH: dict[str, Callable[..., Any]] = {
    **VERBS,
    "append": lambda fs, **condition: write(fs, "ab", **condition),
    "rm_file": lambda fs, **condition: fs.rm_file("bucket/file", **condition),
    "rm": lambda fs, **condition: fs.rm("bucket/file", **condition),
    "delete": lambda fs, **condition: fs.delete("bucket/file", **condition),
    "setxattr": lambda fs, **condition: fs.setxattr("bucket/file", x="y", **condition),
    "setxattrs": lambda fs, **condition: fs.setxattrs("bucket/file", x="y", **condition),
}


@pytest.mark.parametrize("verb", IF_MATCH)
@pytest.mark.parametrize("word", ["VersionId", "ETag"])
def test_if_match(fs: ObjmetaFileSystem, verb: str, word: str) -> None:
    change = IF_MATCH[verb]
    fs.pipe({"bucket/file": b"1", "bucket/other": b"other"})
    stale = fs.info("bucket/file")[word]
    fs.pipe_file("bucket/file", b"2")
    for wrong in (stale, "f" * len(stale)):
        with pytest.raises(OSError, match=r"ETag|version") as caught:
            change(fs, if_match=wrong)
        assert caught.value.errno == errno.ESTALE
        assert {path: fs.cat_file(path) for path in fs.find("bucket")} == {
            "bucket/file": b"2",
            "bucket/other": b"other",
        }
        assert len(fs.object_version_info("bucket/file")) == 2
    current = fs.info("bucket/file")[word]
    change(fs, if_match=f'"{current}"' if word == "ETag" else current)
    assert len(fs.object_version_info("bucket/file")) == 3
    with pytest.raises(OSError, match=r"ETag|version|not exist"):
        change(fs, if_match=stale)


@pytest.mark.parametrize("verb", VERBS)
def test_if_none_match(fs: ObjmetaFileSystem, verb: str) -> None:
    fs.pipe_file("bucket/other", b"other")
    VERBS[verb](fs, if_none_match="*")
    assert fs.isfile("bucket/file")
    fs.pipe_file("bucket/other", b"another")
    before = fs.cat_file("bucket/file")
    with pytest.raises(FileExistsError):
        VERBS[verb](fs, if_none_match="*")
    assert fs.cat_file("bucket/file") == before
    assert fs.cat_file("bucket/other") == b"another"
    fs.rm("bucket/file")
    VERBS[verb](fs, if_none_match="*")


def test_conditions_that_make_no_sense_are_refused(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"1")
    version = fs.info("bucket/file")["VersionId"]
    for condition, reason in [
        ({"if_match": "*"}, "ETag of info"),
        ({"if_match": "yesterday"}, "neither a version id"),
        ({"if_match": version, "if_none_match": "*"}, "there is none"),
        ({"if_match": version, "mode": "create"}, "there is none"),
    ]:
        with pytest.raises(ValueError, match=reason):
            fs.pipe_file("bucket/file", b"2", **condition)
    for options in ({"recursive": True}, {"versions": True}):
        with pytest.raises(ValueError, match="one version of one file"):
            fs.rm("bucket/file", if_match=version, **options)
    with pytest.raises(OSError, match="by its id alone"):
        fs.rm(f"bucket/file?versionId={version}", if_match=version)
    for verb in IF_MATCH.keys() - VERBS.keys() - {"append"}:
        with pytest.raises(ValueError, match="no meaning"):
            IF_MATCH[verb](fs, if_none_match="*")
    for metadata in ({"a": 1}, {1: "a"}, ["a"]):
        with pytest.raises(TypeError, match="text under text"):
            fs.pipe_file("bucket/file", b"2", metadata=metadata)
    assert fs.cat_file("bucket/file") == b"1"
    assert fs.metadata("bucket/file") == {}


@pytest.mark.parametrize("verb", [verb for verb in VERBS | IF_MATCH if not verb.startswith("setxattr")])
@pytest.mark.parametrize("word", ["if_nonematch", "ifmatch", "IfNoneMatch", "if_modified_since"])
def test_misspelt_conditions_are_refused(fs: ObjmetaFileSystem, verb: str, word: str) -> None:
    fs.pipe({"bucket/file": b"1", "bucket/other": b"other"})
    with pytest.raises(TypeError, match=f"takes no argument '{word}'"):
        (VERBS | IF_MATCH)[verb](fs, **{word: "*"})
    assert fs.cat_file("bucket/file") == b"1"
    assert fs.cat_file("bucket/other") == b"other"


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        (lambda fs: fs.pipe_file("bucket/file", b"2", if_nonematch="*"), "did you mean 'if_none_match'"),
        (lambda fs: fs.open("bucket/file", "wb", ContentType="a/b"), "did you mean 'content_type'"),
        (lambda fs: fs.open("bucket/file", "w", metdata={"a": "b"}), "did you mean 'metadata'"),
        (lambda fs: fs.open("bucket/file", "r", if_match="*"), "reading takes no argument 'if_match'"),
        (lambda fs: fs.open("bucket/file", versionid="0"), "did you mean 'version_id'"),
        (lambda fs: fs.cat("bucket/file", versionId="0"), "did you mean 'version_id'"),
        (lambda fs: fs.info("bucket/file", VersionId="0"), "did you mean 'version_id'"),
        (lambda fs: fs.exists("bucket/file", version="0"), "did you mean 'version_id'"),
        (lambda fs: fs.metadata("bucket/file", version_id="0"), "metadata takes no argument 'version_id'"),
        (lambda fs: fs.rm("bucket/file", version_id="0"), "rm takes no argument 'version_id'"),
        (lambda fs: fs.rm_file("bucket/file", version_id="0"), "rm_file takes no argument 'version_id'"),
        (lambda fs: fs.mkdir("bucket/directory", if_match="*"), "mkdir takes no argument 'if_match'"),
        (lambda fs: fs.find("bucket", versions=True), "find takes no argument 'versions'"),
        (lambda fs: fs.ls("bucket", version=True), "did you mean 'versions'"),
    ],
)
def test_arguments_that_would_be_lost(fs: ObjmetaFileSystem, lost: Callable[..., Any], reason: str) -> None:
    fs.pipe_file("bucket/file", b"1")
    with pytest.raises(TypeError, match=reason):
        lost(fs)
    assert fs.cat_file("bucket/file") == b"1"
    assert fs.find("bucket", withdirs=True) == ["bucket", "bucket/file"]


async def test_so_are_those_of_coroutines(fs: ObjmetaFileSystem) -> None:
    with pytest.raises(TypeError, match="did you mean 'if_none_match'"):
        await fs.open_async("bucket/file", "wb", if_nonematch="*")
    with pytest.raises(TypeError, match="did you mean 'version_id'"):
        await fs.open_async("bucket/file", "rb", versionid="0")


def test_what_others_pass_goes_through(fs: ObjmetaFileSystem) -> None:
    options: dict[str, Any] = {
        "block_size": 1 << 20, "cache_options": {}, "cache_type": "none", "fill_cache": False, "size": 1,
        "acl": "private", "if_match": None, "refresh": True, "max_blocks": 2, "request_payer": "x",
    }  # fmt: skip
    with fs.open("bucket/file", "w", encoding="utf-8", newline="", errors="strict", **options) as file:
        file.write("1")
    with fs.open("bucket/file", "rt", encoding="utf-8", **options) as file:
        assert file.read() == "1"
    fs.pipe_file("bucket/file", b"2", overwrite=True, max_concurrency=3)
    assert fs.cat("bucket/file", on_error="raise", batch_size=3) == b"2"
    assert fs.find("bucket", refresh=True, versions=False) == ["bucket/file"]


def test_an_old_version_is_not_written(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/file", b"1")
    with pytest.raises(PermissionError, match="never changes"):
        fs.open("bucket/file", "wb", version_id=fs.info("bucket/file")["version_id"])


def test_of_racing_writers_that_require_one_version_one_wins(fs: ObjmetaFileSystem) -> None:
    fs.pipe_file("bucket/counter", b"0")

    def count() -> None:
        for _ in range(5):
            while True:
                with fs.open("bucket/counter") as file:
                    number, etag = int(file.read()), file.info()["ETag"]
                try:
                    fs.pipe_file("bucket/counter", b"%d" % (number + 1), if_match=etag)
                    break
                except OSError as late:
                    assert late.errno == errno.ESTALE  # noqa: PT017

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fs.cat_file("bucket/counter") == b"20"


# -- Moving -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(home: Path) -> Any:
    from gateway.data.transfer import open_store

    found = await open_store(home)
    await found.client.create_bucket("bucket")
    yield found
    await found.close()


async def content(store: Store) -> dict[str, bytes]:
    found = {}
    async for item in store.client.iter_objects("bucket"):
        assert not isinstance(item, str)
        found[item.key] = (await store.client.get_object("bucket", item.key)).data or b""
    return found


@pytest.mark.parametrize("verb", ["cp_file", "mv"])
def test_an_error_of_a_copy_names_both(fs: ObjmetaFileSystem, verb: str) -> None:
    fs.pipe({"bucket/file": b"1", "bucket/other": b"2"})
    with pytest.raises(FileExistsError, match="'bucket/other' -> 'bucket/file'") as caught:
        VERBS[verb](fs, if_none_match="*")
    assert (caught.value.filename, caught.value.filename2) == ("bucket/other", "bucket/file")


async def test_of_racing_moves_one_wins_and_the_others_leave_nothing(store: Store) -> None:
    await store.put_stream("bucket", "source", b"x")
    await store.put_stream("bucket", "to-3", b"was here before")
    moves = [moving.move(store, "bucket", "source", "bucket", f"to-{index}") for index in range(6)]
    outcomes = await asyncio.gather(*moves, return_exceptions=True)
    won = [index for index, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
    assert len(won) == 1
    assert all(isinstance(each, errors.NoSuchKey) for index, each in enumerate(outcomes) if index not in won)
    assert await content(store) == {"to-3": b"was here before", f"to-{won[0]}": b"x"}
    assert len(await store.client.versions("bucket", "to-3")) == (2 if won == [3] else 1)


async def test_who_writes_to_the_source_meanwhile_loses_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real, late = store.client.commit, [b"2", b"3"]

    async def commit(changes: Any, **options: Any) -> Any:
        if late:
            await store.put_stream("bucket", "source", late.pop(0))
        return await real(changes, **options)

    await store.put_stream("bucket", "source", b"1")
    monkeypatch.setattr(store.client, "commit", commit)
    moved = await moving.move(store, "bucket", "source", "bucket", "target", if_absent=True)
    assert await content(store) == {"target": b"3"}
    assert (await store.client.versions("bucket", "target"))[0].version_id == moved.version_id


async def test_a_move_that_fails_changes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.put_stream("bucket", "source", b"1")
    await store.put_stream("bucket", "target", b"old")
    real = store.client.commit

    async def always_late(changes: Any, **options: Any) -> Any:
        await store.put_stream("bucket", "source", b"1")
        return await real(changes, **options)

    monkeypatch.setattr(store.client, "commit", always_late)
    with pytest.raises(errors.PreconditionFailed, match="written to all the time"):
        await moving.move(store, "bucket", "source", "bucket", "target")
    monkeypatch.undo()
    with pytest.raises(errors.AlreadyExists):
        await moving.move(store, "bucket", "source", "bucket", "target", if_absent=True)
    with pytest.raises(errors.PreconditionFailed):
        await moving.move(store, "bucket", "source", "bucket", "target", if_version="00" * 16)
    with pytest.raises(errors.InvalidArgument, match="named twice"):
        await moving.move(store, "bucket", "source", "bucket", "source")
    with pytest.raises(errors.NoSuchBucket):
        await moving.move(store, "bucket", "source", "no-such-bucket", "target")
    assert await content(store) == {"source": b"1", "target": b"old"}
    assert len(await store.client.versions("bucket", "target")) == 1


async def test_who_looks_while_it_moves_sees_it_at_one_place(store: Store) -> None:
    async def is_there(key: str) -> bool:
        try:
            await store.client.head_object("bucket", key)
        except errors.NoSuchKey:
            return False
        return True

    async def look(old: str, new: str, moving_on: asyncio.Task[ObjectVersion]) -> None:
        while not moving_on.done():
            if not await is_there(old):
                assert await is_there(new), "it is at neither place"
            elif await is_there(new):
                assert not await is_there(old), "it is at both places"

    for number in range(10):
        old, new = f"old {number}", f"new {number}"
        await store.put_stream("bucket", old, b"x")
        moving_on = asyncio.create_task(moving.move(store, "bucket", old, "bucket", new))
        await asyncio.gather(moving_on, *(look(old, new, moving_on) for _ in range(3)))
    assert set(await content(store)) == {f"new {number}" for number in range(10)}
