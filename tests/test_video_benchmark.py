"""``python -m benchmarks.video`` on one short file."""

import re
import sys

import pytest

pytest.importorskip("av")  # before the import below, which needs it

from benchmarks import video

WORDS = ["benchmarks.video", "--files", "ssv2", "--frames", "4", "--rounds", "1"]


def test_the_table_has_a_ratio_for_each_way(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", WORDS)
    video.main()
    *_, names, _, row = capsys.readouterr().out.strip().splitlines()
    assert names.startswith("| file | frames | from the start | ") and "| source: video |" in names
    assert re.fullmatch(r"\| webm, VP9, 427x240, 4 s \| 4 of 48 \| 1\.00( \| \d+\.\d\d){3,5} \|", row), row
    assert row.count("|") == names.count("|")


def test_a_way_that_gives_other_pixels_is_not_timed(monkeypatch):
    monkeypatch.setattr(sys, "argv", WORDS)
    read = video.read_frames
    later = lambda path, numbers, n: read(path, [number + 1 for number in numbers], n)  # noqa: E731
    monkeypatch.setattr(video, "read_frames", later)
    with pytest.raises(SystemExit, match="^source: video gives other pixels than decoding from the start: webm, VP9"):
        video.main()
