"""Looking after chunks that are stored: every node for its own share.

::

    keeper       a node's background work: when it runs, and how it begins and ends
    repairing    fetch what this node should have and lacks; give away what others have taken over
    leaving      when members that leave may do so
    scrubbing    read everything once per period, and heal what is damaged
    views        who keeps what: the members of one epoch, and what they say of their weight and zone
    wants        what a node's own acceptor names, in order of digest
    service      what a node answers, over gRPC; ``asking`` is the other end
    stores       the places of any store, for commands: a directory, disks, nodes
    checking     the whole store seen from outside: head, record, chunk, copies (``gateway fsck``)
    usage        what versions take on disk; ``tables``: the same and more for SQL
    directories  scrub and repair of a store in a directory or on several disks
    pace, runs, watched   a bound on bytes per second, work in numbered runs, what the disk last said

Nothing here decides what may be deleted: that is the collector's.  A copy goes only when all nodes that are to have the
chunk say that they do (``repairing``).
"""
