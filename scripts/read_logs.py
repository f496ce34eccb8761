"""Summarise training logs, ours or published ones: ``python -m scripts.read_logs logs/toy_*.log``.

Each log is a row of the table: its best and last validation, the accuracy of its classes, hours, speed and learning
rate. Epochs count from 0, as in the logs. Class is the mean accuracy of the classes in the best epoch. Hours include
validation, but not the pause before a resumed run. The clips/s are those of training in the last 5 epochs, first with
waiting for data, then without it. The log of a test has a row without figures of training.
"""

import argparse
import csv
import itertools
import signal
import sys
from collections import Counter
from pathlib import Path

from engine.log_reader import FIGURES, Run, read_run
from reports.curves import draw_curves

COLUMNS = {
    "epoch": "5.0f",
    "lr": "8.5f",
    "loss": "7.3f",
    "top1": "7.2f",
    "top5": "7.2f",
    "val_loss": "8.3f",
    "val_top1": "8.2f",
    "val_top5": "8.2f",
    "class_accuracy": "14.2f",
}
COMPARED = {"val_top1": "Top-1", "val_top5": "Top-5", "loss": "training loss"}
HEAD = (
    ("", "", "best", "", "", "", "last", "", "", "clips/s", "clips/s", ""),
    ("run", "epochs", "Top-1", "Top-5", "class", "epoch", "Top-1", "Top-5", "hours", "waiting", "no wait", "lr"),
)
LONGEST_NAME = 24
PICTURES = (".png", ".pdf", ".svg")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.read_logs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="LOG")
    text = "print the epochs of each log instead: each N-th and the last; with --compare, only these epochs"
    parser.add_argument("--every", type=int, metavar="N", help=text)
    parser.add_argument("--compare", action="store_true", help="print the epochs of two logs side by side")
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw the curves ({', '.join(PICTURES)})")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all figures, one line for each log and epoch")
    args = parser.parse_args()
    if args.every is not None and args.every < 1:
        parser.error(f"--every {args.every} must be at least 1")
    if args.compare and len(args.logs) != 2:
        parser.error(f"--compare needs 2 logs, not {len(args.logs)}")
    for flag, path, endings in (("--plot", args.plot, PICTURES), ("--csv", args.csv, (".csv",))):
        if path and path.suffix not in endings:  # a forgotten file name must not overwrite a log
            parser.error(f"{flag} {path} must end in {' or '.join(endings)}")

    runs = {path: run for path in dict.fromkeys(args.logs) if (run := read(path))}
    failed = len(runs) < len(set(args.logs))
    if args.compare and len(runs) == 2:
        print_comparison(runs, args.every or 1)
    elif args.every and not args.compare:
        for path, run in runs.items():
            print_epochs(path, run, args.every)
    elif runs and not args.compare:
        print_summary(runs)
    try:
        if args.csv and runs:
            write_csv(runs, args.csv)
        if args.plot and runs:
            plot(runs, args.plot)
    except ImportError:
        return complain("drawing needs matplotlib; pip install matplotlib")
    except OSError as error:
        return complain(f"{error.filename}: cannot be written ({error.strerror})")
    return int(failed)


def complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


def read(path: str) -> Run | None:
    """The run of a log. If the log cannot be used, the reason is printed and the result is ``None``."""
    try:
        run = read_run(path)
    except OSError as error:
        complain(f"{printable(path)}: cannot be read ({error.strerror})")
        return None
    if run.damaged:
        count, first = len(run.damaged), run.damaged[0]
        what = "1 line looks like a log line" if count == 1 else f"{count} lines look like log lines"
        print(f"{printable(path)}: {what} but cannot be read, first at line {first}", file=sys.stderr)
    if not run.rows:
        complain(f"{printable(path)}: holds no line of a training or validation log")
        return None
    return run


def printable(path: str) -> str:
    return path if path.isprintable() else repr(path)[1:-1]


def short_names(paths: list[str]) -> list[str]:
    """The names of the files without folder and ending if they differ, else the paths. Long ones are shortened."""
    stems = [Path(path).stem for path in paths]
    count = Counter(stems)
    names = [printable(stem if count[stem] == 1 else path) for stem, path in zip(stems, paths, strict=True)]
    half = LONGEST_NAME // 2 - 1
    return [name if len(name) <= LONGEST_NAME else f"{name[:half]}..{name[-half:]}" for name in names]


def print_summary(runs: dict[str, Run]) -> None:
    """A row for each run."""
    names = short_names(list(runs))
    rows = [*HEAD, *((name, *summary(run)) for name, run in zip(names, runs.values(), strict=True))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        line = [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))]
        print("  ".join(line).rstrip())
    print("Epochs count from 0, as in the logs.")


def summary(run: Run) -> list[str]:
    """The cells of a run, in the order of ``HEAD``, without its name."""
    best, last, rates = run.best, (run.tested or [{}])[-1], [row["lr"] for row in run.trained]
    done = f"{run.epochs}/{run.total_epochs}" if run.total_epochs else str(run.epochs)
    ends = [f"{rate:.5f}".rstrip("0").rstrip(".") for rate in sorted({min(rates), max(rates)})] if rates else ["-"]
    return [
        done if run.trained else "test",
        number(best.get("val_top1"), ".3f"),
        number(best.get("val_top5"), ".3f"),
        number(best.get("class_accuracy"), ".2f"),
        number(best.get("epoch") if run.trained else None, "d"),
        number(last.get("val_top1"), ".3f"),
        number(last.get("val_top5"), ".3f"),
        number(run.hours, ".2f"),
        number(run.speed("clips_per_second"), ".1f"),
        number(run.speed("speed"), ".1f"),
        "-".join(ends),
    ]


def number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def print_epochs(path: str, run: Run, every: int) -> None:
    """A row for each N-th epoch and the last one."""
    print(printable(path))
    print(" ".join(_cell(name, form) for name, form in COLUMNS.items()))
    for row in chosen(run.rows, every):
        print(" ".join(_cell(row.get(name), form) for name, form in COLUMNS.items()))
    if run.tested:
        best, last = run.best, run.tested[-1]
        print(f"best {best['val_top1']:.3f} in epoch {best['epoch']}, last {last['val_top1']:.3f}\n")


def chosen(rows: list, every: int) -> list:
    return [row for i, row in enumerate(rows) if i % every == 0 or i == len(rows) - 1]


def _cell(value: float | str | None, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, (int, float)) else (value or "-").rjust(int(form.split(".")[0]))


def print_comparison(runs: dict[str, Run], every: int) -> None:
    """Two runs side by side, and which of them is better and since when. Differences are those of B to A."""
    a, b = ({row["epoch"]: row for row in run.rows} for run in runs.values())
    for letter, path in zip("AB", runs, strict=True):
        print(f"{letter}: {printable(path)}")
    print(" " * 5 + "".join(f"{title:^30}".rstrip().ljust(30) for title in COMPARED.values()).rstrip())
    print("epoch" + f"{'A':>10}{'B':>10}{'B - A':>10}" * len(COMPARED))
    for epoch in chosen(sorted(a.keys() | b.keys()), every):
        pairs = [(a.get(epoch, {}).get(key), b.get(epoch, {}).get(key)) for key in COMPARED]
        print(f"{epoch:5}" + "".join(f"{number(value, form):>10}" for pair in pairs for value, form in with_gap(*pair)))
    print(verdict(*runs.values()))


def with_gap(a: float | None, b: float | None) -> tuple:
    """Two figures and their difference, each with its format."""
    return (a, ".3f"), (b, ".3f"), (None if a is None or b is None else b - a, "+.3f")


def verdict(a: Run, b: Run) -> str:
    """The best epochs of two runs, and from which epoch on one of them is ahead."""
    if not a.tested or not b.tested:
        return f"log {'B' if a.tested else 'A'} holds no validation"
    best = [
        f"{letter} {run.best['val_top1']:.3f} / {run.best['val_top5']:.3f} in epoch {run.best['epoch']}"
        for letter, run in (("A", a), ("B", b))
    ]
    top1, top5 = (b.best[key] - a.best[key] for key in ("val_top1", "val_top5"))
    text = f"best Top-1 / Top-5: {best[0]}, {best[1]}; B - A: {top1:+.3f} / {top5:+.3f}\n"
    of_b = {row["epoch"]: row["val_top1"] for row in b.tested}
    gaps = [(row["epoch"], of_b[row["epoch"]] - row["val_top1"]) for row in a.tested if row["epoch"] in of_b]
    if not gaps:
        return text + "no epoch was validated in both logs"
    last, gap = gaps[-1]
    if not gap:
        return text + f"equal in epoch {last}, the last one that was validated in both"
    lead = [epoch for epoch, _ in itertools.takewhile(lambda pair: pair[1] * gap > 0, reversed(gaps))]
    return text + f"{'B' if gap > 0 else 'A'} is ahead from epoch {lead[-1]} to {last}, in validation Top-1"


def write_csv(runs: dict[str, Run], path: Path) -> None:
    """A line for each run and epoch, with all figures. A figure that was not logged is empty."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["log", *FIGURES], lineterminator="\n")
        table.writeheader()
        for log, run in runs.items():
            table.writerows({"log": printable(log)} | row for row in run.rows)
    print(path)


def plot(runs: dict[str, Run], path: Path) -> None:
    """Draw the training runs. The name of a run is followed by its best validation Top-1."""
    curves = {}
    for name, (log, run) in zip(short_names(list(runs)), runs.items(), strict=True):
        if run.trained:
            best = f", best Top-1 {run.best['val_top1']:.2f}" if run.tested else ""
            curves[f"{name}{best}"] = run.trained
        else:
            print(f"not drawn, because it is the log of a test: {printable(log)}")
    if curves:
        draw_curves(curves, path)
        print(path)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends the program without a traceback
    sys.exit(main())
