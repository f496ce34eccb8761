"""Checks of settings of clips that depend on one another."""

import typing

from data.clip_rules import CLIP_RULES

from .values import ConfigError, parse_views

if typing.TYPE_CHECKING:
    from .config import Recipe


def check_clips(recipe: "Recipe") -> None:
    """Check that the settings of clips fit one another.

    Errors: ``ConfigError`` with the first settings that do not fit.
    """
    if recipe.units and recipe.num_segments % recipe.units:
        raise ConfigError(
            f"num_segments {recipe.num_segments} is no multiple of units {recipe.units}; give frames of all units "
            f"together, such as --num_segments {8 * recipe.units}"
        )
    if recipe.units and "units" in recipe.model_options:
        raise ConfigError(f"model_options holds units {recipe.model_options['units']}; give it as --units alone")
    if recipe.train_frames != "segments":
        check_units("train_frames", recipe.train_frames, recipe)
    for key, rule in (("val_clip_rule", recipe.val_clip_rule), ("test_clip_rule", recipe.test_clip_rule)):
        if CLIP_RULES[rule].units:
            check_units(key, rule, recipe)
    if recipe.train_crop_size and recipe.train_crop_size < recipe.input_size:
        raise ConfigError(
            f"train_crop_size {recipe.train_crop_size} is below input_size {recipe.input_size}, which is cut from it; "
            "raise it, or give --train_crop_size none"
        )
    if recipe.color_jitter != "none" and recipe.modality != "RGB":
        raise ConfigError(
            f"color_jitter {recipe.color_jitter} changes the colours of RGB frames, and modality is {recipe.modality}; "
            "give --color_jitter none"
        )
    parse_views(recipe.test_views, recipe.test_clip_rule)


def check_units(key: str, rule: str, recipe: "Recipe") -> None:
    """Check that a rule for V4D's units can be used.

    Errors: ``ConfigError`` if the recipe has no units, or if a segment is more than one frame.
    """
    if not recipe.units:
        raise ConfigError(f"{key} {rule} is for networks with units, such as v4d_r50; choose another rule")
    if recipe.modality != "RGB":
        raise ConfigError(f"{key} {rule} takes single frames, and modality is {recipe.modality}; choose another rule")
    if rule == "combinations" and recipe.units != 4:
        raise ConfigError(f"{key} {rule} makes clips of 4 units, and units is {recipe.units}; choose another rule")
