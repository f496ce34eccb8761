"""The views of a test: their geometry, their clips, and how their scores are averaged. Released tests have names."""

import argparse
from dataclasses import dataclass

from data.clip_rules import CENTRES, CLIP_RULES
from data.pixels import FAITHFUL
from data.transforms import MIRRORED

from . import config
from .clip_checks import check_units
from .config import ConfigError, Recipe

GEOMETRY = (
    "views",
    "resize",
    "crop",
    "crop_rule",
    "input",
    "clip_rule",
    "short_videos",
    "view_average",
    "mirrored_scores",
    "pixels",
)
_SDA = {
    "views": "1x1",
    "resize": "256",
    "crop": 224,
    "crop_rule": "grid",
    "input": 224,
    "clip_rule": "usual",
    "short_videos": "spread",
    "view_average": "logits",
    "pixels": FAITHFUL,
}
_FULL = _SDA | {"crop": 256, "input": 256}  # 256 px crops are not shrunk
_V4D = _FULL | {"views": "3x1", "resize": "256x320"}


@dataclass(frozen=True)
class Protocol:
    """A named test.

    Args:
        text: whose test it is, and the source.
        settings: a value for each key of ``GEOMETRY`` except ``mirrored_scores``.
        units: the number of V4D's units of a clip, if it is another than in training.
    """

    text: str
    settings: dict
    units: int | None = None


# Flags override the settings.
PROTOCOLS = {
    "rsa": Protocol("RSA: released test (main.py)", _SDA | {"resize": "240x320", "short_videos": "first_frame"}),
    "sda": Protocol("SDA: crops of 224 px, as during training (main.py)", _SDA),
    "sda_full": Protocol("SDA: test_models.py --full_res; its crops are shrunk to 224 px", _SDA | {"crop": 256}),
    "tam": Protocol("TAM: SSv1 (test_models.py --sample uniform-1)", _SDA | {"clip_rule": "uniform"}),
    "tam_full": Protocol(
        "TAM: SSv2 (test_models.py --test_crops 3 --full_res --sample uniform-2)",
        _FULL | {"views": "3x2", "clip_rule": "uniform"},
    ),
    "tea": Protocol('TEA: "efficient" test (test_models.py)', _SDA),
    "tea_full": Protocol(
        'TEA: "accuracy" test (test_models.py --test_crops 3 --full_res --multi_clip_test, ten times)',
        _FULL | {"views": "3x10", "clip_rule": "random"},
    ),
    "stm": Protocol(
        "STM: as summaries of the paper describe it; no code",
        _FULL | {"views": "3x10", "input": 224, "clip_rule": "random", "view_average": "softmax"},
    ),
    "teinet": Protocol("TEINet: 1 crop, 1 clip in SDA's table; no code, so TSM's", _SDA),
    "gst": Protocol("GST: main.py --evaluate", _SDA | {"short_videos": "first_frame"}),
    "c3d": Protocol("C3D: GST's, because SDA's table names no test", _SDA | {"short_videos": "first_frame"}),
    "tin": Protocol(
        "TIN: test.py --temporal_clips 1 --random_crops 1 --crop_size 224",
        _SDA | {"clip_rule": "centres_random", "view_average": "softmax"},
    ),
    "tin_full": Protocol(
        "TIN: test.py --temporal_clips 2 --random_crops 3 --crop_size 256",
        _FULL | {"views": "3x2", "clip_rule": "centres_random", "view_average": "softmax"},
    ),
    "tpn": Protocol(
        "TPN: test_recognizer.py --fcn_testing, all published figures",
        _FULL | {"views": "3x2", "crop_rule": "long_side", "clip_rule": "interleaved", "view_average": "softmax"},
    ),
    "smallbig": Protocol(
        "SmallBig: phase Fntest of something_something.py; no test script, so mean logits is a guess",
        _FULL | {"views": "3x2", "crop_rule": "diagonal"},
    ),
    "rubiksnet": Protocol("RubiksNet: scripts/test_models.py", _SDA),
    "rubiksnet_full": Protocol("RubiksNet: scripts/test_models.py --two-clips", _SDA | {"views": "3x2"}),
    "v4d": Protocol("V4D: tools/test.py, ten units in one clip, for Kinetics", _V4D | {"clip_rule": "units"}, units=10),
    "v4d_slow": Protocol(
        "V4D: tools/test.py --slow_testing 1, for Kinetics",
        _V4D | {"views": "3x36", "clip_rule": "combinations", "view_average": "softmax"},
        units=4,
    ),
    "v4d_sparse": Protocol(
        "V4D: the same with ten sparse units, for short videos; a guess", _V4D | {"clip_rule": "sparse_units"}, units=10
    ),
}


@dataclass
class Views:
    """The complete geometry of a test. ``choose_views`` fills in the values that were not given."""

    crops: int
    clips: int
    resize: config.Size
    crop: int
    crop_rule: str
    input: int
    clip_rule: str
    short_videos: str
    view_average: str  # "logits" or "softmax"
    mirrored_scores: str  # "swap" or "keep"
    pixels: str  # "faithful" or "fast"

    def __str__(self) -> str:
        size = self.resize
        shown = "as stored" if size is None else "x".join(map(str, size)) if isinstance(size, tuple) else size
        short = f", {self.short_videos}" if CLIP_RULES[self.clip_rule].short_videos else ""
        pixels = "" if self.pixels == FAITHFUL else f", {self.pixels} pixels"
        return f"resize {shown}, crop {self.crop}{short}{pixels}"

    def protocol(self, mirrored: str = "") -> str:
        """The text "x crops x clips @ input", and in brackets what is unusual.

        ``mirrored`` says what is done to the scores of mirrored crops, if there are any.
        """
        notes = [f"mirrored scores {mirrored}"] if self.crops in MIRRORED else []
        if self.clip_rule != "usual":
            notes.append(f"clips {self.clip_rule}")
        if self.crop_rule != "grid":
            notes.append(f"crops {self.crop_rule}")
        if self.view_average != "logits":
            notes.append(f"mean {self.view_average}")
        return f"x{self.crops}x{self.clips} @{self.input}" + (f" ({', '.join(notes)})" if notes else "")


def add_view_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``GEOMETRY``, ``--protocol`` and ``--units``."""
    choices = config.CHOICES
    views = parser.add_argument_group("views", "missing values come from the protocol, or else from the recipe")
    views.add_argument("--protocol", metavar="P[,P2]", help=f"the views of a released test: {', '.join(PROTOCOLS)}")
    views.add_argument(
        "--views", metavar="CROPSxCLIPS", help="1, 3, 5 or 10 crops x 1, 2 or 10 clips, or as many as --clip_rule has"
    )
    views.add_argument("--resize", metavar="S|HxW", help="short side, or height x width, of the whole frame")
    views.add_argument("--crop", type=int, metavar="C", help="side of the crop, which is cut from the resized frame")
    views.add_argument(
        "--crop_rule",
        choices=choices["test_crop_rule"],
        help="places of 3 crops: left, right and centre; ends and middle of the long side; centre and two corners",
    )
    views.add_argument("--input", type=int, metavar="I", help="side of the network's input")
    views.add_argument(
        "--clip_rule",
        choices=choices["test_clip_rule"],
        help="places of the clips; all but usual and dense are those of one system, with its numbers of clips",
    )
    views.add_argument("--units", type=int, metavar="U", help="V4D's units of a clip, if others than in training")
    views.add_argument("--short_videos", choices=choices["test_short_videos"], help="rule for n <= T frames")
    views.add_argument(
        "--view_average", choices=choices["test_view_average"], help="average logits or probabilities over views"
    )
    views.add_argument(
        "--pixels", choices=choices["pixels"], help="Pillow's, as published, or fast ones within 2 grey levels"
    )
    views.add_argument(
        "--mirrored_scores",
        choices=["swap", "keep"],
        default="swap",
        help="for 10 crops: left and right classes swap their scores in mirrored crops, or keep them as in the "
        "released code (default: swap, if the class names tell the pairs)",
    )


def describe_protocols() -> str:
    """A line for each protocol, with its views and its source."""
    lines, width = ["protocols:"], 2 + max(map(len, PROTOCOLS))
    for name, protocol in PROTOCOLS.items():
        views = _read(protocol.settings | {"mirrored_scores": "swap"})
        lines += [f"  {name:<{width}}{views.protocol().lstrip('x')}, {views}", f"  {'':<{width}}{protocol.text}"]
    return "\n".join(lines)


def find_protocol(name: str | None) -> Protocol | None:
    """The protocol of this name.

    Errors: ``ConfigError`` that names the most similar protocol.
    """
    if name is None:
        return None
    config.check_key(name, PROTOCOLS, "protocol")
    return PROTOCOLS[name]


def choose_views(recipe: Recipe, protocol: str | None, **given: object) -> Views:
    """The views of a test. Values come from the recipe; the protocol overrides them; ``given`` values override both.

    Errors: ``ConfigError`` for a value that cannot be used, alone or with the others.
    """
    own = {
        "views": recipe.test_views,
        "resize": recipe.test_resize,
        "crop": recipe.test_crop,
        "crop_rule": recipe.test_crop_rule,
        "input": recipe.test_input or recipe.input_size,
        "clip_rule": recipe.test_clip_rule,
        "short_videos": recipe.test_short_videos,
        "view_average": recipe.test_view_average,
        "mirrored_scores": "swap",
        "pixels": recipe.pixels,
    }
    found = find_protocol(protocol)
    given = {key: value for key, value in given.items() if value is not None}
    values = own | (found.settings if found else {}) | given
    views = _read(values)
    rule = CLIP_RULES[values["clip_rule"]]
    if rule.units:
        check_units("clip_rule", views.clip_rule, recipe)
    if "short_videos" in given and not rule.short_videos:
        raise ConfigError(
            f"--short_videos {given['short_videos']} changes nothing, because the clip rule {values['clip_rule']} has "
            "its own way with short videos; leave it out, or give --clip_rule usual"
        )
    return views


def _read(values: dict) -> Views:
    """The views of these values, one for each key of ``GEOMETRY``.

    Settings that change nothing for these numbers of crops and clips have their usual values. Equal tests are therefore
    equal views.

    Errors: ``ConfigError``.
    """
    clip_rule = config.coerce("test_clip_rule", values["clip_rule"])
    crops, clips = config.parse_views(str(values["views"]), clip_rule)
    views = Views(
        crops,
        clips,
        config.parse_size(values["resize"]),
        config.coerce("test_crop", values["crop"]),
        config.coerce("test_crop_rule", values["crop_rule"]),
        config.coerce("input_size", values["input"]),
        clip_rule,
        str(values["short_videos"]),
        config.coerce("test_view_average", values["view_average"]),
        str(values["mirrored_scores"]),
        str(values["pixels"]),
    )
    if not CLIP_RULES[clip_rule].short_videos:
        views.short_videos = "spread"
    if clips == 1 and clip_rule in CENTRES:
        views.clip_rule = "usual"
    if crops != 3:
        views.crop_rule = "grid"
    if crops * clips == 1:
        views.view_average = "logits"
    return views
