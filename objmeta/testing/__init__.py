"""The deterministic simulator, its fakes and its checkers; imported by tests and bench only.

One root seed derives everything random, time is virtual, and the code under test is the real ``core``, ``model``,
``register`` and ``objects``. Files: ``loop`` (virtual time), ``disk`` (what an acceptor's disk keeps), ``network``
(faults on the way), ``watch`` (invariants after every step), ``history`` and ``checkers`` (what clients saw and whether
it is linearizable), ``world`` (one cluster), ``workload`` and ``bucketwork`` (what its clients do), ``leasework``
(clients that contend for a lock), ``transactionwork`` (clients that change several objects at once) with
``transactioncheck`` (what must hold) and ``mutations_transactions`` (broken variants), ``processes`` (clocks that
differ, and pauses), ``upkeep`` (changes of members, erasure and repair meanwhile), ``mutations`` and
``mutations_upkeep`` (broken variants that must be caught), ``transcripts`` (directed schedules as text), ``telling``
(messages as text), ``explorer`` (random schedules over the pure core alone) with ``explorer_work`` (what happens in
them), ``explorer_watch`` (what must hold) and ``explorer_variants`` (broken variants), ``sim`` (the command line).
"""
