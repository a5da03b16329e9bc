"""CASPaxos, pure: values in, values out.

Nothing here knows a clock, randomness, a network, a disk, a thread or an event loop; the rules are numbered as in
``docs/protocol.md``.  Files: ``ballot`` (ballots), ``messages`` (what proposers and acceptors say), ``quorum``
(arithmetic of majorities), ``acceptor`` (one step of an acceptor), ``proposer`` (one round under one ballot),
``firstwrite`` (a register's first change in one round trip), ``home`` (who may use it), ``fastread`` (the read that
needs no promise), ``listing`` (pages from a quorum), ``inventory`` (what an acceptor holds, and digests of it),
``repair`` (what an acceptor lacks),
``erasure`` (the generation, and what must be before a register is erased),
``change`` (what a change function is), ``configuration`` (who votes), ``reconfiguration`` (who may vote next),
``records`` (the names of records).
"""
