"""What a preparation leaves besides frames: lists, class names, YAML files, skipped videos and a record of settings."""

import hashlib
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import yaml

from data import DataError
from data.messages import one_line, shown
from scripts.prepare_frames import Output
from scripts.prepare_plan import Lists, Plan
from scripts.prepare_run import Preparation

RECORD = "prepared.json"
SKIPPED = "skipped.txt"


def settings_of(output: Output, keep_videos: bool) -> dict:
    """How frames are stored, for the record."""
    if keep_videos:
        return {"source": "video"}
    return {
        "source": "folder",
        "image_tmpl": output.image_tmpl,
        "frames": "all, in order, at the rate of the video",
        "short_side": output.short_side or "as in the video",
        "quality": f"quantisation tables of ffmpeg -q:v {output.quality}, 4:2:0",
        "decoder": f"PyAV {_version('av')}",
        "encoder": f"Pillow {_version('pillow')}",
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except ImportError:  # something_v1 needs no PyAV
        return "not installed"


def check_settings(to: Path, settings: dict) -> None:
    """A folder holds frames of one kind. The settings are written down before the first frame.

    Errors: ``DataError`` if the folder holds frames with other settings, apart from versions of the libraries.
    """
    file = to / RECORD
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))["settings"]
            changed = [key for key in ("source", "short_side", "quality") if before.get(key) != settings.get(key)]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise DataError(f"{one_line(file)}: is not a record of this program; choose another --to") from None
        if changed:
            old, new = (shown(values.get(changed[0])) for values in (before, settings))
            raise DataError(
                f"{one_line(file)}: the videos there have {changed[0]} {old}, not {new}; "
                "choose another --to, or remove that folder"
            )
    else:
        _write(file, json.dumps({"settings": settings}, indent=2) + "\n")


def write_everything(plan: Plan, preparation: Preparation, to: Path, settings: dict) -> str:
    """Write all files; returns the last line for the user.

    Errors: ``DataError`` if a list would hold no video.
    """
    skipped = [
        f"{path}\t{one_line(reason, 2000)}\t{plan.clips[path].where}" for path, reason in preparation.skipped.items()
    ]
    _write(to / SKIPPED, "".join(f"{line}\n" for line in skipped))
    counts, texts = {}, {}
    for lists in plan.lists:
        for split in ("train", "val"):
            videos, name = getattr(lists, split), getattr(lists, f"{split}_list")
            listed = [(*preparation.finished[path], label) for path, label in videos if path in preparation.finished]
            if not listed:
                first = next(
                    (preparation.skipped[path] for path, _ in videos if path in preparation.skipped), "none given"
                )
                raise DataError(
                    f"{lists.yaml}: no video for the {split} list ({one_line(first)}); {one_line(to / SKIPPED)} "
                    "says why for each; are the videos among the given paths?"
                )
            texts[name] = "".join(f"{path} {frames} {label}\n" for path, frames, label in listed)
            published = lists.published.get(split, "not checked")
            counts[name] = {"annotated": len(videos), "listed": len(listed), "published": published}
    for name, text in texts.items():
        _write(to / name, text)
    for lists in plan.lists:
        _write_yaml(lists, plan, to, settings, preparation.output.root)
    forms = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in plan.forms}
    record = {
        "label_version": plan.label_version,
        "class_order": plan.class_order,
        "counts": counts,
        "skipped": len(skipped),
        "settings": settings,
        "annotation_files_sha256": forms,
    }
    _write(to / RECORD, json.dumps(record, indent=2) + "\n")
    shutil.rmtree(to / "unfinished", ignore_errors=True)
    done = sum(path in preparation.finished for path in plan.clips)
    text = f"prepared {done} of {len(plan.clips)} videos, {len(skipped)} skipped"
    text += f" (reasons in {one_line(to / SKIPPED)})" if skipped else ""
    files = " or ".join(one_line(to / lists.yaml) for lists in plan.lists)
    return f"{text}; train with: python main.py {files} MODEL --run NAME"


def _write_yaml(lists: Lists, plan: Plan, to: Path, settings: dict, root: Path) -> None:
    values = {"name": lists.name, "num_classes": lists.num_classes, "root": root.name}
    values |= {"train_list": lists.train_list, "val_list": lists.val_list}
    values |= {"source": "video"} if settings["source"] == "video" else {"image_tmpl": plan.image_tmpl}
    if lists.categories is not None:
        values["categories"] = f"{Path(lists.yaml).stem}_categories.txt"
        _write(to / values["categories"], "".join(f"{name}\n" for name in lists.categories))
    text = f"# {plan.label_version}. Class order: {plan.class_order}. {RECORD} says more.\n"
    _write(to / lists.yaml, text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _write(file: Path, text: str) -> None:
    """A file gets its name when it is whole."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)
