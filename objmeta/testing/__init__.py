"""The deterministic simulator, its fakes and its checkers; imported by tests and bench only.

One root seed derives everything random, time is virtual, and the code under test is the real ``core``, ``model``,
``register`` and ``objects``.  Files: ``loop`` (virtual time), ``disk`` (what an acceptor's disk keeps), ``network``
(faults on the way), ``watch`` (invariants after every step), ``history`` and ``checkers`` (what clients saw and whether
it is linearizable), ``world`` (one cluster), ``workload`` and ``bucketwork`` (what its clients do), ``leasework``
(clients that contend for a lock), ``processes`` (clocks that differ, and pauses), ``mutations`` (broken variants that
must be caught), ``transcripts`` (directed schedules as text), ``telling`` (messages as text),
``sim`` (the command line).
"""
