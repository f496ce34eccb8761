"""The names of a folder's image files: the frame numbers that a template finds, and the template that fits them."""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache

from .frame_folder import template_fields

_FIELDS = {1: ("number",), 2: ("axis", "number"), 3: ("folder", "axis", "number")}
_DIGITS = {"axis": "[xy]", "number": r"\d{1,20}", "folder": r"\d{1,20}"}
_NAME = re.compile(r"(.*\D|)(\d{1,20})(\D*?\.[^.]*)", re.DOTALL)  # the last number before the ending


def numbers_in(names: Iterable[str], image_tmpl: str, before: tuple[int, ...]) -> set[int]:
    """The numbers of the frames whose files are all among ``names``: one file, or an x and a y file.

    ``before`` holds the folder's number if the template has three fields.
    """
    fields, pattern = _pattern(image_tmpl)
    found: dict[int, set[str]] = defaultdict(set)
    for name in names:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        number, axis = int(match["number"]), (match["axis"],) if fields > 1 else ()
        if image_tmpl.format(*before, *axis, number) == name:
            found[number].add(name)
    return {number for number, files in found.items() if len(files) == (1 if fields == 1 else 2)}


@cache
def _pattern(image_tmpl: str) -> tuple[int, re.Pattern]:
    """The number of fields of a template, and a pattern for the names that it can give."""
    fields, pattern, automatic = template_fields(image_tmpl), "", iter(range(3))
    for text, place, _, _ in string.Formatter().parse(image_tmpl):
        pattern += re.escape(text)
        if place is not None:
            kind = _FIELDS[fields][int(place) if place else next(automatic)]
            pattern += f"(?P<{kind}>{_DIGITS[kind]})"
    return fields, re.compile(pattern)


def detect_template(folders: list[tuple[str, list[str]]], fields: int) -> str | None:
    """The template that fits most of these folders (name, names of its files), or ``None`` if none fits half of them.

    A template with this number of ``fields`` is preferred. If several templates are left, the result is the one that
    fits most files.
    """
    fitting, files = Counter(), Counter()
    for folder, names in folders:
        for template, count in _templates(folder, names).items():
            fitting[template] += 1
            files[template] += count
    good = [template for template, count in fitting.items() if 2 * count >= len(folders) and _is_template(template)]
    return max(good, key=lambda tmpl: (template_fields(tmpl) == fields, files[tmpl], tmpl), default=None)


def _is_template(text: str) -> bool:
    try:
        template_fields(text)
    except ValueError:
        return False
    return True


def _templates(folder: str, names: list[str]) -> dict[str, int]:
    """Templates for the files of one folder, with the number of files that each of them names."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in names:
        match = _NAME.fullmatch(name)
        if match:
            groups[match[1], match[3]].append(match[2])
    templates, paired = {}, set()
    for (start, end), digits in groups.items():
        spec = _spec(digits)
        for place in (i for i, letter in enumerate(start) if letter == "x"):
            partner = start[:place] + "y" + start[place + 1 :], end
            if spec is None or partner not in groups:
                continue
            paired |= {(start, end), partner}
            before, after = start[:place], start[place + 1 :]
            number = re.match(r"\d+", before)
            if number and folder.isdecimal() and int(number[0]) == int(folder):
                width = _spec([number[0]])
                before = width + _plain(before[number.end() :])
            else:
                before = _plain(before)
            files = len(digits) + len(groups[partner])
            templates[f"{before}{{}}{_plain(after)}{spec}{_plain(end)}"] = files
    for (start, end), digits in groups.items():
        spec = _spec(digits)
        if spec and (start, end) not in paired:
            templates[f"{_plain(start)}{spec}{_plain(end)}"] = len(digits)
    return templates


def _spec(digits: list[str]) -> str | None:
    """The field that writes these numbers, such as ``{:05d}``; ``None`` if no field writes all of them."""
    width = min(map(len, digits))
    if any(f"{int(number):0{width}d}" != number for number in digits):
        return None
    return f"{{:0{width}d}}" if width > 1 else "{}"


def _plain(text: str) -> str:
    """Text in which braces stand for themselves."""
    return text.replace("{", "{{").replace("}", "}}")
