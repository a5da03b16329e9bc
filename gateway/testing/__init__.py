"""The simulator of the data: nodes with chunks, clients and the collector, on top of objmeta's simulator.

What works on the chunks is what does so in production: clients (``gateway.data``, ``gateway.blobs.client``), repair and
leaving (``gateway.upkeep``), collection.  Files: ``places`` (a place in memory that can crash), ``nodes`` (a node's
place and worker, and the network between them), ``peers`` (a node as a client reaches it), ``keeping`` (a node's
upkeep), ``data`` (clients that put, copy, remove and read), ``named`` (an observer who knows what is named and what was
told, and what must hold), ``mutations`` (broken variants that must be caught), ``world`` (one run) and ``sim`` (the
command line).
"""
