"""Training, testing, score files and reports all rank the lower label first if scores are equal."""

import re

import numpy as np
import pytest
import torch
from score_files import report, rows
from toy_run import make_dataset, run_inside

from data import toy
from engine.batch import BatchPlan
from engine.optim import build_sgd, parameter_groups
from engine.precision import Precision
from engine.step import train_step
from models import build_model
from reports.accuracy import accuracy, count_correct, highest
from reports.scores import read_scores
from reports.statistics import class_results, compare, confusion_matrix

NAMES = list(toy.MOTIONS)[:7]
BIAS = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0]  # the scores of every video; labels 1, 2 and 4 share the first place
RANKED = [1, 2, 4, 0, 3]
VIDEOS = [4, 3, 1, 2, 1, 1, 1]  # number per class; any other order of equal scores has fewer hits
HITS = {"top1": 3, "top5": 11}


def ranks(row: np.ndarray) -> list[int]:
    return sorted(range(len(row)), key=lambda label: (-row[label], label))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("classes", "values"), [(2, 1), (7, 2), (174, 3), (400, 1), (3000, 5)])
def test_the_lower_label_comes_first(dtype, classes, values):
    scores = np.random.default_rng(0).integers(0, values, (20, classes)).astype(dtype)
    expected = [ranks(row) for row in scores]
    for k in (1, 5, classes, classes + 1):
        labels = highest(scores, k)
        assert isinstance(labels, np.ndarray) and labels.tolist() == [row[:k] for row in expected]
        assert torch.equal(highest(torch.from_numpy(scores), k), torch.from_numpy(labels))


def test_every_count_follows_the_rule():
    """Plain loops over 300 videos with few distinct scores give the same counts."""
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 3, (300, 9)).astype(np.float32), rng.integers(0, 9, 300)
    ranked = [ranks(row) for row in scores]
    hits = {k: np.array([label in row[:k] for row, label in zip(ranked, labels, strict=True)]) for k in (1, 5)}
    assert count_correct(torch.from_numpy(scores), torch.from_numpy(labels)).tolist() == [
        hits[1].sum(),
        hits[5].sum(),
    ]
    result = accuracy(scores, labels)
    assert (result["top1"], result["top5"]) == (100 * hits[1].mean(), pytest.approx(100 * hits[5].mean()))
    of_classes = [100 * hits[1][labels == label].mean() for label in range(9)]
    assert result["class_accuracy"] == pytest.approx(np.mean(of_classes))
    classes = class_results(scores, labels)
    assert [c.top1 for c in classes] == pytest.approx(of_classes)
    assert [c.top5 for c in classes] == pytest.approx([100 * hits[5][labels == label].mean() for label in range(9)])


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """A folder with a dataset of seven classes, a list of VIDEOS, and a network whose scores are always BIAS."""
    folder = tmp_path_factory.mktemp("tied")
    dataset = make_dataset(folder, per_class=4, names=NAMES)
    lines = (folder / "val.txt").read_text().splitlines()
    kept = [line for k, n in enumerate(VIDEOS) for line in [x for x in lines if x.endswith(f" {k}")][:n]]
    (folder / "tied.txt").write_text("\n".join(kept))
    model = build_model("tsn_tiny", 7, 4, dropout=0.0)
    torch.nn.init.zeros_(model.new_fc.weight)
    model.new_fc.bias.data = torch.tensor(BIAS)
    torch.save({"state_dict": model.state_dict(), "arch": "tsn_tiny"}, folder / "tied.pth")
    return folder, dataset, model


def test_a_training_step_counts_by_the_rule(tied):
    _, _, model = tied
    state = {key: value.clone() for key, value in model.state_dict().items()}
    labels = torch.arange(7).repeat_interleave(torch.tensor(VIDEOS))
    clips, plan = torch.randn(len(labels), 4, 3, 32, 32), BatchPlan(len(labels))
    optimizer = build_sgd(parameter_groups(model), 0.0, 0.9, False, 0.0)
    step = train_step(model.train(), [(clips, labels)], optimizer, plan, Precision("fp32", clips.device))
    model.load_state_dict(state)
    assert (step.top1, step.top5, step.clips) == (HITS["top1"], HITS["top5"], 13)


def test_testing_and_reports_agree(tied):
    folder, dataset, _ = tied
    command = ["test_models.py", dataset, "--weights", "tied.pth", "--model", "tsn_tiny", "--num_segments", 4]
    command += ["--list", "tied.txt", "--device", "cpu", "--workers", 0, "--scores", "tied.npz"]
    result = run_inside(*command, cwd=folder)
    assert result.returncode == 0, result.stdout
    assert "Validation Results: Prec@1 23.077 Prec@5 84.615 " in result.stdout
    assert "Prec@1 23.077 (23.077)\tPrec@5 84.615 (84.615)\n" in result.stdout  # of the one batch
    assert "Class Accuracy 14.29%" in result.stdout
    assert "Top-1 23.08, Top-5 84.62, mean class 14.29" in result.stdout
    file = read_scores(folder / "tied.npz")
    assert (file.scores == np.array(BIAS, np.float32)).all() and file.predictions.tolist() == [1] * 13
    expected = {name: 100 * hits / 13 for name, hits in HITS.items()} | {"class_accuracy": 100 / 7}
    assert accuracy(file.scores, file.labels) == pytest.approx(expected)
    assert confusion_matrix(file.labels, file.predictions, 7)[:, 1].tolist() == VIDEOS
    comparison = compare(file, file)
    assert (comparison.same, comparison.both, comparison.changed) == (13, 3, [])

    status, printed = report(folder, "tied.npz")
    assert status == 0 and "Top-1 23.08, Top-5 84.62, mean class 14.29" in printed
    table = rows(folder / "tied_report" / "classes.csv")
    assert [row["top1"] for row in table] == ["100.00" if label == 1 else "0.00" for label in range(7)]
    assert [row["top5"] for row in table] == ["100.00" if label in RANKED else "0.00" for label in range(7)]
    assert [row["taken_for"] for row in table] == ["" if label == 1 else "1" for label in range(7)]
    result = run_inside("scripts/print_results.py", "tied.npz", cwd=folder)
    assert re.search(r"tied +13 +23\.08 +84\.62 +14\.29", result.stdout), result.stdout


def test_the_five_most_probable_classes_of_a_video(tied):
    folder, _, model = tied
    command = ["test_models.py", "--video", "frames/val/video 0", "--weights", "tied.pth", "--model", "tsn_tiny"]
    result = run_inside(*command, "--num_segments", 4, "--device", "cpu", cwd=folder)
    shown = re.findall(r": +(\d+\.\d\d) %  class (\d)", result.stdout)
    e = np.exp(1)
    probabilities = [e / (3 * e + 4)] * 3 + [1 / (3 * e + 4)] * 2
    assert [int(label) for _, label in shown] == RANKED, result.stdout
    assert [float(p) for p, _ in shown] == [round(100 * p, 2) for p in probabilities]
