"""Draws figs/dependencies.png, the branch weights of a trained SDA: ``python -m figs.draw_dependencies``.

The weights are the alpha of ops/sda.py's ``QueryAggregation``, averaged over the validation videos of a class and over
the blocks of a stage.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from data import DataError, EvalDataset
from engine import distributed
from engine.config import ConfigError
from engine.loading import make_loader
from engine.log import progress
from figs.picture import BLUE, GREEN, VERMILION, WIDTH, YELLOW, import_pyplot, make_parser, save, two_lines
from figs.trained import default_weights, load_trained
from models import WeightsError
from models.video_network import VideoNetwork
from ops.sda import QueryAggregation

MODEL = "sda_tsm_tiny"
BRANCHES = {
    "LST": ("long range, space and time", VERMILION),
    "LT": ("long range, time", BLUE),
    "LS": ("long range, space", GREEN),
    "S122": ("short range", YELLOW),
}


def main(args: argparse.Namespace) -> None:
    member, videos = load_trained(args.weights, MODEL, args.dataset)
    branches, weights, labels = branch_weights(member.model, videos)
    classes = sorted(set(labels.tolist()))  # a class without videos has no row
    pyplot = import_pyplot()
    size = (WIDTH, 1.3 + 0.42 * len(classes))
    figure, panels = pyplot.subplots(1, len(weights), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for panel, (stage, alpha) in zip(panels[0], sorted(weights.items()), strict=True):
        draw_stage(panel, branches, torch.stack([alpha[labels == label].mean(0) for label in classes]))
        panel.set_title(f"stage res{stage + 2}")
    names = member.categories or [f"class {label}" for label in range(member.model.num_classes)]
    panels[0, 0].set_yticks(range(len(classes)), [two_lines(names[label]) for label in classes])
    panels[0, 0].set_ylim(len(classes) - 0.5, -0.5)
    title = "How SDA weights its branches in a trained SDA-TSM, mean of each class (%)"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=BRANCHES[name][1]) for name in branches]
    texts = [f"{name}: {BRANCHES[name][0]}" for name in branches]
    figure.legend(handles, texts, loc="outside lower center", ncols=4, frameon=False, handlelength=1)
    save(figure, args.out)


def branch_weights(model: VideoNetwork, videos: EvalDataset) -> tuple[list[str], dict[int, Tensor], Tensor]:
    """The names of SDA's branches, their weights in each stage (videos, branches), and the labels of the videos.

    The weights of a stage are the mean over its blocks. Only the first view of each video counts.

    Errors: ``ConfigError`` if the network has no SDA with query aggregation; ``DataError`` if a video cannot be read.
    """
    found = [(stage, getattr(block, "sda", None)) for stage, _, block in model.blocks()]
    modules = [(stage, sda) for stage, sda in found if isinstance(getattr(sda, "agg", None), QueryAggregation)]
    if not modules:
        raise ConfigError(f"{model.arch} has no SDA that weights its branches; give weights of {MODEL}")
    seen: dict[QueryAggregation, list[Tensor]] = {sda.agg: [] for _, sda in modules}
    hooks = [agg.register_forward_hook(lambda own, inputs, _: seen[own].append(own.weights(*inputs))) for agg in seen]
    labels = []
    with torch.no_grad():
        for clips, part, _ in progress(make_loader(videos, 0, torch.device("cpu"), batch_size=16), "videos"):
            model(videos.modality.normalise(clips[:, 0]))
            labels.append(part)
    for hook in hooks:
        hook.remove()
    labels = torch.cat(labels)
    weights: dict[int, Tensor] = {}
    for stage in {stage for stage, _ in modules}:
        blocks = torch.stack([torch.cat(seen[sda.agg]) for own, sda in modules if own == stage])
        # With sda_segments below num_segments, SDA sees a video as several clips.
        weights[stage] = blocks.unflatten(1, (len(labels), -1)).mean((0, 2))  # (videos, M)
    return [type(branch).__name__ for branch in modules[0][1].mdm], weights, labels


def draw_stage(panel, branches: list[str], weights: Tensor) -> None:
    """A bar of the weights (classes, branches) of each class, in percent."""
    left = torch.zeros(len(weights))
    for name, share in zip(branches, 100 * weights.T, strict=True):
        bars = panel.barh(range(len(share)), share, left=left, color=BRANCHES[name][1], height=0.8, edgecolor="white")
        panel.bar_label(bars, fmt="%.0f", label_type="center", color="black" if name == "S122" else "white", fontsize=9)
        left += share
    panel.set_xlim(0, 100)
    panel.set_xticks([])
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, labelsize=9)


if __name__ == "__main__":
    parser = make_parser("dependencies", __doc__)
    parser.add_argument("--weights", type=Path, default=default_weights(MODEL), help="default: %(default)s")
    parser.add_argument("--dataset", default="toy_something", help="default: %(default)s")
    arguments = parser.parse_args()
    distributed.run_program(lambda: main(arguments), (ConfigError, DataError, WeightsError))
