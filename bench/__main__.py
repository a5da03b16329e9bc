"""``make bench``: every measurement in turn, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

MEASUREMENTS = (
    "puts",
    "listing",
    "embedded_file",
    "cluster_file",
    "hotkey",
    "availability",
    "catchup",
    "erasure",
    "chunks",
    "upkeep",
)


def main() -> int:
    """The exit code: 1 if a target was missed or something could not be measured."""
    unhappy = []
    for name in MEASUREMENTS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False).returncode:
            unhappy.append(name)
        print(flush=True)
    if unhappy:
        print(f"missed or not measured: {', '.join(unhappy)}", file=sys.stderr)
    return 1 if unhappy else 0


if __name__ == "__main__":
    sys.exit(main())
