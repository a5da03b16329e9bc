"""The ends of ``sync`` and ``import``: a directory of the store, one of this machine, or what a URL names.

Each lists itself in the order of names (by code points, as listings of the store are), a directory or a page at a time,
so that two of any size are compared in bounded memory.  One of the two ends is the store: it moves the bytes, and the
other gives them and takes them.

Files: ``entries`` (what ends list), ``opening`` (which end an argument names), ``stores``, ``another`` (another store),
``local``, ``urls`` (any fsspec file system), ``http``, ``s3`` (S3 and MinIO).
"""
