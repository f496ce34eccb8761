"""The command line of the programs: one flag for each recipe key. The base recipe's file explains the keys."""

import argparse
import difflib
import importlib
import re
import sys
import types
import typing
from pathlib import Path

import yaml

from data import DataError, load_dataset_config
from data.messages import one_line
from models.registry import check_model

from . import config
from .config import CHOICES, FACTOR, KEYS, ConfigError, Factors, Interval, Recipe, Size, Switch

BASE = "tsn_r50"  # the recipe that all others start from; its file has a heading and a text for each key
METAVARS = {bool: "true|false", int: "INT", float: "FLOAT", str: "TEXT", list[int]: "[INT, ...]", dict: "{KEY: VALUE}"}
LONGEST = 60  # characters of a list of choices
METAVARS |= {Size: "SIZE|none", Interval: "INTERVAL|none", Factors: "{GROUP: FACTOR}", Switch: "auto|true|false"}


def add_recipe_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each recipe key, and ``--help``, which shows the defaults of a recipe.

    ``dataset``, ``model`` and ``--variant`` choose this recipe if they come before ``--help``.

    Errors: the parser ends the program if the base recipe's file cannot be read.
    """
    parser.add_argument(
        "-h",
        "--help",
        action=_RecipeHelp,
        nargs=0,
        default=argparse.SUPPRESS,
        help="show this and end; after DATASET MODEL [--variant V] with the defaults of their recipe",
    )
    parser.add_argument_group("recipe keys", "Each flag below replaces a value of the recipe that the last lines name.")
    try:
        texts = recipe_texts()
    except ConfigError as error:
        parser.error(str(error))
    groups = {}
    for key in KEYS:
        heading, text = texts.get(key, ("more keys", ""))
        text += f"; {config.RANGES[key]}" if key in config.RANGES else ""
        if heading not in groups:
            groups[heading] = parser.add_argument_group(heading)
        groups[heading].add_argument(f"--{key}", metavar=_metavar(key), default=argparse.SUPPRESS, help=_plain(text))
    for flag in {argument.split("=")[0] for argument in sys.argv[1:]}:
        if re.fullmatch(rf"--\w+{FACTOR}", flag):  # any group may have such a flag, so it is added only if it is given
            parser.add_argument(flag, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def recipe_texts() -> dict[str, tuple[str, str]]:
    """The heading (``# --- heading``) above each key and the comment after its value, in the base recipe's file.

    Errors: ``ConfigError`` if that file cannot be read.
    """
    path = config.RECIPES / f"{BASE}.yaml"
    try:
        content = path.read_text(encoding="utf-8")
        root = yaml.compose(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    texts = {}
    # The YAML parser finds the values, because a "#" within quotes does not start a comment.
    for key, value in root.value if isinstance(root, yaml.MappingNode) else []:
        headings = re.findall(r"^# --- (.+)$", content[: key.start_mark.index], re.MULTILINE)
        comment = re.match(r" +# (.+)", content[value.end_mark.index :])
        if headings and comment:
            texts[key.value] = headings[-1], comment[1]
    return texts


def given_recipe_flags(args: argparse.Namespace) -> dict:
    """The recipe keys and factors (such as ``sda_lr_mult``) that were on the command line."""
    return {key: value for key, value in vars(args).items() if key in KEYS or key.endswith(FACTOR)}


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with ``--import``. An unknown flag is an error that names the most similar flag."""
    text = "first import this .py file or module of yours, which may register models and frame sources; repeatable"
    parser.add_argument("--import", action=_Import, dest="imported", default=argparse.SUPPRESS, help=text)
    args, unknown = parser.parse_known_args()
    if unknown:
        flags = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=1)
        hint = f"did you mean {near[0]}?" if near else "see --help"
        parser.error(f"unknown argument {unknown[0]!r}; {hint}")
    return args


def check_model_names(parser: argparse.ArgumentParser, names: list[str]) -> None:
    """Check that models have these names.

    Errors: the parser ends the program and names the first unknown name.
    """
    try:
        for name in names:
            check_model(name)
    except ValueError as error:
        parser.error(str(error))


class _Import(argparse.Action):
    """Import a user's module at once, because the arguments after it may name what it registers."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, metavar="FILE|MODULE", **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: str, *_: object) -> None:
        file = Path(value).resolve() if value.endswith(".py") else None
        # At the end, because a user's folder may hold packages that are called like the project's.
        sys.path.append(str(file.parent if file else Path.cwd()))
        try:
            module = importlib.import_module(file.stem if file else value)
        except Exception as error:  # the code of a user may raise anything
            parser.error(f"--import {value}: cannot be imported ({type(error).__name__}: {one_line(error)})")
        if file and Path(module.__file__ or "").resolve() != file:
            parser.error(f"--import {value}: another module is called {file.stem} ({module.__file__}); rename the file")


class _RecipeHelp(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        try:
            recipe, parser.epilog = _chosen_recipe(namespace)
        except ConfigError as error:
            parser.error(str(error))
        parser.epilog += f" See another recipe with: python {parser.prog} DATASET MODEL [--variant V] --help"
        defaults = config.to_plain(recipe)
        for action in parser._actions:
            if action.dest in KEYS:
                action.help += _plain(f" (default {_shown(defaults[action.dest])})")
        parser.print_help()
        parser.exit()


def _chosen_recipe(args: argparse.Namespace) -> tuple[Recipe, str]:
    """The recipe whose defaults the help shows, and sentences that name it and report what cannot be read."""
    name, problems = "", []
    try:
        # A root is given, because the toy set would be drawn without one.
        name = load_dataset_config(args.dataset, root=".").name if args.dataset else ""
    except (DataError, OSError) as error:
        problems.append(str(error))
    model, variant = args.model or BASE, args.variant
    try:
        recipe = config.load_recipe(model, name, variant)
    except ConfigError as error:
        problems.append(str(error))
        model, variant = BASE, None
        recipe = config.load_recipe(model, name)
    shown = f"{model} (all recipes start from it)" if model == BASE else model
    shown += f" for {name}" if name else " without a dataset"
    shown += f", variant {variant}" if variant else ""
    sentences = [f"The recipe asked for cannot be shown: {problem}." for problem in problems]
    sentences.append(f"The defaults above are those of {shown}, from models/recipes/{model}.yaml.")
    if variants := config.list_variants(model):
        sentences.append(f"Its variants: {', '.join(variants)}.")
    return recipe, " ".join(sentences)


def _metavar(key: str) -> str:
    """The form of a key's values on the command line."""
    if key in CHOICES:
        names = ",".join(CHOICES[key])
        return f"{{{names}}}" if len(names) <= LONGEST else "NAME"  # argparse cannot break a line within a list
    declared = KEYS[key]
    if isinstance(declared, types.UnionType):
        return METAVARS[typing.get_args(declared)[0]] + "|none"
    return METAVARS[declared]


def _shown(value: object) -> str:
    """A recipe's value as the command line takes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(entry)}" for key, entry in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> str:
    """``text`` for argparse, with "%" doubled because argparse reads it as a format."""
    return text.replace("%", "%%")
