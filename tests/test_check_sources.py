"""scripts/check_dataset.py on each kind of source, and the detection of templates."""

import numpy as np
import pytest
from checked import check, edit, findings, rows_of
from packed_sets import pack, write_dataset
from PIL import Image
from toy_run import make_dataset, run

from data import DataError, FrameFolder, Video
from data.check_files import Problem, look, look_at_all
from data.frame_names import detect_template


@pytest.fixture
def toy(tmp_path):
    return make_dataset(tmp_path / "toy", per_class=2)


@pytest.mark.parametrize(
    ("folder", "names", "fields", "expected"),
    [
        ("a", [f"img_{k:05d}.jpg" for k in range(1, 9)] + ["Thumbs.db"], 1, "img_{:05d}.jpg"),
        ("a", [f"{k}.png" for k in range(1, 12)], 1, "{}.png"),
        ("a", [f"f{k:03d}.jp2" for k in (998, 999, 1000)], 1, "f{:03d}.jp2"),
        ("a", [f"v{{1}}_{k:04d}a.jpg" for k in range(3)], 1, "v{{1}}_{:04d}a.jpg"),
        ("a", [f"flow_{x}_{k:05d}.jpg" for k in range(1, 4) for x in "xy"], 2, "flow_{}_{:05d}.jpg"),
        ("a", [f"{x}/{k}.jpg".replace("/", "_") for k in range(1, 4) for x in "xy"], 1, "{}_{}.jpg"),
        ("42", [f"000042-{x}_{k:05d}.jpg" for k in range(1, 4) for x in "xy"], 3, "{:06d}-{}_{:05d}.jpg"),
        ("a", [f"img_{k:05d}.jpg" for k in range(9)] + [f"{x}{k}.jpg" for k in range(9) for x in "xy"], 2, "{}{}.jpg"),
        (
            "a",
            [f"img_{k:05d}.jpg" for k in range(9)] + [f"{x}{k}.jpg" for k in range(9) for x in "xy"],
            1,
            "img_{:05d}.jpg",
        ),
        ("a", ["notes.txt", "readme"], 1, None),
    ],
)
def test_templates_are_detected(folder, names, fields, expected):
    assert detect_template([(folder, names)], fields) == expected


def test_a_template_must_fit_most_folders():
    own = [(f"v{k}", [f"v{k}_{i:05d}.jpg" for i in range(5)]) for k in range(5)]
    assert detect_template(own, 1) is None
    assert detect_template([*own[:2], *[("x", ["00001.jpg"])] * 3], 1) == "{:05d}.jpg"


@pytest.mark.parametrize("tmpl", ["flow_{}_{:05d}.png", "{1:05d}_{0}.png", "{:06d}-{}_{:05d}.png"])
def test_flow_files_are_counted_and_decoded(tmp_path, tmpl):
    three = tmpl.count("{") == 3
    folder, path = (tmp_path / "frames/000042", "42") if three else (tmp_path / "frames/a", "a")
    folder.mkdir(parents=True)
    for number in range(1, 6):
        for axis in "xy":
            values = (42, axis, number) if three else (axis, number)
            Image.fromarray(np.zeros((20, 30), np.uint8)).save(folder / tmpl.format(*values))
    file = write_dataset(tmp_path, f"{path} 5 1\n", image_tmpl=tmpl)
    rows, text = check(file, "--decode", "all", cwd=tmp_path, code=1)
    assert findings(rows) == {"overlap"} and rows["frames"][1].startswith("10 decoded"), text
    write_dataset(tmp_path, f"{path} 10 1\n", image_tmpl=tmpl)  # TSM's count of files
    rows, _ = check(file, cwd=tmp_path, code=1)
    assert "holds frames 1 to 5, but the list says 10 frames" in rows["frame counts"][1]
    write_dataset(tmp_path, f"{path} 5 1\n", image_tmpl=tmpl)
    (folder / tmpl.format(*((42,) if three else ()), "y", 3)).unlink()
    rows, _ = check(file, cwd=tmp_path, code=1)
    assert "lacks frame 3 between its frames 1 and 5" in rows["frame counts"][1]
    if three:
        write_dataset(tmp_path, "v 5 1\n", image_tmpl=tmpl)
        rows, _ = check(file, cwd=tmp_path, code=1)
        assert "folder 'v' is not a number" in rows["folders"][1]


def test_more_files_than_frames_of_the_list_are_counted_exactly(tmp_path):
    """Names that do not belong to the template, also some that only look like it."""
    source = FrameFolder(tmp_path, "{:05d}.jpg")
    (tmp_path / "a").mkdir()
    for name in ("00001.jpg", "00002.jpg", "3.jpg", "000004.jpg", "Thumbs.db", "00003.jpg.part"):
        (tmp_path / "a" / name).touch()
    assert look(source, Video("a", 2, 0, "")) is None
    assert look(source, Video("a", 3, 0, "")).kind == "fewer" and look(source, Video("a", 1, 0, "")).frames == 2
    assert look(source, Video("a", 2**31 - 1, 0, "")) == Problem(
        "fewer", f"{tmp_path}/a holds frames 1 to 2, but the list says 2147483647 frames; correct the list", 2
    )
    assert look(source, Video("x" * 300, 2, 0, "")).kind == "missing"
    places = list(range(200))
    videos = [Video("a", 2 + i % 2, 0, "") for i in places]
    assert [i for i, problem in look_at_all(source, videos, places[::-1], 3) if problem] == places[::-2]
    begun = [i for i, _ in look_at_all(source, videos, places, 1, longest=-1)]
    assert begun == places[: len(begun)] and len(begun) < 100


def test_packed_sets(toy, tmp_path):
    pack(toy, "--shard_size", 0.05, cwd=tmp_path)
    file = tmp_path / "packed/small.yaml"
    rows, _ = check(file, cwd=tmp_path)
    assert rows["videos"] == ("ok", "all 8 are there") and "image_tmpl" not in rows and "first frame" not in rows
    edit(tmp_path / "packed/small/train.txt", 1, "train/video 1 3 1")
    edit(tmp_path / "packed/small/val.txt", 0, "val/video 9 24 0")
    rows, _ = check(file, cwd=tmp_path, code=1)
    assert findings(rows) == {"videos", "frame counts"}
    assert "packed/small/val.txt:1: no video 'val/video 9' in packed/small" in rows["videos"][1]
    assert "packed/small/train.txt:2: train/video 1 in packed/small holds frames 1 to " in rows["frame counts"][1]
    shard = sorted((tmp_path / "packed/small").glob("*.zip"))[0]
    shard.write_bytes(shard.read_bytes()[:-9])
    rows, _ = check(file, cwd=tmp_path, code=1)
    assert f"packed/small/{shard.name} has " in rows["videos"][1]
    (tmp_path / "packed/small/store.json").unlink()
    _, text = check(file, cwd=tmp_path, code=1)
    assert rows_of(text)["videos"][0] == "finding" and "no packed frames in packed/small" in text


def test_video_files(tmp_path):
    av = pytest.importorskip("av")
    (tmp_path / "frames").mkdir()
    for name in ("a b.mp4", "c.mp4"):
        with av.open(str(tmp_path / "frames" / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=12)
            stream.height = stream.width = 32
            for grey in range(0, 250, 25):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), grey, np.uint8), "rgb24")))
            container.mux(stream.encode())
    (tmp_path / "frames/empty.mp4").touch()
    (tmp_path / "frames/text.mp4").write_text("no video")
    file = write_dataset(tmp_path, "a b.mp4 10 1\n", source="video")
    (tmp_path / "val.txt").write_text("c.mp4 10 0\n")
    command = ["scripts/check_dataset.py", file, "--val_list", "val.txt"]  # this process must not fork after PyAV
    result = run(*command, cwd=tmp_path)
    rows = rows_of(result.stdout)
    assert result.returncode == 0 and rows["files"] == ("ok", "all 2 are there"), result.stdout
    assert rows["frame counts"] == ("ok", "as the lists say, of 2 decoded files") and rows["frames"][1].startswith(
        "20 "
    )
    (tmp_path / "val.txt").write_text("c.mp4 12 0\nempty.mp4 10 0\ntext.mp4 10 0\ngone.mp4 10 0\n")
    result = run(*command, "--fix", cwd=tmp_path)
    rows = rows_of(result.stdout)
    assert result.returncode == 1 and findings(rows) == {"files", "frame counts", "frames"}, result.stdout
    assert "2 of 5 videos that cannot be found; the first: val.txt:2: frames/empty.mp4 is empty" in rows["files"][1]
    assert "val.txt:1: frames/c.mp4 holds frames 1 to 10, but the list says 12 frames" in rows["frame counts"][1]
    assert "val.txt:3: frames/text.mp4: cannot be decoded (" in rows["frames"][1]
    assert (tmp_path / "val_fixed.txt").read_text() == "c.mp4 10 0\n"
    command[-1] = "val_fixed.txt"
    assert run(*command, cwd=tmp_path).returncode == 0


OWN = """
import numpy as np
from data import DataError, FrameSource, register_source

class Grey(FrameSource):
    def decode(self, video, numbers):
        if video.path == "bad":
            raise DataError("the grey is too dark")
        for number in numbers:
            from PIL import Image
            yield f"frame {number}", Image.new("RGB", (40, 30))

register_source("grey", lambda config: Grey())
"""


def test_a_source_from_outside(tmp_path):
    (tmp_path / "grey.py").write_text(OWN)
    file = write_dataset(tmp_path, "good 9 1\n", source="grey")
    (tmp_path / "val.txt").write_text("good2 9 0\n")
    command = ["scripts/check_dataset.py", file, "--import", "grey.py", "--val_list", "val.txt"]
    result = run(*command, cwd=tmp_path)
    rows = rows_of(result.stdout)
    assert result.returncode == 0 and rows["files"][0] == "note" and "40x30 px" in rows["frame sizes"][1], result.stdout
    (tmp_path / "val.txt").write_text("bad 9 0\n")
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 1 and "val.txt:1: the grey is too dark" in rows_of(result.stdout)["frames"][1]


def test_a_source_that_holds_nothing_is_an_error(toy, tmp_path, monkeypatch):
    def refuse(self, modality):
        raise DataError(f"nothing for {modality}")

    monkeypatch.setattr(FrameFolder, "check", refuse)
    _, text = check(toy, cwd=tmp_path, code=1)
    assert text.endswith("error: nothing for RGB\n")
