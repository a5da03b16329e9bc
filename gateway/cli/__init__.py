"""The command ``gateway``: files in and out of an objmeta store, from a shell.

Files: ``app`` (the command, its options, exit codes), ``options`` and ``session`` (how a subcommand reaches a store),
``paths`` and ``values`` (what words stand for), ``errors`` and ``output`` (what people and programs see); the
subcommands are in ``putting``, ``uploads``, ``getting``, ``syncing`` (with ``merging``, ``filters`` and ``ends``),
``copying``, ``removing``, ``undoing``, ``listing``, ``finding``, ``diffing``, ``watching``, ``mounting``, ``buckets``,
``query`` (with ``rows``, ``asking``, the prompt, and ``statements``), ``catalog``, ``lock``, ``gc``, ``upkeep``,
``admin`` and ``nodes`` (with ``trees``, ``cluster``, ``disks`` and ``lockstart``) and ``shells`` (with ``completing``),
each loaded only when it runs; ``reference`` writes docs/cli.md from them.
Nothing here imports grpc, duckdb, pyarrow, fsspec, rich or prompt_toolkit before it is needed.
"""

from __future__ import annotations

from gateway.cli.app import main

__all__ = ["main"]
