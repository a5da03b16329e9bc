"""Rounds, fast reads and first writes by directed schedules, kept as text beside this file.

``python -m objmeta.testing.transcripts --rewrite tests/core/transcripts/*.txt`` regenerates the answers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from objmeta.testing.transcripts import Transcript, main

HERE = Path(__file__).with_name("transcripts")
SIMULATOR = Path(__file__).parents[1] / "simulator" / "transcripts"


@pytest.mark.parametrize("path", sorted([*HERE.glob("*.txt"), *SIMULATOR.glob("*.txt")]), ids=lambda path: path.stem)
def test_transcript(path: Path) -> None:
    text = path.read_text()
    assert Transcript().run(text) == text
    assert path.parent == SIMULATOR or "VIOLATION" not in text


def test_rewrite_regenerates_the_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "one.txt"
    path.write_text("acceptors A\nround p 1.1 put X\n    nonsense\n")
    assert main([str(path)]) == 1
    assert "differs" in capsys.readouterr().out
    assert main(["--rewrite", str(path)]) == 0
    assert "prepare 1.1" in path.read_text()
    assert main([str(path)]) == 0
