"""SQL over buckets, objects and versions.

Files: ``query`` (a query from beginning to end, and sessions of several), ``database`` (what they run in), ``schema``
(tables and views), ``kept`` (what is kept between queries), ``rows`` (how rows get into it), ``checkpoints`` (when its
log goes to its file), ``batches`` (what the store gives, as Arrow), ``decoding`` (the same for the pages of a first
load, by several processes), ``live`` (straight from the nodes), ``macros`` (the usual questions), ``results`` (the rows
a query gave), ``export`` (Parquet for others).
"""
