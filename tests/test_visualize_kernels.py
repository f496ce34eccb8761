"""``scripts.visualize_kernels`` and ``figs.draw_kernels``: what they compute, what they draw, and what they refuse."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from PIL import Image
from toy_run import NAMES, run_inside

from data import open_one_video, toy
from data.sampling import FrameOrder
from data.transforms import normalise
from models import build_model
from scripts.rsa_layers import LayerKernels, Seen, look, open_network, rsa_layers
from scripts.visualize_kernels import box, chosen_heads, draw

LAYERS = ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2"]


def save(file: Path, name: str = "rsanet_tiny", frames: int = 8, **options: object) -> Path:
    """A checkpoint as main.py writes it, with random weights. No layer is hidden by a gamma of zero."""
    torch.manual_seed(0)
    model = build_model(name, 2, frames, **options)
    for key, weight in model.state_dict().items():
        if key.endswith("bn3.weight"):
            weight.fill_(1)
    recipe = {"num_segments": frames, "model_options": options}
    config = {"model": name, "recipe": recipe, "dataset": {"categories": NAMES}}
    torch.save({"state_dict": model.state_dict(), "arch": name, "config": config}, file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and a video as a folder and as a file."""
    folder = tmp_path_factory.mktemp("kernels")
    save(folder / "net.pth")
    save(folder / "tsn.pth", "tsn_tiny")
    save(folder / "basic.pth", kernel_type="V")
    for name in ("clip", "large"):
        (folder / name).mkdir()
    Image.new("RGB", (100, 200)).save(folder / "large" / "1.png")
    frames = toy.draw_video(NAMES[0], np.random.default_rng(0))
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.width = stream.height = toy.SIZE
        for number, frame in enumerate(frames, 1):
            frame.save(folder / "clip" / f"{number}.png")
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    return folder


def visualize(folder: Path, *words: object):
    return run_inside("scripts/visualize_kernels.py", *words, "--device", "cpu", cwd=folder)


@pytest.mark.parametrize("clip", ["clip", "clip.mp4"])
def test_a_picture_of_a_folder_and_of_a_file(folder, clip):
    out = folder / f"{clip}.png"
    result = visualize(folder, "net.pth", clip, "--position", "10,20", "--position", "40,8", "--out", out)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith(f"{out}: frame 4 of 8, layers {', '.join(LAYERS)}\n")
    with Image.open(out) as picture:
        assert picture.width == 1800 and picture.height > 1500  # 9 inches, and two blocks of four rows
        pixels = np.asarray(picture.convert("RGBA"))
    assert (pixels[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # opaque white
    assert len(np.unique(pixels.view(np.uint32))) > 50


def test_look_gives_the_kernels_of_the_layers_inputs(folder):
    """The places in pixels become cells of each layer. Weights outside of the clip are NaN."""
    member = open_network(str(folder / "net.pth"))
    places = [(0, 3, 45), (4, 24, 24)]
    seen = look(member, str(folder / "clip"), places)
    video, source, _ = open_one_video(folder / "clip")
    numbers = [int(video.num_frames / 16 + video.num_frames / 8 * k) + 1 for k in range(8)]
    frames = np.stack(source.frames(video, numbers))
    np.testing.assert_array_equal(seen.frames, frames)
    inputs, layers = {}, rsa_layers(member.model)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.setdefault(name, args[0]))
    with torch.no_grad():
        logits = member.model(normalise(torch.from_numpy(frames).movedim(-1, 1))[None])
        share, label = logits.softmax(1)[0].max(0)
        assert seen.answer == f"{NAMES[label]} ({100 * share:.0f} %)"
        assert [layer.name for layer in seen.layers] == [*layers] == LAYERS
        for found, size in zip(seen.layers, (12, 6, 3), strict=True):
            assert found.cell == (48 / size, 48 / size) and found.kernels.shape == (2, 8, 5, 7, 7)
            whole = layers[found.name].kernels(inputs[found.name])[0]  # (L, T, H, W, kT, kH, kW)
            for kernels, (t, y, x) in zip(found.kernels, places, strict=True):
                y, x = y * size // 48, x * size // 48
                for i, j, m in np.ndindex(5, 7, 7):
                    inside = 0 <= t + i - 2 < 8 and 0 <= y + j - 3 < size and 0 <= x + m - 3 < size
                    expected = whole[:, t, y, x, i, j, m].numpy() if inside else np.full(8, np.nan)
                    np.testing.assert_allclose(kernels[:, i, j, m], expected, rtol=1e-4, atol=1e-6)


def test_look_takes_parts_layers_and_orders(folder):
    """The basic kernel of the first layer depends on the position's frame alone, unlike the relational kernel."""
    member, clip = open_network(str(folder / "net.pth")), str(folder / "clip")
    parts = [look(member, clip, [(3, 9, 9)], part).layers[1].kernels for part in ("V", "R", None)]
    np.testing.assert_allclose(parts[0] + parts[1], parts[2], rtol=1e-4, atol=1e-6)
    (only,) = look(member, clip, [(3, 9, 9)], names=[LAYERS[2]]).layers
    assert only.name == LAYERS[2]
    for part, same in (("V", True), ("R", False)):
        forwards, backwards = (
            look(member, clip, [(t, 24, 24)], part, order=order).layers[0].kernels
            for t, order in ((3, FrameOrder("as it is")), (4, FrameOrder("reverse")))
        )
        assert np.allclose(forwards, backwards, rtol=1e-4, atol=1e-7) == same
    assert not any(module._forward_pre_hooks for module in member.model.modules())


def made_up(kernels: np.ndarray, frames: int = 8, place: tuple[int, int, int] = (2, 4, 4)) -> Seen:
    pixels = np.full((frames, 16, 16, 3), 128, np.uint8)
    return Seen(pixels, [place], [LayerKernels("layer1.0.conv2", (2.0, 2.0), kernels)], "nothing (50 %)")


def images(figure) -> list[tuple[np.ndarray, float]]:
    """The weights (kH, kW) of each square of the figure, from the top left, and its place from the left in inches."""
    axes = [a for a in figure.axes if a.images and a.images[0].get_array().shape == (3, 5)]
    axes.sort(key=lambda a: (-a.get_position().y0, a.get_position().x0))
    return [(a.images[0].get_array().data, a.get_position().x0 * 9) for a in axes]


@pytest.mark.parametrize(("t", "columns"), [(0, [0, 1]), (2, [1, 2, 3]), (7, [6, 7])])
def test_a_slice_of_the_kernel_is_below_the_frame_that_it_looks_at(t, columns):
    kernels = np.random.default_rng(0).standard_normal((1, 2, 3, 3, 5))
    figure = draw(pyplot, made_up(kernels, place=(t, 4, 4)), "title", 2)
    numbers = {text.get_text(): text.get_position()[0] * 9 for text in figure.texts}
    shown = images(figure)
    assert len(shown) == len(columns)
    for (weights, left), k in zip(shown, columns, strict=True):
        np.testing.assert_array_equal(weights, kernels[0, 1, k - t + 1])
        assert 0 < numbers[f"frame {k + 1}"] - left < 0.5
    limits = {a.images[0].get_clim() for a in figure.axes if a.images and a.images[0].get_array().shape == (3, 5)}
    assert limits == {(-np.abs(kernels).max(), np.abs(kernels).max())}  # the same for all heads
    pyplot.close(figure)


def test_long_clips_show_the_frames_around_the_position():
    for t, first in ((0, 1), (8, 5), (15, 8)):
        figure = draw(pyplot, made_up(np.ones((1, 1, 3, 3, 5)), 16, (t, 4, 4)), "title")
        numbers = [text.get_text() for text in figure.texts if text.get_text().startswith("frame ")]
        assert numbers == [f"frame {k}" for k in range(first, first + 9)]
        pyplot.close(figure)


def test_heads():
    kernels = np.random.default_rng(0).standard_normal((2, 3, 3, 3, 5))
    kernels[1, 2] *= 5
    kernels[1, :, 0] = np.nan
    layer = LayerKernels("layer1.0.conv2", (2.0, 2.0), kernels)
    ((name, kernel),) = chosen_heads(layer, 1, None)
    assert name == "head 3 of 3, the strongest" and kernel is not None
    np.testing.assert_array_equal(kernel, kernels[1, 2])
    ((name, kernel),) = chosen_heads(layer, 1, 1)
    assert name == "head 1 of 3"
    np.testing.assert_array_equal(kernel, kernels[1, 0])
    ((name, kernel),) = chosen_heads(layer, 0, "mean")
    assert name == "mean of 3 heads"
    np.testing.assert_allclose(kernel, kernels[0].mean(0))
    assert [name for name, _ in chosen_heads(layer, 0, "all")] == ["head 1 of 3", "head 2 of 3", "head 3 of 3"]
    assert layer.limit == np.nanmax(np.abs(kernels))


def test_a_box_holds_the_cells_that_the_kernel_covers():
    """Of 16 px in cells of 2 px, a 3x5 kernel at pixel 5,9 (cell 2,4) covers the cells 1 to 3 and 2 to 6."""
    figure, axes = pyplot.subplots()
    axes.imshow(np.zeros((16, 16)))
    box(axes, LayerKernels("x", (2.0, 2.0), np.ones((1, 1, 3, 3, 5))), 5, 9)
    x, y = axes.lines[0].get_data()
    assert (min(y), max(y), min(x), max(x)) == (1.5, 7.5, 3.5, 13.5)
    assert axes.get_xlim() == (-0.5, 15.5) and axes.get_ylim() == (15.5, -0.5)
    pyplot.close(figure)


ERRORS = {
    "net.pth clip --position 48,3": "--position 48,3 is outside of the frame, because the network sees 48x48 px; "
    "choose y and x from 0 to 47",
    "net.pth clip --position 5": "--position 5 must be two whole numbers y,x, such as 24,24",
    "net.pth clip --position 0.5,0.5": "--position 0.5,0.5 must be two whole numbers y,x, such as 24,24",
    "net.pth clip --frame 9": "--frame 9 must be a number from 1 to 8",
    "net.pth clip --frame 0": "--frame 0 must be a number from 1 to 8",
    "net.pth clip --head 9": "--head 9 must be a number from 1 to 8, all or mean",
    "net.pth clip --layer res2": f"--layer res2: no such RSA layer; this network has {', '.join(LAYERS)}",
    "net.pth clip --out k.bmp": "--out k.bmp: its ending tells the format; choose one of .png, .pdf, .svg",
    "net.pth clip --out none/k.png": "[Errno 2] No such file or directory: 'none/k.png'",
    "net.pth clip --resize 1x": "size '1x' is neither a short side such as 256 nor HxW such as 240x320",
    "net.pth none": "none: no such file or folder",
    "net.pth net.pth": "net.pth: cannot be ",
    "net.pth large": "large: its frames are 200x100, and without a resize net.pth would see a crop of 48 only; add "
    "--resize 48",
    "tsn.pth clip": "tsn.pth: tsn_tiny has no RSA layer; give the weights of a network with RSA, such as rsanet_r50",
    "basic.pth clip --part R": "--part R: layer1.1.conv2: part='R', but kernel_type is 'V'; choose V, or leave part "
    "out",
    "none.pth clip": "none.pth: ",
}


@pytest.mark.parametrize("words", ERRORS)
def test_errors_are_one_line(folder, words):
    result = visualize(folder, *words.split(), *([] if "--out" in words else ["--out", "error.png"]))
    lines = [line for line in result.stdout.splitlines() if "[INFO]" not in line]
    assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith(f"error: {ERRORS[words]}"), result.stdout
    assert not (folder / "error.png").exists()


def test_a_large_video_with_resize_and_a_file_that_says_nothing(folder):
    state = torch.load(folder / "net.pth", weights_only=True)["state_dict"]
    torch.save(state, folder / "state.pth")
    words = ["large", "--resize", "48", "--head", "all", "--layer", LAYERS[0], "--out", "state.pdf"]
    result = visualize(folder, "state.pth", *words)
    assert (
        result.returncode == 1
        and "error: state.pth: does not say which model it holds; name it with --model" in result.stdout
    )
    result = visualize(folder, "state.pth", *words, "--model", "rsanet_tiny", "--num_segments", "8", "--frame", "1")
    assert result.returncode == 0 and (folder / "state.pdf").stat().st_size > 1000, result.stdout


def test_matplotlib_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for program, words in (("scripts/visualize_kernels.py", ["net.pth", "clip"]), ("figs/draw_kernels.py", [])):
        result = run_inside(program, *words, cwd=folder)
        assert result.returncode == 1
        assert result.stdout == "error: drawing needs matplotlib; pip install matplotlib\n"


def test_the_figure(folder):
    result = run_inside(
        "figs/draw_kernels.py", "--weights", folder / "net.pth", "--out", folder / "figure.png", cwd=folder
    )
    assert result.returncode == 0 and result.stdout.endswith(f"{folder / 'figure.png'}\n"), result.stdout
    with Image.open(folder / "figure.png") as picture:
        assert picture.width == 1800 and np.asarray(picture.convert("RGB"))[0, 0].tolist() == [255, 255, 255]
    result = run_inside("figs/draw_kernels.py", cwd=folder)
    assert result.returncode == 1 and result.stdout == (
        "error: no weights net_runs/figures_rsanet_tiny/resnet_rgb_model_best.pth.tar; train them with "
        "'python main.py toy_something rsanet_tiny --run figures_rsanet_tiny'\n"
    )
