"""What is stored in registers and records, pure: names, encodings, manifests, the version chain, change functions.

Files: ``names`` (rules for bucket names and keys, and the layout of register names), ``values`` (what registers and
records hold, and their bytes), ``changes`` (the change functions, which are data and travel to the proposer),
``leases`` (what a lock's register holds).
"""
