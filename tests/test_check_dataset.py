"""scripts/check_dataset.py: what it finds in a damaged dataset, the table, the exit status, and the corrected lists."""

import os
import pty
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import quick_python
import yaml
from checked import check, edit, findings
from packed_sets import videos_of
from PIL import Image
from toy_run import NAMES, ROOT, make_dataset

from data import DataError
from scripts import check_rows
from scripts.check_dataset import table
from scripts.check_rows import Row

CHECKS = ["list lines", "label range", "repeated lines", "two labels", "overlap", "empty classes", "class names"]
CHECKS += ["flip pairs", "folders", "image_tmpl", "first frame", "frame counts", "frame sizes", "frames"]


@pytest.fixture
def toy(tmp_path):
    return make_dataset(tmp_path / "toy", per_class=2)


def frames(folder: Path, path: str) -> list[Path]:
    return sorted((folder / "frames" / path).iterdir())


def change_yaml(folder: Path, **values: object) -> None:
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | values))


def test_a_dataset_without_faults_passes(toy, tmp_path):
    rows, text = check(toy, cwd=tmp_path)
    assert list(rows) == CHECKS and not findings(rows)
    assert rows["list lines"] == ("ok", "videos: 4 in the train list, 4 in the val list")
    assert rows["flip pairs"][0] == "note" and "1 pair of classes that a flip exchanges: 0 <-> 1" in text
    assert rows["frames"] == ("ok", "24 decoded, the first, middle and last frame of 8 videos")
    assert rows["frame sizes"][1] == "48x48 px (width x height)"
    assert text.endswith("14 checks: 0 findings, 1 note; the dataset can be used\n")
    rows, _ = check(toy, "--decode", "all", "--workers", 1, cwd=tmp_path)
    total = sum(video.num_frames for split in ("train", "val") for video in videos_of(toy, split))
    assert rows["frames"][1] == f"{total} decoded, every frame of 8 videos"
    rows, _ = check(toy, "--decode", "none", cwd=tmp_path)
    assert list(rows) == CHECKS[:-2]


def bad_lines(toy):
    edit(toy / "train.txt", 0, "only-a-path")
    edit(toy / "val.txt", 2, "val/video 2 many 0")


def bad_label(toy):
    edit(toy / "train.txt", 1, (toy / "train.txt").read_text().splitlines()[1][:-1] + "7")


def no_list(toy):
    (toy / "val.txt").unlink()


def empty_list(toy):
    (toy / "val.txt").write_text("\n")


def twice(toy):
    edit(toy / "train.txt", 4, (toy / "train.txt").read_text().splitlines()[0])


def two_labels(toy):
    edit(toy / "train.txt", 4, (toy / "train.txt").read_text().splitlines()[0][:-1] + "1")


def in_both(toy):
    edit(toy / "val.txt", 4, (toy / "train.txt").read_text().splitlines()[2])


def no_folder(toy):
    shutil.rmtree(toy / "frames/train/video 1")
    for file in frames(toy, "val/video 2"):
        file.unlink()


def template(toy):
    for file in (toy / "frames").rglob("*.jpg"):
        file.rename(file.with_name(f"img_{file.name}"))


def template_of_one(toy):
    for file in frames(toy, "val/video 2"):
        file.rename(file.with_suffix(".png"))


def from_zero(toy):
    for file in frames(toy, "val/video 2"):
        file.rename(file.with_name(f"{int(file.stem) - 1:05d}.jpg"))


def from_ten(toy):
    for file in reversed(frames(toy, "val/video 2")):
        file.rename(file.with_name(f"{int(file.stem) + 9:05d}.jpg"))


def fewer(toy):
    frames(toy, "val/video 2")[-1].unlink()


def more(toy):
    last = frames(toy, "val/video 2")[-1]
    shutil.copy(last, last.with_name(f"{int(last.stem) + 1:05d}.jpg"))


def gap(toy):
    frames(toy, "val/video 2")[6].unlink()


def names_count(toy):
    change_yaml(toy, categories=NAMES[:1])


def size(toy):
    Image.new("RGB", (60, 40)).save(frames(toy, "val/video 2")[0])


def no_bytes(toy):
    frames(toy, "val/video 2")[0].write_bytes(b"")


def cut(toy):
    file = frames(toy, "val/video 2")[-1]
    file.write_bytes(file.read_bytes()[:600])


FOLDER = "toy/frames/val/video 2"
DAMAGES = [
    (bad_lines, "list lines", r"2 of 8 lines that cannot be used; the first: toy/train.txt:1: 'only-a-path' is not "),
    (bad_label, "label range", r"1 of 8 lines with a label beyond 1; the first: toy/train.txt:2: label 7 is not below"),
    (no_list, "list lines", r"toy/val.txt: no such list file"),
    (empty_list, "list lines", r"toy/val.txt: holds no video"),
    (twice, "repeated lines", r"toy/train.txt: 1 line repeats .*'train/video 0' in lines 1 and 5"),
    (two_labels, "two labels", r"toy/train.txt: 1 line gives .* label 0 in line 1 and label 1 in line 5"),
    (in_both, "overlap", r"1 validation video is a training video too; .* in toy/train.txt:3 and toy/val.txt:5"),
    (no_folder, "folders", r"2 of 8 videos that .*: toy/train.txt:2: no folder toy/frames/train/video 1; check the"),
    (template, "image_tmpl", r"'{:05d}.jpg' fits no video; write .* file: image_tmpl: \"img_{:05d}.jpg\" \(the rows"),
    (template_of_one, "image_tmpl", rf"1 of 8 .*: toy/val.txt:3: no file in {FOLDER} .* from 00001.png to 000\d\d.png"),
    (from_zero, "first frame", rf"1 of 8 .*: toy/val.txt:3: {FOLDER} holds frames 0 to \d\d, but frames count from 1"),
    (from_ten, "first frame", rf"1 of 8 .*: toy/val.txt:3: {FOLDER} holds frames 10 to \d\d, but frames count from 1"),
    (fewer, "frame counts", rf"1 of 8 .*: toy/val.txt:3: {FOLDER} holds frames 1 to (\d\d), but the list says \d\d "),
    (more, "frame counts", rf"1 of 8 .*: toy/val.txt:3: {FOLDER} holds frames 1 to (\d\d), but the list says \d\d "),
    (gap, "frame counts", rf"1 of 8 .*: toy/val.txt:3: {FOLDER} lacks frame 7 between its frames 1 and \d\d"),
    (names_count, "class names", r"/\S+/toy/small.yaml: categories: 1 names for num_classes 2"),
    (size, "frame sizes", rf"1 of 8 .*: toy/val.txt:3: {FOLDER}/00001.jpg is 60x40 px, .* is 48x48 px"),
    (no_bytes, "frames", rf"1 of 8 decoded .*: toy/val.txt:3: {FOLDER}/00001.jpg is not a readable image"),
    (cut, "frames", rf"1 of 8 decoded .*: toy/val.txt:3: {FOLDER}/000\d\d.jpg is not a readable image \(.*"),
]


@pytest.mark.parametrize(("damage", "row", "message"), DAMAGES, ids=[damage.__name__ for damage, *_ in DAMAGES])
def test_each_damage_is_found_in_its_row_and_only_there(toy, tmp_path, damage, row, message):
    damage(toy.parent)
    rows, text = check(toy, cwd=tmp_path, code=1)
    assert findings(rows) == {row} and re.match(message, rows[row][1]), text
    assert "14 checks: 1 finding, " in text


def test_all_wrong_lines_are_named_up_to_a_number(toy, tmp_path):
    for number in range(4):
        edit(toy.parent / "train.txt", number, f"wrong{number}")
    _, text = check(toy, "--show", 3, cwd=tmp_path, code=1)
    assert [f"  toy/train.txt:{k}: 'wrong{k - 1}' is not" in text for k in range(1, 5)] == [True, True, True, False]
    assert "... and 1 more; --show 4 prints all" in text and "holds no video" not in text


def test_names_that_no_rule_of_flips_covers(toy, tmp_path):
    for names, words in [
        (["Pulling it right out", "Falling"], ["1 name says left, right or", "0 (Pulling it right out)"]),
        (["Turning right", "Turning left"], ["'Turning left' (1) follows 'Turning right'. The pairs below come from"]),
        (["b", "a"], ["no name says left or right"]),
    ]:
        change_yaml(toy.parent, categories=names)
        rows, text = check(toy, "--decode", "none", cwd=tmp_path)
        assert all(word in text for word in words), text
        assert (rows["class names"][0] == "note") == ("follows" in words[0])
    change_yaml(toy.parent, categories=None)
    assert check(toy, "--decode", "none", cwd=tmp_path)[0]["class names"][0] == "note"
    change_yaml(toy.parent, categories=["a", "b", "c", "d"], num_classes=4)
    rows, _ = check(toy, "--decode", "none", cwd=tmp_path)
    assert rows["empty classes"][0] == "note" and "2 of 4 classes have no video: 2 (c), 3 (d)" in str(rows)


def test_names_without_clear_pairs_are_a_finding(toy, tmp_path, monkeypatch):
    def refuse(names):
        raise DataError("categories: 'a' mirrors into 'b' but not back; rename one")

    monkeypatch.setattr(check_rows, "mirror_pairs", refuse)
    rows, text = check(toy, "--decode", "none", cwd=tmp_path, code=1)
    assert findings(rows) == {"flip pairs"} and "but not back; rename one" in rows["flip pairs"][1]
    assert text.endswith(": 1 finding, 0 notes\n")  # lists cannot correct it


def test_only_the_decoding_of_all_finds_a_damaged_frame_between_others(toy, tmp_path):
    frames(toy.parent, "val/video 2")[4].write_bytes(b"no image")
    check(toy, cwd=tmp_path)
    rows, _ = check(toy, "--decode", "all", cwd=tmp_path, code=1)
    assert findings(rows) == {"frames"} and "val/video 2/00005.jpg is not a readable image" in rows["frames"][1]


def test_other_errors_of_the_dataset_are_one_line(toy, tmp_path):
    change_yaml(toy.parent, source="vidoe")
    for words, message in [([toy], "unknown source 'vidoe'"), (["none"], "no dataset 'none'")]:
        _, text = check(*words, cwd=tmp_path, code=1)
        assert text.startswith("error: ") and message in text and text.count("\n") == 1
    assert "--workers 0 must be at least 1" in check(toy, "--workers", 0, cwd=tmp_path, code=2)[1]


def test_the_table_fits_a_terminal_and_a_pipe_has_a_row_a_line(toy, tmp_path):
    from_zero(toy.parent)
    rows = [Row("frames", "finding", "many words " * 30), Row("a", "ok", "x" * 90)]
    lines = table(rows, 80).splitlines()
    assert len(lines) > 8 and all(len(line) <= 80 for line in lines[:-1]) and lines[4].startswith(" " * 17 + "many")
    assert len(table(rows, None).splitlines()) == 4
    main, terminal = pty.openpty()
    words = [quick_python.executable(), str(ROOT / "scripts/check_dataset.py"), str(toy), "--decode", "none"]
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=terminal, stderr=subprocess.DEVNULL)
    os.close(terminal)
    text = b""
    while part := read_some(main):
        text += part
    os.close(main)
    assert process.wait() == 1
    shown = text.decode().replace("\r", "").partition("\ncheck")[2].splitlines()
    assert max(map(len, shown)) <= 80 and len(shown) > 15


def read_some(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the program has ended
        return b""


def test_fixed_lists_pass_the_check(toy, tmp_path):
    folder = toy.parent
    original = (folder / "train.txt").read_text()
    bad_lines(folder), bad_label(folder), from_zero(folder)
    frames(folder, "train/video 2")[-1].unlink()
    frames(folder, "val/video 0")[0].write_bytes(b"")
    size_of = {video.path: video.num_frames for video in videos_of(make_dataset(tmp_path / "good", 2), "train")}
    edit(folder / "train.txt", 4, original.splitlines()[3])
    there = len(frames(folder, "val/video 2"))
    edit(folder / "val.txt", 2, f"val/video 2 {there} 0")
    edit(folder / "val.txt", 4, "val/gone 24 0")
    before = (folder / "train.txt").read_text()
    _, text = check(toy, "--fix", cwd=tmp_path, code=1)
    assert (folder / "train.txt").read_text() == before
    kept = [f"train/video 2 {size_of['train/video 2'] - 1} 0", original.splitlines()[3]]
    assert (folder / "train_fixed.txt").read_text().splitlines() == kept
    lines = (folder / "val_fixed.txt").read_text().splitlines()
    assert [line.rsplit(" ", 2)[0] for line in lines] == ["val/video 1", "val/video 2", "val/video 3"]
    assert lines[1] == f"val/video 2 {there - 1} 0"  # frame 0 is not read
    changes = "unreadable: 1, label out of range: 1, count corrected: 1, repeated: 1"
    assert f"toy/train_fixed.txt: written; 4 of 5 lines of toy/train.txt changed ({changes})" in text
    flags = "--train_list toy/train_fixed.txt --val_list toy/val_fixed.txt"
    assert f"train with: python main.py {toy} MODEL --run NAME {flags}" in text
    assert "only a sample of the frames was decoded; --decode all" in text
    rows, _ = check(toy, *flags.split(), cwd=tmp_path)
    assert rows["first frame"][0] == "note"  # frame 0 is there and is not used
    _, text = check(toy, *flags.split(), "--fix", cwd=tmp_path)
    assert "toy/train_fixed.txt: nothing to correct" in text and "train with" not in text
    _, text = check(toy, "--fix", cwd=tmp_path, code=1)
    assert text == "error: toy/train_fixed.txt exists and is not overwritten; use it, rename it or delete it\n"


def test_a_fix_leaves_what_only_the_owner_can_decide(toy, tmp_path):
    folder = toy.parent
    two_labels(folder), in_both(folder), template(folder)
    _, text = check(toy, "--fix", cwd=tmp_path, code=1)
    assert text.count("left for you, because only you know which of the lines is right: ") == 2
    assert "left for you, because it is not in a list: '{:05d}.jpg' fits no video; write this into" in text
    assert "nothing to correct" in text and not list(folder.glob("*_fixed.txt"))
    frames(folder, "val/video 1")[-1].unlink()  # counted with the template that was detected
    _, text = check(toy, "--fix", cwd=tmp_path, code=1)
    assert "4 of 5" not in text and "1 of 5 lines of toy/val.txt changed (count corrected: 1)" in text


def test_a_fix_writes_no_list_without_videos(toy, tmp_path):
    shutil.rmtree(toy.parent / "frames/val")
    _, text = check(toy, "--fix", cwd=tmp_path, code=1)
    assert "toy/val.txt: no line of it can be used (video unusable: 4); nothing was written" in text
    assert not list(toy.parent.glob("*_fixed.txt"))


@pytest.mark.parametrize("flags", [("--root", "nowhere"), ("--train_list", "empty.txt")])
def test_corrected_lists_are_not_promised_if_none_can_be_written(tmp_path, toy, flags):
    """No line can be used, so --fix would write nothing."""
    (tmp_path / "empty.txt").write_text("")
    _, text = check(toy, *flags, cwd=tmp_path, code=1)
    assert "1 finding" in text and "--fix writes" not in text
