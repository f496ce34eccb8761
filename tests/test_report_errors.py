"""If a report is not possible, the error is one line with the value and the remedy, and the exit status is 1."""

import subprocess
import sys

import numpy as np
import pytest
from score_files import error_line, random_arrays, report, write
from toy_run import ROOT

from reports.scores import ScoresError, read_scores


def but(name: str, index: object, value: object) -> dict:
    """Six videos of four classes with one value changed."""
    arrays = random_arrays(6, 4)
    arrays[name][index] = value
    return arrays


def of(**changed: object) -> dict:
    """Six videos of four classes with these arrays instead."""
    return random_arrays(6, 4, **changed)


MEMBERS = np.zeros((2, 6, 4), np.float32)
BAD_FILES = {
    "label 4 of video 2 (a folder/2) is not in 0..3; was the list": but("labels", 2, 4),
    "label -1 of video 5 (a folder/5) is not in 0..3; was the list": but("labels", 5, -1),
    "scores of video 3 (a folder/3) hold nan; test again with": but("scores", (3, 1), np.nan),
    "scores of video 0 (a folder/0) hold -inf; test again with": but("scores", (0, 3), -np.inf),
    "lacks the array 'paths'; write one with": {k: v for k, v in of().items() if k != "paths"},
    "the array scores is float64 of shape (6,), must be floats (N, K); write": of(scores=np.zeros(6)),
    "the array scores is int64 of shape (6, 4), must be floats (N, K) with N 6, K 4": of(scores=np.zeros((6, 4), int)),
    "the array labels is int64 of shape (5,), must be whole numbers (N) with N 6, K 4": of(labels=np.zeros(5, int)),
    "the array labels is float64 of shape (6,), must be whole": of(labels=np.zeros(6)),
    "the array paths is <U1 of shape (7,), must be strings (N)": of(paths=["x"] * 7),
    "the array categories is <U1 of shape (3,), must be strings (K)": of(categories=list("abc")),
    "the array members is float32 of shape (2, 6, 3), must be floats (M, N, K)": of(members=MEMBERS[..., 1:]),
    "the array member_names is <U1 of shape (3,), must be strings (M) with N 6, K 4, M 2": of(
        members=MEMBERS, member_names=list("abc")
    ),
    "member 2 scores of video 1 (a folder/1) hold inf; test": of(
        members=[MEMBERS[0], but("scores", (1, 1), np.inf)["scores"]]
    ),
    "average is 'mean', must be one of logits, softmax": of(average="mean"),
    "average is 'softmax', but scores of video 0 (a folder/0) are no probabilities (sum 4,": of(
        average="softmax", scores=np.ones((6, 4))
    ),
    "are no probabilities (sum 1, lowest -1); test again": of(
        average="softmax", scores=np.tile(np.array([2, -1, 0, 0], np.float32), (6, 1))
    ),
    "the array protocol is <U1 of shape (2,), must be a string ()": of(protocol=list("ab")),
    "scores have shape (0, 4), nothing to report; test on": {k: v[:0] for k, v in of().items()},
    "not a score file (Object arrays cannot be loaded": of(paths=[None] * 6),
}


@pytest.mark.parametrize("message", BAD_FILES)
def test_bad_arrays(tmp_path, message):
    path = write(tmp_path / "out.npz", BAD_FILES[message])
    line = error_line(tmp_path, "out.npz")
    assert line.startswith("out.npz: ") and message in line
    assert list(tmp_path.iterdir()) == [path]


def test_bad_files(tmp_path):
    good = write(tmp_path / "good.npz", of())
    (tmp_path / "text.npz").write_text("not an archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "half.npz").write_bytes(good.read_bytes()[:-200])
    broken = bytearray(good.read_bytes())
    broken[200] ^= 255  # within the stored scores
    (tmp_path / "broken.npz").write_bytes(broken)
    np.save(tmp_path / "single.npy", np.zeros(3))
    for name in ("text.npz", "empty.npz", "half.npz", "broken.npz", "single.npy", "."):
        line = error_line(tmp_path, name)
        assert line.startswith(f"{name}: not a score file (") and line.endswith(
            "; write one with test_models.py --scores"
        )
    assert error_line(tmp_path, "none.npz") == "none.npz: no such file; write one with test_models.py --scores"
    with pytest.raises(ScoresError, match="no such file"):
        read_scores(tmp_path / "none.npz")


def test_other_videos(tmp_path):
    """A comparison needs two files of the same videos, and so do actions."""
    arrays = of()
    write(tmp_path / "a.npz", arrays)
    cases = {
        "5 videos, a.npz has 6; test both": {name: array[:5] for name, array in arrays.items()},
        "video 0 is 'a folder/5', in a.npz 'a folder/0', the same videos in another order; test both": {
            name: array[::-1] for name, array in arrays.items()
        },
        "video 0 is 'b0', in a.npz 'a folder/0'; test both": of(paths=[f"b{i}" for i in range(6)]),
    }
    for message, other in cases.items():
        write(tmp_path / "b.npz", other)
        for words in (("a.npz", "b.npz"), ("--verb", "a.npz", "--noun", "b.npz")):
            assert error_line(tmp_path, *words).startswith(f"b.npz: {message}")


def test_other_labels(tmp_path):
    """A verb file and a noun file have different labels; the files of a comparison must not."""
    labels = np.array([0, 1, 2, 0, 1, 2])
    write(tmp_path / "a.npz", of(labels=labels))
    cases = {
        "5 classes, a.npz has 4; test both on": random_arrays(6, 5, labels=labels),
        "label 3 for video 4 (a folder/4), a.npz has 1; test both on": of(labels=[0, 1, 2, 0, 3, 2]),
    }
    for message, other in cases.items():
        write(tmp_path / "b.npz", other)
        assert error_line(tmp_path, "a.npz", "b.npz").startswith(f"b.npz: {message}")
        assert report(tmp_path, "--verb", "a.npz", "--noun", "b.npz")[0] == 0
    for name, names in (("a", "abcd"), ("b", "abdc")):
        write(tmp_path / f"{name}.npz", of(labels=labels, categories=list(names)))
    line = error_line(tmp_path, "a.npz", "b.npz")
    assert line == "b.npz: class 2 is 'd', in a.npz 'c'; the labels mean other classes, test with one dataset"


def test_flags(tmp_path):
    write(tmp_path / "a.npz", of())
    message = "3 score files; give one, two to compare, or --verb and --noun"
    assert error_line(tmp_path, "a.npz", "a.npz", "a.npz") == message
    assert error_line(tmp_path) == message.replace("3", "0")
    actions = ("--verb", "a.npz", "--noun", "a.npz")
    for words in (actions[:2], actions[2:], ("a.npz", *actions)):
        assert error_line(tmp_path, *words).startswith("an action is a verb and a noun; give --verb verb.npz --noun")
    for more in (("--out", "folder"), ("--dataset", "ucf101")):
        assert error_line(tmp_path, *actions, *more).startswith("--verb and --noun print accuracy only")


def test_what_cannot_be_written(tmp_path):
    write(tmp_path / "a.npz", of())
    (tmp_path / "taken").write_text("")
    (tmp_path / "a_report" / "confusion.png").mkdir(parents=True)
    for words, folder in ((("a.npz", "--out", "taken"), "taken"), (("a.npz",), "a_report")):
        status, printed = report(tmp_path, *words)
        last = printed.splitlines()[-1]
        assert status == 1 and last.startswith(f"error: {folder}: cannot be written (") and last.endswith("with --out")


def test_as_typed(tmp_path):
    """The program runs in its own process: both streams, exit status, no traceback."""
    words = [sys.executable, "-m", "scripts.report", str(tmp_path / "a.npz")]
    result = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=100)
    assert (result.returncode, result.stdout) == (1, "") and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {tmp_path}/a.npz: no such file")
