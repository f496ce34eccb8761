"""Draws figs/gradcam.png, where two trained networks look in a clip: ``python -m figs.draw_gradcam``.

The maps are Grad-CAM (Selvaraju et al., ICCV 2017) of the clip's own class, for the clip and for its reverse.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import DataError, EvalDataset
from engine import distributed
from engine.config import ConfigError
from engine.testing import Member
from figs.draw_toy import MODELS
from figs.picture import WIDTH, import_pyplot, make_parser, save, show_strips
from figs.trained import default_weights, load_trained
from models import WeightsError
from models.video_network import VideoNetwork

# A class and its partner. The clip of the partner is that of the class, played backwards.
PAIR = ("Moving something closer to the camera", "Moving something away from the camera")
NETWORKS = ("tsn_tiny", "sda_tsm_tiny")
STAGE = 2  # res3, whose maps of frames of 48 px are 6 x 6; the last maps, 3 x 3, are too coarse


def main(args: argparse.Namespace) -> None:
    pairs = zip(args.weights, NETWORKS, strict=True)
    loaded = {network: load_trained(file, network, args.dataset) for file, network in pairs}
    pyplot = import_pyplot()
    figure, panels = pyplot.subplots(2, 1, figsize=(WIDTH, 6.0), layout="constrained")
    for panel, name in zip(panels, PAIR, strict=True):
        names, strips = [name], []
        for network, (member, videos) in loaded.items():
            clip = clip_of(args.dataset, member, videos)
            clip = clip if name == PAIR[0] else clip.flip(0)
            frames = clip.permute(0, 2, 3, 1).numpy()
            label, layer = member.categories.index(name), member.model.stages()[STAGE][0]
            maps, logits = grad_cam(member.model, videos.modality.normalise(clip[None]), layer, label)
            names.append(f"{MODELS[network][0]}: {100 * logits.softmax(0)[label]:.0f} %")
            strips += [overlay(frames, maps)] if strips else [frames, overlay(frames, maps)]
        show_strips(panel, names, strips)
        panel.set_anchor("E")  # the space that is left is on the side of the names
        panel.set_title("a clip" if name == PAIR[0] else "the same clip, played backwards", loc="left")
    title = f"Grad-CAM in stage res{STAGE + 1}: where two networks look for the right class, and its probability"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    save(figure, args.out)


def clip_of(dataset: str, member: Member, videos: EvalDataset) -> Tensor:
    """The first video of ``PAIR[0]`` as the network sees it: uint8 (T, C, H, W).

    Errors: ``ConfigError`` if the dataset has no such video; ``DataError`` if the video cannot be read.
    """
    names = member.categories or []
    found = [i for i, video in enumerate(videos.videos) if names[video.label : video.label + 1] == [PAIR[0]]]
    if not found or PAIR[1] not in names:
        raise ConfigError(f"--dataset {dataset} has no videos of the classes {PAIR[0]!r} and {PAIR[1]!r}")
    return videos.views(found[0])[0]


def grad_cam(model: VideoNetwork, clips: Tensor, layer: nn.Module, label: int) -> tuple[Tensor, Tensor]:
    """Grad-CAM of a class for one clip (1, T, C, H, W), and the clip's logits (K).

    ``layer`` returns feature maps A (T, C', h, w). With the weights a_c, which are the mean of d logit / d A_c over
    frames and positions, the maps are relu(sum_c a_c A_c), (T, h, w). The mean includes the frames, because there is
    one logit for the whole clip.
    """
    seen = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        logits = model(clips)[0]
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(logits[label], seen)
    weights = gradient.mean((0, 2, 3), keepdim=True)  # (1, C', 1, 1)
    return (weights * seen[0]).sum(1).relu().detach(), logits.detach()


def overlay(frames: np.ndarray, maps: Tensor) -> np.ndarray:
    """Frames, uint8 (T, H, W, 3), in grey, with the maps (T, h, w) as heat. The largest value is the hottest."""
    from matplotlib import colormaps

    heat = F.interpolate(maps[:, None], frames.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    heat = (heat / heat.max().clamp_min(1e-12)).numpy()
    share = 0.8 * heat[..., None]
    colours = 255 * colormaps["inferno"](0.3 + 0.6 * heat)[..., :3]
    return ((1 - share) * frames.mean(3, keepdims=True) + share * colours).astype(np.uint8)


if __name__ == "__main__":
    parser = make_parser("gradcam", __doc__)
    files = [default_weights(model) for model in NETWORKS]
    shown = " ".join(map(str, files))
    metavar = ("TSN", "SDA_TSM")
    parser.add_argument("--weights", type=Path, nargs=2, default=files, metavar=metavar, help=f"default: {shown}")
    parser.add_argument("--dataset", default="toy_something", help="default: %(default)s")
    arguments = parser.parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError))
