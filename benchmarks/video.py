"""Time to read a few spread frames of a video file, as a clip needs them: ``python -m benchmarks.video``.

Files of usual kinds are encoded into a temporary folder. Each way reads the same frames as RGB arrays, in one thread
unless it says otherwise. All ways must give the same pixels. torchcodec is measured if it can be imported; it needs
FFmpeg's shared libraries. Ratios are ratios of medians, and the ways take turns.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from math import cos, pi, sin
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw

from data.sampling import test_clips
from data.video_file import read_frames

from .measure import machine, medians


class File(NamedTuple):
    """How a file is encoded. ``what`` says it in words."""

    what: str
    ending: str
    codec: str
    frames: int
    size: tuple[int, int]  # (height, width)
    rate: int
    options: dict[str, str]


_VP9 = {"crf": "31", "b:v": "0", "deadline": "good", "cpu-used": "4"}
_SSV2, _KINETICS = (240, 427), (256, 340)
FILES = {
    "ssv2": File("webm, VP9, 427x240, 4 s", "webm", "libvpx-vp9", 48, _SSV2, 12, _VP9),
    "10s_250": File("mp4, H.264, 340x256, 10 s", "mp4", "libx264", 300, _KINETICS, 30, {"g": "250"}),
    "10s_no_b": File("the same without B-frames", "mp4", "libx264", 300, _KINETICS, 30, {"g": "250", "bf": "0"}),
    "10s_12": File("a key frame every 12 frames", "mp4", "libx264", 300, _KINETICS, 30, {"g": "12"}),
    "60s_250": File("mp4, H.264, 340x256, 60 s", "mp4", "libx264", 1800, _KINETICS, 30, {"g": "250"}),
    "60s_12": File("a key frame every 12 frames", "mp4", "libx264", 1800, _KINETICS, 30, {"g": "12"}),
}


def scene(frames: int, size: tuple[int, int], seed: int = 0) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) that compress like those of a camera: moving texture, two moving objects and a little noise."""
    rng, (h, w) = np.random.default_rng(seed), size
    parts = []
    for cell in (8, 2):
        cells = rng.integers(0, 256, (3 * h // cell, 3 * w // cell, 3), np.uint8)
        parts.append(Image.fromarray(cells).resize((3 * w, 3 * h), Image.Resampling.BICUBIC))
    texture, noise = Image.blend(*parts, 0.15), [rng.normal(0, 1.5, (h, w, 1)) for _ in range(7)]
    for k in range(frames):
        a = 2 * pi * k / 90
        x, y, zoom = w * (1 + 0.3 * sin(a)), h * (1 + 0.2 * cos(0.7 * a)), 1 + 0.1 * sin(a / 2)
        box = (x - w * zoom / 2, y - h * zoom / 2, x + w * zoom / 2, y + h * zoom / 2)
        image = texture.resize((w, h), Image.Resampling.BILINEAR, box)
        pen, cx, cy, r = ImageDraw.Draw(image), w * (0.5 + 0.35 * sin(1.3 * a)), h * (0.5 + 0.3 * cos(1.1 * a)), h / 6
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), (200, 60, 40))
        pen.rectangle((cx - 2.5 * r, cy + r / 2, cx - r, cy + 1.5 * r), (30, 90, 180))
        yield np.clip(np.asarray(image) + noise[rng.integers(7)], 0, 255).astype(np.uint8)


def write_video(
    file: Path,
    codec: str,
    frames: Iterable[np.ndarray],
    rate: int = 12,
    options: dict[str, str] | None = None,
    times: list[int] | None = None,
    pixels: str = "yuv420p",
    sound: bool = False,
) -> Path:
    """Encode the frames (H, W, 3). ``times`` are the milliseconds of each frame, for a variable frame rate."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        audio = container.add_stream("aac", rate=48000) if sound else None
        stream.pix_fmt = pixels
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
            if audio is not None:
                samples = np.zeros((1, 48000 // rate), np.float32)
                tone = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
                tone.sample_rate, tone.pts, tone.time_base = 48000, number * samples.size, Fraction(1, 48000)
                container.mux(audio.encode(tone))
        container.mux(stream.encode())
        if audio is not None:
            container.mux(audio.encode())
    return file


def from_the_start(path: Path, numbers: list[int], convert: Callable, threads: int) -> list[np.ndarray]:
    """The frames with these numbers. All frames before the last of them are decoded."""
    wanted, found = set(numbers), {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_count = threads  # 0: one for each core
        if threads != 1:
            stream.thread_type = "AUTO"
        for number, frame in enumerate(container.decode(stream), start=1):
            if number in wanted:
                found[number] = convert(frame)
                if len(found) == len(wanted):
                    break
    return [found[number] for number in numbers]


def by_torchcodec(path: Path, numbers: list[int], seek_mode: str) -> list[np.ndarray]:
    """The frames with these numbers by torchcodec. ``exact`` reads all packets first, as ``read_frames`` does."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=seek_mode, dimension_order="NHWC")
    return list(decoder.get_frames_at([number - 1 for number in numbers]).data.numpy())


def ways_to_read(num_frames: int, torchcodec: bool) -> dict[str, Callable[[Path, list[int]], list[np.ndarray]]]:
    """The ways by their names. The first is what the others are compared with."""
    to_array = {"format": "rgb24", "threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {"format": "rgb24"}

    def array(frame: av.VideoFrame) -> np.ndarray:
        return frame.to_ndarray(**to_array)

    ways = {
        "from the start": lambda path, numbers: from_the_start(path, numbers, array, 1),
        "from the start, to_image": lambda p, numbers: from_the_start(p, numbers, lambda f: np.array(f.to_image()), 1),
        "from the start, a thread for each core": lambda path, numbers: from_the_start(path, numbers, array, 0),
        "source: video": lambda path, numbers: list(read_frames(path, numbers, num_frames).values()),
    }
    if torchcodec:
        for mode in ("exact", "approximate"):
            ways[f"torchcodec, {mode}"] = lambda path, numbers, mode=mode: by_torchcodec(path, numbers, mode)
    return ways


def torchcodec_runs(folder: Path) -> bool:
    """Whether torchcodec is installed and finds FFmpeg's libraries. It looks for them when it opens the first file."""
    file = write_video(folder / "trial.mp4", "mpeg4", scene(2, (48, 64)))
    try:
        by_torchcodec(file, [1], "exact")
    except (ImportError, OSError, RuntimeError) as error:
        print(f"without torchcodec: {str(error).strip().splitlines()[0]}\n")
        return False
    return True


def times_of(file: File, folder: Path, count: int, rounds: int, torchcodec: bool) -> dict[str, float]:
    """The median seconds of each way to read ``count`` spread frames.

    Errors: ``SystemExit`` if a way gives other pixels than the first.
    """
    path = folder / f"{list(FILES.values()).index(file)}.{file.ending}"
    if not path.exists():
        write_video(path, file.codec, scene(file.frames, file.size), file.rate, file.options)
    (numbers,) = test_clips(file.frames, count, 1, "spread")
    ways = ways_to_read(file.frames, torchcodec)
    frames = {name: np.stack(read(path, numbers)) for name, read in ways.items()}
    for name, pixels in frames.items():
        if not np.array_equal(pixels, frames["from the start"]):
            raise SystemExit(f"{name} gives other pixels than decoding from the start: {file.what}")
    return medians({name: lambda read=read: read(path, numbers) for name, read in ways.items()}, rounds, "cpu", 1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.video", description=__doc__)
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES), metavar="FILE", help=", ".join(FILES))
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16], metavar="N", help="frames of a clip")
    parser.add_argument("--rounds", type=int, default=9, metavar="R", help="timed rounds")
    args = parser.parse_args()
    print(f"{machine('cpu')}, PyAV {av.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        torchcodec = torchcodec_runs(Path(folder))
        names = list(ways_to_read(1, torchcodec))
        print(f"| file | frames | {' | '.join(names)} |")
        print("|---" * (len(names) + 2) + "|", flush=True)
        for name in args.files:
            for count in args.frames:
                times = times_of(FILES[name], Path(folder), count, args.rounds, torchcodec)
                ratios = [f"{times[names[0]] / seconds:.2f}" for seconds in times.values()]
                print(f"| {FILES[name].what} | {count} of {FILES[name].frames} | {' | '.join(ratios)} |", flush=True)


if __name__ == "__main__":
    main()
