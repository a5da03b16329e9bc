"""Several processes in one directory of chunks: putting, touching, sweeping, killed at any moment."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from blake3 import blake3

from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import Sweep
from objmeta import Chunk

ROOT = Path(__file__).resolve().parents[2]

REUSER = """
import asyncio, os, random, sys
from pathlib import Path
from gateway.blobs.local import LocalBlobs
from blake3 import blake3
from objmeta import Chunk, errors

home, seed, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
contents = [bytes([number]) * (100 if number % 3 else 300_000) for number in range(24)]
chunks = [Chunk(blake3(data).digest(), len(data)) for data in contents]

def generation():
    return int((home / "generation").read_text())

async def main():
    choose = random.Random(seed)
    blobs = LocalBlobs(home / "blobs", timeout_s=60)
    for _ in range(rounds):
        begun = generation()
        chosen = choose.sample(range(len(contents)), 3)
        try:
            there = await blobs.touch([chunks[each] for each in chosen], generation=begun)
            await asyncio.gather(
                *(blobs.put(contents[each], generation=begun) for each, known in zip(chosen, there) if not known)
            )
        except errors.StaleGeneration:
            continue
        held = await blobs.has([chunks[each] for each in chosen])
        missing = []
        for each in chosen:
            try:
                assert await blobs.get(chunks[each]) == contents[each]
            except errors.IntegrityError as problem:
                missing.append(str(problem))
        if generation() - 1 <= begun and (missing or not all(held)):
            print("lost in generation", begun, held, missing, flush=True)
            os._exit(1)
    await blobs.close()

asyncio.run(main())
"""

WRITER = """
import asyncio, os, sys
from pathlib import Path
from gateway.blobs.local import LocalBlobs

async def main():
    blobs = LocalBlobs(Path(sys.argv[1]), timeout_s=60)
    print("ready", flush=True)
    number = 0

    async def one(length):
        nonlocal number
        number += 1
        data = os.urandom(length)
        chunk = await blobs.put(data, generation=int(sys.argv[2]))
        print(chunk.digest.hex(), length, flush=True)

    while True:
        await asyncio.gather(*(one(length) for length in (100, 5_000, 30_000, 300_000) * 3))

asyncio.run(main())
"""


@contextmanager
def running(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_nothing_that_is_touched_in_time_is_ever_swept(tmp_path: Path) -> None:
    """Three processes reuse the same chunks while a fourth deletes what it may, with nothing marked at all."""
    blobs = LocalBlobs(tmp_path / "blobs", timeout_s=60)

    async def sweep(until_done: list[subprocess.Popen[str]]) -> int:
        generation = deleted = 0
        while any(process.poll() is None for process in until_done):
            generation += 1
            new = tmp_path / "generation.new"
            new.write_text(str(generation))
            new.replace(tmp_path / "generation")
            deleted += (await blobs.sweep(Sweep(generation, generation - 1, b"", b"", ()))).deleted
        await blobs.close()
        return deleted

    (tmp_path / "generation").write_text("0")
    with ExitStack() as stack:
        reusers = [stack.enter_context(running(REUSER, tmp_path, seed, 150)) for seed in range(3)]
        deleted = asyncio.run(sweep(reusers))
        said = [process.stdout.read() for process in reusers if process.stdout is not None]
        assert [process.wait() for process in reusers] == [0, 0, 0], said
    assert deleted > 0


def test_killed_writers_leave_nothing_broken_and_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "blobs"
    choose = random.Random(1)
    acknowledged: list[Chunk] = []
    for _ in range(6):
        with running(WRITER, path, 5) as one, running(WRITER, path, 5) as other:
            assert one.stdout is not None
            assert other.stdout is not None
            for writer in (one, other):
                lines = [writer.stdout.readline() for _ in range(choose.randrange(2, 40))]  # type: ignore[union-attr]
                writer.send_signal(signal.SIGKILL)
                lines += [line for line in writer.stdout if line.endswith("\n")]  # type: ignore[union-attr]
                acknowledged += [
                    Chunk(bytes.fromhex(line.split()[0]), int(line.split()[1])) for line in lines if " " in line
                ]
    assert len(acknowledged) > 50

    async def check() -> None:
        blobs = LocalBlobs(path)
        assert all(await blobs.has(acknowledged))
        after = b""
        count = 0
        while page := await blobs.held(after):
            after = page[-1].digest
            count += len(page)
            for each in page:
                assert len(await blobs.get(each.chunk)) == each.length
        assert count >= len(acknowledged)
        verified = await blobs.verify(b"", 1 << 40)
        assert not verified.damaged
        for cycle in range(7, 11):
            await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", ()))
        usage = await blobs.usage()
        assert (usage.chunks, usage.stored_bytes, usage.packs) == (0, 0, 0)
        await blobs.close()

    asyncio.run(check())
    assert not list(path.glob("??/*"))


def test_a_sweep_that_is_killed_loses_nothing_that_is_marked(tmp_path: Path) -> None:
    """It is killed between removing bytes and the commit, at worst: what is due may be half gone, nothing else."""
    path = tmp_path / "blobs"
    contents = [os.urandom(300_000 if number % 4 == 0 else 3_000) for number in range(400)]
    kept = {blake3(data).digest(): data for data in contents[::3]}

    async def fill() -> None:
        blobs = LocalBlobs(path)
        await asyncio.gather(*(blobs.put(data, generation=1) for data in contents))
        await blobs.close()

    asyncio.run(fill())
    sweeper = f"""
import asyncio
from pathlib import Path
from gateway.blobs.local import LocalBlobs
from gateway.blobs.places import Mark, Sweep
marks = tuple(Mark(digest, 0) for digest in {sorted(kept)!r})
async def main():
    blobs = LocalBlobs(Path({str(path)!r}))
    print("ready", flush=True)
    for cycle in range(3, 6):
        await blobs.sweep(Sweep(cycle, cycle - 1, b"", b"", marks))
        print(cycle, flush=True)
    await blobs.close()
asyncio.run(main())
"""

    async def check() -> None:
        blobs = LocalBlobs(path)
        for digest, data in kept.items():
            assert await blobs.get(Chunk(digest, len(data))) == data
        assert all(await blobs.has([Chunk(digest, len(data)) for digest, data in kept.items()]))
        await blobs.close()

    for lines in (1, 2, 2, 3):
        with running(sweeper) as process:
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        asyncio.run(check())
    with running(sweeper) as process:
        assert process.wait() == 0
    asyncio.run(check())

    async def count() -> int:
        blobs = LocalBlobs(path)
        usage = await blobs.usage()
        await blobs.close()
        return usage.chunks

    assert asyncio.run(count()) == len(kept)
