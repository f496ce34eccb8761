"""The parts of a network that few systems need: an auxiliary head, and decay of all parameters."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from engine.batch import BatchPlan
from engine.config import load_recipe
from engine.optim import build_optimizer, build_sgd, parameter_groups
from engine.precision import Precision
from engine.step import train_step
from models import VideoResNet
from models.video_network import WithAuxiliary

FP32 = Precision("fp32", torch.device("cpu"))


class TwoHeads(VideoResNet):
    """A network with an auxiliary head."""

    aux_weight = 0.5

    def __init__(self):
        super().__init__("tiny", 5, 4, dropout=0.0)
        self.aux_fc = nn.Linear(3, 5)

    def forward(self, clips):
        logits = super().forward(clips)
        return WithAuxiliary(logits, self.aux_fc(clips.mean((1, 3, 4)))) if self.training else logits


@pytest.mark.parametrize("unread", [0, 1])
def test_the_loss_of_an_auxiliary_head_is_added(unread):
    model, clips, labels = TwoHeads(), torch.randn(3, 4, 3, 32, 32), torch.arange(3)[: 3 - unread]
    logits, aux_logits = (part[: 3 - unread] for part in model(clips))
    smoothing = {"label_smoothing": 0.1, "reduction": "sum"}
    expected = cross_entropy(logits, labels, **smoothing) + 0.5 * cross_entropy(aux_logits, labels, **smoothing)
    (gradient,) = torch.autograd.grad(expected / 3, model.aux_fc.weight)

    optimizer = build_sgd(parameter_groups(model), 0.1, 0.9, False, 0.0)
    step = train_step(model, [(clips, labels)], optimizer, BatchPlan(3), FP32, label_smoothing=0.1)
    assert step.loss == pytest.approx(expected.item(), rel=1e-6) and step.unread == unread
    torch.testing.assert_close(model.aux_fc.weight.grad, gradient)
    assert isinstance(model.eval()(clips), torch.Tensor)


def test_decay_of_all_parameters():
    model = VideoResNet("tiny", 5, 4)
    recipe = load_recipe("tsn_tiny", "toy_something", decay_all=True)
    assert {group["weight_decay"] for group in build_optimizer(model, recipe).param_groups} == {recipe.weight_decay}
    assert {group["decay_mult"] for group in parameter_groups(model)} == {0.0, 1.0}
