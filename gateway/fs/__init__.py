"""``objmeta://`` paths: the fsspec file system, and ``upath``, its universal_pathlib twin.

``filesystem`` is the class that fsspec finds; what it can do is spread over ``listing``, ``describing``, ``changing``
and ``opening``, with handles in ``readers``, ``writers`` and ``streams``.  ``entries`` has paths and what ``info``
answers; ``conditions`` what is asked of a write; ``transactions`` several files at once; ``options`` what the
constructor is given; ``arguments`` which others are refused; ``oserrors`` objmeta's errors as OSErrors; ``blocking``
coroutines as ordinary calls; ``instances`` what cached instances must not share.
"""
