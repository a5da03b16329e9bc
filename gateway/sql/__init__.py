"""SQL over buckets, objects and versions (``catalog``)."""
