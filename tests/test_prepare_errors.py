"""scripts.prepare with what users really have: broken annotation files, damaged archives, missing videos, odd flags."""

import json
import sys
import zipfile
from pathlib import Path

import pytest
from official_files import encode, jpeg, split, tar
from toy_run import run_inside


def prepare(name: str, *words: object, code: int = 1) -> str:
    result = run_inside("scripts/prepare.py", name, *words, "--workers", 0, cwd=Path.cwd())
    assert result.returncode == code and "Traceback" not in result.stdout, result.stdout
    return result.stdout


def error_of(name: str, *words: object) -> str:
    """The last line that the program prints, which is its only error."""
    output = prepare(name, *words)
    assert output.count("error: ") == 1
    return output.splitlines()[-1]


# dataset, file, text there, text instead, message
BROKEN = [
    ("something_v1", "something-something-v1-train.csv", "2;Push", "2,Push", "train.csv:2: '2,Pushing something from"),
    ("something_v1", "something-something-v1-train.csv", "3;Pushing", "3;Shoving", "train.csv:3: 'Shoving something"),
    (
        "something_v1",
        "something-something-v1-train.csv",
        "3;",
        "../3;",
        "train.csv:3: the name '../3' leaves its folder",
    ),
    (
        "something_v2",
        "something-something-v2-train.json",
        '"id": "2"',
        '"id": 2',
        "train.json: entry 2: 'id' must be str",
    ),
    (
        "something_v2",
        "something-something-v2-train.json",
        "[something]",
        "[thing]",
        "train.json: entry 1: 'Pushing thing",
    ),
    (
        "something_v2",
        "something-something-v2-train.json",
        "},",
        "}",
        "train.json:1: not JSON (Expecting ',' delimiter)",
    ),
    ("something_v2", "something-something-v2-labels.json", "{", "[{", "labels.json:1: not JSON"),
    (
        "diving48",
        "Diving48_V2_test.json",
        '"label": 0',
        '"label": 48',
        "test.json: entry 2: label is '48', not a whole",
    ),
    ("diving48", "Diving48_V2_test.json", '"_8Vy_00005"', '"/etc/x"', "entry 1: the name '/etc/x' begins or ends"),
    ("epic55", "EPIC_train_action_labels.csv", ",0,door", ",-1,door", "labels.csv:2: verb_class is '-1', not a whole"),
    ("epic55", "EPIC_train_action_labels.csv", "00:00:00.50", "soon", "labels.csv:2: stop_timestamp is 'soon', not"),
    (
        "epic55",
        "EPIC_train_action_labels.csv",
        "00:00:00.50",
        "00:00:00.00",
        "labels.csv:2: stop_timestamp '00:00:00.00'",
    ),
    ("epic55", "EPIC_train_action_labels.csv", "verb_class", "verbs", "labels.csv:1: no column 'verb_class' among"),
    ("epic55", "EPIC_noun_classes.csv", "1,door", "2,door", "noun_classes.csv: column 'noun_id' does not count from 0"),
    ("finegym", "gym99_val_element.txt", "A_0000", "0000", "gym99_val_element.txt:1: '0LtLS9wR_2_E_000000_000001_0000"),
    (
        "finegym",
        "gym99_val_element.txt",
        "0001 0",
        "0001 99",
        "element.txt:1: label is '99', not a whole number below 2",
    ),
    ("finegym", "gym99_categories.txt", "Clabel: 0", "Label 0", "gym99_categories.txt:1: 'Label 0; set: 1;"),
    (
        "finegym",
        "finegym_annotation_info_v1.0.json",
        "0.25, 1.1",
        '"a", 1.1',
        "the times of '0LtLS9wR_0_E_000000_000001",
    ),
    ("kinetics400", "train.csv", "-abc_0,5", "-abc_0,five", "train.csv:2: time_start is 'five', not a whole number"),
    ("kinetics400", "val.csv", '"zumba"', '""', "val.csv:2: column 'label' is empty"),
    ("ucf101", "trainlist01.txt", "avi 2", "avi 1", "trainlist01.txt:2: class number 1 is not that of its folder, 2"),
    ("ucf101", "testlist02.txt", "Archery/", "Bow/", "testlist02.txt:2: 'Bow' is no class of"),
    ("ucf101", "classInd.txt", "2 Archery", "3 Archery", "classInd.txt: classes do not count from 1 without a gap"),
    ("hmdb51", "cartwheel_test_split2.txt", "avi 2", "avi 3", "split2.txt:2: use of the video is '3', not a whole"),
]


@pytest.mark.parametrize(("name", "file", "old", "new", "message"), BROKEN)
def test_a_broken_annotation_is_one_line_with_its_place(tmp_path, official, name, file, old, new, message):
    files = official(name)
    text = (files / file).read_text()
    assert old in text
    (files / file).write_text(text.replace(old, new, 1))
    line = error_of(name, files, "--to", tmp_path / "to")
    assert line.startswith(f"error: {files}/") and message in line, line
    assert not (tmp_path / "to").exists()


MISSING = [
    ("something_v1", "something-something-v1-labels.csv", "no list of class names (*v1-labels.csv or labels.csv) in "),
    ("diving48", "Diving48_V2_test.json", "no list of test videos (Diving48_V2_test.json) in "),
    ("epic55", "EPIC_train_action_labels.csv", "no list of action segments (EPIC_train_action_labels.csv) in "),
    ("finegym", "gym288_val_element.txt", "no list of val elements (gym288_val_element*.txt) in "),
    ("ucf101", "testlist02.txt", "no test list of split 2 (testlist02.txt) in "),
    ("hmdb51", "cartwheel_test_split2.txt", "no cartwheel_test_split2.txt beside those of the other classes"),
]


@pytest.mark.parametrize(("name", "file", "message"), MISSING)
def test_a_missing_annotation_file_is_named(tmp_path, official, name, file, message):
    files = official(name)
    (files / file).unlink()
    assert message in error_of(name, files, "--to", tmp_path / "to")


def test_pickles_and_double_files_are_refused(tmp_path, official):
    files = official("epic55")
    form = files / "EPIC_train_action_labels.csv"
    (files / "copy").mkdir()
    (files / "copy" / form.name).write_bytes(form.read_bytes())
    assert "can both be list of action segments; give only one" in error_of("epic55", files, "--to", tmp_path / "to")
    (files / "copy" / form.name).unlink()
    form.rename(form.with_suffix(".pkl"))
    line = error_of("epic55", files, "--to", tmp_path / "to")
    assert (
        "EPIC_train_action_labels.pkl is a pickle, and reading it can run code; give EPIC_train_action_labels.csv"
        in line
    )


def test_a_subset_is_prepared_and_counted(tmp_path, official):
    """One video is missing and one is broken. Both are in the training list of split 1."""
    files = official("ucf101")
    removed, broken = next(files.rglob("*_g02_*")), next(files.rglob("*_g01_*"))
    removed.unlink()
    broken.write_bytes(b"x" * 3000)
    output = prepare("ucf101", files, "--to", tmp_path / "to", code=0)
    assert "prepared 4 of 6 videos, 2 skipped (reasons in " in output.splitlines()[-1]
    lines = sorted((tmp_path / "to/skipped.txt").read_text().splitlines())
    assert sorted(line.split("\t")[0].split("/")[1] for line in lines) == sorted([removed.stem, broken.stem])
    assert any("no file ApplyEyeMakeup/" in line and "trainlist01.txt:3" in line for line in lines)
    listed = [(tmp_path / f"to/{split}_split_1.txt").read_text().count("\n") for split in ("train", "val")]
    assert listed == [2, 2]
    record = json.loads((tmp_path / "to/prepared.json").read_text())
    assert record["counts"]["train_split_1.txt"] == {"annotated": 4, "listed": 2, "published": 9537}


def test_a_list_without_videos_is_an_error(tmp_path, official):
    files = official("kinetics400")
    (files / "part_val.tar.gz").unlink()
    line = error_of("kinetics400", files, "--to", tmp_path / "to")
    assert "kinetics400.yaml: no video for the val list (no file -abc_4_000005_000015 among the given" in line
    assert not (tmp_path / "to/kinetics400.yaml").exists()
    assert len((tmp_path / "to/skipped.txt").read_text().splitlines()) == 2


def archive_of(folder: Path) -> Path:
    return tar(
        folder / "20bn-something-something-v2.tar.gz", {f"v/{v}.webm": encode(folder / "x.webm") for v in range(1, 7)}
    )


@pytest.mark.parametrize(
    "names",
    [["v2.tar.gz.part0", "v2.tar.gz.part1"], ["v2.tgz.part-aa", "v2.tgz.part-ab"], ["v2.tar.gzaa", "v2.tar.gzab"]],
)
def test_parts_of_archives_are_joined(tmp_path, official, names):
    files = official("something_v2")
    for part in files.glob("20bn*"):
        part.unlink()
    split(archive_of(files), names)
    assert "prepared 6 of 6" in prepare("something_v2", files, "--to", tmp_path / "to", code=0)


def test_parts_that_are_packed_again_and_zip_files(tmp_path, official):
    """``x-00.zip`` that holds the part ``x-00``; a zip file cut into parts."""
    files = official("something_v2")
    for part in list(files.glob("20bn*")):
        with zipfile.ZipFile(files / f"{part.name}.zip", "w") as packed:
            packed.write(part, part.name)
        part.unlink()
    assert "prepared 6 of 6" in prepare("something_v2", files, "--to", tmp_path / "to", code=0)
    for part in list(files.glob("20bn*")):
        part.unlink()
    with zipfile.ZipFile(files / "videos.zip", "w") as packed:
        for number in range(1, 7):
            packed.write(
                files / "x.webm" if (files / "x.webm").exists() else encode(files / "x.webm"), f"v/{number}.webm"
            )
    split(files / "videos.zip", ["videos.zip.001", "videos.zip.002", "videos.zip.003"])
    assert "prepared 6 of 6" in prepare("something_v2", files, "--to", tmp_path / "zip", code=0)


def test_damaged_archives(tmp_path, official):
    files = official("something_v1")
    first, second, third = sorted(files.glob("20bn*"))
    content = second.read_bytes()
    second.unlink()
    line = error_of("something_v1", files, "--to", tmp_path / "to")
    assert f"{first}: the part behind it is missing, but part 2 is there; download it" in line
    second.write_bytes(content[:50] + bytes(40) + content[90:])
    line = error_of("something_v1", files, "--to", tmp_path / "to")
    assert f"{first} to {third.name}: cannot be read (" in line and "download not complete?" in line
    assert len(list((tmp_path / "to").glob("frames/*"))) < 6
    second.write_bytes(content)
    third.write_bytes(b"")  # the end is missing: what is there is kept, what is not is listed
    result = run_inside("scripts/prepare.py", "something_v1", files, "--to", tmp_path / "to", cwd=tmp_path)
    assert "Traceback" not in result.stdout and ("6 videos" in result.stdout or "error: " in result.stdout)


@pytest.mark.parametrize("name", ["../1.webm", "/tmp/1.webm", "v/../../1.webm"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_cannot_leave_the_archive(tmp_path, official, name, kind):
    files = official("something_v2")
    for part in files.glob("20bn*"):
        part.unlink()
    video = encode(files / "x.webm")
    if kind == "tar":
        tar(files / "all.tar", {name: video}, mode="w")
    else:
        with zipfile.ZipFile(files / "all.zip", "w") as packed:
            packed.writestr(name, video.read_bytes())
    line = error_of("something_v2", files, "--to", tmp_path / "to")
    assert f"{files}/all.{kind}: its member {name!r} leaves the folder; is this the published archive?" in line


def test_frames_of_a_video_that_lie_apart_are_refused(tmp_path, official):
    files = official("something_v1")
    for part in files.glob("20bn*"):
        part.unlink()
    tar(files / "all.tar", {f"f/{name}.jpg": jpeg(1) for name in ("1/00001", "2/00001", "1/00002")}, mode="w")
    line = error_of("something_v1", files, "--to", tmp_path / "to")
    assert f"{files}/all.tar: the frames of 1 lie apart; unpack it and give the folder" in line


FLAGS = [
    (["--quality", "0"], "--quality '0': must be a whole number from 1 to 31"),
    (["--quality", "best"], "--quality 'best': must be a whole number from 1 to 31"),
    (["--short_side", "7"], "--short_side '7': must be a whole number from 8 to 10000"),
    (["--shard", "3/2"], "--shard '3/2': must be I/N with I from 1 to N, such as 1/4"),
    (["--shard", "1"], "--shard '1': must be I/N"),
    (["--val", "0.2"], "--val: is for folder only; the split of diving48 is published"),
    (["--val_participants", "P01"], "--val_participants: is for epic55 only"),
]


@pytest.mark.parametrize(("flags", "message"), FLAGS)
def test_flags_are_checked(tmp_path, official, flags, message):
    assert message in error_of("diving48", official("diving48"), "--to", tmp_path / "to", *flags)


@pytest.mark.parametrize("name", ["epic55", "something_v1"])
def test_videos_that_do_not_exist_as_files_cannot_be_kept(tmp_path, official, name):
    line = error_of(name, official(name), "--to", tmp_path / "to", "--keep_videos")
    assert f"--keep_videos: {name} has " in line and "prepare frame folders, without this flag" in line


def test_trees_and_csv_files_that_do_not_fit(tmp_path):
    tree = tmp_path / "tree"
    assert f"no file or folder {tree}" in error_of("folder", tree)
    tree.mkdir()
    assert "holds no video in a folder of its class" in error_of("folder", tree)
    encode(tree / "a/1.mp4", frames=1)
    assert "no video for the val list; add videos or change --val 0.2" in error_of("folder", tree)
    assert "--val '1': must be a number between 0 and 1" in error_of("folder", tree, "--val", 1)
    encode(tree / "loose.mp4", frames=1)
    assert f"{tree}/loose.mp4: lies in no folder of a class; move it into one" in error_of("folder", tree)
    assert "folder takes one folder or CSV file, not 2" in error_of("folder", tree, tree)
    csv = tmp_path / "mine.csv"
    csv.write_text("tree/a/1.mp4,x\ntree/a/1.mp4,y\n")
    assert f"{csv}:2: 'tree/a/1.mp4' stands in {csv}:1 too; list each video once" in error_of("folder", csv)
    csv.write_text("tree/a/1.mp4 x\n")
    assert f"{csv}:1: 'tree/a/1.mp4 x' is not 'path,label'" in error_of("folder", csv)
    csv.write_text("tree/a/1.mp4,x\ngone.mp4,x\n")
    line = error_of("folder", csv, "--val", "0.5", "--to", tmp_path / "to")
    assert "cannot be decoded ([Errno 2] No such file or directory" in line or "no video for the" in line


def test_videos_without_pyav_are_refused_before_the_first_one(tmp_path, official, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    line = error_of("kinetics400", official("kinetics400"), "--to", tmp_path / "to")
    assert line == "error: reading videos needs PyAV; pip install av" and not (tmp_path / "to").exists()


def test_frames_need_no_pyav(tmp_path, official, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    prepare("something_v1", official("something_v1"), "--to", tmp_path / "to", code=0)
