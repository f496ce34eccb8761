"""Shows the errors of a model from score files, without the model: ``python -m scripts.report out.npz``.

With one file, it prints accuracy, the most confused pairs of classes and calibration, and writes classes.csv and two
pictures into a folder. With two files of the same videos, it does this for each file, and reports which videos changed,
with a paired test. With --verb and --noun, it prints the accuracy of EPIC-KITCHENS' actions from two single-task files.
"""

import argparse
import csv
import sys
from collections.abc import Iterable
from pathlib import Path

from data import DataError, load_dataset_config
from engine.config import ConfigError
from engine.flags import parse_arguments
from reports.accuracy import accuracy, percent_text
from reports.pictures import draw_calibration, draw_confusion
from reports.scores import Scores, ScoresError, read_scores
from reports.statistics import (
    ClassResult,
    action_accuracy,
    calibration,
    class_results,
    compare,
    confused_pairs,
    confusion_matrix,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("scores", nargs="*", metavar="out.npz", help="one or two files of test_models.py --scores")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: <name>_report next to the (first) file")
    parser.add_argument("--dataset", help="name of, or path to, a dataset that names the classes if the file does not")
    parser.add_argument("--verb", metavar="verb.npz", help="scores of EPIC-KITCHENS' verbs")
    parser.add_argument("--noun", metavar="noun.npz", help="scores of EPIC-KITCHENS' nouns on the same segments")
    return parse_arguments(parser)


def main() -> None:
    args = parse_args()
    try:
        if args.verb or args.noun:
            report_actions(args)
        elif len(args.scores) == 1:
            file = read_scores(args.scores[0])
            report_one(file, class_names(args.dataset, file), args.out or default_folder(file))
        elif len(args.scores) == 2:
            report_two(*map(read_scores, args.scores), args)
        else:
            raise ConfigError(f"{len(args.scores)} score files; give one, two to compare, or --verb and --noun")
    except (ConfigError, DataError, ScoresError) as error:
        sys.exit(f"error: {error}")


def default_folder(*files: Scores) -> Path:
    return Path(files[0].path).parent / ("_".join(Path(file.path).stem for file in files) + "_report")


def class_names(dataset: str | None, *files: Scores) -> list[str]:
    """The class names of the files, or else of ``dataset``. Without both they are "class 0", "class 1" and so on.

    Errors: ``ScoresError`` if files and dataset contradict each other.
    """
    named = [(file.path, file.categories) for file in files if file.categories]
    num_classes = files[0].scores.shape[1]
    if dataset is not None:
        config = load_dataset_config(dataset)
        if config.num_classes != num_classes:
            raise ScoresError(
                f"{files[0].path}: scores of {num_classes} classes, {config.name} has {config.num_classes}; "
                "name the dataset that was tested"
            )
        if config.categories:
            named.append((f"--dataset {dataset}", config.categories))
        else:
            print(f"{config.name} names no categories")
    for source, names in named[1:]:
        if names != named[0][1]:
            i = next(i for i in range(num_classes) if names[i] != named[0][1][i])
            raise ScoresError(
                f"{source}: class {i} is {names[i]!r}, in {named[0][0]} {named[0][1][i]!r}; "
                "the labels mean other classes, test with one dataset"
            )
    return named[0][1] if named else [f"class {label}" for label in range(num_classes)]


def report_one(file: Scores, names: list[str], folder: Path) -> None:
    """Print the report of a file, and write classes.csv and the pictures into ``folder``."""
    result = accuracy(file.scores, file.labels)
    classes = class_results(file.scores, file.labels)
    confusion = confusion_matrix(file.labels, file.predictions, len(names))
    bins = calibration(file.probabilities, file.labels)
    top1 = f"Top-1 {result['top1']:.2f}"
    error = f"expected calibration error {bins.error:.2f} %"

    print(f"{file.path}: {len(file.paths)} videos of {sum(c.videos > 0 for c in classes)} of {len(names)} classes")
    print(f"protocol: {file.protocol or 'the file does not state it'}")
    print(f"{top1}, Top-5 {percent_text(result['top5'])}, mean class {result['class_accuracy']:.2f}")
    print_members(file)
    confidence = 100 * file.probabilities.max(1).mean()
    print(f"{error} ({len(bins.videos)} bins; mean confidence {confidence:.2f} %)")
    pairs = confused_pairs(confusion)
    if pairs:
        print("most confused pairs: videos = of the first taken for the second + of the second taken for the first")
    for a, b, there, back in pairs:
        print(f"{there + back:6} = {there} + {back}  labels {a}, {b}: {names[a]} | {names[b]}")

    header = ("label", "name", "videos", "top1", "top5", "taken_for", "taken_for_name", "times")
    write_csv(folder / "classes.csv", header, (_class_row(c, names) for c in classes))
    written = ["classes.csv"]
    stem = Path(file.path).stem
    try:
        draw_confusion(confusion, names, f"{stem}, {top1} %", folder / "confusion.png")
        draw_calibration(bins, f"{stem}, {error}", folder / "calibration.png")
        written += ["confusion.png", "calibration.png"]
    except ImportError:
        print("no pictures: they need matplotlib; pip install matplotlib")
    except OSError as problem:
        raise _unwritable(folder, problem) from None
    print(f"in {folder}: {', '.join(written)}")


def _class_row(result: ClassResult, names: list[str]) -> list:
    percents = ("" if value is None else f"{value:.2f}" for value in (result.top1, result.top5))
    taken_for = ("", "") if result.taken_for is None else (result.taken_for, names[result.taken_for])
    return [result.label, names[result.label], result.videos, *percents, *taken_for, result.times]


def print_members(file: Scores) -> None:
    """Print the accuracy of each member of an ensemble, if the file holds several."""
    if file.members is None or len(file.members) < 2:
        return
    names = file.member_names or [f"member {i + 1}" for i in range(len(file.members))]
    width = max(len(name) for name in (*names, "members"))
    print(f"{'members':{width}}   Top-1   Top-5  mean class")
    for name, scores in zip(names, file.members, strict=True):
        result = accuracy(scores, file.labels)
        top5 = percent_text(result["top5"], "-")
        print(f"{name:{width}}  {result['top1']:6.2f}  {top5:>6}  {result['class_accuracy']:10.2f}")


def report_two(a: Scores, b: Scores, args: argparse.Namespace) -> None:
    """Report each file (in folders a and b), and print how the second file differs from the first."""
    comparison = compare(a, b)
    names = class_names(args.dataset, a, b)
    folder = args.out or default_folder(a, b)
    for letter, file in (("a", a), ("b", b)):
        print(f"{letter}:", end=" ")
        report_one(file, names, folder / letter)
        print()
    n = len(a.paths)
    top1_a, top1_b = (100 * (comparison.both + alone) / n for alone in (comparison.only_a, comparison.only_b))
    p = comparison.p_value
    print(f"b against a: Top-1 {top1_b - top1_a:+.2f} ({top1_a:.2f} -> {top1_b:.2f})")
    print(f"same prediction for {comparison.same} of {n} videos, agreement {100 * comparison.same / n:.2f} %")
    print(
        f"right by both {comparison.both}, by a alone {comparison.only_a}, by b alone {comparison.only_b}, "
        f"by neither {comparison.neither}"
    )
    print(
        f"McNemar's exact test, two-sided: {comparison.only_a} against {comparison.only_b} discordant videos, "
        f"p {'< 1e-300' if p < 1e-300 else f'= {p:.4g}'}"
    )
    first, second = a.predictions, b.predictions
    rows = (
        [a.paths[i], a.labels[i], names[a.labels[i]], first[i], names[first[i]], second[i], names[second[i]], change]
        for i, change in comparison.changed
    )
    header = ("path", "label", "name", "prediction_a", "name_a", "prediction_b", "name_b", "change")
    write_csv(folder / "changed.csv", header, rows)
    print(f"in {folder}: changed.csv, {len(comparison.changed)} videos")


def report_actions(args: argparse.Namespace) -> None:
    """Print Top-1 and Top-5 of verbs, nouns and actions."""
    if not (args.verb and args.noun) or args.scores:
        raise ConfigError("an action is a verb and a noun; give --verb verb.npz --noun noun.npz and no other file")
    if args.out or args.dataset:
        raise ConfigError("--verb and --noun print accuracy only; for folders and names report on each file alone")
    verb, noun = read_scores(args.verb), read_scores(args.noun)
    results = {
        "verb": accuracy(verb.scores, verb.labels),
        "noun": accuracy(noun.scores, noun.labels),
        "action": action_accuracy(verb, noun),
    }
    for file in (verb, noun):
        print(f"{file.path}: protocol: {file.protocol or 'the file does not state it'}")
    print(f"{len(verb.paths)} segments; P(verb, noun) = softmax(verb scores)[verb] * softmax(noun scores)[noun]")
    print("          Top-1   Top-5")
    for name, result in results.items():
        print(f"{name:8} {result['top1']:6.2f}  {percent_text(result['top5'], '-'):>6}")


def write_csv(path: Path, header: tuple[str, ...], rows: Iterable[list]) -> None:
    """Write a table.

    Errors: ``ConfigError`` if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        raise _unwritable(path.parent, error) from None


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{folder}: cannot be written ({error}); name another folder with --out")


if __name__ == "__main__":
    main()
