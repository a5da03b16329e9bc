"""Runs core's effects against a real loop, network and store: timers, retries, turns.

Files: ``engine`` (changes and linearizable reads), ``turns`` (one operation at a time on a register), ``scanning``
(listings from a quorum), ``local`` (acceptors in this process), ``life`` (ballots for a new life of a proposer).
"""
