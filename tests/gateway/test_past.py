"""Time travel: a file system, a store and commands as of some time."""

from __future__ import annotations

import errno
import inspect
import json
import pickle
import random
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
from fsspec.spec import AbstractFileSystem

from gateway.data.past import Past, ReadOnly, parse_time
from gateway.data.transfer import Store, open_store
from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import AsyncClient, ObjectSummary, errors


def now() -> datetime:
    return datetime.now(UTC)


# -- Times ------------------------------------------------------------------------------------------------------------

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("2026-11-20T12:00:00Z", NOON),
        ("2026-11-20T12:00:00.000+00:00", NOON),
        ("2026-11-20T13:00+01:00", NOON),
        (" 2026-11-20 12:00 ", NOON),
        ("2026-11-20", NOON - timedelta(hours=12)),
        ("20261120", NOON - timedelta(hours=12)),
        (NOON, NOON),
        (datetime(2026, 11, 20, 12), NOON),
        (NOON.astimezone(timezone(timedelta(hours=-5))), NOON),
        (NOON.timestamp(), NOON),
        (int(NOON.timestamp()), NOON),
        (str(int(NOON.timestamp())), NOON),
        (f"{NOON.timestamp():.3f}", NOON),
        (pd.Timestamp(NOON) + pd.Timedelta(1, "ns"), NOON),
    ],
)
def test_times(given: Any, found: datetime) -> None:
    assert parse_time(given) == found
    assert parse_time(given, now=NOON + timedelta(days=1)) == found


def test_relative_times_are_for_commands() -> None:
    for text, ago in [
        ("2h ago", 2),
        ("90m", 1.5),
        ("1.5h", 1.5),
        ("1d", 24),
        ("1w ago", 168),
        ("3600 s", 1),
        ("90 minutes ago", 1.5),
        ("1 day", 24),
    ]:
        assert parse_time(text, now=NOON) == NOON - timedelta(hours=ago)
        with pytest.raises(errors.InvalidArgument, match="not a time"):
            parse_time(text)


@pytest.mark.parametrize(
    "given",
    [pd.NaT, "", "yesterday", "2026", "2026-13-01", "h ago", True, None, b"2026-11-20", 1e30, float("nan"), "9" * 40],
)
def test_what_is_no_time(given: Any) -> None:
    with pytest.raises(errors.InvalidArgument, match="not a time"):
        parse_time(given, now=NOON)


def test_a_time_to_come_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="not come yet"):
        parse_time(now() + timedelta(hours=1))
    parse_time(now() + timedelta(seconds=5))


# -- The file system --------------------------------------------------------------------------------------------------


def then(home: Path, time: Any, **options: Any) -> ObjmetaFileSystem:
    return ObjmetaFileSystem(path=home, as_of=time, skip_instance_cache=True, **options)


def content(fs: ObjmetaFileSystem) -> dict[str, bytes]:
    return {path: fs.cat_file(path) for path in fs.find("bucket")}


def test_any_history_is_seen_as_it_was(fs: ObjmetaFileSystem, home: Path) -> None:
    random_ = random.Random(7)
    keys = ["a", "d/a", "d/b", "d/sub/c", "e f/ü?#%[*", "z/y/x"]
    state: dict[str, bytes] = {}
    snapshots: list[tuple[datetime, dict[str, bytes]]] = []
    for number in range(40):
        key = random_.choice(keys)
        path = f"bucket/{key}"
        match random_.randrange(4):
            case 0 if path in state:
                fs.rm_file(path)
                del state[path]
            case 1 if path in state:
                fs.mv(path, "bucket/moved")
                state["bucket/moved"] = state.pop(path)
            case _:
                state[path] = b"%d" % number * random_.choice([1, 5000])
                fs.pipe_file(path, state[path])
        snapshots.append((now(), dict(state)))
    for time, seen in random_.sample(snapshots, 12):
        past = then(home, time)
        assert content(past) == seen
        for path in {f"bucket/{key}" for key in keys}:
            assert past.isfile(path) == (path in seen)
            assert past.isdir(path) == any(each.startswith(f"{path}/") for each in seen)
        children = {"/".join(path.split("/")[:2]) for path in seen}
        assert {name.split("/", 1)[1] for name in past.ls("bucket", detail=False)} == {
            name.split("/", 1)[1] for name in children
        }
        assert sorted(name for _, _, files in past.walk("bucket") for name in files) == sorted(
            path.rsplit("/", 1)[1] for path in seen
        )
        assert past.glob("bucket/d/*") == sorted(
            {f"bucket/d/{path.split('/')[2]}" for path in seen if path.startswith("bucket/d/")}
        )
        past.close()


def test_versions_and_handles_are_those_there_were(fs: ObjmetaFileSystem, home: Path, tmp_path: Path) -> None:
    fs.pipe_file("bucket/file", b"1", metadata={"n": "1"})
    fs.pipe_file("bucket/file", b"22" * 3_000_000)
    time = now()
    fs.pipe_file("bucket/file", b"333")
    newest = fs.info("bucket/file")["VersionId"]
    fs.rm("bucket/file")
    past = then(home, time)
    assert past.size("bucket/file") == 6_000_000
    with past.open("bucket/file") as file:
        assert file.read(2) == b"22"
        assert file.info()["is_latest"]
    assert [entry["is_latest"] for entry in past.object_version_info("bucket/file")] == [True, False]
    assert [entry["size"] for entry in past.ls("bucket", versions=True)] == [6_000_000, 1]
    oldest = past.object_version_info("bucket/file")[-1]
    assert past.cat_file(oldest["name"]) == b"1"
    assert past.info(oldest["name"])["is_latest"] is False
    assert past.metadata(oldest["name"]) == {"n": "1"}
    with pytest.raises(FileNotFoundError, match="as of"):
        past.cat_file("bucket/file", version_id=newest)
    past.get_file("bucket/file", tmp_path / "file")
    assert (tmp_path / "file").stat().st_size == 6_000_000
    assert past.cat_ranges(["bucket/file"] * 2, [0, 5_999_999], [1, None]) == [b"2", b"2"]
    past.close()


def test_buckets_that_were_made_later_are_not_there(fs: ObjmetaFileSystem, home: Path) -> None:
    time = now()
    fs.mkdir("later")
    fs.pipe_file("later/file", b"x")
    past = then(home, time)
    assert past.ls("", detail=False) == ["bucket"]
    assert past.find("") == past.find("later") == []
    for call in (past.info, past.ls, past.cat_file):
        with pytest.raises(FileNotFoundError):
            call("later" if call is not past.cat_file else "later/file")
    assert not past.exists("later")
    past.close()


def test_versions_that_were_removed_for_good_are_as_if_they_had_never_been(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/file", b"1")
    fs.pipe_file("bucket/file", b"secret")
    secret, time = fs.info("bucket/file")["VersionId"], now()
    fs.pipe_file("bucket/file", b"3")
    assert then(home, time).cat_file("bucket/file") == b"secret"
    fs.rm_file(f"bucket/file?versionId={secret}")
    assert then(home, time).cat_file("bucket/file") == b"1"


def test_the_past_cannot_be_changed(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe({"bucket/file": b"1", "bucket/d/file": b"2"})
    version = fs.info("bucket/file")["VersionId"]
    past = then(home, now())
    changes: list[Callable[[], Any]] = [
        lambda: past.pipe_file("bucket/file", b"x"),
        lambda: past.put_file(__file__, "bucket/file"),
        lambda: past.open("bucket/file", "wb"),
        lambda: past.open("bucket/file", "ab"),
        lambda: past.open("bucket/new", "xb"),
        lambda: past.touch("bucket/file"),
        lambda: past.touch("bucket/file", truncate=False),
        lambda: past.cp_file("bucket/file", "bucket/copy"),
        lambda: past.mv("bucket/file", "bucket/moved"),
        lambda: past.mv("bucket/d", "bucket/moved", recursive=True),
        lambda: past.rm("bucket/file"),
        lambda: past.rm("bucket/d", recursive=True),
        lambda: past.rm(f"bucket/file?versionId={version}"),
        lambda: past.rm("bucket/file", versions=True),
        lambda: past.mkdir("bucket/new"),
        lambda: past.mkdir("new"),
        lambda: past.rmdir("bucket"),
        lambda: past.setxattrs("bucket/file", x="y"),
    ]
    for change in changes:
        with pytest.raises(OSError, match=r"as of|as it was") as caught:
            change()
        assert caught.value.errno == errno.EROFS, inspect.getsource(change)
    past.makedirs("bucket/d", exist_ok=True)
    assert content(fs) == {"bucket/file": b"1", "bucket/d/file": b"2"}
    assert len(fs.object_version_info("bucket/file")) == 1
    past.close()


def test_options_travel(fs: ObjmetaFileSystem, home: Path) -> None:
    fs.pipe_file("bucket/file", b"1")
    time = now()
    fs.pipe_file("bucket/file", b"2")
    elsewhere = pd.Timestamp(time).tz_convert("Asia/Tokyo")
    numbers = (time.timestamp(), str(time.timestamp()), np.float64(time.timestamp()))
    times: list[Any] = [time, time.isoformat(), *numbers, elsewhere, np.datetime64(time.replace(tzinfo=None))]
    for given in times:
        past = ObjmetaFileSystem(path=str(home), as_of=given)
        assert past.as_of is not None
        assert past.cat_file("bucket/file") == b"1"
        assert pickle.loads(pickle.dumps(past)).cat_file("bucket/file") == b"1"
        assert AbstractFileSystem.from_json(past.to_json()).cat_file("bucket/file") == b"1"
        assert json.loads(past.to_json())["path"] == str(home)
        assert (
            pickle.loads(pickle.dumps(past)).as_of == AbstractFileSystem.from_json(past.to_json()).as_of == past.as_of
        )
        with fsspec.open("objmeta://bucket/file", as_of=given, path=str(home)) as file:
            assert file.read() == b"1"
    no_times: list[Any] = ["2h ago", pd.NaT, b"2026-11-26"]
    for nothing in no_times:
        with pytest.raises(OSError, match="not a time"):
            ObjmetaFileSystem(path=home, as_of=nothing)
    day: Any = time.date()
    assert ObjmetaFileSystem(path=home, as_of=day).as_of == f"{time.date()}T00:00:00+00:00"
    assert ObjmetaFileSystem(path=home, as_of="").cat_file("bucket/file") == b"2"


def test_pandas_reads_a_table_as_it_was(fs: ObjmetaFileSystem, home: Path) -> None:
    options = {"path": str(home)}
    old, new = pd.DataFrame({"n": [1, 2], "p": [1, 2]}), pd.DataFrame({"n": [3], "p": [3]})
    old.to_parquet("objmeta://bucket/table", partition_cols=["p"], storage_options=options)
    time = now().isoformat()
    new.to_parquet("objmeta://bucket/table", partition_cols=["p"], storage_options=options)
    found = pd.read_parquet("objmeta://bucket/table", storage_options={**options, "as_of": time})
    assert found["n"].tolist() == [1, 2]
    assert len(pd.read_parquet("objmeta://bucket/table", storage_options=options)) == 3


# -- The store --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def store(home: Path) -> AsyncIterator[Store]:
    found = await open_store(home)
    await found.client.create_bucket("bucket")
    yield found
    await found.close()


def test_every_operation_of_a_client_is_answered_or_refused() -> None:
    answered = {
        "bucket", "buckets", "close", "epoch", "get_object", "head_object", "iter_objects", "list_objects",
        "list_versions", "status", "timeout_s", "versions",
    }  # fmt: skip
    for name in vars(AsyncClient):
        if name.startswith("_"):
            continue
        if name in answered:
            assert getattr(Past, name) is not Past._refuse
        else:
            assert getattr(Past, name) is Past._refuse, name


async def test_pages(store: Store) -> None:
    keys = [f"{a}/{b}" for a in "abc" for b in range(5)] + ["a", "b-", "b0", "d"]
    for key in keys:
        await store.client.put_object("bucket", key, data=b"")
    for key in ("a/1", "c/0", "d"):
        await store.client.delete_object("bucket", key)
    await store.client.put_object("bucket", "d", data=b"2")
    reference = store.client
    past = Past(reference, now())
    for key in ("a/1", "e", "b0"):
        await store.client.put_object("bucket", key, data=b"later")
    with suppress(errors.NotFound):
        await store.client.delete_object("bucket", "c/1")
    visible = sorted({*keys} - {"a/1", "c/0"}, key=str.encode)
    for prefix in ("", "a", "a/", "b", "c/", "x"):
        for delimiter in ("", "/", "-"):
            wanted: dict[str, bool] = {}
            for key in visible:
                if key.startswith(prefix):
                    cut = key.find(delimiter, len(prefix)) if delimiter else -1
                    wanted[key if cut < 0 else key[: cut + 1]] = cut >= 0
            for limit in (1, 2, 3, 1000):
                found: dict[str, bool] = {}
                continuation = None
                while True:
                    page = await past.list_objects(
                        "bucket", prefix, delimiter=delimiter, continuation=continuation, limit=limit
                    )
                    assert len(page.objects) + len(page.prefixes) <= limit
                    assert all(type(each) is ObjectSummary for each in page.objects)
                    found |= {each.key: False for each in page.objects} | dict.fromkeys(page.prefixes, True)
                    continuation = page.continuation
                    if continuation is None:
                        break
                assert found == wanted, (prefix, delimiter, limit)
    for wrong in ({"limit": 0}, {"continuation": "%"}):
        with pytest.raises(errors.InvalidArgument):
            await past.list_objects("bucket", **wrong)


async def test_a_directory_of_many_keys_is_skipped_once_it_is_known(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    for prefix in ("a/", "b/"):
        await asyncio.gather(*(store.client.put_object("bucket", f"{prefix}{i:04}", data=b"") for i in range(1500)))
    pages = []
    real = store.client.list_versions

    async def counted(*args: Any, **options: Any) -> Any:
        pages.append(options)
        return await real(*args, **options)

    monkeypatch.setattr(store.client, "list_versions", counted)
    past = store.as_of(now())
    assert (await past.client.list_objects("bucket", delimiter="/", limit=200)).prefixes == ("a/", "b/")
    assert len(pages) <= 3


async def test_a_past_store_takes_nothing_in(store: Store) -> None:
    past = store.as_of(now())
    for content in (b"x", bytes(5 << 20)):
        with pytest.raises(ReadOnly):
            await past.put_stream("bucket", "key", content)
    with pytest.raises(ReadOnly):
        past.client.lock("name")
    assert (await store.client.list_objects("bucket")).objects == ()
    assert (await past.client.status()).quorum
