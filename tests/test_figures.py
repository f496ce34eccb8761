"""The pictures of figs/: every program draws, what it draws is right, and scripts/make_figures.sh draws all of them."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch
from checkout import copy_repository, run_script, shorten
from PIL import Image
from torch import nn
from toy_run import ROOT, make_dataset, quick_flags, run, run_inside

from data import toy
from figs.draw_classes import SEEDS, pair
from figs.draw_dependencies import branch_weights
from figs.draw_gradcam import PAIR, grad_cam, overlay
from figs.draw_toy import film
from figs.picture import two_lines
from figs.trained import load_trained
from models import build_model

DRAWN = sorted(path.stem.removeprefix("draw_") for path in (ROOT / "figs").glob("draw_*.py"))
BEST = "resnet_rgb_model_best.pth.tar"


def check_picture(file):
    """A picture is opaque and light at its edges. README would otherwise show it badly on dark pages."""
    with Image.open(file) as picture:
        assert 1300 <= picture.width <= 2000 and picture.height > 400
        pixels = np.asarray(picture.convert("RGBA"))
    assert (pixels[..., 3] == 255).all() and (pixels[[0, -1]] == 255).all()
    assert len(np.unique(pixels)) > 20


@pytest.mark.parametrize("name", DRAWN)
def test_every_drawing_program_has_its_picture(name):
    """The committed pictures are small, because a checkout holds all of them."""
    file = ROOT / "figs" / f"{name}.png"
    check_picture(file)
    assert file.stat().st_size < 300_000


def test_every_picture_has_its_program():
    assert sorted(path.stem for path in (ROOT / "figs").glob("*.png")) == DRAWN


@pytest.mark.parametrize("name", ["rsa", "sda", "classes", "toy", "memory"])
def test_a_picture_is_drawn(tmp_path, name):
    result = run_inside(f"figs/draw_{name}.py", "--out", tmp_path / f"{name}.png", cwd=ROOT)
    assert result.returncode == 0 and result.stdout == f"{tmp_path / name}.png\n", result.stdout
    check_picture(tmp_path / f"{name}.png")


@pytest.mark.parametrize("place", ["no_folder/m.png", "m.bmp2"])
def test_a_picture_that_cannot_be_written_is_one_line(tmp_path, place):
    result = run_inside("figs/draw_memory.py", "--out", tmp_path / place, cwd=ROOT)
    reported = rf"error: \S+{place}: cannot be written \(.*\); choose another --out\n"
    assert result.returncode == 1 and re.fullmatch(reported, result.stdout), result.stdout


def test_without_matplotlib_the_error_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run_inside("figs/draw_rsa.py", cwd=ROOT)
    expected = "error: drawing needs matplotlib; pip install matplotlib\n"
    assert (result.returncode, result.stdout) == (1, expected)


@pytest.mark.parametrize("name, model", [("dependencies", "sda_tsm_tiny"), ("gradcam", "tsn_tiny")])
def test_missing_weights_are_reported_with_the_command_that_trains_them(tmp_path, name, model):
    result = run_inside(f"figs/draw_{name}.py", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (
        1,
        f"error: no weights net_runs/figures_{model}/{BEST}; train them with "
        f"'python main.py toy_something {model} --run figures_{model}'\n",
    )


def test_all_classes_are_shown_and_pairs_are_reversed():
    names = [name for motion in SEEDS for name in pair(motion)]
    assert sorted(names) == sorted(toy.MOTIONS)
    for motion, seed in SEEDS.items():
        there, back = (film(name, seed) for name in pair(motion))
        assert there.shape == (8, toy.SIZE, toy.SIZE, 3)
        assert (there[0] == back[-1]).all() and (there[-1] == back[0]).all() and (there[0] != back[0]).any()


def test_long_names_stand_in_two_lines():
    assert two_lines("Moving something from left to right") == "Moving something\nfrom left to right"
    assert two_lines("Turning something counterclockwise") == "Turning something\ncounterclockwise"
    assert two_lines("jump") == "jump"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset of two classes, and a run of each of the networks that pictures show."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder, per_class=2, names=list(PAIR))
    for model in ("tsn_tiny", "sda_tsm_tiny"):
        result = run("main.py", dataset, model, "--run", model, *quick_flags(epochs=1), cwd=folder)
        assert result.returncode == 0, result.stdout
    return folder, dataset


def test_dependencies_are_drawn(trained, tmp_path):
    folder, dataset = trained
    file = folder / "net_runs" / "sda_tsm_tiny" / BEST
    words = ["--dataset", dataset, "--out", tmp_path / "d.png"]
    result = run_inside("figs/draw_dependencies.py", "--weights", file, *words, cwd=ROOT)
    assert result.returncode == 0 and result.stdout.endswith("d.png\n"), result.stdout
    with Image.open(tmp_path / "d.png") as picture:
        assert picture.width == 1440
    result = run_inside("figs/draw_dependencies.py", "--weights", folder / "net_runs/tsn_tiny" / BEST, *words, cwd=ROOT)
    assert result.returncode == 1 and "tsn_tiny has no SDA that weights its branches" in result.stdout


def test_branch_weights_are_those_of_the_network(trained):
    """Means over the blocks of a stage, for each video of the list."""
    folder, dataset = trained
    member, videos = load_trained(folder / "net_runs" / "sda_tsm_tiny" / BEST, "sda_tsm_tiny", str(dataset))
    branches, weights, labels = branch_weights(member.model, videos)
    assert branches == ["LST", "LT", "LS", "S122"] and list(weights) == [0, 1, 2]
    assert labels.tolist() == [video.label for video in videos.videos]
    seen = []
    for _, _, block in member.model.blocks():
        block.sda.agg.register_forward_hook(lambda agg, inputs, output: seen.append(agg.weights(*inputs)))
    with torch.no_grad():
        member.model(videos.modality.normalise(videos.views(3)))
    for stage, alpha in weights.items():
        assert alpha.shape == (len(labels), 4)
        torch.testing.assert_close(alpha.sum(1), torch.ones(len(labels)))
        torch.testing.assert_close(alpha[3], (seen[2 * stage][0] + seen[2 * stage + 1][0]) / 2)
    assert all(len(block.sda.agg._forward_hooks) == 1 for _, _, block in member.model.blocks())  # that of this test


def test_an_unreadable_video_is_one_line(trained, tmp_path):
    folder, dataset = trained
    copied = shutil.copytree(folder / "frames", tmp_path / "frames")
    for frame in (copied / "val" / "video 3").iterdir():
        frame.write_bytes(b"no image")
    for name in ("train.txt", "val.txt", dataset.name):
        shutil.copy(folder / name, tmp_path)
    words = ["--weights", folder / "net_runs/sda_tsm_tiny" / BEST, "--dataset", tmp_path / dataset.name]
    result = run("figs/draw_dependencies.py", *words, "--out", tmp_path / "d.png", cwd=ROOT)
    assert result.returncode == 1 and result.stdout.startswith("error: ") and result.stdout.count("\n") == 1
    assert "val.txt:4" in result.stdout


def test_clips_that_sda_sees_in_parts_count_as_one(trained):
    _, dataset = trained
    _, videos = load_trained(trained[0] / "net_runs" / "sda_tsm_tiny" / BEST, "sda_tsm_tiny", str(dataset))
    model = build_model("sda_tsm_tiny", 2, 4, sda_segments=2).eval()
    _, weights, labels = branch_weights(model, videos)
    assert weights[0].shape == (len(labels), 4)


def test_grad_cam_is_drawn(trained, tmp_path):
    folder, dataset = trained
    files = [folder / "net_runs" / model / BEST for model in ("tsn_tiny", "sda_tsm_tiny")]
    words = ["--weights", *files, "--out", tmp_path / "g.png"]
    result = run_inside("figs/draw_gradcam.py", *words, "--dataset", dataset, cwd=ROOT)
    assert result.returncode == 0 and result.stdout.endswith("g.png\n"), result.stdout
    check_picture(tmp_path / "g.png")


def test_grad_cam_of_a_linear_head():
    """If the logit is the mean of w_kc A_c over frames and positions, a_c is w_kc / (T h w)."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 5, 1)
            self.head = nn.Linear(5, 2)

        def forward(self, clips):
            return self.head(self.layer(clips.flatten(0, 1)).mean((2, 3))).unflatten(0, (-1, 4)).mean(1)

    torch.manual_seed(0)
    network, clip = Network(), torch.randn(1, 4, 3, 6, 7)
    maps, logits = grad_cam(network, clip, network.layer, 1)
    features = network.layer(clip[0])
    expected = torch.einsum("c,tchw->thw", network.head.weight[1], features).relu() / (4 * 6 * 7)
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(logits, network(clip)[0])
    assert maps.shape == (4, 6, 7) and (maps == 0).any() and not network.layer._forward_hooks


def test_heat_lies_where_the_map_is_large():
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    maps = torch.zeros(2, 2, 2)
    assert (overlay(frames, maps) == 100).all()
    maps[1, 0, 1] = 5
    drawn = overlay(frames, maps)
    assert (drawn[0] == 100).all() and (drawn[1, :, 0] == 100).all() and drawn[1, 0, 7, 0] > 180


def test_make_figures_draws_everything(tmp_path):
    """Without set-up, with short recipes, it trains and draws. A second call draws without training."""
    copy_repository(tmp_path, list(PAIR))
    shorten(tmp_path, ("rsanet_tiny", "sda_tsm_tiny", "tsn_tiny"), list(PAIR), fresh=False)
    for name in DRAWN:
        (tmp_path / "figs" / f"{name}.png").unlink()
    first = run_script(tmp_path, "make_figures.sh")
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-2000:]
    assert first.stdout.count("Epoch: [0][0/1]") == 3
    assert sorted(path.stem for path in (tmp_path / "figs").glob("*.png")) == DRAWN
    for name in set(DRAWN) - {"memory"}:
        (tmp_path / "figs" / f"draw_{name}.py").unlink()  # drawn once is enough
    second = run_script(tmp_path, "make_figures.sh")
    assert second.returncode == 0 and "Epoch: [" not in second.stdout and "finished: 1 epochs" in second.stdout
    assert second.stdout.splitlines()[-1] == "figs/memory.png"
