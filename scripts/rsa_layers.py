"""The kernels of the RSA layers of a network while it sees a video, for scripts.visualize_kernels and the figures."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data import open_one_video
from data.sampling import AS_IT_IS, FrameOrder
from engine import log
from engine.config import ConfigError
from engine.evaluate import check_finite, score
from engine.precision import Precision
from engine.protocols import choose_views
from engine.testing import Member, load_network, read_one_video
from ops import RSA

Place = tuple[int, int, int]  # frame, y, x: from 0, in pixels of the network's input


@dataclass
class LayerKernels:
    """The kernels of an RSA layer at the places that were asked for.

    Args:
        name: of the layer in the network, such as ``"layer1.2.conv2"``.
        cell: height and width, in pixels of the network's input, of a position of the layer's feature map.
        kernels: (places, L, kT, kH, kW). Weights for positions outside of the clip are NaN, because they have no
            effect.
    """

    name: str
    cell: tuple[float, float]
    kernels: np.ndarray

    @property
    def limit(self) -> float:
        """The largest absolute weight at any place, in any head."""
        return float(np.nanmax(np.abs(self.kernels))) or 1.0

    def strongest(self, place: int) -> int:
        """The head with the largest weights (L2 norm) at a place."""
        return int(np.nansum(self.kernels[place] ** 2, (1, 2, 3)).argmax())


@dataclass
class Seen:
    """A clip as the network sees it, and the kernels of the layers."""

    frames: np.ndarray  # (T, S, S, 3), uint8
    places: list[Place]
    layers: list[LayerKernels]
    answer: str  # the most probable class and its probability


def open_network(file: str, name: str | None = None, frames: str | None = None, resize: str | None = None) -> Member:
    """The network of a weights file that sees one clip and one crop of a video. The user's flags fill what it lacks.

    Errors: ``ConfigError`` and ``WeightsError``; ``ConfigError`` also if the network has no RSA layer.
    """
    model, recipe, categories = load_network(file, name, frames, None)
    if not rsa_layers(model):
        raise ConfigError(
            f"{file}: {model.arch} has no RSA layer; give the weights of a network with RSA, such as rsanet_r50"
        )
    return Member(file, model, recipe, categories, choose_views(recipe, None, views="1x1", resize=resize), 1.0)


def rsa_layers(model: torch.nn.Module) -> dict[str, RSA]:
    """The RSA layers by their names without ``base_model``, from input to output."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, RSA)}
    return {name.removeprefix("base_model."): module for name, module in layers.items()}


def look(
    member: Member,
    clip: str,
    places: Sequence[Place],
    part: str | None = None,
    names: Sequence[str] | None = None,
    device: torch.device | None = None,
    order: FrameOrder = AS_IT_IS,
) -> Seen:
    """Show a clip to the network, and compute the kernels of its RSA layers at these places.

    Args:
        member: the result of ``open_network``.
        clip: a video file or a folder of frames.
        places: frame, y and x of each place.
        part: as in ``RSA.kernels``.
        names: of the layers; ``None`` means all.
        device: ``None`` means the CPU.
        order: of the frames.

    Errors: ``ConfigError`` if a layer is unknown or has no such part; ``DataError`` if the clip cannot be read.
    """
    layers = rsa_layers(member.model)
    for name in names or ():
        if name not in layers:
            raise ConfigError(f"--layer {name}: no such RSA layer; this network has {', '.join(layers)}")
    video, source, notes = open_one_video(clip)
    for note in notes:
        log.info(note)
    dataset, clips = read_one_video(member, video, source, order)
    side, found = member.views.input, []

    def compute(name: str):
        def hook(layer: RSA, inputs: tuple[torch.Tensor, ...]) -> None:
            height, width = inputs[0].shape[-2:]
            cells = [(t, y * height // side, x * width // side) for t, y, x in places]
            try:
                kernels = layer.kernels(inputs[0], cells, part)[0]  # (L, places, kT, kH, kW)
            except ValueError as error:
                raise ConfigError(f"--part {part}: {name}: {error}") from None
            kernels = kernels.transpose(0, 1).float().cpu().numpy()
            for kernel, cell in zip(kernels, cells, strict=True):
                kernel[:, _outside(layer.kernel_size, cell, (len(clips[0, 0]), height, width))] = np.nan
            found.append(LayerKernels(name, (side / height, side / width), kernels))

        return hook

    hooks = [layers[name].register_forward_pre_hook(compute(name)) for name in layers if not names or name in names]
    try:
        precision = Precision("fp32", device or torch.device("cpu"))
        precision.apply()
        model, clips = member.model.to(precision.device), clips.to(precision.device)
        scores = score(model, clips, dataset, 1, precision).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    check_finite(scores.numpy(), [clip], member.file)
    probability, label = (scores if dataset.view_average == "softmax" else scores.softmax(1))[0].max(0)
    answer = member.categories[label] if member.categories else f"class {label}"
    frames = clips[0, 0, :, :3].movedim(1, -1).cpu().numpy()  # of RGBDiff, the first frame of each segment
    return Seen(frames, list(places), found, f"{answer} ({100 * probability:.0f} %)")


def _outside(size: tuple[int, int, int], cell: Place, shape: tuple[int, int, int]) -> np.ndarray:
    """Which weights of a kernel of this size at ``cell`` are for positions outside of a map of this shape."""
    taps = [i + np.arange(k) - k // 2 for i, k in zip(cell, size, strict=True)]
    inside = [(tap >= 0) & (tap < n) for tap, n in zip(taps, shape, strict=True)]
    return ~(inside[0][:, None, None] & inside[1][:, None] & inside[2])
