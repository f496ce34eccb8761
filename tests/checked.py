"""Runs scripts/check_dataset.py and reads the table that it prints."""

import re
from pathlib import Path

from toy_run import run_inside


def check(file: Path, *flags: object, cwd: Path, code: int = 0) -> tuple[dict[str, tuple[str, str]], str]:
    """The rows, check -> (result, text), and all that is printed."""
    result = run_inside("scripts/check_dataset.py", file, *flags, cwd=cwd)
    assert result.returncode == code and "Traceback" not in result.stdout, result.stdout
    return rows_of(result.stdout), result.stdout


def rows_of(text: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r"^(\w[\w ]*?) +(ok|note|finding) +(\S.*)$", text, re.MULTILINE)
    return {name: (result, what) for name, result, what in found}


def findings(rows: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, (result, _) in rows.items() if result == "finding"}


def edit(file: Path, number: int, line: str) -> None:
    """Replace a line (from 0) of a text file, or add one at its end."""
    lines = file.read_text().splitlines()
    lines[number : number + 1] = [line]
    file.write_text("\n".join(lines) + "\n")
