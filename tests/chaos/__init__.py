"""Real processes under real faults: ``python -m tests.chaos``, or ``make chaos``.

Nodes (``gateway serve``) and client processes run on this machine; all their connections pass a TCP proxy that can cut
each link in each direction.

Files: ``cluster`` (the processes), ``proxy`` (the network), ``disks`` (what can be filled up), ``faults`` (what is done
to them), ``members`` (how they are changed), ``clients`` (what is asked of them), ``history`` (what was asked and
answered, as lines of JSON), ``checker`` (whether that is linearizable), ``run`` (one run from beginning to end).
"""
