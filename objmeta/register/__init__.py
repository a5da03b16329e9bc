"""Runs core's effects against a real loop, network and store: timers, retries, queues.

Files: ``engine`` (linearizable registers), ``changing`` (rounds until a change has its answer), ``replies`` (what
that says), ``queueing`` (changes of one register that wait share a round), ``together`` (changes that came together
share messages), ``scanning`` (listings from a quorum), ``following`` (what changed), ``membership`` and ``copying``
(the members change), ``repairing`` and ``mending`` (an acceptor that was away catches up), ``asking`` (questions to
single acceptors), ``erasing`` and ``generations`` (what was deleted is forgotten), ``local`` (acceptors in this
process), ``life`` (ballots for a new life of a proposer).
"""
