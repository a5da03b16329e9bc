"""Where the bytes of objects live, as chunks that are named by their digest.

``places`` says what every place for chunks promises.  Places are a directory (``local``, with ``index``, ``packs``,
``rules`` and ``sweep``), several disks of one machine (``disks``), and the nodes of a cluster (``client`` here,
``service`` there, ``peer`` for one node of them; ``placement`` says which).  ``files``, ``groupsync`` and ``room`` are
what they are made with.
"""
