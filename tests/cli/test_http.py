"""``import`` from a web server, of the simplest kind: it knows no ranges, and its directories are pages of links."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run

FILES = {"a b.txt": b"1", "grüße.csv": b"a,b\n", "x?y#z%20*[k]": b"odd", "empty": b"", "deep/er/large": bytes(9 << 20)}


class Handler(http.server.SimpleHTTPRequestHandler):
    """Says nothing; of ``/live`` it does not know the length."""

    def do_HEAD(self) -> None:
        self.do_GET() if self.path == "/live" else super().do_HEAD()

    def do_GET(self) -> None:
        if self.path != "/live":
            super().do_GET()
            return
        self.send_response(200)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"as long as it takes")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "site"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (1_700_000_000, 1_700_000_000))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_files(gateway: Run, bucket: str, site: str) -> None:
    gateway("import", f"{site}/deep/er/large", "box/")
    assert "1 there already" in gateway("import", f"{site}/deep/er/large", "box/").out
    gateway("import", f"{site}/a%20b.txt?token=secret", "box/")
    gateway("import", f"{site}/live", "box/")
    assert gateway("ls", "-r", "box").lines == ["a b.txt", "large", "live"]
    assert gateway("cat", "box/large").raw == FILES["deep/er/large"]
    assert gateway("cat", "box/live").raw == b"as long as it takes"
    assert "No such file" in gateway("import", f"{site}/none", "box/", code=1).err


def test_what_a_page_links_to(gateway: Run, bucket: str, site: str) -> None:
    gateway("import", f"{site}/", "box/site")
    assert gateway("ls", "-r", "box/site").lines == sorted(FILES)
    for name, content in FILES.items():
        assert gateway("cat", f"box/site/{name}").raw == content
    assert gateway("sync", f"{site}/", "box/site", "--delete").lines == [
        "stored 0 objects, 0; deleted 0; 5 there already: objmeta://box/site/"
    ]
