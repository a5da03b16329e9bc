"""SQL over buckets, objects and versions (``query``)."""
