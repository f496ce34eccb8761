"""The check of the files before training: what it refuses, what it says, and when it is not repeated."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from toy_run import make_dataset, quick_flags, run, run_inside

from data import DataError, DatasetConfig, FrameSource, load_dataset_config, progress, read_list, register_source
from data import sources as table
from data.video_list import fingerprint
from engine import data_check


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A dataset, a cache folder of its own, and the working folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path, per_class=2)
    return tmp_path


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """A list that collects the lines that are logged."""
    lines: list[str] = []
    monkeypatch.setattr(data_check, "info", lines.append)
    return lines


def config(**overrides: str) -> DatasetConfig:
    return load_dataset_config("small.yaml", **overrides)


def check(on_bad_video: str = "stop", **overrides: str) -> None:
    dataset = config(**overrides)
    lists = [read_list(file, dataset.num_classes) for file in (dataset.train_list, dataset.val_list)]
    data_check.check_files(dataset, *lists, [fingerprint(videos) for videos in lists], on_bad_video, "REMEDY")


def notes(folder: Path) -> list[Path]:
    return sorted((folder / "cache").rglob("*.json"))


def frames(path: str) -> list[Path]:
    return sorted(Path("frames", path).iterdir())


def is_counted(said: list[str], **overrides: str) -> bool:
    """Whether a start counts the files."""
    said.clear()
    check(**overrides)
    assert len(said) in (1, 2)
    return "counting the files of" in said[0]


def test_a_dataset_is_counted_once(toy, said):
    check()
    assert said[0].startswith("data check: counting the files of 8 videos, for at most 60 s; --skip_data_check ")
    assert re.fullmatch(r"data check: all 8 videos are complete \(\d\.\d s\)", said[1])
    (note,) = notes(toy)
    assert json.loads(note.read_text()) == [8, 0, ""]
    assert not is_counted(said) and str(note) in said[0]


def test_a_dataset_that_differs_is_counted_again(toy, said):
    assert is_counted(said) and not is_counted(said)
    shutil.copytree("frames", "elsewhere")
    assert is_counted(said, root="elsewhere")
    text = Path("val.txt").read_text()
    Path("val.txt").write_text(text.replace(" 0\n", " 1\n"))
    assert is_counted(said)
    Path("val.txt").write_text(text)
    assert not is_counted(said)
    video = Path("frames/train/video 1")
    (video / "new").touch()
    os.utime(video, ns=(1, 1))
    assert is_counted(said)
    os.utime("frames", ns=(1, 1))
    assert is_counted(said) and not is_counted(said)
    with pytest.raises(DataError, match="image_tmpl '{:06d}.jpg'"):
        check(image_tmpl="{:06d}.jpg")


def test_a_failed_check_is_repeated_until_the_dataset_is_repaired(toy, said):
    last = frames("train/video 1")[-1]
    content = last.read_bytes()
    last.unlink()
    n = int(last.stem)
    message = (
        f"train.txt:2: frames/train/video 1 holds frames 1 to {n - 1}, but the list says {n} frames; correct the list"
    )
    for _ in range(2):
        with pytest.raises(DataError) as error:
            check()
        assert str(error.value) == f"{message}; for a report and corrected lists: REMEDY" and not notes(toy)
    last.write_bytes(content)
    assert is_counted(said) and not is_counted(said)
    Path("train.txt").write_text(Path("train.txt").read_text().replace("video 1 ", "video 7 "))
    shutil.rmtree("frames/val/video 0")
    with pytest.raises(DataError, match=r"train.txt:2: no folder frames/train/video 7; .* \(1 more of 8 videos have"):
        check()


def test_a_long_count_says_how_far_it_is(monkeypatch):
    lines: list[str] = []
    assert list(progress.watched("abcd", 4, "counting", lines.append)) == list("abcd") and lines == []
    monkeypatch.setattr(progress, "LINE_EVERY", 0)
    assert list(progress.watched("abcd", 8, "counting", lines.append)) == list("abcd")
    assert lines[0] == "counting: 1 of 8 videos, 0:00 left" and len(lines) == 4


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (
            "{:05d}.png",
            r"train.txt:1: no file in frames/train/video 0 has a name of image_tmpl '{:05d}.jpg'; its \d\d ",
        ),
        ("zero", r"train.txt:1: frames/train/video 0 holds frames 0 to \d\d, but frames count from 1; rename"),
        ("gap", r"train.txt:1: frames/train/video 0 lacks frame 5 between its frames 1 and \d\d; extract it again"),
        ("empty", r"train.txt:1: folder frames/train/video 0 is empty; extract the video again"),
    ],
)
def test_frames_that_the_run_would_miss_later_are_refused(toy, rename, message):
    for file in frames("train/video 0"):
        number = int(file.stem)
        if rename == "gap":
            file.unlink() if number == 5 else None
        elif rename == "empty":
            file.unlink()
        else:
            file.rename(file.with_name(rename.format(number) if "{" in rename else f"{number - 1:05d}.jpg"))
    with pytest.raises(DataError, match=message):
        check()


def test_the_first_bad_video_of_the_list_is_named(toy):
    assert data_check.spread(8)[0] != 0  # the order in which the videos are looked at
    shutil.rmtree("frames")
    with pytest.raises(DataError, match=r"^train.txt:1: no folder .* \(7 more of 8 videos have such errors\); for a"):
        check()


def test_frames_beyond_the_list_are_said_each_time_and_stop_no_run(toy, said):
    text = Path("val.txt").read_text()
    Path("val.txt").write_text(re.sub(r"video 2 \d+", "video 2 8", text))
    for _ in range(2):
        said.clear()
        check()
        expected = (
            "data check: 1 videos have frames that are never read; the first: val.txt:3: frames/val/video 2 holds "
        )
        assert said[-1].startswith(expected) and said[-1].endswith("the list says 8 frames; correct the list; REMEDY")
    assert "not counted again" in said[0]


def test_bad_videos_that_are_skipped_are_one_line_and_not_noted(toy, said):
    shutil.rmtree("frames/train/video 2")
    frames("val/video 1")[-1].unlink()
    for _ in range(2):
        said.clear()
        check("skip")
        assert len(said) == 2 and said[1].startswith(
            "data check: 2 of 8 videos are wrong and will be left out; the first: "
        )
        assert "train.txt:3: no folder frames/train/video 2" in said[1] and not notes(toy)


def test_a_slow_disk_ends_the_check_and_the_next_start_goes_on(toy, said, monkeypatch):
    looked = []

    def slow(source, videos, order, longest):
        assert longest == 60
        for k in order[:5]:
            looked.append(videos[k].path)
            yield k, None

    monkeypatch.setattr(data_check, "look_at_all", slow)
    check()
    assert said[1].startswith("data check: 5 of 8 videos are complete (")
    assert said[2] == "data check: 3 videos are left for the next start; to count them now: REMEDY"
    check()
    assert "counting the files of 3 videos, after 5 at an earlier start, for at most 60 s" in said[3]
    assert said[4].startswith("data check: all 8 videos are complete") and len(set(looked)) == len(looked) == 8
    check()
    assert "not counted again" in said[5]


def test_a_problem_names_its_video_also_after_an_earlier_start(toy, said, monkeypatch):
    """The videos are looked at in another order than that of the list."""
    look_at_all = data_check.look_at_all
    with monkeypatch.context() as patch:

        def three(source, videos, order, longest):
            return look_at_all(source, videos, order[:3])

        patch.setattr(data_check, "look_at_all", three)
        check()
    first = min(data_check.spread(8)[3:])
    split, number = ("train", first) if first < 4 else ("val", first - 4)
    folder = Path(f"frames/{split}/video {number}")
    times = folder.stat()
    frames(f"{split}/video {number}")[6].unlink()
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(DataError, match=rf"^{split}.txt:{number + 1}: {folder} lacks frame 7 "):
        check()
    assert "the files of 5 videos, after 3 at an earlier start" in said[-1]


def test_a_cache_that_cannot_be_used_only_costs_time(toy, said, monkeypatch):
    check()
    (note,) = notes(toy)
    for content in ("", "[8", "{}", '[8, "x", 1]', "[null, 0, 0]", "7"):
        note.write_text(content)
        assert is_counted(said), content
        assert json.loads(note.read_text()) == [8, 0, ""]
    (toy / "file").touch()
    for folder in (str(toy / "file"), "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", folder)
        monkeypatch.setenv("HOME", str(toy / "file"))
        assert is_counted(said) and is_counted(said)
    monkeypatch.setenv("HOME", str(toy / "home"))  # a relative XDG_CACHE_HOME is not valid
    assert is_counted(said) and not is_counted(said) and len(list((toy / "home/.cache").rglob("*.json"))) == 1
    assert "at an earlier start (~/.cache/" in said[-1]
    assert not (toy / "relative").exists()
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # a user without a home folder
    assert is_counted(said) and is_counted(said) and not (toy / "~").exists()


def test_a_source_from_outside_is_not_looked_at(toy, said, monkeypatch):
    class Own(FrameSource):
        def decode(self, video, numbers):
            return []

    monkeypatch.setattr(table, "_KINDS", dict(table._KINDS))
    register_source("own", lambda config: Own())
    Path("small.yaml").write_text(Path("small.yaml").read_text() + "source: own\n")
    check()
    assert said == [] and not notes(toy)


def lines_of(output: str) -> list[str]:
    return [line.partition("data check: ")[2] for line in output.splitlines() if "data check: " in line]


def test_training_refuses_wrong_counts_before_the_first_step(toy):
    command = ["main.py", "small.yaml", "tsn_tiny", "--run", "a", *quick_flags(epochs=1)]
    last = frames("train/video 1")[-1]
    content, n = last.read_bytes(), int(last.stem)
    last.unlink()
    result = run_inside(*command, "--root", "frames", cwd=toy)
    assert result.returncode == 1 and "Epoch" not in result.stdout and not (toy / "net_runs").exists()
    assert result.stdout.splitlines()[-1] == (
        f"error: train.txt:2: frames/train/video 1 holds frames 1 to {n - 1}, but the list says {n} frames; correct "
        "the list; for a report and corrected lists: python -m scripts.check_dataset small.yaml --root frames --fix"
    )
    assert run_inside("scripts/check_dataset.py", "small.yaml", "--fix", cwd=toy).returncode == 1
    fixed = [*command, "--train_list", "train_fixed.txt"]
    result = run_inside(*fixed, cwd=toy)
    assert result.returncode == 0 and lines_of(result.stdout)[1].startswith("all 8 videos are complete"), result.stdout
    last.write_bytes(content)
    result = run(*command[:4], "b", *command[5:], cwd=toy, processes=2)  # rank 0 alone checks
    assert result.returncode == 0 and len(lines_of(result.stdout)) == 2, result.stdout
    last.write_bytes(b"no image")  # the cached result says nothing about this
    shutil.rmtree("frames/val/video 0")
    Path("frames/val").touch()
    os.utime("frames/val", ns=(1, 1))
    result = run_inside(*command[:4], "c", *command[5:], "--skip_data_check", cwd=toy)
    assert result.returncode == 1 and not lines_of(result.stdout)
    assert "error: val.txt:1: no folder frames/val/video 0; check the dataset's root" in result.stdout


def test_a_set_that_changed_after_its_check_still_fails_when_a_frame_is_read(toy):
    shutil.rmtree("cache", ignore_errors=True)
    make_dataset(toy / "large", per_class=20)
    command = ["main.py", "large/small.yaml", "tsn_tiny", "--run", "a", *quick_flags(epochs=1, global_batch_size=20)]
    assert run_inside(*command, cwd=toy).returncode == 0
    folder = toy / "large/frames/train/video 5"
    times = folder.stat()
    for file in folder.iterdir():
        file.unlink()
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = run_inside(*command[:4], "b", *command[5:], cwd=toy)
    assert "not counted again" in lines_of(result.stdout)[0]
    assert result.returncode == 1 and "error: large/train.txt:6: no frame " in result.stdout, result.stdout


def test_a_resumed_run_keeps_that_nothing_is_checked(toy):
    command = ["main.py", "small.yaml", "tsn_tiny", "--run", "a", "--resume", "auto"]
    assert not lines_of(run_inside(*command, "--skip_data_check", *quick_flags(epochs=1), cwd=toy).stdout)
    result = run_inside(*command, *quick_flags(epochs=2), cwd=toy)
    assert result.returncode == 0 and "1 epochs done" in result.stdout and not lines_of(result.stdout)
