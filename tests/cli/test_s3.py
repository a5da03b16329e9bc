"""Moving here from S3, and back: a real server of its protocol (moto's), with keys of all kinds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Run, Shell, eventually

OBJECTS = {
    "a/é ü.txt": b"1",
    "a/😀?x#y%20*[z].csv": b"22",
    "a//double": b"3",
    "/lead": b"4",
    "../up": b"5",
    "dir/": b"",
    "note/": b"a slash is a letter",
    "empty": b"",
    "large.bin": bytes(range(256)) * 40_000,
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of the server, whose buckets ``old`` (with objects) and ``out`` go at the end."""
    import boto3
    import s3fs

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_CONFIG_FILE", str(tmp_path / "none")),
        ("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    client = boto3.client("s3", endpoint_url=endpoint)
    for bucket in ("old", "out"):
        client.create_bucket(Bucket=bucket)
    for key, data in OBJECTS.items():
        client.put_object(Bucket="old", Key=key, Body=data, Metadata={"who": "me"}, ContentType="text/special")
    yield client
    for bucket in ("old", "out"):
        for found in client.list_objects_v2(Bucket=bucket).get("Contents", ()):
            client.delete_object(Bucket=bucket, Key=found["Key"])
        client.delete_bucket(Bucket=bucket)
    client.close()
    s3fs.S3FileSystem.clear_instance_cache()


def contents(client: Any, bucket: str, prefix: str = "") -> dict[str, bytes]:
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", ())
    return {
        each["Key"].removeprefix(prefix): client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read()
        for each in found
    }


def test_a_bucket_moves_here_and_back(gateway: Run, shell: Shell, s3: Any, endpoint: str) -> None:
    at = ("--endpoint-url", endpoint)
    assert gateway("import", *at, "s3://old").lines == [
        "made objmeta://old",
        "stored 9 objects, 9.8M; 0 there already: objmeta://old",
    ]
    assert gateway("import", *at, "s3://old").lines == ["stored 0 objects, 0; 9 there already: objmeta://old"]
    assert gateway("import", *at, "--checksum", "s3://old").lines[0].startswith("stored 0 objects, 0; 9")
    (record,) = gateway("stat", "--json", "old/a/é ü.txt").records
    assert (record["content_type"], record["metadata"]["who"]) == ("text/special", "me")
    for key, data in OBJECTS.items():
        if not key.endswith("/"):
            assert shell("cat", f"old/{key}").raw == data

    assert gateway("sync", *at, "old", "s3://out/deep/er").lines[0].startswith("wrote 9 objects, 9.8M")
    assert contents(s3, "out", "deep/er/") == OBJECTS
    head = s3.head_object(Bucket="out", Key="deep/er/large.bin")
    assert (head["ContentType"], head["Metadata"]["who"]) == ("text/special", "me")
    # S3's times are whole seconds: what was stored in the same second as its source is sent once more
    eventually(lambda: gateway("sync", *at, "old", "s3://out/deep/er").out.startswith("wrote 0 objects, 0; 9"))
    assert gateway("sync", *at, "old", "s3://old").lines[0].startswith("wrote 0 objects, 0; 9")


def test_what_changed_and_what_went(gateway: Run, s3: Any, endpoint: str) -> None:
    at = ("--endpoint-url", endpoint)
    gateway("import", *at, "s3://old/a", "old/a")
    assert gateway("ls", "-r", "old").lines == ["a//double", "a/é ü.txt", "a/😀?x#y%20*[z].csv"]
    s3.put_object(Bucket="old", Key="a/é ü.txt", Body=b"changed")
    s3.delete_object(Bucket="old", Key="a//double")
    said = gateway("sync", *at, "--delete", "s3://old/a", "old/a").lines
    assert said == ["stored 1 object, 7; deleted 1; 1 there already: objmeta://old/a/"]
    gateway("rm", "old/a/é ü.txt")
    planned = gateway("sync", *at, "--delete", "--dry-run", "--json", "old/a", "s3://old/a").records
    assert [(each["action"], each["target"]) for each in planned] == [("delete", "s3://old/a/é ü.txt")]
    gateway("sync", *at, "--delete", "old/a", "s3://old/a")
    again = json.loads(gateway("sync", *at, "--delete", "--json", "old/a", "s3://old/a").err)
    assert (again["objects"], again["deleted"], again["unchanged"]) == (0, 0, 1)
    assert gateway("sync", *at, "--json", "-q", "old/a", "s3://old/a").err == ""
    assert list(contents(s3, "old", "a/")) == ["😀?x#y%20*[z].csv"]


def test_one_object_and_more_than_a_page(gateway: Run, s3: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at = ("--endpoint-url", endpoint)
    monkeypatch.setattr("gateway.cli.ends.s3.PAGE", 3)
    gateway("import", *at, "s3://old")
    assert gateway("ls", "-r", "old").lines == sorted(OBJECTS)
    gateway("import", *at, "s3://old/empty", "old/one/")
    assert gateway("import", *at, "s3://old/empty", "old/other").lines[-1].endswith(": objmeta://old/other")
    assert "gateway sync --delete" in gateway("import", *at, "--delete", "s3://old", "old", code=2).err
    assert gateway("ls", "-r", "old").lines == sorted([*OBJECTS, "one/empty", "other"])


def test_what_is_wrong_is_said(gateway: Run, bucket: str, s3: Any, endpoint: str) -> None:
    at = ("--endpoint-url", endpoint)
    assert gateway("import", *at, "s3://nobody", "box", code=1).err == (
        "gateway: s3://nobody: No such file or directory\n"
    )
    assert gateway("sync", *at, "--delete", "s3://old/none", "box", code=1).err.count("\n") == 1
    assert "s3fs does not know" in gateway("import", *at, "-o", "what=1", "s3://old", "box", code=2).err
    wrong = gateway("import", "--endpoint-url", "http://127.0.0.1:1", "s3://old", "box", code=1)
    assert "127.0.0.1:1" in wrong.err
    assert wrong.err.count("\n") == 1


def test_without_s3fs_it_says_what_to_install(shell: Shell) -> None:
    (shell.directory / "s3fs.py").write_text("raise ImportError('No module named s3fs')")
    environ = {"PYTHONPATH": f"{shell.directory}:{ROOT}"}
    assert "pip install 'objmeta[s3]'" in shell("import", "s3://old", "box", code=2, env=environ).err
