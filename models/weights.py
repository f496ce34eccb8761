"""Fitting weights to a model: our own layout, the families' released layouts, and an ImageNet ResNet-50."""

import os
import re
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.hub import load_state_dict_from_url

from .families import layouts
from .layout import Layout
from .video_network import STEM, VideoNetwork
from .weight_files import FLOATS, WeightsError, explained, misfit, read_checkpoint, shown, shown_name, unusable

OWN, IMAGENET = "own", "imagenet"  # layouts; models/families.py names the layouts of released files
CLASSIFIER = "new_fc."
COUNTER = "num_batches_tracked"  # BN needs it only if its momentum is None


@dataclass
class LoadReport:
    """What ``load_weights`` did. ``str(report)`` has three lines."""

    source: str
    layout: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    converted: str = ""

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.layout} layout, {len(self.loaded)} tensors loaded{self.converted}\n"
            f"  not in the file, kept as initialised: {_first(self.missing)}\n"
            f"  in the file, not in the model: {_first(self.unexpected + self.mismatched)}"
        )


def load_weights(
    model: VideoNetwork,
    source: str | os.PathLike | dict,
    strict: bool = True,
    name: str = "state dict",
    classifier: bool = True,
) -> LoadReport:
    """Recognise the layout of ``source`` and load it into ``model``.

    Args:
        source: a file or a state dict (or a checkpoint dict that holds one under ``state_dict``). The layout is our
            own, one that ``models/families.py`` lists (the released RSA, SDA and TSM files), or an ImageNet ResNet-50.
            From an ImageNet file, the classifier and the tensors in ``model.not_in_imagenet`` are not loaded. For flow
            and differences, its first convolution is averaged over the RGB channels and repeated for the model's
            channels (TSN), and the report says so. A ``.safetensors`` file may have any of these layouts; it needs the
            package safetensors.
        strict: raise an error unless every tensor of the model and of the file was matched. If the file is an ImageNet
            file, the tensors that such a file cannot hold may be missing. ``False`` loads what fits and reports the
            rest.
        name: the name of ``source`` in messages if it is a dict. A file is named by its path.
        classifier: ``False`` does not load the classifier. Use it for fine-tuning on other classes.

    Returns a ``LoadReport``.

    Errors: ``WeightsError`` that names what does not fit.
    """
    report, fitting = _fitted(model, source, strict, name, classifier)
    model.load_state_dict(fitting, strict=False)
    return report


def check_weights(model: VideoNetwork, checkpoint: dict, name: str = "state dict") -> None:
    """Raise the errors of a strict ``load_weights`` without loading. ``model`` may be on the meta device."""
    _fitted(model, checkpoint, True, name, True)


def released_model(checkpoint: dict, name: str = "checkpoint") -> str | None:
    """The model of a released file, if its layout tells the model; otherwise ``None``, as for an SDA file."""
    state = _without_prefix(_state_dict(checkpoint, name))
    return next((model for layout in layouts() if (model := layout.model(state))), None)


def released_segments(path: str | os.PathLike) -> int | None:
    """The number of frames in the name of a released file, or ``None`` if there is none."""
    name = os.path.basename(path)
    return next((frames for layout in layouts() if (frames := layout.num_segments(name))), None)


def stored_classes(checkpoint: dict, name: str = "checkpoint") -> int | None:
    """K of the classifier in a file of a known layout; ``None`` if there is none of ours, as in an ImageNet file."""
    classifier = _our_names(checkpoint, name)[0].get(f"{CLASSIFIER}weight")
    return None if classifier is None or classifier.dim() == 0 else classifier.shape[0]


def load_imagenet(model: VideoNetwork, source: str) -> LoadReport:
    """Load ``"imagenet"`` (the file that ``model.imagenet`` names) or a file by its path.

    Errors: ``WeightsError`` if the weights cannot be downloaded or there are none, and the errors of ``load_weights``.
    """
    if source != "imagenet":
        return load_weights(model, source)
    file = model.imagenet
    if file is None:
        raise WeightsError(
            f"nobody released ImageNet weights of {model.arch}; add --pretrained none (random weights) or --tune_from "
            "FILE (a trained network)"
        )
    try:
        state = load_state_dict_from_url(file.url, map_location="cpu", progress=False, check_hash=True)
    except Exception as error:  # no network, a broken transfer, a wrong hash, a damaged file in the hub folder
        raise WeightsError(
            f"cannot fetch the {file.name} ({explained(error)[0]}); without a network add --pretrained FILE (a "
            f"downloaded {os.path.basename(file.url)}) or --pretrained none (random weights)"
        ) from error
    return load_weights(model, state, name=f"the {file.name}")


def _fitted(
    model: VideoNetwork, source: str | os.PathLike | dict, strict: bool, name: str, classifier: bool
) -> tuple[LoadReport, dict[str, Tensor]]:
    """The report of ``load_weights``, and the tensors to load."""
    name = name if isinstance(source, dict) else str(source)
    checkpoint = source if isinstance(source, dict) else read_checkpoint(source)
    state, found = _our_names(checkpoint, name)
    target = model.state_dict()
    imagenet = "conv1.weight" in state and not any(key.startswith("base_model.") for key in state)
    report = LoadReport(name, IMAGENET if imagenet else found[-1].name if found else OWN)
    if imagenet:
        state = {f"base_model.{key}": value for key, value in state.items() if not key.startswith("fc.")}
        state = _converted_convolutions(state, model)
        state = {key: value for key, value in state.items() if not key.startswith(tuple(model.not_in_imagenet))}
        report.converted = _convert_stem(state, model.in_channels)

    if not classifier:
        state = {key: value for key, value in state.items() if not key.startswith(CLASSIFIER)}

    fitting = {}
    for key, value in state.items():
        if key not in target:
            report.unexpected.append(key)
            continue
        value = _squeezed(value, target[key])
        difference = misfit(value, target[key], counter=key.endswith(COUNTER))
        if difference:
            report.mismatched.append(f"{key} {difference}")
        else:
            fitting[key] = value
            report.loaded.append(key)
    # Files from before PyTorch 0.4.1 lack this counter.
    report.missing = [key for key in target if key not in fitting and not key.endswith(COUNTER)]

    if not report.loaded:
        first = _first(report.mismatched or list(state))
        raise WeightsError(f"{name}: none of its tensors fits the model; the first: {first}")
    if strict:
        arch = checkpoint.get("arch")
        if not isinstance(arch, str | None):
            raise WeightsError(f"{name}: arch is {shown(arch)}, must be a model's name; load its state_dict alone")
        hidden = [layout.module for layout in found if layout.module and not imagenet]
        _check(report, model, arch, hidden, _other_segments(model, state), ignore_classifier=not classifier)
    return report, fitting


def _state_dict(checkpoint: dict, name: str) -> dict[str, Tensor]:
    # RubiksNet's files hold it under "model".
    holder = next((key for key in ("state_dict", "model") if isinstance(checkpoint.get(key), dict)), "state_dict")
    state = checkpoint.get(holder, checkpoint)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{name}: holds no state dict; its keys are {_first(list(map(_key, checkpoint)))}")
    state = {_key(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for key, value in state.items():
        if what := unusable(value):
            raise WeightsError(f"{name}: {shown_name(key)} is a {what} tensor; make it a dense one of real numbers")
    return state


def _key(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("module."): value for key, value in state.items()}


def _our_names(checkpoint: dict, name: str) -> tuple[dict[str, Tensor], list[Layout]]:
    """The tensors of a file under our names, and the released layouts whose marks the file has."""
    state = _state_dict(checkpoint, name)
    plain = _without_prefix(state)
    found = [layout for layout in layouts() if layout.mark(plain)]
    renamed = {}
    for key, value in state.items():
        new = _our_name(key, found)
        if new is None:
            continue
        if new in renamed:
            raise WeightsError(f"{name}: holds {shown_name(new)} twice, also as {shown_name(key)}; leave one out")
        for layout in found:
            value = layout.convert(new, value)
        renamed[new] = value
    return renamed, found


def _our_name(key: str, found: list[Layout]) -> str | None:
    """Our name for a key in a file of these layouts; ``None`` if the entry is not a weight."""
    new: str | None = key.removeprefix("module.")
    for layout in found:
        new = new and layout.rename(new)
    # In released networks without dropout, the classifier is part of the frame network.
    return new and re.sub(r"^base_model\.fc1?\.", CLASSIFIER, new)


def _squeezed(value: Tensor, target: Tensor) -> Tensor:
    """Convert a released 1xkxk Conv3d weight to Conv2d, and a 1-tap Conv1d classifier to a linear layer."""
    if value.dim() == 5 and target.dim() == 4 and value.shape[2] == 1:
        return value.squeeze(2)
    if value.dim() == 3 and target.dim() == 2 and value.shape[2] == 1:
        return value.squeeze(2)
    return value


def _converted_convolutions(state: dict[str, Tensor], model: VideoNetwork) -> dict[str, Tensor]:
    """The tensors of an ImageNet file, with the weights of replaced convolutions as their modules take them."""
    state = dict(state)
    for name, module in model.named_modules():
        weight = state.get(f"{name}.weight")
        if hasattr(module, "from_imagenet") and weight is not None and weight.dim() == 4:
            del state[f"{name}.weight"]
            state |= {f"{name}.{part}": value for part, value in module.from_imagenet(weight).items()}
    return state


def _other_segments(model: VideoNetwork, state: dict[str, Tensor]) -> int | None:
    """The number of frames of a file, if it is not the model's and the network's parameters depend on it."""
    for name, module in model.named_modules():
        for part, dim in getattr(module, "sized_by_segments", {}).items():
            value = state.get(f"{name}.{part}")
            if value is not None and value.dim() > dim and value.shape[dim] != model.num_segments:
                return value.shape[dim]
    return None


def _convert_stem(state: dict[str, Tensor], in_channels: int) -> str:
    """Change the number of input channels of an RGB network's first convolution; returns a text for the report."""
    if in_channels == 3 or state[STEM].shape[1:2] != (3,) or state[STEM].dtype not in FLOATS:
        return ""
    state[STEM] = state[STEM].mean(1, keepdim=True).repeat_interleave(in_channels, 1)  # (C', C, k, k)
    return f", the first convolution averaged over RGB for {in_channels} channels"


def _check(
    report: LoadReport,
    model: VideoNetwork,
    arch: str | None,
    hidden: list[type[nn.Module]],
    frames: int | None,
    ignore_classifier: bool,
) -> None:
    """Check that every tensor of the model and of the file was matched.

    ``hidden``: classes of module that the file's network contains although no tensor shows it.
    ``frames``: the file's number of frames, if the model's is another and their parameters depend on it.

    Errors: ``WeightsError`` that names the tensors that were not matched.
    """
    untouched = (CLASSIFIER,) if ignore_classifier or report.layout == IMAGENET else ()
    if report.layout == IMAGENET:
        untouched += tuple(model.not_in_imagenet)
    missing = [key for key in report.missing if not key.startswith(untouched)]
    problems = []
    # A shift has no parameters, so tensor names are the same for TSN and TSM. The file's arch tells them apart.
    if report.layout == OWN and "_" in (arch or "") and model.arch and arch != model.arch:
        problems.append(f"the file holds {shown_name(arch)}, the model is {model.arch}")
    for module in hidden:
        if not any(isinstance(part, module) for part in model.modules()):
            words = re.sub("(?<=[a-z])(?=[A-Z])", " ", module.__name__).lower()
            problems.append(f"the file holds a network with {words}, the model has none")
    if frames is not None:
        problems.append(
            f"the file was trained with {frames} frames, the model has num_segments {model.num_segments}, and the "
            "parameters of this network depend on it"
        )
    if report.mismatched:
        problems.append(f"other shapes or types: {_first(report.mismatched)}")
        if any(text.startswith("new_fc.weight (") for text in report.mismatched):
            problems.append("the file was trained for another number of classes; main.py --tune_from takes the rest")
        if any(text.startswith(f"{STEM} (") for text in report.mismatched):
            problems.append("the file was trained on another modality or data_length, or with another stem")
    if missing:
        problems.append(f"missing: {_first(missing)}")
    if report.unexpected:
        problems.append(f"not in the model: {_first(report.unexpected)}")
    if problems:
        raise WeightsError(
            f"{report.source}: does not fit the model ({'; '.join(problems)}); "
            "build the model that the file was made with, or pass strict=False to load what fits"
        )


def _first(names: list[str], count: int = 3) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > count else ""
    return ", ".join(shown_name(name, 120) for name in names[:count]) + more if names else "none"
