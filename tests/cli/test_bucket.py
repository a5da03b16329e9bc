"""``gateway bucket``: settings."""

from __future__ import annotations

from tests.cli.conftest import Run


def test_settings_are_shown_and_changed(gateway: Run, bucket: str) -> None:
    assert "versions kept        all" in gateway("bucket", "show", bucket).lines
    changed = gateway("bucket", "set", bucket, "--replicas", "2", "--keep-versions", "3", "--expire-delete-markers")
    assert changed.lines[2:] == [
        "replicas             2",
        "versions kept        3 beside the current one",
        "lone delete markers  expire",
    ]
    gateway("--quiet", "bucket", "set", f"objmeta://{bucket}", "--keep-days", "30", "--no-expire-delete-markers")
    shown = gateway("bucket", "show", bucket)
    assert shown.lines[3:] == [
        "versions kept        3 beside the current one, the others for 30 days after another one took their place",
        "lone delete markers  kept",
    ]
    (record,) = gateway("--json", "bucket", "show", bucket).records
    assert (record["bucket"], record["replicas"]) == ("box", 2)
    assert (record["keep_versions"], record["keep_days"], record["expire_delete_markers"]) == (3, 30.0, False)


def test_what_cannot_be_changed(gateway: Run, bucket: str) -> None:
    assert "say what to change" in gateway("bucket", "set", bucket, code=2).err
    assert "replicas must be" in gateway("bucket", "set", bucket, "--replicas", "100", code=2).err
    assert "is an object" in gateway("bucket", "show", f"{bucket}/key", code=2).err
    gateway("bucket", "show", "nowhere", code=3)
    gateway("bucket", "set", "nowhere", "--replicas", "1", code=3)
