"""main.py and test_models.py from the command line: files, log lines, resume, processes, views, errors."""

import re

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from toy_run import make_dataset, quick_flags, run, run_inside

from data import EvalDataset, TrainDataset, load_dataset_config, read_list
from data.transforms import normalise
from engine.log_reader import read_log
from models import build_model, load_weights

# Prec@5 of two classes is not defined.
EPOCH_LINE = re.compile(
    r"\[\d\d/\d\d \d\d:\d\d:\d\d\]\[INFO\] main\.py: +\d+: Epoch: \[\d+\]\[\d+/\d+\], lr: \d\.\d{5}\t"
    r"Time \d+\.\d{3} \(\d+\.\d{3}\)\tData \d+\.\d{3} \(\d+\.\d{3}\)\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\t"
    r"Prec@1 \d+\.\d{3} \(\d+\.\d{3}\)\tPrec@5 nan \(nan\)\tSpeed \d+\.\d{3} V/s \(\d+\.\d{4}\) V/s"
)
VAL_LINE = re.compile(
    r"\[INFO\] main\.py: +\d+: Val: \[\d+/\d+\]\tTime \d+\.\d{3} \(\d+\.\d{4}\)\tLoss \d+\.\d{4} \(\d+\.\d{4}\)\t"
    r"Prec@1 \d+\.\d{3} \(\d+\.\d{3}\)\tPrec@5 nan \(nan\)"
)
RESULT_LINE = re.compile(r"Validation Results: (Prec@1 \d+\.\d{3} Prec@5 nan Loss \d+\.\d{5}) Time \S+ Speed \S+ V/s")
CHANCE = {"dropout": 0.5, "stochastic_depth": 0.5}  # a resumed run must draw the same values
BEST = "resnet_rgb_model_best.pth.tar"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset and a run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder)
    result = run("main.py", dataset, "tsm_tiny", "--run", "first", *quick_flags(**CHANCE), cwd=folder, fresh=True)
    assert result.returncode == 0, result.stdout
    return folder, dataset, result.stdout


def test_a_run_leaves_what_the_interface_says(trained):
    folder, _, output = trained
    run_folder = folder / "net_runs" / "first"
    assert {path.name for path in run_folder.iterdir()} == {
        "config.yaml",
        "resnet_rgb_epoch_1_checkpoint.pth.tar",
        "resnet_rgb_epoch_2_checkpoint.pth.tar",
        BEST,
        "tensorboard",
    }
    assert any((run_folder / "tensorboard").iterdir())
    checkpoint = torch.load(run_folder / "resnet_rgb_epoch_2_checkpoint.pth.tar", weights_only=True)
    assert {"epoch", "arch", "state_dict", "best_prec1", "optimizer", "config"} <= set(checkpoint)
    assert checkpoint["epoch"] == 2 and checkpoint["arch"] == "tsm_tiny"
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    assert config == checkpoint["config"] and config["recipe"]["epochs"] == 2 and config["recipe"]["lr"] == 0.05
    log = (folder / "logs" / "first.log").read_text()
    assert log in output + "\n" and "flip: none" in log


def test_log_lines_have_the_published_form(trained):
    folder, _, output = trained
    lines = output.splitlines()
    for form, count in ((EPOCH_LINE, 4), (VAL_LINE, 2), (RESULT_LINE, 2)):  # first and last step of each epoch
        assert sum(bool(form.search(line)) for line in lines) == count, output
    assert len(re.findall(r"Class Accuracy \d+\.\d\d%", output)) == 2
    rows = read_log(folder / "logs" / "first.log")
    assert [row["epoch"] for row in rows] == [0, 1]
    assert {"lr", "loss", "top1", "top5", "val_top1", "val_top5", "val_loss", "class_accuracy"} <= set(rows[1])


def results(output: str) -> list[str]:
    return [match[1] for match in RESULT_LINE.finditer(output)]


def test_a_resumed_run_ends_as_an_undisturbed_one(trained):
    folder, dataset, output = trained
    flags = quick_flags(**CHANCE)
    again = run_inside("main.py", dataset, "tsm_tiny", "--run", "first", *flags, cwd=folder)
    assert again.returncode == 1 and "run first exists" in again.stdout and "--resume auto" in again.stdout

    # The second epoch again, in another run that starts from the checkpoint of the first epoch.
    first = folder / "net_runs" / "first" / "resnet_rgb_epoch_1_checkpoint.pth.tar"
    resumed = run("main.py", dataset, "tsm_tiny", "--run", "resumed", "--resume", first, *flags, cwd=folder)
    assert results(resumed.stdout) == results(output)[1:], resumed.stdout
    files = (folder / "net_runs" / name / "resnet_rgb_epoch_2_checkpoint.pth.tar" for name in ("first", "resumed"))
    a, b = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert all(torch.equal(a[key], b[key]) for key in a)

    finished = run_inside("main.py", dataset, "tsm_tiny", "--run", "first", "--resume", "auto", *flags, cwd=folder)
    assert finished.returncode == 0 and ": 2 epochs done, best" in finished.stdout and "Epoch:" not in finished.stdout
    settings, log = folder / "net_runs/first/config.yaml", folder / "logs/first.log"
    before = settings.read_text(), log.read_text()
    other = run_inside("main.py", dataset, "tsn_tiny", "--run", "first", "--resume", "auto", *flags, cwd=folder)
    assert other.returncode == 1 and "is a run of tsm_tiny, not of tsn_tiny" in other.stdout
    back = run_inside("main.py", dataset, "tsm_tiny", "--run", "first", "--resume", first, *flags, cwd=folder)
    assert back.returncode == 1 and "run first already goes on to" in back.stdout
    assert (settings.read_text(), log.read_text()) == before


def test_every_epoch_shuffles_and_draws_anew(tmp_path, monkeypatch):
    seen = []
    draw = TrainDataset.__getitem__
    monkeypatch.setattr(TrainDataset, "__getitem__", lambda self, place: seen.append(place) or draw(self, place))
    result = run_inside("main.py", make_dataset(tmp_path), "tsn_tiny", "--run", "order", *quick_flags(), cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    first, second = ([i for epoch, i in seen if epoch == e] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(8)) and first != second


def test_a_resumed_run_does_what_its_flags_say_and_says_so(trained):
    folder, dataset, _ = trained
    flags = quick_flags(epochs=3, weight_decay=0.01, lr=0.02, **CHANCE)
    first = folder / "net_runs/first/resnet_rgb_epoch_2_checkpoint.pth.tar"
    more = run_inside("main.py", dataset, "tsm_tiny", "--run", "more", "--resume", first, *flags, cwd=folder)
    assert more.returncode == 0, more.stdout
    for change in ("epochs: 2 -> 3", "lr: 0.05 -> 0.02", "weight_decay: 0.0005 -> 0.01"):
        assert f"changed since that checkpoint: {change}" in more.stdout
    saved = torch.load(folder / "net_runs/more/resnet_rgb_epoch_3_checkpoint.pth.tar", weights_only=True)
    groups = {group["name"]: group["weight_decay"] for group in saved["optimizer"]["param_groups"]}
    assert groups["weight"] == 0.01 and groups["bn"] == 0
    frozen = [*flags, "--partial_bn", "true"]
    refused = run_inside("main.py", dataset, "tsm_tiny", "--run", "frozen", "--resume", first, *frozen, cwd=folder)
    assert refused.returncode == 1 and "error: " in refused.stdout and "Traceback" not in refused.stdout


def test_a_run_that_never_hits_still_leaves_a_best_checkpoint(tmp_path):
    """The validation videos have a label that no training video has. Therefore Prec@1 is 0."""
    dataset = make_dataset(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join(line for line in lines if line.endswith("0")))
    lines = (tmp_path / "val.txt").read_text().splitlines()
    (tmp_path / "val.txt").write_text("\n".join(line for line in lines if line.endswith("1")))
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "never", *quick_flags(lr=0.5), cwd=tmp_path)
    assert results(result.stdout)[0].startswith("Prec@1 0.000 "), result.stdout
    assert (tmp_path / "net_runs" / "never" / BEST).exists()


def test_an_error_under_torchrun_is_one_line(tmp_path):
    dataset = make_dataset(tmp_path)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join([*lines[:-1], lines[-1][:-1] + "9"]))
    result = run("main.py", dataset, "tsn_tiny", "--run", "bad", *quick_flags(), cwd=tmp_path, processes=2, fresh=True)
    assert result.returncode != 0 and result.stdout.count("error: ") == 1, result.stdout
    assert "train.txt:8: label 9 is not below num_classes 2" in result.stdout
    assert 'main.py", line' not in result.stdout  # none of our processes prints a traceback
    test = ["test_models.py", dataset, "--weights", "nowhere.pth", "--device", "cpu"]
    result = run(*test, cwd=tmp_path, processes=2)
    assert result.returncode != 0 and result.stdout.count("error: nowhere.pth: no such weight file") == 1


def test_views_scores_and_ensembles(trained):
    folder, dataset, _ = trained
    weights = f"net_runs/first/{BEST}"
    command = ["test_models.py", dataset, "--device", "cpu", "--workers", 0]
    one = run_inside(*command, "--weights", weights, "--scores", "one.npz", cwd=folder)
    assert one.returncode == 0, one.stdout
    assert re.search(r": 4x1x1 @48, Top-1 \S+, Top-5 not defined, mean class \S+\n", one.stdout), one.stdout
    file = np.load(folder / "one.npz")
    assert file["scores"].dtype == np.float32 and file["scores"].shape == (8, 2)
    assert file["labels"].tolist() == [0, 1] * 4 and file["paths"].tolist() == [f"val/video {i}" for i in range(8)]

    views = ["--views", "3x2", "--resize", 64, "--crop", 56]
    many = run_inside(*command, "--weights", weights, *views, "--scores", "many.npz", cwd=folder)
    assert many.returncode == 0, many.stdout
    assert "tsm_tiny (resize 64, crop 56, spread): 4x3x2 @48, Top-1 " in many.stdout
    check_views(folder, dataset, weights, np.load(folder / "many.npz")["scores"])

    pair = ["--weights", f"{weights},{weights}", "--num_segments", "4,8"]
    both = run_inside(*command, *pair, "--scores", "both.npz", cwd=folder)
    eight = run_inside(*command, "--weights", weights, "--num_segments", 8, "--scores", "eight.npz", cwd=folder)
    assert both.returncode == eight.returncode == 0, both.stdout
    mean = (file["scores"] + np.load(folder / "eight.npz")["scores"]) / 2
    np.testing.assert_allclose(np.load(folder / "both.npz")["scores"], mean, rtol=1e-5)


def check_views(folder, dataset, weights, scores):
    """The scores of 3x2 views are the mean of six logits. The model computes each of them from a single view."""
    config = load_dataset_config(str(dataset))
    videos = read_list(config.val_list, 2)
    views = {"resize": 64, "crop_size": 56, "input_size": 48, "short_videos": "spread", "num_crops": 3, "num_clips": 2}
    test_set = EvalDataset(videos, config.open_source(), 4, **views)
    model = build_model("tsm_tiny", 2, 4).eval()
    load_weights(model, folder / weights)
    for i in range(len(videos)):
        with torch.no_grad():
            logits = torch.cat([model(normalise(view[None])) for view in test_set[i][0]])
        assert len(logits) == 6 and logits.std(0).min() > 1e-4
        np.testing.assert_allclose(scores[i], logits.mean(0), rtol=1e-4, atol=1e-5)


def test_scores_are_the_model_on_these_frames(trained):
    """One view is computed by hand (frames, normalisation, model), without data/ and engine/."""
    folder, dataset, _ = trained
    weights = folder / "net_runs" / "first" / BEST
    flags = ["--weights", weights, "--device", "cpu", "--scores", "s.npz"]
    result = run_inside("test_models.py", dataset, *flags, cwd=folder)
    assert result.returncode == 0, result.stdout
    model = build_model("tsm_tiny", 2, 4).eval()
    load_weights(model, weights)
    for i, line in enumerate((folder / "val.txt").read_text().splitlines()):
        path, n, _ = line.rsplit(maxsplit=2)
        tick = int(n) / 4
        files = [folder / "frames" / path / f"{int(tick / 2 + tick * x) + 1:05d}.jpg" for x in range(4)]
        frames = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]) / 255
        frames = (frames - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            logits = model(torch.from_numpy(frames).float().permute(0, 3, 1, 2)[None])
        np.testing.assert_allclose(np.load(folder / "s.npz")["scores"][i], logits[0], rtol=1e-4, atol=1e-5)


def test_processes_share_validation_and_test_exactly(trained):
    """With seven videos on three processes, each video is scored once, and scores and accuracy are the same."""
    folder, dataset, _ = trained
    lines = (folder / "val.txt").read_text().splitlines()[:7]
    (folder / "seven.txt").write_text("\n".join(lines))
    command = ["test_models.py", dataset, "--list", "seven.txt", "--weights", f"net_runs/first/{BEST}"]
    command += ["--device", "cpu", "--workers", 0, "--batch_size", 1]
    alone = run(*command, "--scores", "p1.npz", cwd=folder)
    shared = run(*command, "--scores", "p3.npz", cwd=folder, processes=3)
    assert alone.returncode == shared.returncode == 0, shared.stdout
    a, b = np.load(folder / "p1.npz"), np.load(folder / "p3.npz")
    assert all(np.array_equal(a[key], b[key]) for key in ("scores", "labels", "paths"))
    assert results(alone.stdout) == results(shared.stdout) and len(results(shared.stdout)) == 1


def test_two_processes_train_and_validate_the_model_that_they_save(tmp_path):
    dataset = make_dataset(tmp_path)
    result = run("main.py", dataset, "rsanet_tiny", "--run", "two", *quick_flags(), cwd=tmp_path, processes=2)
    assert result.returncode == 0, result.stdout
    assert "batch: 2 processes x 2 clips x 1 accumulated = 4, lr 0.05" in result.stdout
    assert result.stdout.count("Validation Results") == 2
    assert len(EPOCH_LINE.findall(result.stdout)) == 4 and (tmp_path / "net_runs" / "two" / BEST).exists()
    last = "net_runs/two/resnet_rgb_epoch_2_checkpoint.pth.tar"
    flags = ["--weights", last, "--device", "cpu", "--workers", 0, "--batch_size", 2]
    alone = run_inside("test_models.py", dataset, *flags, cwd=tmp_path)
    assert results(alone.stdout)[-1] == results(result.stdout)[-1], alone.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("label", r"train.txt:3: label 2 is not below num_classes 2; is this list made for another dataset\?"),
        ("line", r"train.txt:3: .* is not 'path #frames label'"),
        ("folder", r"train.txt:3: no folder .*gone"),
        ("jpeg", r"train.txt:3: .*00001.jpg is not a readable image"),
    ],
)
@pytest.mark.parametrize("program", ["main.py", "test_models.py"])
def test_dataset_errors_are_one_line(trained, tmp_path, program, change, message):
    folder, _, _ = trained
    dataset = make_dataset(tmp_path, per_class=2)
    lines = (tmp_path / "train.txt").read_text().splitlines()
    if change == "label":
        lines[2] = lines[2][:-1] + "2"
    elif change == "line":
        lines[2] = "only-a-path"
    elif change == "folder":
        lines[2] = "train/gone 24 0"
    else:  # a video of one frame, which every sampling rule reads
        lines[2] = "train/video 2 1 0"
        (tmp_path / "frames/train/video 2/00001.jpg").write_bytes(b"\xff\xd8 no jpeg")
    (tmp_path / "train.txt").write_text("\n".join(lines))
    if program == "main.py":
        result = run_inside(program, dataset, "tsn_tiny", "--run", "bad", *quick_flags(workers=1), cwd=tmp_path)
    else:
        weights = folder / "net_runs" / "first" / BEST
        flags = ["--weights", weights, "--list", "train.txt", "--device", "cpu", "--workers", 1]
        result = run_inside(program, dataset, *flags, cwd=tmp_path)
    assert result.returncode == 1
    errors = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.search(message, errors[0]), result.stdout
    assert "Traceback" not in result.stdout and result.stdout.rstrip().endswith(errors[0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lr", "fast"], "lr is 'fast', not a number"),
        (["--flip", "mirror"], "flip is 'mirror'; choose from none, skip, swap"),
        (["--epochs", "0"], "epochs is 0; it must be at least 1"),
        (["--learning_rate", "1"], "unknown argument '--learning_rate'"),
        (["--epoch", "1"], "unknown argument '--epoch'; did you mean --epochs"),
        (["--variant", "fast"], "no variant 'fast'"),
        (["--global_batch_size", "64"], r"8 videos are fewer than one batch of 64; add --global_batch_size 4 \(.*\)\n"),
        (["--batch_size", "64"], "64; add --global_batch_size 4 .*, or fewer processes or a lower --batch_size"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["--pretrained", "nowhere.pth"], "nowhere.pth: no such weight file"),
        (["--model_options", "{fold: 4}"], "tsn_tiny cannot be built with .*fold"),
        (["--lr_steps", "[a]"], r"lr_steps is \['a'\], not a list of whole numbers"),
        (["--model_options", "["], "model_options is '\\[', which cannot be read as a dict"),
        (["--resume", "nowhere.pth.tar"], "nowhere.pth.tar: no such weight file"),
        (["--lr", "1e30"], "epoch 0, step 1: the loss is (nan|inf) .* with the videos train/video"),
    ],
)
def test_settings_errors(trained, tmp_path, flags, message):
    _, dataset, _ = trained
    if flags[0] == "--device" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    result = run_inside("main.py", dataset, "tsn_tiny", "--run", "bad", *quick_flags(), *flags, cwd=tmp_path)
    assert result.returncode in (1, 2) and re.search(message, result.stdout), result.stdout
    assert "Traceback" not in result.stdout


def test_test_errors(trained, tmp_path):
    folder, dataset, _ = trained
    weights = folder / "net_runs" / "first" / BEST
    bare = tmp_path / "bare.pth"
    torch.save(torch.load(weights, weights_only=True)["state_dict"], bare)
    reordered = yaml.safe_load(dataset.read_text())
    reordered["categories"].reverse()
    for key in ("root", "train_list", "val_list"):
        reordered[key] = str(folder / reordered[key])
    (tmp_path / "reordered.yaml").write_text(yaml.safe_dump(reordered))
    cases = [
        (dataset, ["--weights", bare], "does not say which model it holds; name it with --model"),
        (dataset, ["--weights", bare, "--model", "tsm_tiny"], "give --num_segments"),
        (dataset, ["--weights", weights, "--model", "tsn_tiny", "--num_segments", 4], "holds tsm_tiny, not tsn_tiny"),
        (dataset, ["--weights", weights, "--views", "2x1"], "views '2x1' must be CROPSxCLIPS"),
        (dataset, ["--weights", weights, "--crop", 64], "val.txt:1: a crop of 64 does not fit into frames of 48x48"),
        (dataset, ["--weights", weights, "--num_segments", "4,8"], "give one or as many"),
        (dataset, ["--weights", weights, "--num_segments", 0], "num_segments is 0; it must be at least 1"),
        (dataset, ["--weights", weights, "--crop", 0], "test_crop is 0; it must be at least 1"),
        (dataset, ["--weights", weights, "--scores", "/proc/no/s.npz"], "--scores /proc/no/s.npz: cannot be written"),
        (tmp_path / "reordered.yaml", ["--weights", weights], "other class names or another order of them"),
    ]
    for data, flags, message in cases:
        result = run_inside("test_models.py", data, "--device", "cpu", "--workers", 0, *flags, cwd=tmp_path)
        assert result.returncode == 1 and message in result.stdout and "Traceback" not in result.stdout, result.stdout


@pytest.mark.parametrize("flags", [["--weights", ""], ["--scores", ""]])
def test_an_empty_name_is_refused_even_beside_others(trained, tmp_path, flags):
    """It comes from a variable of a script that is not set. The test would otherwise do less than was asked."""
    folder, dataset, _ = trained
    weights = folder / "net_runs" / "first" / BEST
    result = run_inside("test_models.py", dataset, "--weights", weights, "--device", "cpu", *flags, cwd=tmp_path)
    assert result.returncode == 2 and re.search(rf"error: {flags[0]} \w+ an empty name; give a file", result.stdout)


def test_a_run_with_too_long_a_name_is_one_short_line(trained, tmp_path):
    result = run_inside("main.py", trained[1], "tsn_tiny", "--run", "x" * 5000, *quick_flags(), cwd=tmp_path)
    last = result.stdout.strip().splitlines()[-1]
    assert result.returncode == 1 and re.match(r"error: net_runs/x+\.\.\.x+: cannot be written \(File name too", last)
    assert len(last) < 450 and last.endswith("free the place or choose another --run")
