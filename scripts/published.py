"""Print published results beside our measured costs, and how to train and test each: ``python -m scripts.published``.

The rows come from engine/published.yaml. Our parameters and multiply-adds come from engine/published_costs.csv.
--measure measures them again with models.costs, which takes minutes.
"""

import argparse
import csv
import dataclasses
import signal
import sys
from pathlib import Path

from data import DataError, list_datasets, load_dataset_config
from engine.config import ConfigError, check_key
from engine.flags import parse_arguments
from engine.published import Row, load_published
from models import build_model, list_models
from models.costs import costs
from scripts.report import write_csv

COSTS = Path(__file__).parents[1] / "engine" / "published_costs.csv"
COSTS_HEADER = ("model", "num_classes", "num_segments", "size", "parameters", "multiply_adds")
LEGEND = """\
test: frames x crops x clips @ input px. A question mark is what the source does not tell.
params: millions. G: multiply-adds of a view, in ours with the dataset's classes, and at 224 px if no input is told."""
USUAL_INPUT = 224  # px, if the source does not tell it
Network = tuple[str, int, int, int]  # model, num_classes, num_segments, size
Costs = dict[Network, tuple[int, int]]  # -> parameters, multiply-adds of a view


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="only the rows of this model, such as tsm_r50")
    parser.add_argument("--dataset", metavar="D", help="only the rows of this dataset, such as something_v1")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="also write the rows as a CSV file")
    parser.add_argument("--measure", action="store_true", help="measure our costs of these rows again, and store them")
    return parse_arguments(parser)


def main() -> None:
    args = parse_args()
    try:
        rows = chosen(load_published().rows, args.model, args.dataset)
        if args.measure:
            measure(rows)
        known = read_costs()
        print_rows(rows, known)
        if args.out:
            fields = [field.name for field in dataclasses.fields(Row)]
            header = (*fields, "our_parameters", "our_multiply_adds")
            write_csv(args.out, header, ([*_plain(row), *(our_costs(row, known) or ("", ""))] for row in rows))
    except (ConfigError, DataError) as error:
        sys.exit(f"error: {error}")


def chosen(rows: list[Row], model: str | None, dataset: str | None) -> list[Row]:
    """The rows of a model and of a dataset.

    Errors: ``ConfigError`` for an unknown name, and if there are none.
    """
    if model is not None:
        check_key(model, list_models(), "model")
    if dataset is not None:
        check_key(dataset, list_datasets(), "dataset")
    found = [row for row in rows if model in (None, row.model) and dataset in (None, row.dataset)]
    if not found:
        known = sorted({row.dataset for row in rows if model in (None, row.model)})
        of = f"of {model} " if model else ""
        where = f"on {dataset} " if dataset else ""
        hint = f"it has some on {', '.join(known)}" if model and known else "leave MODEL and --dataset out to see all"
        raise ConfigError(f"no results {of}{where}are published here; {hint}")
    return found


def networks(row: Row) -> list[Network]:
    """The networks of a row as our code builds them, one for each member of an ensemble."""
    if row.model is None:
        return []
    classes = load_dataset_config(row.dataset, with_names=False).num_classes
    return [(row.model, classes, frames, row.input or USUAL_INPUT) for frames in row.num_segments]


def read_costs() -> Costs:
    """The stored costs of networks.

    Errors: ``ConfigError`` if the file cannot be read.
    """
    try:
        with open(COSTS, encoding="utf-8", newline="") as file:
            lines = [(line[0], *map(int, line[1:])) for line in list(csv.reader(file))[1:]]
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"{COSTS}: cannot be read ({error}); write it with --measure") from None
    return {line[:4]: line[4:] for line in lines}


def measure(rows: list[Row]) -> None:
    """Measure the networks of the rows with ``models.costs``, and store the costs. Other stored costs stay."""
    wanted = sorted({network for row in rows for network in networks(row)})
    found = read_costs() if COSTS.is_file() else {}
    for i, network in enumerate(wanted, start=1):
        model, classes, frames, size = network
        parameters, multiply_adds = costs(build_model(model, classes, frames), frames, size)
        found[network] = parameters, round(multiply_adds)
        write_csv(COSTS, COSTS_HEADER, ([*network, *found[network]] for network in sorted(found)))
        print(f"{i} of {len(wanted)}: {model}, {classes} classes, {frames} frames of {size} px", file=sys.stderr)


def our_costs(row: Row, known: Costs) -> tuple[int, int] | None:
    """Parameters and multiply-adds of a view, summed over the members. None if they were not measured."""
    wanted = networks(row)
    if not wanted or any(network not in known for network in wanted):
        return None
    parameters, multiply_adds = zip(*(known[network] for network in wanted), strict=True)
    return sum(parameters), sum(multiply_adds)


def train_commands(row: Row) -> list[str]:
    """The commands that train the networks of a row. If the source does not tell the frames, the recipe does."""
    if row.model is None:
        return []
    return [
        f"python main.py {row.dataset} {row.model} --run {run_name(row, frames)}"
        + (f" --num_segments {frames}" if frames else "")
        for frames in row.num_segments or [None]
    ]


def testing_commands(row: Row) -> list[str]:
    """The command that tests these networks. What the source does not tell of the test, the recipe does."""
    if row.model is None:
        return []
    files = [f"net_runs/{run_name(row, n)}/resnet_rgb_model_best.pth.tar" for n in row.num_segments or [None]]
    command = f"python test_models.py {row.dataset} --weights {','.join(files)}"
    if row.protocol:
        command += f" --protocol {row.protocol[0]}"
    if row.crops and row.clips:
        command += f" --views {row.crops}x{row.clips}"
    return [command]


def run_name(row: Row, frames: int | None) -> str:
    return "_".join(str(part) for part in (row.model, row.dataset, frames) if part)


def print_rows(rows: list[Row], known: Costs) -> None:
    """Print a table for each dataset, and under it the notes and the commands with the numbers of their rows."""
    print(LEGEND)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        mine = [row for row in rows if row.dataset == dataset]
        print(f"\n{dataset}\n")
        header = ["", "system", "our model", "test", "protocol", "params", "our params", "G", "our G"]
        header += ["Top-1", "Top-5", "class", "source"]
        table = [header, *(_cells(i, row, known) for i, row in enumerate(mine, start=1))]
        columns = [column for column in zip(*table, strict=True) if any(column[1:])]
        widths = [max(map(len, column)) for column in columns]
        for line in zip(*columns, strict=True):
            cells = zip(line, widths, columns, strict=True)
            print("  ".join(_aligned(text, width, column) for text, width, column in cells).rstrip())
        _print_lines("notes", [notes(row) for row in mine])
        _print_lines("train", [train_commands(row) for row in mine])
        _print_lines("test", [testing_commands(row) for row in mine])


def notes(row: Row) -> list[str]:
    """What one must know beside the figures."""
    found = [row.note] if row.note else []
    if row.printed:
        found.append(f"The source prints these views: {row.printed}.")
    if row.model is None:
        found.append("None of our networks.")
    elif not row.protocol:
        found.append("The source does not tell the whole test. The command takes the rest from our recipe.")
    return found


def _cells(number: int, row: Row, known: Costs) -> list[str]:
    """A line of the table."""
    ours = our_costs(row, known)
    parameters, multiply_adds = (f"{ours[0] / 1e6:.3f}", f"{ours[1] / 1e9:.2f}") if ours else ("", "")
    named = [str(number), row.system, row.model or "", row.views, " or ".join(row.protocol)]
    counted = [_shown(row.params), parameters, _shown(row.gmacs), multiply_adds]
    return [*named, *counted, *map(_shown, (row.top1, row.top5, row.mean_class)), row.source]


def _print_lines(heading: str, lines: list[list[str]]) -> None:
    """Print lines below a heading, each once, after the numbers of the rows to which it belongs."""
    numbers: dict[str, list[int]] = {}
    for i, mine in enumerate(lines, start=1):
        for text in mine:
            numbers.setdefault(text, []).append(i)
    if numbers:
        print(f"\n{heading}")
    for text, rows in numbers.items():
        print(f"  {', '.join(map(str, rows))}: {text}")


def _aligned(text: str, width: int, column: tuple[str, ...]) -> str:
    """Numbers are aligned at the right."""
    numbers = all(cell.replace(".", "").isdigit() for cell in column[1:] if cell)
    return text.rjust(width) if numbers else text.ljust(width)


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _plain(row: Row) -> list[str]:
    """The values of a row for a CSV file."""
    values = dataclasses.astuple(row)
    return [
        "+".join(map(str, value)) if isinstance(value, tuple) and value and name != "resize" else _shown(value or None)
        for name, value in zip([field.name for field in dataclasses.fields(row)], values, strict=True)
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends the program without a traceback
    main()
