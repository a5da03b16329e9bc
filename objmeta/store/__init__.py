"""Durable acceptor state behind :class:`objmeta.interfaces.AcceptorStore`.

``memory`` and ``sqlite`` are the stores; both run :func:`objmeta.core.acceptor.step` through a view (``steps``) and
build pages with the same code (``pages``).  ``sqlite`` rests on ``sqlite_files`` (making, opening and naming what is
wrong with a store's files), ``sqlite_view`` (one transaction) and ``checkpoints`` (keeping the write-ahead log short).
``lane`` puts a store behind an event loop, with group commit.
"""
