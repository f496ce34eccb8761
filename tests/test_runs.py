"""The life of a run: what it writes, what a resumed run keeps, which errors it survives, and what it refuses."""

import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from kill_and_resume import start, wait_for
from toy_run import make_dataset, quick_flags, run, run_inside

from engine.config import ConfigError, Range, coerce, load_recipe
from engine.log_reader import read_log
from engine.run_folder import locked, run_folder
from reports.accuracy import accuracy
from scripts.steps import kill_all

BEST = "resnet_rgb_model_best.pth.tar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset, a run of two epochs of two steps each, and its checkpoint after the first epoch."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder)
    train(folder, "first", lr=0.04, weight_decay=0.001, image_tmpl="{:05d}.jpg")
    shutil.copy(folder / "net_runs/first/resnet_rgb_epoch_1_checkpoint.pth.tar", folder / "one.pth.tar")
    return folder, dataset


def train(folder, name, *words, returncode=0, **flags):
    """The output of a training run of ``tsm_tiny``."""
    command = ["main.py", "small.yaml", "tsm_tiny", "--run", name, *quick_flags(**flags), *words]
    result = run_inside(*command, cwd=folder)
    assert result.returncode == returncode and "Traceback" not in result.stdout, result.stdout
    return result.stdout


def left_behind(folder):
    return {path.name for place in ("net_runs", "logs") for path in (folder / place).rglob("*")}


def error_of(output: str) -> str:
    (line,) = (line for line in output.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--global_batch_size", "64"], "add --global_batch_size 4 "),
        (["--pretrained", "nowhere.pth"], "nowhere.pth: no such weight file"),
        (["--val_crop", "64"], "val.txt:1: a crop of 64 does not fit into frames of 48x48"),
        (["--sync_bn", "true"], "sync_bn is true"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing_behind(tmp_path, flags, message):
    make_dataset(tmp_path)
    output = train(tmp_path, "never", *flags, returncode=1)
    assert message in error_of(output) and "Epoch" not in output
    assert not (tmp_path / "net_runs").exists() and not (tmp_path / "logs").exists()


def test_a_broken_validation_frame_is_found_before_the_first_epoch(tmp_path):
    make_dataset(tmp_path)
    for frame in (tmp_path / "frames/val/video 0").iterdir():
        frame.write_bytes(b"no image")
    output = train(tmp_path, "broken", returncode=1)
    assert "val.txt:1: " in error_of(output) and "is not a readable image" in output and "Epoch" not in output


def test_an_epoch_is_saved_before_its_validation(tmp_path):
    """If a frame breaks during training, the epoch is not lost: the resumed run starts with the validation."""
    make_dataset(tmp_path, per_class=8)
    frames = tmp_path / "frames/val/video 2"  # this video is not checked before training
    kept = {file: file.read_bytes() for file in frames.iterdir()}
    for file in kept:
        file.write_bytes(b"no image")
    output = train(tmp_path, "broken", "--save_every", "none", epochs=1, returncode=1)
    assert "val.txt:3: " in error_of(output) and "Epoch: [0][3/4]" in output
    for file, content in kept.items():
        file.write_bytes(content)
    output = train(tmp_path, "broken", "--resume", "auto", epochs=1)
    assert "Epoch: " not in output and "Validation Results" in output and "finished: 1 epochs" in output


def test_scores_that_are_not_finite_end_a_validation_and_make_no_best_checkpoint(tmp_path):
    make_dataset(tmp_path)
    output = train(tmp_path, "diverged", lr="1e30", global_batch_size=8, returncode=1)
    message = error_of(output)
    assert re.search(r"epoch 0: the scores of \d of 8 videos are not finite, the first val/video", message), output
    assert "Validation Results" not in output and BEST not in left_behind(tmp_path)


@pytest.mark.parametrize("video", [False, True])
def test_scores_that_are_not_finite_are_no_accuracy(trained, video):
    folder, _ = trained
    content = torch.load(folder / "net_runs/first" / BEST, weights_only=True)
    content["state_dict"]["new_fc.bias"][1] = float("nan")
    torch.save(content, folder / "nan.pth")
    weights = f"net_runs/first/{BEST},nan.pth"
    what = ["--video", "frames/val/video 1"] if video else ["small.yaml"]
    result = run_inside("test_models.py", *what, "--weights", weights, "--device", "cpu", "--workers", 0, cwd=folder)
    assert result.returncode == 1 and "Top-1" not in result.stdout, result.stdout
    assert "error: nan.pth: the scores of " in result.stdout and "are not finite" in result.stdout


def test_the_best_checkpoint_of_a_run_is_its_own(trained):
    """A run that starts from a checkpoint of another run takes its weights, but not its best accuracy."""
    folder, _ = trained
    content = torch.load(folder / "one.pth.tar", weights_only=True)
    torch.save(content | {"best_prec1": 100.0}, folder / "record.pth.tar")
    output = train(folder, "other", "--resume", "record.pth.tar", epochs=3)
    assert "the best accuracy so far (100.000) belongs to another run or list and is not kept" in output
    best = torch.load(folder / "net_runs/other" / BEST, weights_only=True)
    results = [row["val_top1"] for row in read_log(folder / "logs/other.log")]
    assert best["best_prec1"] == max(results) and best["epoch"] == 2 + results.index(max(results))


def test_another_validation_list_starts_the_record_anew(tmp_path):
    make_dataset(tmp_path)
    train(tmp_path, "run", epochs=1)
    newest = tmp_path / "net_runs/run/resnet_rgb_epoch_1_checkpoint.pth.tar"
    torch.save(torch.load(newest, weights_only=True) | {"best_prec1": 100.0}, newest)
    lines = (tmp_path / "val.txt").read_text().splitlines()
    (tmp_path / "val.txt").write_text("\n".join(lines[:-1]))
    output = train(tmp_path, "run", "--resume", "auto", epochs=2)
    assert "changed since that checkpoint: validation videos: 8 videos, crc32 " in output
    assert "the best accuracy so far (100.000) belongs to another run or list and is not kept" in output
    assert torch.load(tmp_path / "net_runs/run" / BEST, weights_only=True)["epoch"] == 2


def test_a_resumed_run_keeps_its_settings_but_for_what_the_command_line_says(trained):
    folder, _ = trained
    shorter = ["main.py", "small.yaml", "tsm_tiny", "--run", "first", "--resume", "auto", "--device", "cpu"]
    result = run_inside(*shorter, "--epochs", "3", cwd=folder)
    assert result.returncode == 0 and "finished: 3 epochs" in result.stdout, result.stdout
    changes = re.findall(r"changed since that checkpoint: (.*)", result.stdout)
    assert changes == ["epochs: 2 -> 3"]
    settings = yaml.safe_load((folder / "net_runs/first/config.yaml").read_text())
    recipe = settings["recipe"]
    assert (recipe["lr"], recipe["weight_decay"], recipe["global_batch_size"], recipe["workers"]) == (0.04, 0.001, 4, 0)
    assert settings["flags"]["image_tmpl"] == "{:05d}.jpg" and settings["flags"]["epochs"] == "3"


def test_a_checkpoint_with_the_former_names_of_settings_goes_on(trained):
    """Recipes had ``fc_lr_mult``, ``fc_bias_lr_mult``, ``sda_lr_mult`` before ``lr_mults``. Datasets had no source."""
    folder, _ = trained
    content = torch.load(folder / "one.pth.tar", weights_only=True)
    recipe, dataset = content["config"]["recipe"], content["config"]["dataset"]
    del recipe["lr_mults"], dataset["source"]
    recipe |= {"fc_lr_mult": 3.0, "fc_bias_lr_mult": 4.0, "sda_lr_mult": 5.0}  # the network has no SDA
    torch.save(content, folder / "former.pth.tar")
    output = train(folder, "goes_on", "--resume", "former.pth.tar", "--fc_bias_lr_mult", "7", epochs=2, lr=0.04)
    factors = {name: float(factor) for name, factor in re.findall(r"group: (\w+) has .* lr_mult: ([\d.]+),", output)}
    assert factors == {"weight": 1, "bn": 1, "fc_weight": 3, "fc_bias": 7}
    assert "no parameter that is trained belongs to the group sda, so its factor changes nothing" in output
    changed = "lr_mults: {'fc': 3.0, 'fc_bias': 4.0, 'sda': 5.0} -> {'fc': 3.0, 'fc_bias': 7.0, 'sda': 5.0}"
    assert re.findall(r"changed since that checkpoint: (.*)", output) == [changed]
    testing = ["test_models.py", "small.yaml", "--weights", "former.pth.tar", "--workers", 0]
    result = run_inside(*testing, cwd=folder)
    assert result.returncode == 0 and "Top-1" in result.stdout, result.stdout
    recipe["fc_lr_mult"] = "abc"
    torch.save(content, folder / "former.pth.tar")
    result = run_inside(*testing, cwd=folder)
    assert result.returncode == 1 and "error: former.pth.tar: lr_mults: 'fc' is 'abc', not a number" in result.stdout


def test_places_given_at_the_start_are_kept(tmp_path):
    make_dataset(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/small.yaml").rename(tmp_path / "small.yaml")  # the folders that it names are not here
    places = [
        word
        for key, value in (("root", "frames"), ("train_list", "train.txt"), ("val_list", "val.txt"))
        for word in (f"--{key}", f"elsewhere/{value}")
    ]
    train(tmp_path, "away", *places, epochs=1)
    output = train(tmp_path, "away", "--resume", "auto", epochs=2)
    assert "Epoch: [1][1/2]" in output and re.findall(r"changed since that checkpoint: (.*)", output) == [
        "epochs: 1 -> 2"
    ]


def test_a_variant_is_kept_and_another_one_wins(monkeypatch):
    """The order is recipe file, kept values, variant, flags. Later values override earlier ones."""
    kept = {"lr": 0.5, "dropout": 0.1}
    assert load_recipe("rsanet_r50", "something_v1", None, kept).lr == 0.5
    script = load_recipe("rsanet_r50", "something_v1", "script_v1", kept, lr=0.7)
    assert (script.lr, script.dropout, script.epochs) == (0.7, 0.3, 50)


def test_a_mistyped_name_is_said(trained):
    folder, _ = trained
    output = train(folder, "frist", "--resume", "auto", epochs=1)
    assert "run frist has no checkpoint yet and starts from the beginning; did you mean the run first?" in output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"global_batch_size": 2}, "global_batch_size: 4 -> 2"),
        ({"seed": 5}, "seed: 0 -> 5"),
        ("list", "training videos: 16 videos, crc32 "),
    ],
)
def test_an_epoch_whose_steps_would_be_others_starts_again(tmp_path, change, said):
    make_dataset(tmp_path, per_class=8)
    stopped = start(tmp_path, "run", 2, save_every=1, global_batch_size=4, print_every=1)
    wait_for(stopped, "Epoch: [0][1/4]")
    os.kill(stopped.pid, signal.SIGTERM)
    assert stopped.wait(timeout=60) == 75
    if change == "list":
        lines = (tmp_path / "train.txt").read_text().splitlines()
        (tmp_path / "train.txt").write_text("\n".join(lines[:-1]))
        change = {}
    resume = ["main.py", "small.yaml", "tsm_tiny", "--run", "run", "--resume", "auto", "--device", "cpu"]
    words = [word for key, value in change.items() for word in (f"--{key}", value)]
    result = run_inside(*resume, *words, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert f"changed since that checkpoint: {said}" in result.stdout
    assert re.search(r"epoch 0 starts again, because .* changed: .* finished steps are seen twice", result.stdout)
    assert "Epoch: [0][0/" in result.stdout


def test_another_number_of_processes_is_said(trained):
    folder, _ = trained
    command = ["main.py", "small.yaml", "tsm_tiny", "--run", "two", "--resume", "one.pth.tar", *quick_flags()]
    result = run(*command, cwd=folder, processes=2)
    assert result.returncode == 0 and "changed since that checkpoint: processes: 1 -> 2" in result.stdout, result.stdout


def test_a_second_run_of_the_name_is_refused_and_the_first_goes_on(tmp_path):
    make_dataset(tmp_path)
    first = start(tmp_path, "mine", 40)
    wait_for(first, "Epoch: ")
    second = start(tmp_path, "mine", 40)
    output = second.communicate(timeout=60)[0]
    assert second.returncode == 1 and first.poll() is None, output
    assert re.search(rf"error: run mine is being trained by another process \(process {first.pid} on ", output)
    kill_all(first.pid)
    first.communicate()
    third = start(tmp_path, "mine", 1)  # the killed process left no lock
    output = third.communicate(timeout=60)[0]
    assert third.returncode == 0, output
    assert {path.name for path in (tmp_path / "net_runs").iterdir()} == {"mine"}


def test_a_lock_is_for_one_process_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = (
        "import sys\nfrom engine.run_folder import locked, run_folder\n"
        "with locked(run_folder('a/b')):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen([sys.executable, "-c", other], env=environment, text=True, **pipes)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(ConfigError, match=rf"run b is being trained .* \(process {holder.pid} "),
        locked(run_folder("a/b")),
    ):
        pass
    holder.communicate()
    with locked(run_folder("a/b")):
        assert (tmp_path / "net_runs/a/.b.lock").exists()
    assert not (tmp_path / "net_runs").exists()


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "", ".", "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="give a plain name"):
        run_folder(name)


@pytest.mark.parametrize("processes", [1, 2])
def test_bad_training_videos_are_left_out_named_and_counted(tmp_path, processes):
    """One broken video of 101 is left out. More than 1 % broken videos are an error."""
    make_dataset(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    absolute = [f"{tmp_path}/frames/{line}" for line in lines]
    many = [line.replace("/frames/", f"/frames/{'./' * (k // 8)}") for k in range(101) for line in [absolute[k % 8]]]
    (tmp_path / "train.txt").write_text("\n".join([*many[:100], "train/gone 24 0"]))
    flags = quick_flags(epochs=1, global_batch_size=2 * processes, on_bad_video="skip", print_every=100)
    command = ["main.py", "small.yaml", "sda_tsm_tiny", "--run", "skip", *flags]
    result = run(*command, cwd=tmp_path, processes=processes)
    assert result.returncode == 0, result.stdout
    if "left out: train/gone" in result.stdout:  # an epoch of whole batches does not use all 101 videos
        assert "epoch 0: trained WITHOUT 1 bad videos: train/gone" in result.stdout
    (tmp_path / "train.txt").write_text("\n".join([*many[:60], *(f"train/gone{k} 24 0" for k in range(40))]))
    command[command.index("skip")] = "stop"
    result = run(*command, cwd=tmp_path, processes=processes)
    assert result.returncode == 1 and result.stdout.count("error: epoch 0: ") == 1, result.stdout
    assert re.search(r"error: epoch 0: \d of 100 videos cannot be read, more than 1%: train/gone", result.stdout)


def test_a_forward_pass_of_one_clip_of_sda_is_refused_in_one_line(tmp_path):
    make_dataset(tmp_path)
    flags = quick_flags(batch_size=1)
    result = run_inside("main.py", "small.yaml", "sda_tsm_tiny", "--run", "one", *flags, cwd=tmp_path)
    assert result.returncode == 1 and "Traceback" not in result.stdout
    assert "error: a forward pass of one clip leaves a batch norm" in result.stdout


def test_bad_validation_videos_are_left_out_if_asked(tmp_path):
    make_dataset(tmp_path)
    lines = (tmp_path / "val.txt").read_text().splitlines()
    (tmp_path / "val.txt").write_text("\n".join([*lines[:7], "val/gone 24 1"]))
    output = train(tmp_path, "skip", "--on_bad_video", "skip", epochs=1)
    assert "epoch 0: validation WITHOUT 1 of 8 videos: val.txt:8: no folder" in output
    assert "Validation Results" in output


def test_odd_lists_are_said_or_must_be_allowed(tmp_path):
    make_dataset(tmp_path)
    train_list, val_list = tmp_path / "train.txt", tmp_path / "val.txt"
    lines = train_list.read_text().splitlines()
    train_list.write_text("\n".join([*lines, lines[0]]))
    assert "train.txt: 1 line repeats a video under the same label" in train(tmp_path, "twice", epochs=1)
    train_list.write_text("\n".join([*lines, lines[0][:-1] + "1"]))
    assert "allow it with --allow_two_labels" in error_of(train(tmp_path, "two", returncode=1))
    assert "another label than an earlier line" in train(tmp_path, "two", "--allow_two_labels", epochs=1)
    train_list.write_text("\n".join(lines))
    val_list.write_text(val_list.read_text() + lines[3] + "\n")
    assert "allow it with --allow_overlap" in error_of(train(tmp_path, "both", returncode=1))
    train(tmp_path, "both", "--allow_overlap", epochs=1)
    assert "is a training video too" in train(tmp_path, "both", "--resume", "auto", epochs=2)  # still allowed


DEGENERATE = {"ema_decay": 1, "clip_gradient": 0, "lr": 0, "dropout": 1, "label_smoothing": 1, "stochastic_depth": 1}
SLIPS = {"seed": 2**32, "input_size": 100_000, "num_segments": 10**9, "lr": float("inf"), "workers": 10**6}


@pytest.mark.parametrize(("key", "value"), [*DEGENERATE.items(), *SLIPS.items(), ("epochs", 10**400)])
def test_degenerate_settings_are_refused_with_their_range(key, value):
    with pytest.raises(ConfigError, match=rf"^{key} is .*; it must be (at least|above) "):
        coerce(key, value)


def test_ranges_in_words():
    assert str(Range(0, 1, open_high=True)) == "at least 0 and below 1" and str(Range(1)) == "at least 1"
    assert str(Range(0, open_low=True)) == "above 0" and str(Range(1, 1_000_000)) == "at least 1 and at most 1000000"
    assert 1 not in Range(0, 1, open_high=True) and 1 in Range(0, 1) and 0 not in Range(0, open_low=True)


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match="nesterov is true and momentum 0"):
        load_recipe("rsanet_r50", "something_v1", momentum=0)


def test_prec5_of_five_classes_is_not_defined():
    labels = np.arange(5)
    assert np.isnan(accuracy(np.eye(5, dtype=np.float32), labels)["top5"])
    assert accuracy(np.eye(6, dtype=np.float32), np.arange(6))["top5"] == 100
