"""Store, replace, look back, take back: the client in two minutes.

    python examples/quickstart.py

The store is made on first use: where OBJMETA_HOME says, or in your data directory. Nothing has to be started.
"""

from __future__ import annotations

import contextlib

import objmeta
from objmeta import errors

with objmeta.connect() as client:
    # Making a bucket that exists is an error; here somebody may have run this example before.
    with contextlib.suppress(errors.AlreadyExists):
        client.create_bucket("quickstart")

    first = client.put_object("quickstart", "greeting.txt", data=b"Hello", metadata={"language": "en"})
    second = client.put_object("quickstart", "greeting.txt", data=b"Bonjour", metadata={"language": "fr"})
    print("now:   ", client.get_object("quickstart", "greeting.txt").data)

    # Nothing is lost by replacing: every version stays until it is removed.
    print("before:", client.get_object("quickstart", "greeting.txt", version_id=first.version_id).data)

    # Of any number of writers who require the same current version, exactly one wins.
    try:
        client.put_object("quickstart", "greeting.txt", data=b"Hallo", if_version=first.version_id)
    except errors.PreconditionFailed as refusal:
        print("refused:", refusal.kind)

    # A delete hides the object behind a marker; an older version can be made current again.
    client.delete_object("quickstart", "greeting.txt")
    client.restore_version("quickstart", "greeting.txt", second.version_id)
    for version in client.versions("quickstart", "greeting.txt")[:4]:
        what = "delete marker" if version.is_delete_marker else f"{version.size} bytes"
        print(f"version {version.sequence}: {what}")

    # Below the objects are plain registers, replicated in the same way.
    counter = client.change("quickstart/runs", lambda value: str(int(value or b"0") + 1).encode())
    assert counter is not None
    print("this example has run", int(counter.value), "times on this store")
