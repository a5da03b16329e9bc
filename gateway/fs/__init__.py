"""``objmeta://`` paths: the fsspec file system, and ``upath``, its universal_pathlib twin.

``filesystem`` is the class that fsspec finds; what it can do is spread over ``listing``, ``changing``, ``readers`` and
``writers``.  ``entries`` has paths and what ``info`` answers; ``oserrors`` objmeta's errors as OSErrors; ``blocking``
coroutines as ordinary calls; ``instances`` what cached instances must not share.
"""
