"""Fitting weights to a model: our own, the released RSA, SDA and TSM layouts, and an ImageNet ResNet-50."""

import os
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchvision.models import ResNet50_Weights

from ops import RSA, TemporalShift

from .resnet import VideoResNet
from .weight_files import WeightsError, explained, read_checkpoint, shown, shown_name

# thop leaves these beside the parameters in the released SDA files.
STRAY = ("total_ops", "total_params")
STEM = "base_model.conv1.weight"
CLASSIFIER = "new_fc."
COUNTER = "num_batches_tracked"  # which only BN without a momentum reads
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# What no weight is, though a file may hold it.
UNUSABLE = {
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout is not torch.strided,
    "quantised": lambda tensor: tensor.is_quantized,
    "meta": lambda tensor: tensor.is_meta,  # a shape without numbers
    "complex": lambda tensor: tensor.is_complex(),
    # Fewer numbers than its shape says, such as one for a network of any size.
    "repeated": lambda tensor: tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size(),
}


@dataclass
class LoadReport:
    """What ``load_weights`` did; ``str(report)`` is three lines."""

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
    model: VideoResNet,
    source: str | os.PathLike | dict,
    strict: bool = True,
    name: str = "state dict",
    classifier: bool = True,
) -> LoadReport:
    """Load ``source`` into ``model``, whatever of the known layouts it has.

    Args:
        source: a file or a state dict (or a checkpoint dict that holds one under ``state_dict``). Layouts: our own; the
            released RSA (``module.`` prefix, 5-D 1xkxk weights), SDA (stray ``total_ops``/``total_params``), TSM
            (``conv1.net``) files; an ImageNet ResNet-50, of which the classifier, and the whole bottlenecks that hold
            RSA, are left out. For flow and differences its first convolution is averaged over the RGB channels and
            repeated for the model's (TSN), and the report says so. A file that ends in ``.safetensors`` may have any
            of these layouts; it needs the package safetensors.
        strict: raise unless every tensor of the model and of the file found its place. With an ImageNet file the
            tensors that no such file can hold may stay as they are. ``False`` loads what fits and reports the rest.
        name: what messages call a ``source`` that is a dict; a file is called by its path.
        classifier: ``False`` leaves the model's classifier as it is, to fine-tune it on other classes.

    Returns a ``LoadReport``. Errors: ``WeightsError`` that names what does not fit.
    """
    report, fitting = _fitted(model, source, strict, name, classifier)
    model.load_state_dict(fitting, strict=False)
    return report


def check_weights(model: VideoResNet, checkpoint: dict, name: str = "state dict") -> None:
    """The errors of ``load_weights``, which is strict, without loading; ``model`` may lie on the meta device."""
    _fitted(model, checkpoint, True, name, True)


def released_model(checkpoint: dict, name: str = "checkpoint") -> str | None:
    """The model of a released file whose layout tells it: RSANet and TSM. SDA's do not say whether they are shifted."""
    keys = _state_dict(checkpoint, name)
    if any(key.endswith("layer1.2.conv2.H2.weight") for key in keys):
        return "rsanet_r50"
    return "tsm_r50" if any(key.endswith("layer1.0.conv1.net.weight") for key in keys) else None


def stored_classes(checkpoint: dict, name: str = "checkpoint") -> int | None:
    """K of the classifier in a file of a known layout; ``None`` if it holds none, as an ImageNet ResNet-50 does."""
    classifier = _released_names(checkpoint, name)[0].get(f"{CLASSIFIER}weight")
    return None if classifier is None or classifier.dim() == 0 else classifier.shape[0]


def unusable(tensor: Tensor) -> str | None:
    """What a tensor is that cannot be a weight, such as ``"sparse"``."""
    return next((what for what, holds in UNUSABLE.items() if holds(tensor)), None)


def misfit(value: Tensor, target: Tensor, counter: bool = False) -> str | None:
    """Why ``value`` cannot be copied to ``target``: another shape, or other numbers (of any precision) than there.

    ``counter``: floats may become whole numbers, as in weights that someone has averaged.
    """
    if value.shape != target.shape:
        return f"{tuple(value.shape)} for {tuple(target.shape)}"
    kinds = (FLOATS, INTEGERS) if counter else (FLOATS,) if target.is_floating_point() else (INTEGERS,)
    return None if any(value.dtype in kind for kind in kinds) else f"{value.dtype} for {target.dtype}"


def released_segments(path: str | os.PathLike) -> int | None:
    """The frames that the name of a TSM release tells: ``..._segment8_e45.pth``."""
    found = re.search(r"_segment(\d+)_", os.path.basename(path))
    return int(found[1]) if found else None


def load_imagenet(model: VideoResNet, source: str) -> LoadReport:
    """The ImageNet start: ``"imagenet"`` (torchvision's ``ResNet50_Weights.IMAGENET1K_V1``) or the path of a file."""
    if source != "imagenet":
        return load_weights(model, source)
    try:
        state = ResNet50_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # no route, a broken transfer, a wrong hash, a damaged file in the hub folder
        raise WeightsError(
            f"cannot fetch the ImageNet ResNet-50 ({explained(error)[0]}); without a network add --pretrained FILE (a "
            "downloaded resnet50-19c8e357.pth) or --pretrained none (random weights)"
        ) from error
    return load_weights(model, state, name="torchvision's ImageNet ResNet-50")


def _fitted(
    model: VideoResNet, source: str | os.PathLike | dict, strict: bool, name: str, classifier: bool
) -> tuple[LoadReport, dict[str, Tensor]]:
    """The report of ``load_weights``, and what is to be loaded."""
    name = name if isinstance(source, dict) else str(source)
    checkpoint = source if isinstance(source, dict) else read_checkpoint(source)
    state, layout = _released_names(checkpoint, name)
    target = model.state_dict()
    report = LoadReport(name, layout)
    if layout == "imagenet":
        state = {f"base_model.{key}": value for key, value in state.items() if not key.startswith("fc.")}
        rsa = _rsa_bottlenecks(model)
        state = {key: value for key, value in state.items() if not key.startswith(rsa)}
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
    # Files older than PyTorch 0.4.1 lack this counter.
    report.missing = [key for key in target if key not in fitting and not key.endswith(COUNTER)]

    if not report.loaded:
        first = _first(report.mismatched or list(state))
        raise WeightsError(f"{name}: none of its tensors fits the model; the first: {first}")
    if strict:
        arch = checkpoint.get("arch")
        if not isinstance(arch, str | None):
            raise WeightsError(f"{name}: arch is {shown(arch)}, must be a model's name; load its state_dict alone")
        _check(report, model, arch, () if classifier else (CLASSIFIER,))
    return report, fitting


def _state_dict(checkpoint: dict, name: str) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{name}: holds no state dict; its keys are {_first(list(map(_key, checkpoint)))}")
    state = {_key(key): value for key, value in state.items() if isinstance(value, Tensor)}
    for key, value in state.items():
        if what := unusable(value):
            raise WeightsError(f"{name}: {shown_name(key)} is a {what} tensor; make it a dense one of real numbers")
    return state


def _key(key: object) -> str:
    return key if isinstance(key, str) else shown(key)


def _released_names(checkpoint: dict, name: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file under our names, and the layout they were recognised as."""
    renamed, layout = {}, "own"
    for key, value in _state_dict(checkpoint, name).items():
        if key.rsplit(".", 1)[-1] in STRAY:
            layout = "SDA"
            continue
        new = key.removeprefix("module.")
        if ".conv1.net." in new:
            new, layout = new.replace(".conv1.net.", ".conv1."), "TSM"
        if new == STEM and value.dim() == 5:
            layout = "RSA"
        # Without dropout the released networks keep the classifier inside the frame network.
        new = re.sub(r"^base_model\.fc1?\.", "new_fc.", new)
        if new in renamed:
            raise WeightsError(f"{name}: holds {shown_name(new)} twice, also as {shown_name(key)}; leave one out")
        renamed[new] = value
    if "conv1.weight" in renamed and not any(key.startswith("base_model.") for key in renamed):
        layout = "imagenet"
    return renamed, layout


def _squeezed(value: Tensor, target: Tensor) -> Tensor:
    """A released 1xkxk Conv3d weight as the Conv2d weight it is, and a 1-tap Conv1d classifier as a linear one."""
    if value.dim() == 5 and target.dim() == 4 and value.shape[2] == 1:
        return value.squeeze(2)
    if value.dim() == 3 and target.dim() == 2 and value.shape[2] == 1:
        return value.squeeze(2)
    return value


def _convert_stem(state: dict[str, Tensor], in_channels: int) -> str:
    """Give the first convolution of an RGB network in ``state`` another number of channels; says what was done."""
    if in_channels == 3 or state[STEM].shape[1:2] != (3,) or state[STEM].dtype not in FLOATS:
        return ""
    state[STEM] = state[STEM].mean(1, keepdim=True).repeat_interleave(in_channels, 1)  # (C', C, k, k)
    return f", the first convolution averaged over RGB for {in_channels} channels"


def _rsa_bottlenecks(model: VideoResNet) -> tuple[str, ...]:
    return tuple(
        f"base_model.layer{stage + 1}.{index}."
        for stage, index, block in model.blocks()
        if isinstance(block.conv2, RSA)
    )


def _check(report: LoadReport, model: VideoResNet, arch: str | None, untouched: tuple[str, ...]) -> None:
    missing = [key for key in report.missing if not key.startswith(untouched)]
    if report.layout == "imagenet":
        untouched = (CLASSIFIER, *_rsa_bottlenecks(model))
        missing = [key for key in missing if not key.startswith(untouched) and ".sda." not in key]
    problems = []
    # A shift has no parameters, so the names alone cannot tell TSN from TSM.
    if report.layout == "own" and "_" in (arch or "") and model.arch and arch != model.arch:
        problems.append(f"the file holds {shown_name(arch)}, the model is {model.arch}")
    if report.layout == "TSM" and not any(isinstance(module, TemporalShift) for module in model.modules()):
        problems.append("the file holds a network with temporal shift, the model has none")
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
