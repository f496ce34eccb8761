"""Print the figures of logs, ours or published ones, as tables: ``python -m scripts.read_logs logs/toy_*.log``."""

import argparse

from engine.log_lines import read_log

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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.read_logs", description=__doc__)
    parser.add_argument("logs", nargs="+", metavar="LOG")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="print each N-th epoch and the last one")
    args = parser.parse_args()
    if args.every < 1:
        parser.error(f"--every {args.every} must be at least 1")
    for path in args.logs:
        try:
            rows = read_log(path)
        except OSError as error:
            parser.error(f"{path}: cannot be read ({error})")
        if not rows:
            parser.error(f"{path}: holds no line of a training or validation log")
        print(path)
        print(" ".join(_cell(name, form) for name, form in COLUMNS.items()))
        for i, row in enumerate(rows):
            if i % args.every == 0 or i == len(rows) - 1:
                print(" ".join(_cell(row.get(name), form) for name, form in COLUMNS.items()))
        tested = [row for row in rows if "val_top1" in row]
        if tested:
            best = max(tested, key=lambda row: row["val_top1"])
            print(f"best {best['val_top1']:.3f} in epoch {best['epoch']}, last {tested[-1]['val_top1']:.3f}\n")


def _cell(value: float | str | None, form: str) -> str:
    return f"{value:{form}}" if isinstance(value, (int, float)) else (value or "-").rjust(int(form.split(".")[0]))


if __name__ == "__main__":
    main()
