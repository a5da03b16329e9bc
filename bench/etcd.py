"""A cluster of three etcd members on loopback, for comparison.

Each member has its own data directory and its own write-ahead log, on the same disk as our nodes, with etcd's defaults
(a sync per commit).  It is driven without etcd's client library: ``etcdserverpb.KV/Put`` is one unary gRPC call whose
request has two fields, and the state of a member comes from etcd's own JSON gateway.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

PUT: Final = "/etcdserverpb.KV/Put"
_START_TIMEOUT_S: Final = 30.0
_STOP_TIMEOUT_S: Final = 10.0


def is_installed() -> bool:
    """Whether this machine has the ``etcd`` server (Debian: ``etcd-server``)."""
    return shutil.which("etcd") is not None


def version() -> str:
    """What ``etcd --version`` says first."""
    shown = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    return shown.splitlines()[0].removeprefix("etcd Version: ")


def put_request(key: bytes, value: bytes) -> bytes:
    """``etcdserverpb.PutRequest`` in protobuf's wire format: field 1 is the key, field 2 the value."""
    return b"\x0a" + _varint(len(key)) + key + b"\x12" + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(listener.getsockname()[1]) for listener in held]
    finally:
        for listener in held:
            listener.close()


class EtcdCluster:
    """Three members below ``directory``; a context manager that starts them and stops what it started."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._commands: list[list[str]] = []
        self.endpoints: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        ports = _free_ports(6)
        clients, peers = ports[:3], ports[3:]
        cluster = ",".join(f"m{i}=http://127.0.0.1:{port}" for i, port in enumerate(peers))
        self.endpoints = tuple(f"127.0.0.1:{port}" for port in clients)
        try:
            for i, (client, peer) in enumerate(zip(clients, peers, strict=True)):
                command = self._command(i, f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}", cluster)
                self._commands.append(command)
                self._processes.append(self._start(i))
            self.leader()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def pids(self) -> tuple[int, ...]:
        """The members' processes."""
        return tuple(process.pid for process in self._processes)

    def leader(self) -> str:
        """The leader's endpoint: where a put takes the fewest steps."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            for endpoint in self.endpoints:
                status = _status(endpoint)
                if status and status.get("leader") == status["header"]["member_id"]:
                    return endpoint
            time.sleep(0.05)
        raise TimeoutError(f"etcd elected no leader within {_START_TIMEOUT_S:g} s; see {self._directory}")

    def kill(self, endpoint: str) -> None:
        """SIGKILL for the member with that endpoint."""
        process = self._processes[self.endpoints.index(endpoint)]
        process.kill()
        process.wait()

    def restart(self, endpoint: str) -> None:
        """Start a killed member again, on its data, and wait until it knows the leader. Raises TimeoutError."""
        number = self.endpoints.index(endpoint)
        self._processes[number] = self._start(number)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not (_status(endpoint) or {}).get("leader"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"member {number} of etcd did not come back within {_START_TIMEOUT_S:g} s")
            time.sleep(0.05)

    def _command(self, number: int, client_url: str, peer_url: str, cluster: str) -> list[str]:
        home = self._directory / f"m{number}"
        home.mkdir(parents=True, mode=0o700)
        command = ["etcd", "--name", f"m{number}", "--data-dir", str(home / "data"), "--logger", "zap"]
        command += ["--log-level", "error", "--listen-client-urls", client_url, "--advertise-client-urls", client_url]
        command += ["--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url]
        return [*command, "--initial-cluster", cluster, "--initial-cluster-token", self._directory.name]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        with (self._directory / f"m{number}" / "log").open("ab") as log:
            return subprocess.Popen(self._commands[number], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _status(endpoint: str) -> dict[str, Any] | None:
    request = urllib.request.Request(f"http://{endpoint}/v3/maintenance/status", data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(request, timeout=1) as answer:
            return dict(json.load(answer))
    except (urllib.error.URLError, OSError, ValueError):
        return None
