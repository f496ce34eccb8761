"""Parameter groups and one step of SGD, as the released code of the two papers does them."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.resnet import VideoResNet
from ops import SDA
from ops.sda import QueryAggregation


def parameter_groups(
    model: VideoResNet, fc_lr_mult: float = 1.0, fc_bias_lr_mult: float = 2.0, sda_lr_mult: float = 5.0
) -> list[dict]:
    """Groups for ``torch.optim.SGD`` with ``name lr_mult decay_mult param_names`` beside ``params``.

    Weight decay falls on weights (P1 and I of RSA among them), not on biases, BN or SDA's query. The weights of SDA,
    not its BN, learn ``sda_lr_mult`` times faster; the classifier has multipliers of its own (RSA 1 and 2, SDA 1 and
    2, TSM 5 and 10). Parameters frozen by partial BN are in no group.
    """
    rules = {
        "weight": (1.0, 1.0),
        "bias": (2.0, 0.0),
        "bn": (1.0, 0.0),
        "fc_weight": (fc_lr_mult, 1.0),
        "fc_bias": (fc_bias_lr_mult, 0.0),
        "sda_weight": (sda_lr_mult, 1.0),
        "sda_query": (1.0, 0.0),
    }
    groups = {
        name: {"name": name, "lr_mult": lr_mult, "decay_mult": decay_mult, "params": [], "param_names": []}
        for name, (lr_mult, decay_mult) in rules.items()
    }
    sda = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, SDA))
    for module_name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, _BatchNorm):
                kind = "bn"
            elif isinstance(module, QueryAggregation):
                kind = "sda_query"
            elif module is model.new_fc:
                kind = f"fc_{leaf}"
            elif module_name.startswith(sda):
                kind = "sda_weight"
            else:
                kind = "bias" if leaf == "bias" else "weight"
            groups[kind]["params"].append(parameter)
            groups[kind]["param_names"].append(f"{module_name}.{leaf}")
    return [group for group in groups.values() if group["params"]]


def build_sgd(groups: list[dict], lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.SGD:
    """SGD whose groups decay by ``weight_decay * decay_mult``."""
    groups = [group | {"weight_decay": weight_decay * group["decay_mult"]} for group in groups]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float, use_multipliers: bool) -> None:
    """Give every group ``lr``, times its ``lr_mult`` if ``use_multipliers``.

    The released RSA code sets the multipliers and then lets its cosine schedule overwrite them, so its runs had one
    learning rate for all groups.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * (group["lr_mult"] if use_multipliers else 1.0)


def train_step(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    label_smoothing: float = 0.0,
    clip_gradient: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One step on normalised clips (N,T,3,H,W) and labels (N): returns detached logits (N,K), loss and gradient norm.

    The loss is the cross-entropy; with smoothing e, ``(1-e)*NLL + e*mean over classes of -log p``.
    """
    logits = model(clips)
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    optimizer.zero_grad()
    loss.backward()
    limit = float("inf") if clip_gradient is None else clip_gradient
    norm = nn.utils.clip_grad_norm_(model.parameters(), limit)
    optimizer.step()
    return logits.detach(), loss.detach(), norm
