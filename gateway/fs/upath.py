"""``UPath("objmeta://bucket/key")`` for universal_pathlib, which finds it by its entry point.

The bucket is the path's drive and anchor, as with the other object stores.  Storage options are those of the file
system: ``UPath("objmeta://bucket/key", path="/a/directory")``.
"""

from __future__ import annotations

import fsspec
from upath._flavour import WrappedFileSystemFlavour  # the only way there is to say that the bucket is the anchor
from upath.implementations.cloud import CloudPath

from gateway.fs.filesystem import ObjmetaFileSystem

# universal_pathlib guesses the shape of paths of a protocol whose class it has not seen
fsspec.register_implementation("objmeta", ObjmetaFileSystem, clobber=True)


class ObjmetaPath(CloudPath):
    """A path in an objmeta store."""

    __slots__ = ()
    parser = WrappedFileSystemFlavour(ObjmetaFileSystem, netloc_is_anchor=True, supports_empty_parts=True)
