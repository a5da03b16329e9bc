"""Durable acceptor state behind :class:`objmeta.interfaces.AcceptorStore`.

``memory``, ``sqlite`` (embedded, any number of processes) and ``rocks`` (nodes, one process) are the stores; all run
:func:`objmeta.core.acceptor.step` through a view (``steps``) and build pages and inventories with the same code
(``pages``, ``inventories``).  ``sqlite`` rests on ``sqlite_files`` (making, opening and naming what is wrong with a
store's files), ``sqlite_connections`` (whose turn it is, and forks), ``sqlite_view`` (one transaction), ``checksums``
(what finds flipped bits) and ``checkpoints`` (keeping the write-ahead log short); ``disks`` makes and opens several of
them as one store.  ``rocks`` rests on ``rocks_files`` (the same of RocksDB, and the check of its log), ``rocks_tree``
(an ordered tree of bytes, with writes that wait on top) and ``rocks_view`` (keys and values, one batch).
``directories`` is about what both keep their files in, and ``lane`` puts a store behind an event loop, with group
commit.
"""
