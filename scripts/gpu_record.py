"""The results of ``scripts.check_gpu``: rows, tables, the file that a second call continues, and the last line."""

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

import torch

from data.messages import one_line
from engine.loading import processes_and_cores

from .gpu_advice import advice
from .steps import ROOT

AGREES, RAN, DIFFERS, FAILED, NOT_RUN, NOT_HERE = "agrees", "ran", "DIFFERS", "failed", "not run", "does not apply"
GOOD = (AGREES, RAN, NOT_HERE)
CODE = ("ops", "models", "engine", "data", "benchmarks")  # rooms whose files decide what is measured
SAME = ("GPU", "PyTorch", "Triton")  # facts that all results in a file have in common


class RecordError(Exception):
    """The file of an earlier call cannot be continued. The message names the remedy."""


@dataclass
class Row:
    """The result of a check."""

    name: str
    result: str
    figure: str
    seconds: float
    output: str = ""  # the last lines of a program that failed
    code: str = ""  # fingerprint of the code that was checked

    @property
    def line(self) -> str:
        return f"{self.name}: {self.result} ({self.figure})"


@dataclass
class Table:
    """The table that a benchmark prints. An item is a network or a stage; it has one or several rows."""

    command: str = ""
    about: str = ""  # the lines above the table
    head: list[str] = field(default_factory=list)
    items: dict[str, list[list[str]]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)  # items whose program ended with an error
    code: str = ""  # fingerprint of the code that was measured

    @property
    def rows(self) -> list[list[str]]:
        return [row for rows in self.items.values() for row in rows]

    def take(self, output: str) -> None:
        """Take the rows that a benchmark has printed so far. They replace the rows of the same items."""
        lines = [line for line in output.split("\n")[:-1] if not re.match(r"  round \d+ of", line)]  # whole lines
        shown = [i for i, line in enumerate(lines) if line.startswith("| ")]
        if not shown:
            return
        self.about = "\n".join(lines[: shown[0]]).strip()
        self.head, *rows = ([cell.strip() for cell in lines[i].split("|")[1:-1]] for i in shown)
        found: dict[str, list[list[str]]] = {}
        for row in rows:
            if row[0] != "geometric mean":  # of the items of one program; the report computes it from all items
                found.setdefault(row[0].partition(",")[0], []).append(row)
        self.items |= found
        self.failed = [item for item in self.failed if item not in found]

    def done(self, item: str) -> bool:
        rows = self.items.get(item, [])
        return bool(rows) and item not in self.failed and not any(cell.startswith("failed") for cell in sum(rows, []))

    def __str__(self) -> str:
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        return "\n".join([self.about, "", *(f"| {' | '.join(line)} |" for line in lines)])


class Record:
    """All results, in a Markdown file and in a JSON file beside it. Both are written after each result.

    ``names`` are those of all checks, in their order. ``selected`` are those of the checks of this call.
    """

    def __init__(self, out: Path, facts: dict[str, str], names: list[str], selected: list[str]):
        self.out, self.facts, self.names, self.selected = out, facts, names, selected
        self.rows: dict[str, Row] = {}
        self.tables: dict[str, Table] = {}
        self.lock = Lock()

    @property
    def file(self) -> Path:
        return self.out.with_suffix(".json")

    def resume(self, again: list[str], timed: list[str]) -> None:
        """Take over the results of an earlier call, if there was one, except those of checks that did not end well.

        ``again`` are texts; a check with one of them in its name runs again. So does a check that ran with other code,
        unless it is one of ``timed``, the checks that measure time.

        Errors: ``RecordError`` if the file is not such a file, or is of another GPU or another PyTorch.
        """
        if not self.file.exists():
            return
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            facts, rows = dict(content["facts"]), [Row(**row) for row in content["rows"]]
            tables = {name: Table(**table) for name, table in content["tables"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = one_line(f"{type(error).__name__}: {error}")
            remedy = "leave --resume out, or name another file"
            raise RecordError(f"{self.file}: cannot be continued ({reason}); {remedy}") from None
        for name in SAME:
            if facts.get(name) != (value := self.facts[name]):
                raise RecordError(
                    f"{self.file}: {name} was {one_line(str(facts.get(name)))} and is now {value}; "
                    "leave --resume out, or name another file"
                )
        kept = {row.name: row for row in rows if not any(text in row.name for text in again)}
        self.tables = {name: x for name, x in tables.items() if not any(text in name for text in again)}
        self.rows = {
            name: row
            for name, row in kept.items()
            if row.result in GOOD and (name in timed or row.code == self.facts["code"])
        }

    def table(self, name: str) -> Table:
        """The table of a benchmark. It has the rows of an earlier call, unless that call measured other code."""
        with self.lock:
            if name not in self.tables or self.tables[name].code != self.facts["code"]:
                self.tables[name] = Table(code=self.facts["code"])
            return self.tables[name]

    def add(self, row: Row) -> None:
        row.code = self.facts["code"]
        with self.lock:
            self.rows[row.name] = row
        self.save()

    def ordered(self) -> list[Row]:
        """The rows in the order of the checks."""
        return [self.rows[name] for name in self.names if name in self.rows]

    def save(self, end: str = "The check has not ended.") -> None:
        """Write both files.

        Errors: ``OSError`` if this is not possible.
        """
        with self.lock:
            content = {
                "facts": self.facts,
                "rows": [asdict(row) for row in self.ordered()],
                "tables": {name: asdict(table) for name, table in self.tables.items()},
            }
            write(self.file, json.dumps(content, indent=1))
            write(self.out, self.report(end))

    def report(self, end: str) -> str:
        """The text of the Markdown file."""
        lines = ["# Check of a GPU", "", end, ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        older = [row.name for row in self.ordered() if row.code != self.facts["code"]]
        lines += [f"- measured with other code: {', '.join(older)}"] if older else []
        lines += ["", "| check | result | figure | seconds |", "|---|---|---|---|"]
        for name in self.names:
            if name not in self.selected and name not in self.rows:
                continue
            row = self.rows.get(name, Row(name, NOT_RUN, "not reached yet", 0))
            figure = " ".join(row.figure.split()).replace("|", "\\|")
            lines.append(f"| {row.name} | {row.result} | {figure} | {row.seconds:.0f} |")
        if any(table.rows for table in self.tables.values()):
            results = {name: row.result for name, row in self.rows.items()}
            tables = {name: table.rows for name, table in self.tables.items()}
            lines += ["", *advice(results, tables, self.facts["half precision"])]
        for name in self.names:
            if (table := self.tables.get(name)) and table.rows:
                lines += ["", f"## {name[0].upper()}{name[1:]}", "", f"`{table.command}`", "", str(table)]
        for row in self.ordered():
            if row.output:
                lines += ["", f"## Last lines of: {row.name}", "", "```", row.output.strip(), "```"]
        return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    """Write a file so that it is never there in part, even if the program is killed."""
    part = file.with_name(f"{file.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


def verdict(rows: list[Row]) -> str:
    """One line that says which checks agree and which do not."""
    of = {result: [row for row in rows if row.result == result] for result in {row.result for row in rows}}
    agree = len(of.get(AGREES, []))
    bad = of.get(DIFFERS, []) + of.get(FAILED, [])
    parts = [f"{agree} check{'s agree' if agree != 1 else ' agrees'}"]
    if bad:
        named = ", ".join(f"{row.name} ({row.result}: {row.figure})" for row in bad)
        parts.append(f"{len(bad)} do{'es' if len(bad) == 1 else ''} not: {named}")
    else:
        parts.append("none differs")
    for result, words in ((NOT_RUN, "not run"), (NOT_HERE, "not for this machine")):
        if found := of.get(result):
            reasons = dict.fromkeys(row.figure for row in found)
            named = "; ".join(
                f"{', '.join(row.name for row in found if row.figure == reason)} ({reason})" for reason in reasons
            )
            parts.append(f"{len(found)} {words}: {named}")
    return ", ".join(parts)


def all_agree(rows: list[Row]) -> bool:
    return all(row.result in GOOD for row in rows)


def machine_and_versions(device: str) -> dict[str, str]:
    gpu = "none: a rehearsal on the CPU, which says nothing about a GPU"
    if device == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        gpu = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    cpu = platform.processor()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    triton = "none"
    with suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    return {
        "GPU": gpu,
        "driver": driver() if device == "cuda" else "none",
        "CPU": f"{cpu}, {processes_and_cores()[1]} cores",
        "Python": platform.python_version(),
        "PyTorch": f"{torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}",
        "Triton": triton,
        "code": fingerprint(),
    }


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown, nvidia-smi does not say"


def fingerprint() -> str:
    """Eight hexadecimal digits that change with the code and the recipes."""
    found = hashlib.sha256()
    files = [path for room in CODE for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".yaml")]
    for path in sorted(path for path in files if "toy_something" not in path.parts[:-1]):
        found.update(path.read_bytes())
    return found.hexdigest()[:8]
