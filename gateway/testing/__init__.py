"""The simulator of the data: blob nodes, placement and the collector, on top of objmeta's simulator.

Files: ``places`` (a place in memory that can crash), ``nodes`` (a node's place and worker, and the network between
them), ``data`` (clients that put, copy, remove and read), ``named`` (an observer who knows what is named, and what must
hold), ``mutations`` (broken variants that must be caught), ``world`` (one run) and ``sim`` (the command line).
"""
