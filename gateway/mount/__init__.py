"""A store as a directory: FUSE on one side, the file system of ``gateway.fs`` on the other.

``operations`` is what a mounted directory does, as plain methods that any thread may call (what only looks is in
``looking``, what happens to open files in ``files``); ``drafts`` holds the content of files while they are written;
``libfuse`` puts the operations behind a mount point, and says what is missing if that cannot be.  Only ``libfuse``
knows the library.
"""
