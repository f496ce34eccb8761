"""scripts.prepare: from official annotation files and archives to a trained network."""

import json
import random
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from official_files import CLASSES, OFFICIAL, SHORT, SIZE, encode, number_of, picture, tar
from PIL import Image
from toy_run import ROOT, quick_flags, run_inside

from data import load_dataset_config, read_list
from data.image_file import read_image
from data.video_file import FileInfo, opened, read_frames
from scripts.prepare_frames import jpeg_tables
from scripts.steps import children

BEST = "resnet_rgb_model_best.pth.tar"
# dataset -> the descriptions that it must fit, and the frames of each video
FITS = {
    "something_v1": (["something_v1"], [5]),
    "something_v2": (["something_v2"], [8]),
    "diving48": (["diving48"], [8]),
    "epic55": (["epic_kitchens_55_verb", "epic_kitchens_55_noun"], [6, 9]),
    "finegym": (["finegym99", "finegym288"], [3, 6]),
    "kinetics400": (["kinetics400"], [8]),
    "ucf101": (["ucf101"], [8]),
    "hmdb51": (["hmdb51"], [8]),
}


def prepare(*words: object, code: int = 0) -> str:
    """What the program prints; it runs in this process and starts no others unless ``words`` say so."""
    more = [] if "--workers" in words else ["--workers", 0]
    result = run_inside("scripts/prepare.py", *words, *more, cwd=Path.cwd())
    assert result.returncode == code, result.stdout
    assert "Traceback" not in result.stdout
    return result.stdout


def train_and_test(folder: Path, file: Path, videos: int) -> str:
    flags = quick_flags(**SHORT, train_resize="none", val_resize=32, val_crop=32, input_size=32)
    result = run_inside("main.py", file, "tsn_tiny", "--run", "own", *flags, cwd=folder)
    assert result.returncode == 0 and "finished: 1 epoch" in result.stdout, result.stdout
    weights = ["--weights", f"net_runs/own/{BEST}", "--device", "cpu", "--workers", 0, "--input", 32]
    result = run_inside("test_models.py", file, *weights, "--resize", 32, "--crop", 32, cwd=folder)
    assert result.returncode == 0 and f"{videos} videos" in result.stdout, result.stdout
    return result.stdout.splitlines()[-1]


def frames_of(folder: Path) -> list[int]:
    """The numbers that the frames of a folder show, in the order of their names."""
    return [number_of(Image.open(file)) for file in sorted(folder.iterdir())]


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_files_become_a_trained_network(tmp_path, official, name):
    files, (described, counts) = official(name), FITS[name]
    output = prepare(name, files, "--to", tmp_path / "to")
    assert output.splitlines()[-1].startswith("prepared 6 of 6 videos, 0 skipped; train with: ")
    for other in described:  # where data/<name>.yaml expects things, they stand
        made, expected = load_dataset_config(str(tmp_path / f"to/{other}.yaml")), load_dataset_config(other)
        assert (made.name, made.image_tmpl, made.source) == (expected.name, expected.image_tmpl, "folder")
        for key in ("root", "train_list", "val_list"):
            assert Path(getattr(made, key)).name == Path(getattr(expected, key)).name
        for file, number in ((made.train_list, 4), (made.val_list, 2)):
            videos = read_list(file, made.num_classes)
            assert len(videos) == number and {video.num_frames for video in videos} == set(counts)
            for video in videos:
                frames = sorted(Path(made.root, video.path).iterdir())
                assert [file.name for file in frames] == [
                    made.image_tmpl.format(i + 1) for i in range(video.num_frames)
                ]
        assert len(made.categories) == made.num_classes == 2
    record = json.loads((tmp_path / "to/prepared.json").read_text())
    assert len(record["annotation_files_sha256"]) >= 2 and record["class_order"] and record["label_version"]
    assert record["settings"]["quality"] == "quantisation tables of ffmpeg -q:v 2, 4:2:0"
    assert {path.name for path in (tmp_path / "to").iterdir()} >= {"prepared.json", "skipped.txt"}
    assert "Top-1" in train_and_test(tmp_path, tmp_path / f"to/{described[0]}.yaml", 2)


def test_classes_are_numbered_alphabetically_where_flips_need_it(tmp_path, official):
    """The published class file of V1 has another order."""
    files = official("something_v1")
    config = load_dataset_config("something_v1")
    names = random.Random(0).sample(config.categories, 174)
    (files / "something-something-v1-labels.csv").write_text("\n".join(names))
    output = prepare("something_v1", files, "--to", tmp_path / "to")
    assert "class names are not" not in output
    assert "warning: something_v1.yaml: the train list has 4 videos, the published one 86017" in output
    made = load_dataset_config(str(tmp_path / "to/something_v1.yaml"))
    assert made.categories == config.categories
    assert made.mirror_pairs == {86: 87, 87: 86, 93: 94, 94: 93, 166: 167, 167: 166}
    assert [video.label for video in read_list(made.val_list, 174)] == [
        config.categories.index(CLASSES[i]) for i in (1, 0)
    ]


def test_segments_are_cut_at_their_seconds(tmp_path, official):
    """12 frames a second: 0 to 0.5 s and 0.25 to 1 s. A key frame stands at each third frame, so the cut jumps."""
    prepare("epic55", official("epic55"), "--to", tmp_path / "to")
    assert frames_of(tmp_path / "to/segments/P01_01_0") == [0, 1, 2, 3, 4, 5]
    assert frames_of(tmp_path / "to/segments/P01_01_1") == [3, 4, 5, 6, 7, 8, 9, 10, 11]
    verb, noun = (read_list(tmp_path / f"to/{kind}_val.txt", 2) for kind in ("verb", "noun"))
    assert [(video.path, video.label) for video in verb] == [("P30_01_4", 0), ("P30_01_5", 1)]
    assert [video.label for video in noun] == [1, 0]
    output = prepare("epic55", tmp_path / "official", "--to", tmp_path / "to", "--val_participants", "P02")
    assert "participants P02; SDA's split is not published" in output
    assert (tmp_path / "to/verb_val.txt").read_text() == "P02_01_2 6 0\nP02_01_3 9 1\n"


def test_a_jump_that_lands_too_late_is_not_used(tmp_path, official, monkeypatch):
    """Some files have a wrong index. The first jump goes to the middle here."""
    jumps = []

    class Late:
        def __init__(self, container):
            self.decode, self.real = container.decode, container

        def seek(self, offset, **settings):
            jumps.append(offset)
            self.real.seek(700_000 if len(jumps) == 1 else offset, **({} if len(jumps) == 1 else settings))

    @contextmanager
    def opened_late(file):
        with opened(file) as (container, *rest):
            yield Late(container), *rest

    monkeypatch.setattr("scripts.prepare_frames.opened", opened_late)
    prepare("epic55", official("epic55"), "--to", tmp_path / "to")
    assert frames_of(tmp_path / "to/segments/P01_01_0") == [0, 1, 2, 3, 4, 5] and len(jumps) == 7


def test_frames_that_stand_in_their_place_are_taken(tmp_path, official):
    files = official("something_v1")
    prepare("something_v1", files, "--to", tmp_path / "to")
    shutil.rmtree(tmp_path / "to/journal")
    output = prepare("something_v1", *files.glob("*.csv"), "--to", tmp_path / "to")
    assert "6 of 6 videos are finished already" in output and "prepared 6 of 6" in output
    shutil.rmtree(tmp_path / "to/journal")
    (tmp_path / "to/frames/4/00002.jpg").unlink()
    message = f"{tmp_path}/to/frames/4: its 4 files are not frames 00001.jpg to 00004.jpg; remove or rename them"
    assert message in prepare("something_v1", *files.glob("*.csv"), "--to", tmp_path / "to", code=1)


def test_gym_elements_come_from_videos_or_from_files_of_their_own(tmp_path, official):
    files = official("finegym")
    prepare("finegym", files, "--to", tmp_path / "to")
    first, second = (f"0LtLS9wR_0_E_000000_000001_{action}" for action in ("A_0000_0001", "A_0001_0002"))
    assert frames_of(tmp_path / "to/frames" / first) == [3, 4, 5]
    assert frames_of(tmp_path / "to/frames" / second) == [6, 7, 8, 9, 10, 11]
    encode(files / "cut" / f"{first}.mp4", frames=2)
    encode(files / "cut" / "0LtLS9wR_1_E_000000_000001.mp4", frames=5)
    prepare("finegym", files, "--to", tmp_path / "again")
    assert frames_of(tmp_path / "again/frames" / first) == [0, 1]
    assert frames_of(tmp_path / "again/frames" / first.replace("_0_E", "_1_E")) == [0, 1, 2]


def test_each_kind_of_video_gives_the_frames_that_a_player_shows(tmp_path):
    """Those of ``source: video``: all of them, in order, of the same size."""
    tree = tmp_path / "tree"
    encode(tree / "a/plain.webm")
    encode(tree / "a/portrait.mp4", size=(64, 36))
    encode(tree / "a/odd.avi", size=(37, 51))
    encode(tree / "b/slow and fast.mkv", times=[0, 0.04, 0.08, 0.5, 0.52, 1.1])
    encode(tree / "b/with sound.mp4", audio=True)
    (tree / "b/broken.mp4").write_bytes(b"no video" * 100)
    (tree / "b/cut.mp4").write_bytes(encode(tmp_path / "whole.mp4").read_bytes()[:700])
    output = prepare("folder", tree, "--to", tmp_path / "to", "--val", "0.3", "--quality", 1)
    last = output.splitlines()[-1]
    assert last.startswith(f"prepared 5 of 7 videos, 2 skipped (reasons in {tmp_path}/to/skipped.txt); train with:")
    skipped = (tmp_path / "to/skipped.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in skipped] == ["b/broken", "b/cut"]
    assert all("cannot be decoded" in line and str(tree) in line for line in skipped)
    for file in ("a/plain.webm", "a/portrait.mp4", "a/odd.avi", "b/slow and fast.mkv", "b/with sound.mp4"):
        number = FileInfo(tree / file).num_frames
        assert number == (6 if "slow" in file else 8)
        expected = read_frames(tree / file, list(range(1, number + 1)))
        folder = tmp_path / "to/frames" / file.partition(".")[0]
        assert len(list(folder.iterdir())) == number
        for i, frame in expected.items():
            stored = read_image(folder / f"img_{i:05d}.jpg").astype(float)
            assert stored.shape == frame.shape
            assert np.abs(stored - frame).mean() < 3  # the next frame: 12


@pytest.mark.parametrize("quality", [1, 2, 5, 31])
def test_quality_is_that_of_ffmpeg(tmp_path, quality):
    """The tables in a file of ffmpeg's own MJPEG encoder, which PyAV carries."""
    file = tmp_path / "one.mjpeg"
    with av.open(str(file), "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuvj420p"
        stream.codec_context.flags |= 2  # a fixed quality
        settings = {"qmin": quality, "qmax": quality, "global_quality": 118 * quality}
        stream.codec_context.options = {key: str(value) for key, value in settings.items()}
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(stream.encode())
    theirs = Image.open(file)
    encode(tmp_path / "tree/a/1.mp4", frames=1)
    encode(tmp_path / "tree/a/2.mp4", frames=1)
    prepare("folder", tmp_path / "tree", "--to", tmp_path / "to", "--quality", quality)
    ours = Image.open(tmp_path / "to/frames/a/1/img_00001.jpg")
    assert theirs.quantization[0] == ours.quantization[0] == ours.quantization[1] == jpeg_tables(quality)[0]
    assert ours.layer == [(1, 2, 2, 0), (2, 1, 1, 1), (3, 1, 1, 1)]  # 4:2:0


@pytest.mark.parametrize("name", ["something_v1", "diving48"])
def test_short_side(tmp_path, official, name):
    prepare(name, official(name), "--to", tmp_path / "to", "--short_side", 24)
    sizes = {Image.open(file).size for file in (tmp_path / "to/frames").rglob("*.jpg")}
    assert sizes == {(32, 24)}
    message = "prepared.json: the videos there have short_side 24, not 'as in the video'; choose another --to"
    assert message in prepare(name, tmp_path / "official", "--to", tmp_path / "to", code=1)


def test_frames_of_an_archive_keep_their_bytes(tmp_path, official):
    prepare("something_v1", official("something_v1"), "--to", tmp_path / "to")
    assert frames_of(tmp_path / "to/frames/3") == [1, 2, 3, 4, 5]
    unpacked = tmp_path / "unpacked/frames"
    shutil.copytree(tmp_path / "to/frames", unpacked)
    forms = [file for file in (tmp_path / "official").iterdir() if file.suffix == ".csv"]
    (unpacked / "2/00003.jpg").unlink()
    output = prepare("something_v1", *forms, unpacked, "--to", tmp_path / "again")
    assert "prepared 5 of 6 videos, 1 skipped" in output
    assert "2\tframe 3 is missing before 00004.jpg" in (tmp_path / "again/skipped.txt").read_text()
    ours, theirs = (content_of(tmp_path / folder / "frames") for folder in ("again", "to"))
    assert ours == {name: content for name, content in theirs.items() if not name.startswith("2/")}


@pytest.mark.parametrize("name", ["something_v2", "ucf101"])
def test_kept_videos_train_without_frame_folders(tmp_path, official, name):
    """The first set's files come out of an archive; the second's stay where they are."""
    files = official(name)
    prepare(name, files, "--to", tmp_path / "to", "--keep_videos")
    assert not (tmp_path / "to/frames").exists()
    config = load_dataset_config(str(tmp_path / f"to/{name}.yaml"))
    paths = [video.path for video in read_list(config.train_list, 2)]
    assert config.source == "video"
    in_place = str(files / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g00_c01.avi")
    assert paths[0] == ("1.webm" if name == "something_v2" else in_place)
    assert "Top-1" in train_and_test(tmp_path, tmp_path / f"to/{name}.yaml", 2)
    assert "6 of 6 videos are finished already" in prepare(name, files, "--to", tmp_path / "to", "--keep_videos")


def test_shards_share_the_work_and_the_last_run_writes_the_lists(tmp_path, official):
    files = official("something_v2")
    made = []
    for shard in ("1/2", "2/2"):
        output = prepare("something_v2", files, "--to", tmp_path / "to", "--shard", shard)
        assert f"shard {shard} is done: " in output and not (tmp_path / "to/something_v2.yaml").exists()
        made.append({folder.name for folder in (tmp_path / "to/frames").iterdir()})
    assert 0 < len(made[0]) < len(made[1]) == 6
    output = prepare("something_v2", files, "--to", tmp_path / "to")
    assert "6 of 6 videos are finished already" in output and "prepared 6 of 6 videos" in output
    prepare("something_v2", files, "--to", tmp_path / "whole")
    for folder in ("to", "whole"):
        shutil.rmtree(tmp_path / folder / "journal")
    assert content_of(tmp_path / "to") == content_of(tmp_path / "whole")


def test_a_killed_run_leaves_whole_videos_and_goes_on(tmp_path):
    tree = tmp_path / "tree"
    first = encode(tree / "a/0.avi", frames=60, size=(144, 256))
    for i in range(1, 12):
        (tree / "ab"[i % 2]).mkdir(exist_ok=True)
        shutil.copy(first, tree / "ab"[i % 2] / f"{i}.avi")
    words = ("folder", tree, "--to", tmp_path / "to")
    command = [sys.executable, "-m", "scripts.prepare", *words, "--workers", "2"]
    program = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    end, workers = time.monotonic() + 30, []
    while len(list((tmp_path / "to").glob("frames/*/*"))) < 3 and time.monotonic() < end:
        started = children(program.pid)
        workers = started + [worker for child in started for worker in children(child)]
        time.sleep(0.005)
    program.kill()
    program.wait()
    assert len(workers) >= 3  # two workers and their server
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they notice that they are orphans
        assert time.monotonic() < end
        time.sleep(0.05)
    finished = list((tmp_path / "to").glob("frames/*/*"))
    assert 3 <= len(finished) < 12 and all(len(list(folder.iterdir())) == 60 for folder in finished)
    (tmp_path / "to/unfinished/a/0").mkdir(parents=True, exist_ok=True)  # what a kill leaves at another moment
    (tmp_path / "to/unfinished/a/0/img_00099.jpg").write_bytes(b"half")
    journal = tmp_path / "to/journal/1_of_1.jsonl"
    journal.write_text(journal.read_text() + '["b/1", "b/')
    shutil.rmtree(finished[0])  # by hand; the journal names it still
    before = {folder: folder.stat().st_mtime_ns for folder in finished[1:]}
    output = prepare(*words)
    assert f"{len(finished) - 1} of 12 videos are finished already" in output
    assert "prepared 12 of 12 videos, 0 skipped" in output
    assert {folder: folder.stat().st_mtime_ns for folder in before} == before
    assert "12 of 12 videos are finished already" in prepare(*words)
    prepare("folder", tree, "--to", tmp_path / "other/to")
    for folder in ("to", "other/to"):
        shutil.rmtree(tmp_path / folder / "journal")
    assert content_of(tmp_path / "to") == content_of(tmp_path / "other/to")


def test_a_tree_of_ones_own(tmp_path):
    for i in range(14):
        encode(tmp_path / "tree" / ("jump" if i < 10 else "run") / f"{i}.mp4", frames=2)
    (tmp_path / "tree/notes.txt").write_text("x")
    output = prepare("folder", tmp_path / "tree", "--val", "0.2", "--seed", 3)
    assert f"1 other files, such as {tmp_path}/tree/notes.txt, are no videos by their ending" in output
    made = tmp_path / "tree_prepared"
    config = load_dataset_config(str(made / "tree_prepared.yaml"))
    val = read_list(config.val_list, 2)
    assert config.categories == ["jump", "run"] and [video.label for video in val].count(0) == 2 and len(val) == 3
    assert not {video.path for video in val} & {video.path for video in read_list(config.train_list, 2)}
    lists = []
    for seed in (3, 4):
        prepare("folder", tmp_path / "tree", "--to", tmp_path / f"seed{seed}", "--seed", seed)
        lists.append((tmp_path / f"seed{seed}/val.txt").read_text())
    assert lists[0] == (made / "val.txt").read_text() != lists[1]


def test_a_tree_that_is_split_keeps_its_split(tmp_path):
    for file in ("train/a/1.mp4", "train/b/2.mp4", "val/a/3.mp4", "val/b/x/4.mp4", "val/b/x/4.avi"):
        encode(tmp_path / "tree" / file, frames=2)
    prepare("folder", tmp_path / "tree", "--to", tmp_path / "to")
    assert (tmp_path / "to/train.txt").read_text() == "train/a/1 2 0\ntrain/b/2 2 1\n"
    assert (tmp_path / "to/val.txt").read_text() == "val/a/3 2 0\nval/b/x/4.avi 2 1\nval/b/x/4.mp4 2 1\n"


def test_a_csv_file_of_paths_and_labels(tmp_path):
    for i in range(4):
        encode(tmp_path / f"clips/a, {i}.mp4", frames=2)
    lines = [f'"clips/a, {i}.mp4",{("stand up", "sit")[i % 2]}\n' for i in range(4)]
    (tmp_path / "mine.csv").write_text("path,label\n" + "".join(lines))
    prepare("folder", tmp_path / "mine.csv", "--to", tmp_path / "to", "--val", "0.5")
    config = load_dataset_config(str(tmp_path / "to/to.yaml"))
    assert config.categories == ["sit", "stand up"]
    assert {
        video.path: video.label for file in (config.train_list, config.val_list) for video in read_list(file, 2)
    } == {f"clips/a, {i}": 1 - i % 2 for i in range(4)}
    (tmp_path / "numbers.csv").write_text("".join(f'"clips/a, {i}.mp4",{2 * (i % 2)}\n' for i in range(4)))
    prepare("folder", tmp_path / "numbers.csv", "--to", tmp_path / "two", "--val", "0.5", "--keep_videos")
    values = yaml.safe_load((tmp_path / "two/two.yaml").read_text())
    assert values["num_classes"] == 3 and "categories" not in values and values["source"] == "video"


def test_worker_processes_write_the_same_files(tmp_path, official):
    files = official("kinetics400")
    tar(files / "more.tar", {"x/readme.txt": b"no video"}, mode="w")
    for workers in (0, 2):
        prepare("kinetics400", files, "--to", tmp_path / f"to{workers}", "--workers", workers)
        shutil.rmtree(tmp_path / f"to{workers}/journal")
    assert content_of(tmp_path / "to0") == content_of(tmp_path / "to2")
    assert "air_drumming/-abc_1_000005_000015 8 0\n" in (tmp_path / "to0/train_videofolder.txt").read_text()
