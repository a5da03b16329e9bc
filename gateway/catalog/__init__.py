"""SQL over buckets, objects and versions.

Files: ``query`` (a query from beginning to end), ``schema`` (tables and views), ``kept`` (what is kept between
queries), ``batches`` (what the store gives, as Arrow), ``live`` (straight from the nodes), ``macros`` (the usual
questions), ``results`` (the rows a query gave), ``export`` (Parquet for others).
"""
