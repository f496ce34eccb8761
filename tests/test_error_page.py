"""docs/errors.md quotes the messages as the source writes them, and knows each file that raises errors for users."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "errors.md").read_text()
ROOMS = ("data", "engine", "models", "reports", "scripts", "figs", "benchmarks", ".")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).glob("*.py"))]
SHELL = sorted((ROOT / "scripts").glob("*.sh"))
# The errors that end a program with one line. Others are bugs, or come to users through one of these.
ERRORS = {"ConfigError", "DataError", "WeightsError", "SystemExit"}
ERRORS |= {"ExportError", "ImportError", "RecordError", "ScoresError", "SizeError", "WriteError"}
HOLE = "\0"  # stands for a value in a message
FEWEST = 2  # fixed words of a quotation


def message(node: ast.AST) -> str:
    """The text of a string, an f-string or a sum of strings. Each value is a ``HOLE``, and white space is one space."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"\s+", " ", text)
        case ast.JoinedStr(values=parts):
            return "".join(message(part) for part in parts)
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return message(left) + message(right)
        case ast.IfExp(body=first):
            return message(first)
    return HOLE


def messages(tree: ast.AST) -> list[str]:
    """All texts in a part of a program."""
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := message(node)).strip(HOLE)]


def raised(tree: ast.AST) -> list[str]:
    """The texts with enough fixed words in calls of an error's class, of ``parser.error`` and of ``sys.exit``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            ends = isinstance(node.func, ast.Attribute) and node.func.attr in ("error", "exit")
            if ends or getattr(node.func, "id", "") in ERRORS:
                found += [text for argument in node.args for text in messages(argument)]
    return [text for text in found if len(re.findall(r"\w{2,}", text)) >= FEWEST]


def quotes(quotation: str, text: str) -> bool:
    """Whether the fixed words of a quotation stand in a line of ``text``. ``..`` is a value, or words left out."""
    pieces = [piece.strip() for piece in quotation.split("..") if piece.strip()]
    return bool(re.search(".*?".join(map(re.escape, pieces)), text))


def rows(page: str) -> list[tuple[int, list[str]]]:
    """The number and the quotations of each row of the tables of messages."""
    found, inside = [], False
    for number, line in enumerate(page.splitlines(), 1):
        inside = line.startswith("|") and (inside or line.startswith("| message |"))
        if inside and not line.startswith(("| message |", "|---")):
            found.append((number, re.findall(r"`([^`]+)`", line.split("|")[1])))
    return found


TREES = {path: ast.parse(path.read_text()) for path in FILES}
QUOTATIONS = [quotation for _, row in rows(PAGE) for quotation in row]


def test_the_rows_quote_the_source():
    shell = [re.sub(r"\s+", " ", re.sub(r'" \\\n\s*"', " ", path.read_text())) for path in SHELL]
    source = "\n".join({text for tree in TREES.values() for text in messages(tree)} | set(shell))  # a line a text
    assert len(QUOTATIONS) > 150
    wrong = []
    for number, row in rows(PAGE):
        assert row, f"docs/errors.md:{number}: a row without a message in back quotes"
        for quotation in row:
            if not quotes(quotation, source):
                wrong.append(f"docs/errors.md:{number}: no source file says {quotation!r}")
            if len(re.findall(r"\w{2,}", quotation)) < FEWEST:
                wrong.append(f"docs/errors.md:{number}: {quotation!r} is too short to be found")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "path", [path for path in FILES if raised(TREES[path])], ids=lambda path: str(path.relative_to(ROOT))
)
def test_each_file_that_raises_errors_is_on_the_page(path):
    """A new file with messages of its own needs a row, or a quotation in a row."""
    texts = raised(TREES[path])
    assert any(quotes(quotation, text) for quotation in QUOTATIONS for text in texts), (
        f"docs/errors.md quotes no message of {path.relative_to(ROOT)}; add a row for one of: {texts}"
    )


def test_exit_codes():
    """75 and 130 are those of the programs."""
    assert "EXIT_CODE = 75" in (ROOT / "engine" / "interrupt.py").read_text()
    table = PAGE[PAGE.index("## Exit status") : PAGE.index("## Installing")]
    assert re.findall(r"^\| (\d+) \|", table, re.M) == ["0", "1", "2", "75", "130"]


def test_quotations_are_compared_by_their_fixed_words():
    text = message(ast.parse('(f"{name}: label {label} is not below "\n"num_classes {n}; is it?")', mode="eval").body)
    assert quotes("label .. is not below num_classes", text) and quotes("..: label", text)
    assert not quotes("is not above num_classes", text) and not quotes("is it? .. label", text)
    assert raised(ast.parse('parser.error("two words")')) == ["two words"]
    assert raised(ast.parse('raise DataError(f"{x}: {y}")')) == [] and raised(ast.parse('log("two words")')) == []
