"""The pages are easy to read: no sentence has over 40 words, and the average is below 20 on each page and overall."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "benchmarks/*.md")
PAGES = [path for name in NAMES for path in sorted(ROOT.glob(name))]
LONGEST, AVERAGE = 40, 20

ABBREVIATIONS = ("i.e.", "e.g.", "cf.", "vs.", "etc.", "al.", "Fig.", "Figs.", "Eq.", "Tab.", "Sec.", "No.", "approx.")
# A sentence ends with a mark, then perhaps brackets or quotation marks, then white space.
END = re.compile(r"""(?<=[.!?])["')\]”]*(?=\s)""")
LIST_ITEM = re.compile(r"\A\s*(?:[-*+]|\d+\.)\s+")


def texts(page: str):
    """The texts of a page: ``(first line, text, whether it is prose)``. Prose is a paragraph or a list item.

    Headings and cells of tables are texts, too. Code blocks, images and HTML are left out.
    """
    page = re.sub(r"<!--.*?-->", lambda match: "\n" * match[0].count("\n"), page, flags=re.S)
    prose, first, fence = [], 0, ""
    for number, line in enumerate([*page.splitlines(), ""], 1):
        mark = re.match(r"\s*(```+|~~~+)", line)
        own = bool(fence or mark or not line.strip() or re.match(r"#+ |\s*\|", line))
        if prose and (own or LIST_ITEM.match(line)):
            yield first, "\n".join(prose), True
            prose = []
        if mark and (not fence or line.strip() == fence):
            fence = "" if fence else mark[1]
        elif not fence and re.match(r"\s*\|", line):
            cells = re.sub(r"`[^`]*`|\\\|", lambda match: match[0].replace("|", " "), line).split("|")
            yield from ((number, cell, False) for cell in cells if re.search(r"\w", cell))
        elif not fence and re.match(r"#+ ", line):
            yield number, line.lstrip("# "), False
        elif not own:
            first = first if prose else number
            prose.append(line if prose else re.sub(LIST_ITEM, "", line, count=1).removeprefix("> "))


def plain(text: str) -> str:
    """A text as it is read: inline code is one word, a link is its text, and images and marks of emphasis are gone.

    Line breaks stay, so that lines can be counted.
    """

    def without(match, left: str = "") -> str:
        return left + "\n" * match[0].count("\n")

    text = re.sub(r"(`+)(?:.|\n)+?\1", lambda match: without(match, "code"), text)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)|</?[a-zA-Z][^>]*>", without, text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", lambda match: match[1], text)
    text = re.sub(r"\A(\s*)\*{1,2}[^*]+[.:?!]\*{1,2}(?=\s)", r"\1", text)  # a heading at the start of a paragraph
    return re.sub(r"(?<!\w)[*_]{1,2}(?=\S)|(?<=\S)[*_]{1,2}(?!\w)", "", text)


def sentences(page: str) -> list[tuple[int, str, int, bool]]:
    """The sentences of a page: ``(line, sentence, number of words, whether it is prose)``."""
    found = []
    for first, text, prose in texts(page):
        text, start = plain(text), 0
        ends = [match.end() for match in END.finditer(text)]
        ends = [end for end in ends if text[:end].split()[-1].lstrip("(\"'") not in ABBREVIATIONS]
        for end in [*ends, len(text)]:
            part = text[start:end]
            words = [word for word in part.split() if re.search(r"\w", word)]
            if words:
                before = text[:start] + part[: len(part) - len(part.lstrip())]
                found.append((first + before.count("\n"), " ".join(part.split()), len(words), prose))
            start = end
    return found


def average(found) -> float:
    """The average number of words of the sentences in prose."""
    lengths = [count for _, _, count, prose in found if prose]
    return sum(lengths) / len(lengths)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_are_short(path):
    found = sentences(path.read_text())
    name = path.relative_to(ROOT)
    long = [f"{name}:{line}: {count} words: {text}" for line, text, count, _ in found if count > LONGEST]
    assert not long, "\n".join(["sentences of more than 40 words:", *long])
    longest = sorted((row for row in found if row[3]), key=lambda row: -row[2])[:5]
    hints = [f"{name}:{line}: {count} words: {text}" for line, text, count, _ in longest]
    assert average(found) < AVERAGE, "\n".join([f"{name}: on average {average(found):.1f} words", *hints])


def test_the_average_of_all_pages_is_low():
    assert average([row for path in PAGES for row in sentences(path.read_text())]) < AVERAGE


PAGE = """\
# A heading. It is not prose

One sentence, i.e. 3.5 s or more (see Fig. 2). A second `with.dots and
words` of code (at 2.5.) Third one
with a [link of three](https://example.org/a.b) words? `fused` starts the fourth!
- an item without a mark
- *Heading.* Another item. It has two sentences
  over two lines.

```bash
no words here. None at all.
```

| a cell. Two here | `a | b` | **bold** word |
|---|---|---|

1. First, ![no picture words](figs/a.png) then -> the end
"""


def test_splitting():
    """Abbreviations, numbers, code, links, items, cells, run-in headings."""
    assert [(line, count, prose) for line, _, count, prose in sentences(PAGE)] == [
        (1, 2, False),
        (1, 4, False),
        (3, 10, True),
        (3, 7, True),
        (4, 8, True),
        (5, 4, True),
        (6, 5, True),
        (7, 2, True),
        (7, 7, True),
        (14, 2, False),
        (14, 2, False),
        (14, 1, False),
        (14, 2, False),
        (17, 4, True),
    ]
    assert sentences(PAGE)[4][1] == "Third one with a link of three words?"


@pytest.mark.parametrize("form", ["{}.", "- {}", "| {} | b |", "# {}"])
def test_a_sentence_of_41_words_is_found(form):
    """In a paragraph, an item, a cell and a heading; between sentences that are short."""
    page = "Short one.\n\n" + form.format(" ".join(["word"] * 41)) + "\n\nShort."
    assert [line for line, _, count, _ in sentences(page) if count > LONGEST] == [3]
    assert not [1 for _, _, count, _ in sentences(page.replace("word ", "", 1)) if count > LONGEST]
