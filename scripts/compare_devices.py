"""Compare logits or gradients of networks on a GPU with the CPU's: ``python -m scripts.compare_devices [MODEL ...]``.

Both devices get the same weights and clips. The CPU computes in fp32, and TF32 is off. A network with RSA is computed
with every path that the device has. The comparisons are:

- Logits: the largest difference, as a share of the CPU's largest logit. The limits are 5e-4 in fp32 and 0.08 in bf16.
  On CPUs, fp32 and bf16 differed from float64 by at most 3e-6 and 0.03 for the two papers' networks; TF32 differs by
  about 2e-3. Without MODEL, tsm_tpn_r50 and smallbig_r50 are not compared in bf16.
- Gradients: for each parameter, the norm of the difference divided by a reference. The reference is the norm of the
  CPU's gradient plus 0.01 times the largest such norm. The limit is 0.1. A single ReLU whose input has another sign
  changes the result by 0.01.
"""

import argparse
import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine import distributed
from engine.config import ConfigError
from engine.flags import check_model_names, parse_arguments
from engine.network import channels_last
from engine.precision import Precision
from engine.step import logits_and_loss
from models import build_model, list_models
from models.resnet import Bottleneck
from models.video_network import VideoNetwork
from ops.rsa import BACKENDS

CLASSES, SEGMENTS, SIZE, CLIPS = 5, 8, 64, 2
TOLERANCE = {"fp32": 5e-4, "bf16": 0.08, "gradients": 0.1}
BRANCH = 0.2  # factor of each block's branch; with 1, random weights would amplify rounding errors

# With random weights, these networks amplify the rounding of bf16: on a CPU, their logits differ by 0.12 and 1.7.
NOT_IN_BF16 = ("tsm_tpn_r50", "smallbig_r50")


def example(name: str) -> tuple[VideoNetwork, Tensor]:
    """A network on the CPU in which every branch matters, and clips (N, T, 3, H, W)."""
    torch.manual_seed(0)
    model = build_model(name, CLASSES, SEGMENTS, dropout=0.0, stochastic_depth=0.0)
    clips = torch.randn(CLIPS, SEGMENTS, 3, SIZE, SIZE)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            if not module.weight.any():  # branches of RSANet and SmallBig start at zero
                nn.init.constant_(module.weight, BRANCH)
            module.momentum = 1.0  # the forward pass below then sets the running statistics to the clips' statistics
    for _, _, block in model.blocks():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, BRANCH)
        else:
            block.conv3.weight.data *= BRANCH
    nn.init.normal_(model.new_fc.weight, std=0.1)
    with torch.no_grad():
        model.train()(clips)
    return model.eval(), clips


def logits(model: VideoNetwork, clips: Tensor, precision: Precision) -> Tensor:
    """The logits (N, K) in float32, on the CPU."""
    with torch.no_grad(), precision.autocast():
        return model.eval()(clips.to(precision.device)).float().cpu()


def gradients(model: VideoNetwork, clips: Tensor, precision: Precision) -> dict[str, Tensor]:
    """The gradients of the cross-entropy by parameter name, on the CPU."""
    model.train().zero_grad()
    labels = torch.arange(len(clips), device=precision.device)
    _, losses = logits_and_loss(model, model(clips.to(precision.device)), labels, label_smoothing=0.0)
    losses.mean().backward()
    return {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


def compare_logits(found: Tensor, expected: Tensor) -> tuple[float, str]:
    """The largest difference between two (N, K) logits, and its class."""
    shares = (found - expected).abs().amax(0) / expected.abs().max()
    return _worst({f"class {k}": share for k, share in enumerate(shares.tolist())})


def compare_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest difference between two gradients, and its parameter."""
    norms = {name: gradient.norm().item() for name, gradient in expected.items()}
    floor = 0.01 * max(norms.values())
    return _worst({name: (found[name] - expected[name]).norm().item() / (norms[name] + floor) for name in norms})


def _worst(shares: dict[str, float]) -> tuple[float, str]:
    name = max(shares, key=lambda name: (shares[name] != shares[name], shares[name]))  # NaN is the worst
    return shares[name], name


def paths(model: VideoNetwork, device: torch.device) -> list[str]:
    """The paths that the device has for the network's operators; ["auto"] if no operator has several."""
    found = []
    for name in BACKENDS:
        model.set_backend(name)
        found += [name for line in model.describe_backends(device) if line.startswith(f"RSA: {name} (")]
    return found or ["auto"]


def rows(name: str, kind: str, device: torch.device):
    """(path, difference, class or parameter) for each path of a network."""
    model, clips = example(name)
    compute, compare = (gradients, compare_gradients) if kind == "gradients" else (logits, compare_logits)
    precision = "fp32" if kind == "gradients" else kind
    expected = compute(copy.deepcopy(model), clips, Precision("fp32", torch.device("cpu")))
    on_device = Precision(precision, device)
    on_device.apply()
    for path in paths(model, device):
        other = copy.deepcopy(model).to(device)
        channels_last(other)
        other.set_backend(path)
        yield path, *compare(compute(other, clips, on_device), expected)


def main(args: argparse.Namespace) -> None:
    device = distributed.init(args.device)
    limit, wrong, worst = TOLERANCE[args.kind], [], (0.0, "")
    print(f"| network | path of RSA | difference of {args.kind} | largest where | at most {limit:g} |")
    print("|---|---|---|---|---|", flush=True)
    skipped = NOT_IN_BF16 if args.kind == "bf16" else ()
    for name in args.models or [name for name in list_models() if name not in skipped]:
        for path, difference, where in rows(name, args.kind, device):
            agrees = difference <= limit
            shown = name if path == "auto" else f"{name} ({path})"
            print(f"| {name} | {path} | {difference:.1e} | {where} | {'yes' if agrees else 'NO'} |", flush=True)
            if not agrees:
                wrong.append(f"{shown} {difference:.1e}")
            worst = max(worst, (difference, shown))
    if wrong:
        raise ConfigError(f"DIFFERS: more than {limit:g}: {', '.join(wrong)}")
    print(f"agrees: largest difference {worst[0]:.1e}, {worst[1]}; tolerance {limit:g}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scripts.compare_devices", allow_abbrev=False)
    parser.description, _, parser.epilog = __doc__.partition("\n\n")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all")
    parser.add_argument("--kind", default="fp32", choices=list(TOLERANCE), help="logits in fp32 or bf16, or gradients")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one, else the CPU")
    args = parse_arguments(parser)
    check_model_names(parser, args.models)
    return args


if __name__ == "__main__":
    arguments = parse_args()
    warnings.filterwarnings("ignore")
    distributed.run_program(lambda: main(arguments), (ConfigError,))
