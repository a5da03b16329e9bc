"""Object operations over registers and records.

Files: ``types`` (what they give back), ``buckets`` (creation, removal, terms), ``objects`` (put, get, versions),
``listing`` (pages), ``history`` (the chain of one object), ``feed``, ``columns`` and ``arrays`` (what changed, and
loading all),
``keyvalue`` (plain registers), ``locks`` and ``elections`` (leases with fencing tokens), ``claims`` (how one contender
takes a lease and counts its time), ``transactions`` (several objects at once, as their owner) and ``intents`` (what
whoever meets their traces does), ``fences`` (what write-backs in buckets state), ``marks`` (the chunks that one
acceptor names), ``ids`` (version ids as text), ``context`` (what they all need).
"""
