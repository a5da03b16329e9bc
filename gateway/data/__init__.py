"""Bytes and metadata joined: what is stored, read, copied and removed as a whole.

``transfer`` is the store that the file system and the commands use, and ``chunkcache`` what it has just read.
``uploading`` takes bytes in, cut by ``chunking``; ``parts`` are uploads by several workers; ``commits`` says how chunks
and the versions that name them stay together while others are collected.

``moving`` gives an object another name; ``past`` is a store as it was at some time; ``localfiles`` are objects as whole
files on this machine, and ``partial`` is what a file is called until it is complete.
"""
