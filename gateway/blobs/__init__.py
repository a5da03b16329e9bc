"""Where the bytes of objects live, as chunks that are named by their digest.

``places`` says what every place for chunks promises.  Places are a directory (``local``, with ``index``, ``packs``,
``rules`` and ``sweep``), several disks of one machine (``disks``), and the nodes of a cluster (``client`` and
``putting`` here, ``service`` there, ``peer`` for one node of them; ``placement`` says which).  Long chunks have
connections of their own (``channel`` at the client's end, ``listener`` at the node's).  ``files``, ``groupsync``,
``room`` and ``sending`` are what they are made with.
"""
