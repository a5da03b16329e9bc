"""``mount``: a store as a directory, for programs that know files only."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from gateway.cli import errors, output
from gateway.cli.options import common, current, reading
from gateway.cli.paths import Remote, remote_name
from gateway.cli.session import moment, resolved_settings


@click.command()
@common
@reading
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("what", metavar="[NAME]", type=remote_name, required=False)
@click.option("--read-only", is_flag=True, help="Refuse every change.")
@click.option(
    "--spool",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Where files lie while they are written (default: in your cache directory).",
)
def mount(directory: Path, what: Remote | None, read_only: bool, spool: Path | None) -> None:
    """Show the store as files in a directory, for any program.

    All of it, or a bucket or directory in it.

    \b
      gateway mount ~/store                      every bucket is a directory
      gateway mount ~/logs bucket/logs --read-only
      gateway mount ~/then --as-of '2h ago'      as it was, read only

    It runs until Ctrl-C or 'fusermount3 -u DIR', and waits for what is being written.

    A file becomes one version when it is closed, or at fsync; if that fails, close says so, and what was written is
    kept on this machine. A file that is open for reading stays the version it was. Modes, owners and times are not
    kept, and there are no links. Needs Linux, libfuse 3 and pip install 'objmeta[mount]'.
    """
    from gateway.cli.app import say
    from gateway.fs.filesystem import ObjmetaFileSystem
    from gateway.mount.drafts import Spool
    from gateway.mount.libfuse import library
    from gateway.mount.libfuse import mount as run
    from gateway.mount.operations import Operations

    library()
    place = directory.absolute()
    _check_mount_point(place)
    then = moment()
    fs = ObjmetaFileSystem(**_store(), as_of=then, version_aware=False, skip_instance_cache=True)
    root = "" if what is None else f"{what.bucket}/{what.key}".rstrip("/")
    read_only = read_only or then is not None
    shown = output.shown(str(what) if what is not None else "the store")

    record = {"directory": str(place), "name": None if what is None else str(what), "read_only": read_only}
    text = f"{shown} is in {place}{', read only' if read_only else ''}; Ctrl-C ends it"
    is_json, is_quiet = current().json, current().quiet  # not known to the threads that say something
    tell = partial(say, as_json=is_json)

    def mounted() -> None:
        with contextlib.suppress(OSError):  # that nobody reads this is no reason to end
            if is_json:
                output.line(output.json_text(record))
                sys.stdout.flush()
            elif not is_quiet:
                tell(text)

    try:
        if root:
            _check_root(fs, root)
        else:
            fs.ls("")  # fails here, and not at the first look into the directory
        operations = Operations(fs, root, Spool(_spool(spool), tell), tell, read_only=read_only)
        try:
            run(operations, place, read_only=read_only, mounted=mounted)
        finally:
            operations.close()
        if operations.lost:
            raise click.exceptions.Exit(errors.FAILED)
    finally:
        fs.close()


def _store() -> dict[str, Any]:
    settings = resolved_settings().settings
    where: dict[str, Any]
    if settings.disks:
        where = {"disks": settings.disks}
    elif settings.endpoints:
        where = {"endpoints": settings.endpoints}
    else:
        where = {"path": settings.home}
    return {**where, "timeout_s": settings.timeout_s, "failover_s": settings.failover_s}


def _check_root(fs: Any, root: str) -> None:
    """The bucket has to be there, and what is mounted must not be a file."""
    from objmeta.errors import InvalidArgument, ObjmetaError

    try:
        fs.info(root.partition("/")[0])
    except OSError as failure:
        raise (failure.__cause__ if isinstance(failure.__cause__, ObjmetaError) else failure) from None
    if "/" in root and fs.isfile(root):
        raise InvalidArgument(f"{root!r} is an object; a bucket or a directory of objects can be mounted")


def _check_mount_point(directory: Path) -> None:
    try:
        if os.path.ismount(directory):
            raise OSError(errno.EBUSY, "something is mounted there already", str(directory))
        if os.listdir(directory):
            raise OSError(errno.ENOTEMPTY, "this is not empty: its files would be hidden", str(directory))
    except OSError as failure:
        if failure.errno == errno.ENOTCONN:
            hint = "an earlier mount was killed here; 'fusermount3 -u DIR' or 'umount DIR' clears it away"
            raise OSError(errno.ENOTCONN, hint, str(directory)) from failure
        raise


def _spool(given: Path | None) -> Path:
    if given is not None:
        return given.absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("objmeta", appauthor=False)) / "mount"
