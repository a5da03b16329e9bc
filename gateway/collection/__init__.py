"""What nothing names any more is found and deleted (docs/collection.md), and old versions go by their bucket's rules.

``cycles`` begins, ends and repeats what ``collect`` does once; ``marks`` are the chunks that are named; ``collectors``
and ``service`` are a cluster's; ``retention`` has the rules of buckets.
"""
