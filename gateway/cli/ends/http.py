"""What a web server has, as an end to take from: a file, or what the page at a URL that ends with a slash links to.

Files are read from their beginning to their end in one request each, which every server can answer.
"""

from __future__ import annotations

import datetime
import email.utils
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from gateway.cli.ends.entries import Entry, Listed, Unlisted
from gateway.cli.ends.urls import UrlEnd, last_part, translated


class HttpEnd(UrlEnd):
    """The file, or the page with links to files and further pages, at ``root``; names are without ``%20`` and query."""

    open_options: ClassVar[Mapping[str, Any]] = {"block_size": 0}

    def __init__(self, fs: Any, root: str, url: str) -> None:
        super().__init__(fs, root, url)
        if url.endswith("/"):
            self._root += "/"

    async def take_single(self) -> bool:
        return not self._root.endswith("/") and await super().take_single()

    def _name(self, path: str) -> str:
        parts = urlsplit(path)
        return unquote(last_part(parts.path)) or parts.netloc

    def _scan(self, folder: Entry) -> list[Listed] | Unlisted:
        try:
            with translated(folder.detail):
                links = self._fs.ls(folder.detail, detail=False)
        except OSError as failure:
            return Unlisted(folder.name, failure)
        found: dict[str, Listed] = {}
        for link in links:
            below = link.removeprefix(folder.detail)
            name = unquote(below.rstrip("/"))
            if below == link or "/" in name or name in ("", ".", "..") or "?" in below or "#" in below:
                continue  # it leads elsewhere, or shows the same in another order
            if below.endswith("/"):
                found[name + "/"] = Entry(f"{folder.name}{name}/", detail=link)
                continue
            try:
                with translated(link):
                    found[name] = self._entry(self._fs.info(link), folder.name + name)
            except OSError as failure:
                found[name] = Unlisted(folder.name + name, failure)
        return list(found.values())

    def _entry(self, info: Mapping[str, Any], name: str) -> Entry:
        times: dict[str, datetime.datetime] = {}
        with suppress(KeyError, ValueError):
            times["mtime"] = email.utils.parsedate_to_datetime(info["Last-Modified"])
        return super()._entry({**info, **times}, name)
