"""The main job, end to end, on the embedded store: what ``make demo`` runs.

    python examples/demo.py [DIRECTORY]

It stores a directory tree (this repository's own, if none is named), gets it back and compares; stores a CSV and a
Parquet data set through pandas, reads them back and compares; replaces one and reads both versions; and asks SQL about
all of it. The store is where OBJMETA_HOME says, else build/demo, made anew each time.
"""

from __future__ import annotations

import filecmp
import os
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import fsspec
import pandas as pd

import gateway
import objmeta

REPOSITORY = Path(__file__).resolve().parents[1]
LEFT_OUT = {".git", ".venv", "build", "dist", "__pycache__"}
"""Of the repository: what tools made."""
BUCKET = "demo"


def files_below(source: Path) -> list[Path]:
    """The regular files of a tree, as paths relative to it; links are not followed."""
    found = []
    for directory, names, files in os.walk(source):
        if source == REPOSITORY:
            names[:] = [name for name in names if name not in LEFT_OUT and not name.endswith("_cache")]
        found += [path for name in files if (path := Path(directory, name)).is_file() and not path.is_symlink()]
    return sorted(path.relative_to(source) for path in found)


def tree(fs: fsspec.AbstractFileSystem, source: Path) -> None:
    """A directory tree there and back."""
    files = files_below(source)
    size = sum((source / file).stat().st_size for file in files)
    say(f"A directory tree: {len(files):,} files, {size / 1e6:,.1f} MB")
    start = time.perf_counter()
    fs.put([str(source / file) for file in files], [f"{BUCKET}/tree/{file.as_posix()}" for file in files])
    print(f"stored in {time.perf_counter() - start:.2f} s")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        back = Path(scratch, "back")
        fs.get(f"{BUCKET}/tree/", f"{back}/", recursive=True)
        print(f"fetched in {time.perf_counter() - start:.2f} s")
        _, different, missing = filecmp.cmpfiles(source, back, [str(file) for file in files], shallow=False)
        assert not different, f"these files came back different: {different}"
        assert not missing, f"these files did not come back: {missing}"
    print("the same, byte for byte")


def data_sets() -> None:
    """pandas there and back, as CSV and as a Parquet data set of several files."""
    say("pandas: a CSV and a Parquet data set")
    frame = pd.DataFrame({"year": [2024, 2024, 2025, 2026], "city": ["Oslo", "Lima", "Oslo", "Lima"], "n": range(4)})
    frame.to_csv(f"objmeta://{BUCKET}/data/cities.csv", index=False)
    assert pd.read_csv(f"objmeta://{BUCKET}/data/cities.csv").equals(frame)
    frame.to_parquet(f"objmeta://{BUCKET}/data/cities", partition_cols=["year"])
    back = pd.read_parquet(f"objmeta://{BUCKET}/data/cities").astype({"year": "int64"})
    assert back[frame.columns].sort_values("n", ignore_index=True).equals(frame)
    print("both read back equal")


def versions(client: objmeta.Client) -> None:
    """Replace one object; both versions are there."""
    say("Versions: the CSV is replaced")
    path = f"objmeta://{BUCKET}/data/cities.csv"
    pd.read_csv(path).assign(n=lambda f: f["n"] * 10).to_csv(path, index=False)
    history = client.versions(BUCKET, "data/cities.csv")
    print(f"{len(history)} versions; newest first:", [version.version_id for version in history])
    newest, oldest = (pd.read_csv(f"{path}?versionId={version.version_id}")["n"].tolist() for version in history[:2])
    print("column n now:", newest, " before:", oldest)
    assert newest == [10 * n for n in oldest]
    client.put_object(BUCKET, "data/mistake", data=b"oops")
    client.delete_object(BUCKET, "data/mistake")


QUERIES = (
    "SELECT count(*) AS objects, sum(size) AS bytes, count(*) FILTER (is_inline) AS inline_objects FROM objects",
    "SELECT key, size, version_id FROM objects ORDER BY size DESC, key LIMIT 3",
    "SELECT key, sequence, size, is_latest, is_delete_marker, last_modified FROM versions\n"
    "WHERE key IN ('data/cities.csv', 'data/mistake') ORDER BY key, sequence",
    "SELECT count(*) AS chunks, count(DISTINCT digest) AS distinct_chunks, sum(length) AS bytes FROM chunks",
)


def questions(client: objmeta.Client) -> None:
    """SQL over manifests and versions."""
    for query in QUERIES:
        say(query)
        print(gateway.sql(client, query))


def say(text: str) -> None:
    """A heading."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}")


def main() -> None:
    """All of it."""
    source = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else REPOSITORY
    if not source.is_dir():
        sys.exit(f"demo: {source} is not a directory")
    if "OBJMETA_HOME" not in os.environ:
        home = REPOSITORY / "build" / "demo"
        shutil.rmtree(home, ignore_errors=True)
        os.environ["OBJMETA_HOME"] = str(home)
    with objmeta.connect() as client:
        fs = fsspec.filesystem("objmeta")
        fs.makedirs(BUCKET, exist_ok=True)
        tree(fs, source)
        data_sets()
        versions(client)
        questions(client)
        where, command = os.environ["OBJMETA_HOME"], str(Path(sys.executable).with_name("gateway"))
        print(f"\nLook around: OBJMETA_HOME={shlex.quote(where)} {shlex.quote(command)} ls -r -l {BUCKET}")


if __name__ == "__main__":
    main()
