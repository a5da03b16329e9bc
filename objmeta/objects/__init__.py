"""Object operations over registers and records.

Files: ``types`` (what they give back), ``buckets`` (creation, removal, terms), ``objects`` (put, get, versions),
``listing`` (pages), ``history`` (the chain of one object), ``keyvalue`` (plain registers), ``ids`` (version ids as
text), ``context`` (what they all need).
"""
