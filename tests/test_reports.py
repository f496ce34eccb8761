"""Reports from score files: numbers (compared with plain loops or tables made by hand), files and pictures."""

import math
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from score_files import error_line, random_arrays, report, rows, write

from reports import statistics
from reports.pictures import draw_confusion
from reports.scores import ARRAYS, Scores, ScoresError, check_writable, read_scores, softmax, write_scores

NAMES = ["Pushing", "Pulling, slowly", "Ärger $x{$", "Spinning", "Dropping", "Lifting", "Closing"]


def loaded(arrays: dict, folder: Path) -> Scores:
    return read_scores(write(folder / "loaded.npz", arrays))


def order(row: np.ndarray) -> list[int]:
    """Labels from the highest score to the lowest, the lower label first if scores are equal."""
    return sorted(range(len(row)), key=lambda label: (-row[label], label))


def test_accuracy_by_class(tmp_path):
    arrays = random_arrays(90, 7) | {"protocol": np.array("tsm_r50 8x1x1 @224 (resize 256)")}
    scores, labels = arrays["scores"], arrays["labels"]
    hits = {k: [label in order(row)[:k] for row, label in zip(scores, labels, strict=True)] for k in (1, 5)}
    taken = [(label, order(row)[0]) for row, label in zip(scores, labels, strict=True)]
    means = []
    write(tmp_path / "out.npz", arrays | {"categories": np.array(NAMES)})
    status, printed = report(tmp_path, "out.npz")
    table = rows(tmp_path / "out_report" / "classes.csv")
    assert status == 0 and [row["name"] for row in table] == NAMES
    assert [int(row["label"]) for row in table] == list(range(7))
    for label, row in enumerate(table):
        mine = [i for i in range(90) if labels[i] == label]
        assert int(row["videos"]) == len(mine)
        if not mine:
            assert (row["top1"], row["top5"], row["taken_for"], row["times"]) == ("", "", "", "0")
            continue
        for k in (1, 5):
            assert row[f"top{k}"] == f"{100 * sum(hits[k][i] for i in mine) / len(mine):.2f}"
        means.append(sum(hits[1][i] for i in mine) / len(mine))
        wrong = [prediction for truth, prediction in taken if truth == label != prediction]
        most = max(range(7), key=lambda other: (wrong.count(other), -other))
        assert (int(row["taken_for"]), row["taken_for_name"]) == (most, NAMES[most])
        assert int(row["times"]) == wrong.count(most)
    assert len(means) == 6
    top1, top5 = (100 * sum(hits[k]) / 90 for k in (1, 5))
    assert f"Top-1 {top1:.2f}, Top-5 {top5:.2f}, mean class {100 * sum(means) / 6:.2f}\n" in printed
    assert "out.npz: 90 videos of 6 of 7 classes\nprotocol: tsm_r50 8x1x1 @224 (resize 256)\n" in printed


def test_class_never_mistaken_names_no_other_class():
    results = statistics.class_results(np.eye(3, dtype=np.float32), np.array([0, 1, 1]))
    assert [(r.videos, r.top1, r.top5, r.taken_for, r.times) for r in results] == [
        (1, 100, None, None, 0),  # Top-5 of three classes is not defined
        (2, 50, None, 2, 1),
        (0, None, None, None, 0),
    ]


def test_confusion_and_pairs(tmp_path):
    """Classes 0 and 2 are confused five plus three times, which is more often than 1 and 3 (seven times)."""
    taken = [(0, 2)] * 5 + [(2, 0)] * 3 + [(1, 3)] * 7 + [(3, 4)] + [(4, 3)] + [(0, 1)] * 2 + [(5, 5)] * 20
    labels = np.array([truth for truth, _ in taken])
    predictions = np.array([prediction for _, prediction in taken])
    confusion = statistics.confusion_matrix(labels, predictions, 7)
    assert confusion.tolist() == [[taken.count((i, j)) for j in range(7)] for i in range(7)]
    pairs = [(0, 2, 5, 3), (1, 3, 7, 0), (0, 1, 2, 0), (3, 4, 1, 1)]
    assert statistics.confused_pairs(confusion) == pairs and statistics.confused_pairs(confusion, 2) == pairs[:2]
    shares = statistics.row_shares(confusion)
    assert shares[0].tolist() == [0, 2 / 7, 5 / 7, 0, 0, 0, 0] and np.isnan(shares[6]).all()

    scores = np.eye(7, dtype=np.float32)[predictions]
    write(tmp_path / "out.npz", {"scores": scores, "labels": labels, "paths": np.array(list("x" * len(taken)))})
    _, printed = report(tmp_path, "out.npz")
    assert "     8 = 5 + 3  labels 0, 2: class 0 | class 2\n     7 = 7 + 0  labels 1, 3: class 1 | class 3\n" in printed
    assert printed.count(" labels ") == 4 and "protocol: the file does not state it" in printed


def test_at_most_ten_pairs_are_printed(tmp_path):
    write(tmp_path / "out.npz", random_arrays(500, 12))
    assert report(tmp_path, "out.npz")[1].count(" labels ") == 10


def test_calibration_of_hand_made_bins():
    """The confidences 0.2 (upper edge of the third bin), 0.21, 0.25 and 1 are in the third, fourth and last bins."""
    confidences, right = [0.2, 0.21, 0.25, 1.0, 1.0], [True, False, True, True, False]
    probabilities = np.full((5, 9), 0.0)
    for row, confidence in zip(probabilities, confidences, strict=True):
        row[:] = (1 - confidence) / 8
        row[4] = confidence
    bins = statistics.calibration(probabilities, np.where(right, 4, 0))
    assert bins.videos.tolist() == [0, 0, 1, 2] + [0] * 10 + [2]
    assert bins.accuracy[[2, 3, 14]].tolist() == [1, 0.5, 0.5] and np.isnan(bins.accuracy[0])
    assert np.allclose(bins.confidence[[2, 3, 14]], [0.2, 0.23, 1.0])
    assert bins.error == pytest.approx(100 * (1 / 5 * 0.8 + 2 / 5 * 0.27 + 2 / 5 * 0.5))


@pytest.mark.parametrize("average", ["logits", "softmax"])
def test_calibration(tmp_path, average):
    arrays = random_arrays(200, 7)
    if average == "softmax":
        arrays["scores"] = np.random.default_rng(1).dirichlet(np.ones(7), 200).astype(np.float32)
    write(tmp_path / "out.npz", arrays | {"average": np.array(average)})
    members: dict[int, list] = {}
    confidences = []
    for row, label in zip(arrays["scores"].astype(float), arrays["labels"], strict=True):
        exponentials = [math.exp(x) for x in row]
        p = [x / sum(exponentials) for x in exponentials] if average == "logits" else list(row)
        confidences.append(max(p))
        members.setdefault(math.ceil(max(p) * 15), []).append((max(p), p.index(max(p)) == label))
    error = sum(abs(sum(right for _, right in bin) - sum(p for p, _ in bin)) for bin in members.values()) / 200
    expected = f"error {100 * error:.2f} % (15 bins; mean confidence {100 * sum(confidences) / 200:.2f} %)"
    assert f"expected calibration {expected}" in report(tmp_path, "out.npz")[1]


def test_softmax_of_large_logits():
    assert np.allclose(softmax(np.array([[1000, 1000, 0], [-1000, -1001, -5000]], np.float32)), [
        [0.5, 0.5, 0],
        [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1)), 0],
    ])  # fmt: skip


def test_mcnemar():
    assert statistics.mcnemar(10, 2) == statistics.mcnemar(2, 10) == 2 * (1 + 12 + 66) / 4096  # 0.03857
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(5, 5) == statistics.mcnemar(4, 5) == 1
    assert statistics.mcnemar(0, 6) == 2 / 64
    for a, b in ((3, 9), (40, 61), (600, 700)):
        tail = sum(math.comb(a + b, i) for i in range(a + 1))
        assert statistics.mcnemar(a, b) == float(Fraction(2 * tail, 2 ** (a + b)))
    # The expected value uses the normal approximation with continuity correction.
    assert statistics.mcnemar(3000, 3200) == pytest.approx(0.0115, rel=0.01)
    assert statistics.mcnemar(0, 2000) == 0


def test_comparison(tmp_path):
    """Only a is right for 10 of 30 videos, only b for 2, neither for 3; 2 of these 3 have different predictions."""
    labels = np.array([0, 1, 2] * 10)
    a, b = labels.copy(), labels.copy()
    b[:10] = (labels[:10] + 1) % 3
    a[10:12] = (labels[10:12] + 1) % 3
    a[12:15], b[12:14], b[14] = (labels[12:15] + 1) % 3, (labels[12:14] + 2) % 3, (labels[14] + 1) % 3
    paths = np.array([f"v {i}" for i in range(30)])
    for name, predictions, more in (("a", a, {}), ("b", b, {"categories": np.array(NAMES[:3])})):
        scores = np.eye(3, dtype=np.float32)[predictions]
        write(tmp_path / f"{name}.npz", {"scores": scores, "labels": labels, "paths": paths, **more})
    status, printed = report(tmp_path, "a.npz", "b.npz", "--out", "folder")
    assert status == 0
    assert "b against a: Top-1 -26.67 (83.33 -> 56.67)" in printed
    assert "same prediction for 16 of 30 videos, agreement 53.33 %" in printed
    assert "right by both 15, by a alone 10, by b alone 2, by neither 3" in printed
    assert "exact test, two-sided: 10 against 2 discordant videos, p = 0.03857\n" in printed
    changed = rows(tmp_path / "folder" / "changed.csv")
    words = ["right->wrong"] * 10 + ["wrong->right"] * 2 + ["other"] * 2
    for i, row in enumerate(changed):
        shown = [label for x in (labels[i], a[i], b[i]) for label in (str(x), NAMES[x])]
        assert list(row.values()) == [f"v {i}", *shown, words[i]]
    assert len(changed) == 14
    assert rows(tmp_path / "folder" / "a" / "classes.csv")[1]["name"] == NAMES[1]  # the names of b are used for both
    assert (tmp_path / "folder" / "b" / "confusion.png").is_file()


def test_comparison_of_random_files(tmp_path):
    arrays = random_arrays(300, 7)
    a = loaded(arrays, tmp_path)
    b = loaded(arrays | {"scores": random_arrays(300, 7)["scores"] + random_arrays(300, 7, 5)["scores"]}, tmp_path)
    counts = {"same": 0, "both": 0, "only_a": 0, "only_b": 0, "neither": 0}
    changed = []
    for i, label in enumerate(a.labels):
        first, second = order(a.scores[i])[0], order(b.scores[i])[0]
        counts["same"] += first == second
        key = {(1, 1): "both", (1, 0): "only_a", (0, 1): "only_b", (0, 0): "neither"}[first == label, second == label]
        counts[key] += 1
        if first != second:
            changed.append((i, {"only_a": "right->wrong", "only_b": "wrong->right"}.get(key, "other")))
    result = statistics.compare(a, b)
    assert {key: getattr(result, key) for key in counts} == counts and min(counts.values()) > 0
    assert result.changed == changed
    assert result.p_value == statistics.mcnemar(counts["only_a"], counts["only_b"])


@pytest.mark.parametrize("verbs, nouns, average", [(13, 17, "logits"), (3, 9, "softmax"), (2, 2, "logits")])
def test_actions(tmp_path, verbs, nouns, average):
    verb, noun = random_arrays(80, verbs), random_arrays(80, nouns, 1)
    if average == "softmax":
        verb |= {"scores": np.random.default_rng(3).dirichlet(np.ones(verbs), 80).astype(np.float32)}
    write(tmp_path / "verb.npz", verb | {"average": np.array(average), "protocol": np.array("tsn_r50 8x1x1")})
    write(tmp_path / "noun.npz", noun)
    hits = {1: 0, 5: 0}
    for i in range(80):
        p, q = ([math.exp(x) for x in arrays["scores"][i].astype(float)] for arrays in (verb, noun))
        if average == "softmax":
            p = list(verb["scores"][i].astype(float))
        pairs = sorted((-p[v] * q[n] / sum(q) / sum(p), v, n) for v in range(verbs) for n in range(nouns))
        for k in hits:
            hits[k] += (verb["labels"][i], noun["labels"][i]) in [pair[1:] for pair in pairs[:k]]
    result = statistics.action_accuracy(read_scores(tmp_path / "verb.npz"), read_scores(tmp_path / "noun.npz"))
    assert result == {f"top{k}": pytest.approx(100 * hits[k] / 80) for k in hits} and hits[5] > hits[1] > 0
    single = [np.mean([order(r)[0] == x for r, x in zip(f["scores"], f["labels"], strict=True)]) for f in (verb, noun)]
    status, printed = report(tmp_path, "--verb", "verb.npz", "--noun", "noun.npz")
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines()[-3:])
    assert status == 0 and "verb.npz: protocol: tsn_r50 8x1x1\n" in printed
    assert lines["action"].split() == [f"{result['top1']:.2f}", f"{result['top5']:.2f}"]
    assert [lines[name].split()[0] for name in ("verb", "noun")] == [f"{100 * x:.2f}" for x in single]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["noun.npz", "verb.npz"]


def test_actions_of_many_segments_stay_small(tmp_path):
    """All 2,000 x 125 x 352 numbers of EPIC-KITCHENS' size would need 700 MB."""
    files = [loaded(random_arrays(2000, k), tmp_path) for k in (125, 352)]
    tracemalloc.start()
    statistics.action_accuracy(*files)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def test_members_of_an_ensemble(tmp_path):
    members = np.stack([random_arrays(50, 7, seed)["scores"] for seed in (1, 2)])
    arrays = random_arrays(50, 7) | {"members": members, "scores": members.mean(0)}
    top1 = [100 * np.mean([order(row)[0] for row in member] == arrays["labels"]) for member in members]
    write(tmp_path / "out.npz", arrays | {"member_names": np.array(["tsm_r50", "rsanet_r50"])})
    printed = report(tmp_path, "out.npz")[1]
    assert f"\ntsm_r50     {top1[0]:6.2f}" in printed and f"\nrsanet_r50  {top1[1]:6.2f}" in printed
    write(tmp_path / "out.npz", arrays)
    assert f"\nmember 2  {top1[1]:6.2f}" in report(tmp_path, "out.npz")[1]


def dataset_file(folder: Path, names: list[str] | None, num_classes: int) -> Path:
    config = {"name": "mine", "num_classes": num_classes, "root": "r", "train_list": "t", "val_list": "v"}
    config |= {"image_tmpl": "{:05d}.jpg"} | ({"categories": names} if names else {})
    path = folder / f"mine_{num_classes}_{bool(names)}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_class_names(tmp_path):
    """Names come from the file, from --dataset, or from the label; a contradiction is an error."""
    out = write(tmp_path / "out.npz", random_arrays(30, 7))
    table = tmp_path / "out_report" / "classes.csv"
    assert report(tmp_path, out)[0] == 0 and rows(table)[6]["name"] == "class 6"
    assert (
        report(tmp_path, out, "--dataset", dataset_file(tmp_path, NAMES, 7))[0] == 0
        and rows(table)[6]["name"] == NAMES[6]
    )
    status, printed = report(tmp_path, out, "--dataset", dataset_file(tmp_path, None, 7))
    assert status == 0 and "mine names no categories" in printed and rows(table)[6]["name"] == "class 6"
    assert "out.npz: scores of 7 classes, ucf101 has 101; name the" in error_line(tmp_path, out, "--dataset", "ucf101")
    write(out, random_arrays(30, 7, categories=NAMES))
    other = dataset_file(tmp_path, [NAMES[1], NAMES[0], *NAMES[2:]], 7)
    message = error_line(tmp_path, out, "--dataset", other)
    assert message.startswith(f"--dataset {other}: class 0 is 'Pulling, slowly', in {out} 'Pushing'; the labels mean")
    assert error_line(tmp_path, out, "--dataset", "utf101") == "no dataset 'utf101'; did you mean ucf101?"


def test_pictures_show_every_class(tmp_path):
    """One of 174 classes has no videos, all others are right. The picture has 173 dark cells and one grey row."""
    confusion = 5 * np.eye(174, dtype=np.int64)
    confusion[100, 100] = 0
    draw_confusion(confusion, [f"class {i}" for i in range(174)], "all right", tmp_path / "confusion.png")
    pixels = np.asarray(Image.open(tmp_path / "confusion.png").convert("RGB")).astype(int)
    matrix = pixels[:, : pixels.shape[1] - 120]  # without the colour bar
    dark = (abs(matrix - [8, 48, 107]) < 30).all(2)  # the end of matplotlib's Blues
    top, left = (int(np.flatnonzero(dark.any(axis))[0]) for axis in (1, 0))
    for label in range(174):  # 8 x 8 pixels each; a grid line may pass through the middle
        y, x = top + 8 * label + 2, left + 8 * label + 2
        assert dark[y, x] == (label != 100)
        assert label == 173 or (matrix[y, x + 8] > 200).all()
    grey = (matrix == 0xCC).all(2).sum()
    assert 0.8 * 174 * 64 < grey < 1.1 * 174 * 64
    assert 0.8 * 173 * 64 < dark.sum() < 1.1 * 173 * 64


@pytest.mark.parametrize("classes", [2, 7, 120])
def test_pictures(tmp_path, classes):
    arrays = random_arrays(60, classes)
    names = {"categories": np.array(NAMES)} if classes == 7 else {}
    write(tmp_path / "out.npz", arrays | names)
    status, printed = report(tmp_path, "out.npz")
    assert status == 0 and "in out_report: classes.csv, confusion.png, calibration.png" in printed
    for name in ("confusion.png", "calibration.png"):
        with Image.open(tmp_path / "out_report" / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 300
            pixels = np.asarray(picture.convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50 and pixels.std() > 5


def test_without_matplotlib(tmp_path, monkeypatch):
    write(tmp_path / "out.npz", random_arrays(30, 7))
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, printed = report(tmp_path, "out.npz")
    assert status == 0 and "no pictures: they need matplotlib; pip install matplotlib\n" in printed
    assert printed.endswith("in out_report: classes.csv\n")
    assert [path.name for path in (tmp_path / "out_report").iterdir()] == ["classes.csv"]


def test_files_are_read_as_they_are(tmp_path):
    arrays = random_arrays(20, 7)
    plain = loaded(arrays, tmp_path)
    assert (plain.scores == arrays["scores"]).all() and plain.scores.dtype == np.float32
    assert (plain.labels == arrays["labels"]).all() and plain.paths == arrays["paths"].tolist()
    assert (plain.average, plain.protocol, plain.categories, plain.members) == ("logits", None, None, None)
    more = {"categories": np.array(NAMES), "protocol": np.array("a line"), "unknown": np.zeros(3)}
    more |= {"members": arrays["scores"][None].astype(np.float16), "member_names": np.array(["one"])}
    full = loaded(arrays | more, tmp_path)
    assert (full.categories, full.protocol, full.member_names) == (NAMES, "a line", ["one"])
    assert full.members.shape == (1, 20, 7) and full.members.dtype == np.float32


def test_what_is_written_is_read(tmp_path):
    """The file has all arrays, or only the required ones. Equal scores give equal bytes."""
    arrays = random_arrays(20, 7)
    few = Scores(arrays["scores"], arrays["labels"], arrays["paths"].tolist())
    members = np.stack([arrays["scores"], 2 * arrays["scores"]])
    more = Scores(few.scores, few.labels, few.paths, "logits", "tsm_r50 8x1x1", NAMES, members, ["one", "two"])
    for content, names in ((few, ["scores", "labels", "paths", "average"]), (more, list(ARRAYS))):
        file = tmp_path / "folder" / "out.npz"
        write_scores(file, content)
        first = file.read_bytes()
        write_scores(file, content)
        assert file.read_bytes() == first and [path.name for path in file.parent.iterdir()] == ["out.npz"]
        assert np.load(file).files == names
        found = read_scores(file)
        assert found.path == str(file)
        for name in ARRAYS:
            assert np.array_equal(getattr(found, name), getattr(content, name)), name


def test_a_file_that_could_not_be_written_whole_has_no_name(tmp_path):
    (tmp_path / "out.npz.part").symlink_to("/dev/full")
    arrays = random_arrays(20, 7)
    with pytest.raises(ScoresError, match=r"^--scores .*out.npz: cannot be written \(.*No space left"):
        write_scores(tmp_path / "out.npz", Scores(arrays["scores"], arrays["labels"], arrays["paths"].tolist()))
    assert not (tmp_path / "out.npz").exists()
    for path in (tmp_path, tmp_path / "out.npz.part" / "out.npz"):
        with pytest.raises(ScoresError, match=r"^--scores .*: cannot be written \("):
            check_writable(path)
    check_writable(tmp_path / "new" / "out.npz")
    assert list((tmp_path / "new").iterdir()) == []
