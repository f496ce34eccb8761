"""Prints what a model costs: ``python -m models.costs rsanet_r50 --num_segments 8 16 --size 224``."""

import argparse
import logging
import signal
import warnings

import torch

from .registry import build_model, check_model, list_models
from .video_network import VideoNetwork

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # fvcore calls torch.jit.script, which new versions deprecate
    from fvcore.nn import FlopCountAnalysis


def costs(model: VideoNetwork, num_segments: int, size: int) -> tuple[int, float]:
    """The number of parameters, and the number of multiply-adds of a clip ``(1, T, 3, size, size)``.

    fvcore counts the multiply-adds, including those of batch norm.
    """
    clip = torch.zeros(1, num_segments, 3, size, size)
    model.set_backend("reference")  # the released operations, because fvcore cannot count other paths
    logging.getLogger("fvcore").setLevel(logging.ERROR)  # it warns of elementwise operations, which it does not count
    count = FlopCountAnalysis(model.eval(), clip).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return sum(p.numel() for p in model.parameters()), count.total()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m models.costs", description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all but the toy networks")
    parser.add_argument("--num_segments", type=int, nargs="+", default=[8, 16], metavar="T")
    parser.add_argument("--size", type=int, default=224, metavar="PX", help="height and width of a frame")
    parser.add_argument("--num_classes", type=int, default=174, metavar="K")
    args = parser.parse_args()
    try:
        for name in args.models:
            check_model(name)
    except ValueError as error:
        parser.error(str(error))

    print("| model | frames | size | parameters | G multiply-adds |\n|---|---|---|---|---|")
    for name in args.models or list_models(toy=False):
        for t in args.num_segments:
            parameters, multiply_adds = costs(build_model(name, args.num_classes, t), t, args.size)
            print(f"| {name} | {t} | {args.size} | {parameters:,} | {multiply_adds / 1e9:.3f} |", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "| head" ends the program without a traceback
    main()
