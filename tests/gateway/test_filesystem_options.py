"""Storage options: their names, their sources and their order."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fsspec.config import conf
from fsspec.spec import AbstractFileSystem

from gateway.fs.filesystem import ObjmetaFileSystem
from objmeta import Cluster, Disks, Embedded


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"timeout": 3}, "timeout_s"),
        ({"anon": True}, "unknown storage option 'anon'"),
        ({"use_listings_cache": True}, "never cached"),
        ({"path": "/a", "home": "/a"}, "two names"),
        ({"home": "/a", "endpoints": "127.0.0.1:1"}, "only one of them"),
        ({"target": "/a", "disks": ["/a", "/b", "/c"]}, "only one of them"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": "soon"}, "timeout_s"),
        ({"failover_s": 0}, "failover_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"path": False}, "not the path"),
        ({"batch_size": 0}, "batch_size"),
        ({"concurrency": "many"}, "concurrency"),
        ({"version_aware": "perhaps"}, "version_aware"),
        ({"disks": "/a:/b"}, "disks"),
        ({"path": 5}, "not the path"),
        ({"path": "~nobody-has-this-name/x"}, "home directory"),
        ({"target": "http://x"}, "URL"),
    ],
)
def test_what_is_unknown_bad_or_contradictory_is_refused(
    options: dict[str, Any], reason: str, no_settings: None
) -> None:
    with pytest.raises(OSError, match=reason):
        ObjmetaFileSystem(**options)


def test_listings_are_not_cached_and_options_about_that_are_honoured(home: Path, no_settings: None) -> None:
    fs = ObjmetaFileSystem(path=home, use_listings_cache=False, listings_expiry_time=60, max_paths=5)
    fs.mkdir("bucket")
    other = ObjmetaFileSystem(path=home)
    assert fs.ls("bucket") == []
    other.touch("bucket/file")
    assert fs.ls("bucket", detail=False) == ["bucket/file"]
    fs.close()
    other.close()


def test_places_have_several_names(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places: list[dict[str, Any]] = [{"path": "store"}, {"home": "store"}, {"target": "store"}]
    for options in places:
        assert ObjmetaFileSystem(**options).location == Embedded(tmp_path / "store")
    nodes = Cluster(("a:1", "b:2"))
    places = [{"endpoints": "a:1,b:2"}, {"endpoints": ["a:1", "b:2"]}, {"target": "a:1,b:2"}]
    for options in places:
        assert ObjmetaFileSystem(**options).location == nodes
    three = [str(tmp_path / name) for name in "abc"]
    for disks in (three, ":".join(three)):
        assert ObjmetaFileSystem(disks=disks).location == Disks(tuple(map(Path, three)))
    fs = ObjmetaFileSystem(path="store", concurrency=3, timeout_s="4", failover_s=0.5)
    assert (fs.batch_size, fs.timeout_s) == (3, 4.0)
    assert ObjmetaFileSystem(path="store", concurrency=3, batch_size="7").batch_size == 7


def test_a_relative_path_stays_the_one_it_was(
    no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        places: list[dict[str, Any]] = [{"path": "store"}, {"home": "./store"}, {"path": Path("store")}]
        for options in [*places, {"target": "store"}]:
            found = ObjmetaFileSystem(**options)
            assert found.location == Embedded(tmp_path / name / "store")
            assert found is ObjmetaFileSystem(**options)
        assert ObjmetaFileSystem("store").location == ObjmetaFileSystem(path="store").location
        assert ObjmetaFileSystem(disks="x:y:z").location == Disks(tuple(tmp_path / name / each for each in "xyz"))
        assert ObjmetaFileSystem(path="store", local_dir="l").local_files.directory == tmp_path / name / "l"
        with monkeypatch.context() as environment:
            environment.setenv("OBJMETA_HOME", "said")
            assert ObjmetaFileSystem().location == Embedded(tmp_path / name / "said")
    sent = [ObjmetaFileSystem("store"), ObjmetaFileSystem(path="store"), ObjmetaFileSystem(disks=["x", "y", Path("z")])]
    wanted = [each.location for each in sent]
    pickled, texts = pickle.dumps(sent), [each.to_json() for each in sent]
    monkeypatch.chdir(tmp_path)
    assert [each.location for each in pickle.loads(pickled)] == wanted
    assert [AbstractFileSystem.from_json(each).location for each in texts] == wanted


def test_a_tilde_is_the_home_directory(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    places: list[dict[str, Any]] = [{"path": "~/store"}, {"home": "~/store"}, {"target": "~/store"}]
    for options in places:
        assert ObjmetaFileSystem(**options).location == Embedded(tmp_path / "store")


def test_arguments_go_before_the_environment_and_that_before_fsspecs_config(
    no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objmeta").mkdir()
    (tmp_path / "objmeta" / "config.toml").write_text(f'home = "{tmp_path}/toml"\ntimeout_s = 4\n')
    assert ObjmetaFileSystem().location == Embedded(tmp_path / "toml")
    monkeypatch.setitem(conf, "objmeta", {"endpoints": "a:1", "timeout_s": "5", "version_aware": "no"})
    found = ObjmetaFileSystem()
    assert (found.location, found.timeout_s, found.version_aware) == (Cluster(("a:1",)), 5.0, False)
    monkeypatch.setenv("OBJMETA_HOME", str(tmp_path / "environment"))
    monkeypatch.setenv("OBJMETA_TIMEOUT_S", "6")
    found = ObjmetaFileSystem()
    assert (found.location, found.timeout_s) == (Embedded(tmp_path / "environment"), 6.0)
    found = ObjmetaFileSystem(path=tmp_path / "argument", timeout_s=7)
    assert (found.location, found.timeout_s) == (Embedded(tmp_path / "argument"), 7.0)
    monkeypatch.setitem(conf, "objmeta", {"path": str(tmp_path / "path")})
    monkeypatch.delenv("OBJMETA_HOME")
    assert ObjmetaFileSystem().location == Embedded(tmp_path / "path")
    assert ObjmetaFileSystem(endpoints="a:1").location == Cluster(("a:1",))
    monkeypatch.setitem(conf, "objmeta", {"path": "~/of fsspec's config"})
    monkeypatch.setenv("OBJMETA_HOME", str(tmp_path / "environment"))
    found = ObjmetaFileSystem()
    assert pickle.loads(pickle.dumps(found)).location == found.location == Embedded(tmp_path / "environment")


def test_options_of_the_file_system_come_from_the_same_places(
    no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "objmeta").mkdir()
    (tmp_path / "objmeta" / "config.toml").write_text(
        f'path = "{tmp_path}/toml"\nlocal_dir = "kept"\nbatch_size = 4\nas_of = 2026-01-02T00:00:00Z\n'
    )
    ObjmetaFileSystem.clear_instance_cache()  # one from before the file was there
    found = ObjmetaFileSystem()
    assert (found.location, found.batch_size) == (Embedded(tmp_path / "toml"), 4)
    assert found.local_files.directory == tmp_path / "objmeta" / "kept"
    assert found.as_of == "2026-01-02T00:00:00+00:00"
    monkeypatch.setitem(conf, "objmeta", {"as_of": "2026-02-02", "version_aware": "yes", "local_dir": "fsspec"})
    found = ObjmetaFileSystem()
    assert found.as_of == ObjmetaFileSystem(**conf["objmeta"]).as_of == "2026-02-02T00:00:00+00:00"
    variables = {"AS_OF": "2026-03-02", "VERSION_AWARE": "no", "LOCAL_DIR": "said", "LOCAL_BYTES": "9"}
    for name, value in {**variables, "BATCH_SIZE": "7", "PATH": "here"}.items():
        monkeypatch.setenv(f"OBJMETA_{name}", value)
    monkeypatch.chdir(tmp_path)
    found = ObjmetaFileSystem()
    assert found is ObjmetaFileSystem()
    assert (found.as_of, found.version_aware, found.batch_size) == ("2026-03-02T00:00:00+00:00", False, 7)
    assert (found.location, found.local_files.directory) == (Embedded(tmp_path / "here"), tmp_path / "said")
    assert pickle.loads(pickle.dumps(found)).as_of == found.as_of
    own: dict[str, Any] = {"as_of": "2026-04-02", "version_aware": True, "local_dir": "own", "batch_size": 2}
    found = ObjmetaFileSystem(**own)
    assert (found.as_of, found.version_aware, found.batch_size) == ("2026-04-02T00:00:00+00:00", True, 2)
    assert found.local_files.directory == tmp_path / "own"


@pytest.mark.parametrize("name", ["AS_OF", "VERSION_AWARE", "LOCAL_BYTES", "BATCH_SIZE"])
def test_what_the_environment_says_wrongly_is_refused(
    name: str, no_settings: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OBJMETA_{name}", "perhaps")
    with pytest.raises(OSError, match=f"environment variable OBJMETA_{name}"):
        ObjmetaFileSystem()
    monkeypatch.delenv(f"OBJMETA_{name}")
    monkeypatch.setenv("OBJMETA_HOME", "a")
    monkeypatch.setenv("OBJMETA_PATH", "b")
    with pytest.raises(OSError, match="another name for home"):
        ObjmetaFileSystem()


def test_fsspecs_environment_and_files(no_settings: None, tmp_path: Path) -> None:
    code = (
        "import fsspec; fs = fsspec.filesystem('objmeta'); "
        "print(fs.location.path.name, fs.timeout_s, fs.version_aware, fs.batch_size)"
    )
    (tmp_path / "conf.ini").write_text("[objmeta]\ntimeout_s = 3\nversion_aware = false\nbatch_size = 9\n")
    (tmp_path / "more.json").write_text(json.dumps({"objmeta": {"timeout_s": 4}}))
    environment = {**os.environ, "FSSPEC_CONFIG_DIR": str(tmp_path), "FSSPEC_OBJMETA_PATH": str(tmp_path / "there")}
    for more, said in [({}, "there 4.0 False 9"), ({"FSSPEC_OBJMETA_TIMEOUT_S": "8"}, "there 8.0 False 9")]:
        found = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **more}, capture_output=True, check=True, text=True
        )
        assert found.stdout.strip() == said


def test_names_that_look_like_versions(fs: ObjmetaFileSystem, home: Path) -> None:
    version = "0123456789abcdef" * 2
    plain = ObjmetaFileSystem(path=home, version_aware=False)
    for key in (f"file#{version}", f"file?versionId={version}", f"d#{version}/e"):
        plain.pipe_file(f"bucket/{key}", key.encode())
        assert plain.cat_file(f"bucket/{key}") == plain.open(f"bucket/{key}").read() == key.encode()
        assert plain.glob(f"bucket/{key}") == [f"bucket/{key}"]
        plain.mv(f"bucket/{key}", "bucket/moved")
        plain.mv("bucket/moved", f"bucket/{key}")
    assert len(plain.find("bucket")) == 3
    assert plain.find("bucket", maxdepth=2) == fs.find("bucket", maxdepth=2) == plain.find("bucket")
    found = plain.info(f"bucket/file#{version}")["VersionId"]
    plain.pipe_file(f"bucket/file#{version}", b"newer")
    assert plain.cat_file(f"bucket/file#{version}", version_id=found) == f"file#{version}".encode()
    with pytest.raises(ValueError, match="version_aware=True"):
        plain.ls("bucket", versions=True)
    aware = ObjmetaFileSystem(path=home, version_aware=True)
    with pytest.raises(FileNotFoundError):
        aware.cat_file(f"bucket/file#{version}")
    plain.close()
    aware.close()


def test_times_are_utc_and_aware(fs: ObjmetaFileSystem) -> None:
    fs.touch("bucket/file")
    assert fs.info("bucket/file")["LastModified"].tzinfo is datetime.UTC
