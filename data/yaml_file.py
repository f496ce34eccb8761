"""YAML files of datasets and recipes."""

from pathlib import Path

import yaml

from .messages import one_line, reason, shown
from .regular_file import open_regular

LARGEST_FILE = 1_000_000  # bytes; PyYAML reads about one megabyte in ten seconds
MOST_KEYS = 1_000_000  # a short file with nested merges ("<<") can hold any number of keys
_KEYS = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("str", "merge", "value"))
# PyYAML also raises errors of these types: !!bool x is a KeyError, !!timestamp x an AttributeError, ...
_LET_THROUGH = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def read_mapping(path: Path, error: type[Exception]) -> dict:
    """The ``key: value`` lines of a YAML file in UTF-8, with or without a byte order mark.

    Errors: ``error``, a class. Its message is one line with file and line. Reasons are: the file cannot be read, is not
    YAML or is not a mapping, or a mapping in it has a key twice or a key that is not text.
    """
    name = one_line(path)
    try:
        with open_regular(path) as file:
            content = file.read(LARGEST_FILE + 1)
    except (OSError, ValueError) as failure:
        raise error(f"{name}: cannot be read ({reason(failure)})") from None
    if len(content) > LARGEST_FILE:
        raise error(f"{name}: has more than {LARGEST_FILE:,} bytes; put long lists into files of their own")
    try:
        values = yaml.load(content.decode("utf-8-sig"), Loader=_Loader)
    except _Refused as refused:
        line, problem = refused.args
        raise error(f"{name}:{line}: {problem}") from None
    except yaml.MarkedYAMLError as failure:
        problem = ": ".join(one_line(part) for part in (failure.context, failure.problem) if part)
        mark = failure.problem_mark or failure.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        raise error(f"{where}: not a YAML file ({problem}); correct it") from None
    except RecursionError:
        raise error(f"{name}: not a YAML file (nested too deeply)") from None
    except (yaml.YAMLError, *_LET_THROUGH) as failure:
        raise error(f"{name}: not a YAML file ({reason(failure)})") from None
    if not isinstance(values, dict):
        raise error(f"{name}: must hold 'key: value' lines")
    return values


class _Refused(Exception):
    """The number of a line (from 1), and what is wrong in it."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with one change: equal keys are an error. PyYAML would silently keep the last one."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.checked: set[yaml.MappingNode] = set()
        self.keys = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the pairs of merge keys before a mapping's own pairs. The own pairs then override them."""
        if node not in self.checked:  # after the first call, overridden keys look like repeated keys
            self.checked.add(node)
            _check_keys(node)
        super().flatten_mapping(node)
        self.keys += len(node.value)
        if self.keys > MOST_KEYS:
            raise _Refused(node.start_mark.line + 1, f"more than {MOST_KEYS:,} keys, with those that '<<' merges")

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        """The Python value of a node."""
        try:
            return super().construct_object(node, deep)
        except _LET_THROUGH:
            kind = one_line(node.tag.rpartition(":")[2])
            raise _Refused(node.start_mark.line + 1, f"{_text(node)} cannot be read as {kind}") from None


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if key.tag not in _KEYS or not isinstance(key, yaml.ScalarNode):
            raise _Refused(line, f"the key {_text(key)} is not text; write it in quotes")
        if key.value in lines:
            raise _Refused(line, f"the key {_text(key)} stands in line {lines[key.value]} too; remove one")
        lines[key.value] = line


def _text(node: yaml.Node) -> str:
    return shown(node.value) if isinstance(node, yaml.ScalarNode) else f"(a {node.id})"
