"""Small copies of the files that datasets' authors publish: annotation files in their form, and encoded videos."""

import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

SIZE = (36, 48)  # height, width
SHORT = {"num_segments": 2, "epochs": 1, "global_batch_size": 4, "pretrained": "none"}


def encode(
    file: Path,
    frames: int = 8,
    size: tuple[int, int] = SIZE,
    times: list[float] | None = None,
    audio: bool = False,
    rate: int = 12,
    seed: int = 0,
    gop: int = 250,
) -> Path:
    """A video of coloured frames, each of one colour with a brighter block, in the form of the file's ending.

    ``times``: seconds of each frame, for a variable frame rate. ``gop``: each so many frames stand for themselves.
    """
    codec = {".webm": "libvpx", ".mp4": "libx264", ".avi": "mpeg4", ".mkv": "libx264"}[file.suffix]
    file.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.gop_size = gop
        if codec == "libx264":
            stream.codec_context.options = {"preset": "ultrafast"}
        sound = container.add_stream("libopus" if file.suffix == ".webm" else "aac", rate=48000) if audio else None
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(len(times) if times else frames):
            frame = av.VideoFrame.from_ndarray(picture(number, size, seed), format="rgb24")
            if times:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 48000
            container.mux([*sound.encode(silence), *sound.encode()])
    return file


def picture(number: int, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """(H, W, 3): a frame whose mean brightness tells its number."""
    image = np.full((*size, 3), 20 + 12 * (number % 16), np.uint8)
    image[: size[0] // 2, : size[1] // 2] = np.random.default_rng(seed).integers(60, 250, 3)
    return image


def number_of(image: Image.Image) -> int:
    """The number of the frame that ``picture`` drew, from its darker part."""
    values = np.asarray(image.convert("L"), float)
    return round((values[values.shape[0] * 3 // 4 :].mean() - 20) / 12)


def jpeg(number: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(picture(number)).save(content, "JPEG")
    return content.getvalue()


def tar(file: Path, members: dict[str, bytes | Path], mode: str = "w:gz") -> Path:
    """An archive of these members."""
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file


def split(file: Path, names: list[str]) -> None:
    """Cut a file into parts of these names, and remove it."""
    content = file.read_bytes()
    step = -(-len(content) // len(names))
    for i, name in enumerate(names):
        (file.parent / name).write_bytes(content[i * step : (i + 1) * step])
    file.unlink()


CLASSES = ["Pushing something from left to right", "Pushing something from right to left"]


def something_v1(folder: Path) -> None:
    """The class file is not alphabetical, as the published one."""
    (folder / "something-something-v1-labels.csv").write_text("".join(f"{name}\n" for name in reversed(CLASSES)))
    ids = {"train": [1, 2, 3, 4], "validation": [5, 6]}
    for name, videos in ids.items():
        text = "".join(f"{video};{CLASSES[video % 2]}\n" for video in videos)
        (folder / f"something-something-v1-{name}.csv").write_text(text)
    (folder / "something-something-v1-test.csv").write_text("7\n")
    members = {f"20bn-something-something-v1/{v}/{n:05d}.jpg": jpeg(n) for v in range(1, 8) for n in range(1, 6)}
    split(tar(folder / "all", members), [f"20bn-something-something-v1-{part:02d}" for part in range(3)])


def something_v2(folder: Path) -> None:
    names = {name: str(i) for i, name in enumerate(CLASSES)}
    (folder / "something-something-v2-labels.json").write_text(json.dumps(names))
    for name, videos in {"train": [1, 2, 3, 4], "validation": [5, 6]}.items():
        entries = [
            {
                "id": str(video),
                "label": "pushing a cup from left to right",
                "template": CLASSES[video % 2].replace("something", "[something]"),
                "placeholders": ["a cup"],
            }
            for video in videos
        ]
        (folder / f"something-something-v2-{name}.json").write_text(json.dumps(entries))
    files = {f"20bn-something-something-v2/{v}.webm": encode(folder / f"{v}.webm", seed=v) for v in range(1, 7)}
    split(tar(folder / "all", files), [f"20bn-something-something-v2-{part:02d}" for part in range(2)])
    for file in files.values():
        file.unlink()


def diving48(folder: Path) -> None:
    (folder / "Diving48_vocab.json").write_text(json.dumps([["Back", "15som", "05Twis", "FREE"], ["Forward", "PIKE"]]))
    for name, videos in {"train": [1, 2, 3, 4], "test": [5, 6]}.items():
        entries = [{"vid_name": f"_8Vy_{v:05d}", "label": v % 2, "start_frame": 0, "end_frame": 8} for v in videos]
        (folder / f"Diving48_V2_{name}.json").write_text(json.dumps(entries))
    files = {f"rgb/_8Vy_{v:05d}.mp4": encode(folder / f"{v}.mp4", seed=v) for v in range(1, 7)}
    tar(folder / "Diving48_rgb.tar.gz", files)
    for file in files.values():
        file.unlink()


def epic55(folder: Path) -> None:
    """Two segments a video; the frame rate is 12."""
    columns = "uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame"
    lines = [columns + ",verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"]
    for i, person in enumerate(("P01", "P02", "P30")):
        file = encode(folder / "videos" / person / f"{person}_01.mp4", frames=14, seed=i, gop=3)
        file.rename(file.with_suffix(".MP4"))  # as published
        for part, (start, stop) in enumerate((("00:00:00.00", "00:00:00.50"), ("00:00:00.25", "00:00:01.00"))):
            words = f'{2 * i + part},{person},{person}_01,"open, door",{start},{stop},1,30'
            lines.append(f"{words},open,{part},door,{1 - part},['door'],[{1 - part}]")
    (folder / "EPIC_train_action_labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "EPIC_verb_classes.csv").write_text("verb_id,class_key,verbs\n0,take,\"['take']\"\n1,put,\"['put']\"\n")
    (folder / "EPIC_noun_classes.csv").write_text("noun_id,class_key,nouns\n0,pan,['pan']\n1,door,['door']\n")


def finegym(folder: Path) -> None:
    times, elements = {}, []
    for i in range(3):
        video = f"0LtLS9wR_{i}"
        encode(folder / "videos" / f"{video}.mp4", frames=14, seed=i)
        segments = {
            "A_0000_0001": {"stages": 1, "timestamps": [[0.0, 0.25]]},
            "A_0001_0002": {"stages": 2, "timestamps": [[0.25, 0.5], [0.5, 0.75]]},
        }
        event = {"event": 1, "timestamps": [[0.25, 1.1]], "segments": segments}
        times[video] = {"E_000000_000001": event, "E_000001_000002": event | {"segments": None}}
        elements += [f"{video}_E_000000_000001_{action}" for action in segments]
    (folder / "finegym_annotation_info_v1.0.json").write_text(json.dumps(times))
    for number in (99, 288):
        for split, part in {"train": elements[:4], "val": elements[4:]}.items():
            version = "_v1.0" if split == "train" else ""
            text = "".join(f"{element} {i % 2}\n" for i, element in enumerate(part))
            (folder / f"gym{number}_{split}_element{version}.txt").write_text(text)
        (folder / f"gym{number}_categories.txt").write_text(
            "Clabel: 0; set: 1; Glabel: 1; (VT) round-off, flic-flac on\nClabel: 1; set: 1; Glabel: 7; (FX) leap\n"
        )


def kinetics400(folder: Path) -> None:
    for split, videos in {"train": range(4), "val": range(4, 6)}.items():
        rows = [f'"{("zumba", "air drumming")[v % 2]}",-abc_{v},5,15,{split},0' for v in videos]
        (folder / f"{split}.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split,is_cc", *rows]))
        files = {f"-abc_{v}_000005_000015.mp4": encode(folder / f"{v}.mp4", seed=v) for v in videos}
        tar(folder / f"part_{split}.tar.gz", files)
        for file in files.values():
            file.unlink()


def ucf101(folder: Path) -> None:
    names = ["ApplyEyeMakeup", "Archery"]
    (folder / "classInd.txt").write_text("".join(f"{i} {name}\r\n" for i, name in enumerate(names, start=1)))
    videos = [f"{names[v % 2]}/v_{names[v % 2]}_g0{v}_c01.avi" for v in range(6)]
    for number in (1, 2):
        train, test = (videos[:4], videos[4:]) if number == 1 else (videos[2:], videos[:2])
        text = "".join(f"{video} {1 + names.index(video.split('/')[0])}\n" for video in train)
        (folder / f"trainlist0{number}.txt").write_text(text)
        (folder / f"testlist0{number}.txt").write_text("".join(f"{video}\n" for video in test))
    for i, video in enumerate(videos):
        encode(folder / "UCF-101" / video, seed=i)


def hmdb51(folder: Path) -> None:
    """Both classes have a video of the same name."""
    for name in ("brush_hair", "cartwheel"):
        uses = [1, 1, 2, 0]
        for split in (1, 2):
            text = "".join(f"A_Guide_{v}.avi {use} \n" for v, use in enumerate(uses[::split] + uses[1:][: split - 1]))
            (folder / f"{name}_test_split{split}.txt").write_text(text)
        for v in range(4):
            encode(folder / "org" / name / f"A_Guide_{v}.avi", seed=v + len(name))


OFFICIAL = {
    "something_v1": something_v1,
    "something_v2": something_v2,
    "diving48": diving48,
    "epic55": epic55,
    "finegym": finegym,
    "kinetics400": kinetics400,
    "ucf101": ucf101,
    "hmdb51": hmdb51,
}


def main() -> None:
    """Write one: ``python -m tests.official_files NAME FOLDER``."""
    import sys

    folder = Path(sys.argv[2])
    folder.mkdir(parents=True)
    OFFICIAL[sys.argv[1]](folder)


if __name__ == "__main__":
    main()
