"""Class names, and which classes a horizontal flip turns into each other."""

import re
from collections import Counter
from pathlib import Path

from .messages import CONTROL, one_line, reason, shown
from .video_list import DataError, text_lines

MIRROR_WORDS = {
    "left": "right",
    "right": "left",
    "leftwards": "rightwards",
    "rightwards": "leftwards",
    "clockwise": "counterclockwise",
    "counterclockwise": "clockwise",
}
_WORD = re.compile(r"\b(" + "|".join(MIRROR_WORDS) + r")\b")  # for lower case


def read_categories(
    categories: list[str] | str | Path | None, num_classes: int, dataset_file: Path | None = None
) -> list[str] | None:
    """Class names in label order, from a list or from a UTF-8 file with one name per line.

    ``dataset_file`` is the file that contains the list, for messages.

    Errors: ``DataError`` if the file cannot be read, the count is not ``num_classes``, a name appears twice, or a name
    holds a control character.
    """
    if categories is None:
        return None
    if isinstance(categories, list):
        names, source = categories, f"{one_line(dataset_file)}: categories" if dataset_file else "categories"
    else:
        source = one_line(categories)
        try:
            names = [line.strip() for line in text_lines(categories) if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{source}: cannot read the categories ({reason(error)}); one name a line") from None
    if len(names) != num_classes:
        raise DataError(f"{source}: {len(names)} names for num_classes {num_classes}; write one a label, in order")
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{source}: {shown(name)} stands there twice; each label needs a name of its own")
        if CONTROL.search(name):
            raise DataError(f"{source}: {shown(name)} holds a control character; write a name in one line")
    return names


def mirror_pairs(names: list[str] | None) -> dict[int, int]:
    """label -> the label whose name has left/right (and clockwise/counterclockwise) exchanged.

    Pairs are found by class names, because label numbers depend on the order of the list. (The often used 86/87, 93/94,
    166/167 are correct only for alphabetical order.) A name with such a word but without a partner ("pulling it right
    out") has no pair.

    Errors: ``DataError`` if a name mirrors into another name that does not mirror back.
    """
    if names is None:
        return {}
    label = {name.lower(): i for i, name in enumerate(names)}
    pairs = {}
    for name, i in label.items():
        partner = label.get(_WORD.sub(lambda match: MIRROR_WORDS[match[0]], name))
        if partner is not None and partner != i:
            pairs[i] = partner
    one_way = [i for i, partner in pairs.items() if pairs.get(partner) != i]
    if one_way:
        raise DataError(
            f"categories: {shown(names[one_way[0]])} mirrors into {shown(names[pairs[one_way[0]]])} but not back; "
            "rename one"
        )
    return pairs


def describe_flip(policy: str, names: list[str] | None, pairs: dict[int, int]) -> str:
    """One line for the log that names the policy and the pairs of classes that it uses."""
    if policy == "none":
        return "flip: none"
    if names is None:
        return f"flip: {policy}, but the dataset names no categories, so every class is flipped and keeps its label"
    shown = ", ".join(f"{i} <-> {j} ({names[i]} <-> {names[j]})" for i, j in pairs.items() if i < j)
    verbs = {"skip": "not flipped", "swap": "flipped with the label exchanged", "keep": "flipped, label kept"}
    verb = verbs[policy]
    return f"flip: {policy}; {verb}: {shown or 'none, no class name says left or right'}"
