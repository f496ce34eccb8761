"""Speed of our modules beside the released operations of the compared systems: ``python -m benchmarks.released``.

Both forms have the same weights and inputs. Before they are timed, their outputs are compared. A module has the size
that it has in a ResNet-50 on frames of 224 px (RubiksNet's shift: in RubiksNet-Large). All forms take turns in one run,
each in contiguous and in channels_last memory, and the faster of the two counts. Training is a forward and a backward
pass. A ratio of medians above 1 means that ours is faster. ``benchmarks/released_forms.py`` holds the released
operations. On a GPU, the row of RubiksNet does not compare with the released CUDA kernel.
"""

import argparse
import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from engine.memory import keep_freed_memory
from engine.network import channels_last

from . import released_forms as forms
from .measure import machine, medians

LAYOUTS = ("contiguous", "channels_last")
TOLERANCE = 1e-5  # of the outputs: the norm of the difference, relative to the norm
PASSES = ("training", "test")
SIZES = (1, 0.5, 0.25, 0.125, 0.0625)  # every number of channels stays a multiple of its groups


GST_LARGE = partial(forms.gst, beta=1)


class Place(NamedTuple):
    """What is built, by which function, and its number of channels and pixels of a side at the full size."""

    name: str
    make: Callable[[int, int], forms.Forms]
    channels: int
    pixels: int


SYSTEMS = {
    "tam": [Place("TAM", forms.tam, 64, 56), Place("TAM", forms.tam, 256, 14)],
    "tea": [Place("res3, conv1 to conv3", forms.tea, 512, 28), Place("res4, conv1 to conv3", forms.tea, 1024, 14)],
    "stm": [Place("res2, conv1 to conv3", forms.stm, 256, 56), Place("res4, conv1 to conv3", forms.stm, 1024, 14)],
    "teinet": [Place("TEI", forms.teinet, 256, 56), Place("TEI", forms.teinet, 1024, 14)],
    "gst": [Place("res3 block", forms.gst, 512, 28), Place("res4 block", forms.gst, 1024, 14)],
    "gst_large": [Place("res3 block", GST_LARGE, 512, 28), Place("res4 block", GST_LARGE, 1024, 14)],
    "tin": [Place("TIN", forms.tin, 256, 56), Place("TIN", forms.tin, 1024, 14)],
    "tpn": [Place("neck", forms.tpn, 1024, 14), Place("temporal modulation", forms.tpn_temporal, 2048, 7)],
    "smallbig": [Place("res3 block", forms.smallbig, 512, 28), Place("res4 block", forms.smallbig, 1024, 14)],
    "c3d": [Place("res3 block", forms.c3d, 512, 28), Place("res4 block", forms.c3d, 1024, 14)],
    "v4d": [Place("R4D", forms.r4d, 512, 28), Place("res4 block", forms.v4d, 1024, 14)],
    "rubiksnet": [Place("shift", forms.rubiksnet, 72, 56), Place("shift", forms.rubiksnet, 288, 14)],
}


def build(place: Place, args: argparse.Namespace) -> tuple[forms.Forms, dict[str, nn.Module], list[Tensor]]:
    """Both forms at a place, and the inputs of ours. Noise on the weights leaves none at 0, so all have an effect."""
    torch.manual_seed(0)
    made = place.make(int(place.channels * args.size), args.num_segments)
    with torch.no_grad():
        for parameter in made.ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    inputs, side = [], max(int(place.pixels * args.size), 4)
    for channels in made.channels:
        inputs.append(torch.randn(args.clips * args.num_segments, channels, side, side))
        side = (side + 1) // 2  # the next input is that of the next stage
    return made, {"ours": made.ours, "released": made.release(made.ours)}, inputs


class Run:
    """One form in one memory layout: a training step, a forward pass, and the output as frames."""

    def __init__(self, module: nn.Module, inputs: list[Tensor], clip: int, layout: str, device: str):
        self.module, self.clip = copy.deepcopy(module).to(device), clip
        if layout == "channels_last":
            channels_last(self.module)
            for parameter in self.module.parameters():
                if clip and parameter.dim() == 5:  # our networks leave such weights as they are
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last_3d)
        self.inputs = [self._laid_out(x.to(device), layout).requires_grad_() for x in inputs]
        self.gradient = torch.randn_like(self.module(*self.inputs))  # in the memory layout of the output

    def _laid_out(self, x: Tensor, layout: str) -> Tensor:
        if self.clip:
            x = x.unflatten(0, (-1, self.clip)).transpose(1, 2)
        formats = torch.channels_last_3d if self.clip else torch.channels_last
        return x.contiguous(memory_format=formats if layout == "channels_last" else torch.contiguous_format)

    def training(self) -> None:
        self.module.train()(*self.inputs).backward(self.gradient)
        for tensor in (*self.module.parameters(), *self.inputs):
            tensor.grad = None

    def test(self) -> None:
        with torch.no_grad():
            self.module.eval()(*self.inputs)

    def output(self, training: bool) -> Tensor:
        with torch.no_grad():
            y = self.module.train(training)(*self.inputs)
        return y.transpose(1, 2).flatten(0, 1) if y.dim() == 5 else y


def check(name: str, runs: dict[str, Run]) -> None:
    """Errors: ``SystemExit`` if the output of a run is not that of the first one."""
    for training in (True, False):
        first, *others = (run.output(training) for run in runs.values())
        for run, other in zip(list(runs)[1:], others, strict=True):
            error = float((other - first).norm() / first.norm())
            if not error <= TOLERANCE:
                raise SystemExit(f"{name}: the output of {run!r} differs by {error:.1e}, relative to its norm")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.released", description=__doc__)
    parser.add_argument("systems", nargs="*", metavar="SYSTEM", help=f"default: all of {', '.join(SYSTEMS)}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--clips", type=int, default=2, metavar="N")
    parser.add_argument("--num_segments", type=int, default=8, metavar="T", help="a multiple of 4, V4D's units")
    parser.add_argument(
        "--size", type=float, default=1, choices=SIZES, help="fraction of the channels and of the height and width"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="R", help="timed passes of each form")
    args = parser.parse_args()
    if unknown := set(args.systems) - set(SYSTEMS):
        parser.error(f"unknown system {unknown.pop()!r}; known: {', '.join(SYSTEMS)}")
    if args.num_segments % forms.UNITS:
        parser.error(f"--num_segments {args.num_segments} must be a multiple of {forms.UNITS}, V4D's units")
    if args.device == "cpu":
        keep_freed_memory()
    else:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True

    print(f"{machine(args.device)}; {args.clips} clips of {args.num_segments} frames, fp32; ", end="")
    print(
        "times as fast as the released operations\n\n| system | place | training | test |\n|---|---|---|---|",
        flush=True,
    )
    for system in args.systems or SYSTEMS:
        for place in SYSTEMS[system]:
            made, modules, inputs = build(place, args)
            clips = {"ours": 0, "released": made.clip}
            runs = {
                f"{form}, {layout}": Run(modules[form], inputs, clips[form], layout, args.device)
                for form, layout in itertools.product(modules, LAYOUTS)
            }
            shown = f"{place.name}, {' and '.join(f'{x.shape[1]} x {x.shape[2]} x {x.shape[3]}' for x in inputs)}"
            check(f"{system}, {shown}", runs)
            speeds = []
            for kind in PASSES:
                seconds = medians(
                    {n: getattr(run, kind) for n, run in runs.items()}, args.rounds, args.device, warm_up=1
                )
                best = {form: min(seconds[f"{form}, {layout}"] for layout in LAYOUTS) for form in modules}
                speeds.append(f"{best['released'] / best['ours']:.2f}")
            print(f"| {system} | {shown} | {' | '.join(speeds)} |", flush=True)


if __name__ == "__main__":
    main()
