"""The networks: shapes, initialisation, places of the operators, and random draws per frame or per video."""

import pytest
import torch
from torch import nn

from models import build_model, list_models
from models.families import FAMILIES
from models.rsanet import POSITIONS, rsanet
from models.sda import sda_tsn
from models.tsn import tsn
from models.video_network import WithAuxiliary
from ops import RSA, SDA, ShiftedConv2d

TINY = list_models(toy=True)


def clips(n=2, t=4, size=32):
    return torch.randn(n, t, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_names():
    families = {family.name: family.sizes for family in FAMILIES}
    assert set(list_models()) == {f"{family}_{size}" for family, sizes in families.items() for size in sizes}
    assert len(list_models(toy=True)) + len(list_models(toy=False)) == len(list_models())
    assert "tsn_tiny" in list_models(toy=True) and "rubiksnet_tiny" in list_models(toy=False)
    with pytest.raises(ValueError, match="unknown model 'rsanet50'; did you mean rsanet_r50"):
        build_model("rsanet50", 12, 8)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize(("t", "size"), [(1, 32), (4, 48), (8, 33)])
def test_shapes(name, t, size):
    refused = {("v4d_tiny", 1): "num_segments", ("stm_tiny", 33): "multiples of 32"}
    for (other, limit), message in refused.items():
        if name == other and limit in (t, size):
            with pytest.raises(ValueError, match=message):
                build_model(name, 5, t)(clips(2, t, size))
            return
    output = build_model(name, 5, t)(clips(2, t, size))
    parts = output if isinstance(output, WithAuxiliary) else [output]
    assert all(logits.shape == (2, 5) for logits in parts)
    sum(parts).sum().backward()


@pytest.mark.parametrize("name", TINY)
def test_videos_do_not_mix(name):
    model, x = build_model(name, 5, 8).eval(), clips(3, 8)
    with torch.no_grad():
        for block in model.base_model.modules():  # the branches of RSANet start at zero
            if isinstance(block, nn.BatchNorm2d):
                nn.init.ones_(block.weight)
        torch.testing.assert_close(model(x), torch.cat([model(clip[None]) for clip in x]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_only_tsn_and_smallbig_are_blind_to_the_direction_of_time(name):
    """SmallBig mixes frames only by maxima over neighbours on both sides, which do not change if time is reversed."""
    model, x = build_model(name, 5, 8).eval(), clips(2, 8)
    with torch.no_grad():
        for norm in model.base_model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.ones_(norm.weight)
        nn.init.normal_(model.new_fc.weight)
        forwards, backwards = model(x), model(x.flip(1))
    assert torch.allclose(forwards, backwards, rtol=1e-4, atol=1e-5) == (name in ("tsn_tiny", "smallbig_tiny"))


def test_wrong_clips_are_refused():
    model = build_model("tsn_tiny", 5, 8)
    with pytest.raises(ValueError, match=r"takes clips \(N, 8, 3, H, W\), got \(2, 4, 3, 32, 32\)"):
        model(clips(2, 4))


@pytest.mark.parametrize("size", ["r50", "tiny"])
def test_where_the_operators_stand(size):
    rsanet, sda_tsm = build_model(f"rsanet_{size}", 5, 8), build_model(f"sda_tsm_{size}", 5, 8)
    for stage, index, block in rsanet.blocks():
        assert isinstance(block.conv2, RSA) == (index in POSITIONS[size][stage])
    for _, _, block in sda_tsm.blocks():
        assert isinstance(block.conv1, ShiftedConv2d) and isinstance(block.sda, SDA)
    if size == "r50":
        rsa = [m for m in rsanet.modules() if isinstance(m, RSA)]
        assert [m.in_channels for m in rsa] == [64, 128, 128, 256, 256, 256, 512]
        assert all((m.kernel_size, m.num_heads) == ((5, 7, 7), 8) for m in rsa)


def test_sda_on_sixteen_frames_sees_two_halves_unless_told():
    def segments(t, **options):
        model = build_model("sda_tsn_tiny", 5, t, **options)
        return next(m.num_segments for m in model.modules() if isinstance(m, SDA))

    assert [segments(t) for t in (8, 16, 24, 4, 12)] == [8, 8, 8, 4, 12]
    assert segments(16, sda_segments=16) == 16
    with pytest.raises(ValueError, match="sda_segments=8 must divide num_segments=12"):
        segments(12, sda_segments=8)


def test_rsanet_initialisation():
    torch.manual_seed(0)
    model = build_model("rsanet_r50", 174, 8)
    for _, _, block in model.blocks():
        assert not block.bn3.weight.any() and block.bn2.weight.eq(1).all()
        if isinstance(block.conv2, RSA):
            rsa, d = block.conv2, block.conv2.key_dim
            assert rsa.H1.weight.std().item() == pytest.approx((2 / (245 * d * d)) ** 0.5, rel=0.1)
            assert rsa.H2.weight.std().item() == pytest.approx((2 / (245 * d)) ** 0.5, rel=0.1)
            assert rsa.P1.std().item() == pytest.approx((1 / (245 * d)) ** 0.5, rel=0.4)
            assert torch.equal(rsa.I[0], torch.eye(d))
    bound = (6 / (2048 + 174)) ** 0.5  # Xavier uniform
    assert 0.99 * bound < model.new_fc.weight.abs().max() <= bound
    sda = build_model("sda_tsm_tiny", 174, 8)
    assert sda.new_fc.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not sda.new_fc.bias.any() and not model.new_fc.bias.any()


def test_dropout_is_drawn_for_each_frame():
    model = build_model("tsn_tiny", 5, 4, dropout=0.5).train()
    features = []
    model.new_fc.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    still = clips(1, 1).expand(1, 4, -1, -1, -1)  # four times the same frame
    model(still)
    kept = features[0] != 0
    assert features[0].shape == (4, 256) and not torch.equal(kept[0], kept[1])


def test_stochastic_depth_is_drawn_for_each_video_and_grows_linearly():
    model = build_model("rsanet_r50", 5, 4)
    p = [getattr(block.join, "p", 0.0) for _, _, block in model.blocks()]
    assert p == pytest.approx([0.2 * i / 15 for i in range(16)])
    join, branch = list(model.blocks())[-1][2].join.train(), torch.ones(100 * 4, 2, 1, 1)
    torch.manual_seed(0)
    y = (join(branch, 3 * branch) - 3).view(100, 4, 2)
    assert (y == y[:, :1, :1]).all()  # all frames of a video share one draw
    values = set(y[:, 0, 0].tolist())
    assert values == {0.0, 1.25}  # the kept branches (probability 0.8) are scaled up
    assert torch.equal(join.eval()(branch, 3 * branch), 4 * branch)


def test_partial_bn_trains_the_first_only():
    model = build_model("sda_tsn_tiny", 5, 8, partial_bn=True).train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [m.training for m in norms] == [True] + [False] * (len(norms) - 1)
    assert [m.weight.requires_grad for m in norms] == [True] + [False] * (len(norms) - 1)
    assert all(m.training for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm3d)))  # SDA's own
    assert all(m.training for m in build_model("tsn_tiny", 5, 8).train().modules())


@pytest.mark.parametrize(("stages", "frozen"), [(-1, 0), (0, 3), (1, 3 + 21), (2, 3 + 21 + 21), (4, 3 + 3 * 21)])
def test_frozen_stages_are_frozen_once(stages, frozen):
    """A convolution with its BN has 3 parameters.

    The stem has one such pair; the two bottlenecks of a stage have 4 and 3.
    """
    model = build_model("tsn_tiny", 5, 4, frozen_stages=stages)
    assert sum(not p.requires_grad for p in model.parameters()) == frozen
    assert [m.training for m in model.base_model.layer1] == [stages < 1] * 2
    model.requires_grad_(True)
    model.eval().train()  # a user's choice to train them is kept
    assert all(p.requires_grad for p in model.parameters()) and model.base_model.conv1.training == (stages < 0)


@pytest.mark.parametrize("family", [tsn, sda_tsn, rsanet])
def test_a_family_without_the_registry_is_frozen_too(family):
    """Users may call a family's function, and insert a module of their own afterwards."""
    model = family("tiny", num_classes=2, num_segments=8, frozen_stages=1)
    model.insert("before_conv1", "mine", lambda block: nn.Linear(2, 2))
    for stage, _, block in model.blocks():
        assert {p.requires_grad for p in block.parameters()} == {stage >= 1}


class Plus(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


class Times(Plus):
    def forward(self, x):
        return x * self.value


def test_modules_are_inserted_at_places_in_order():
    model = build_model("tsn_tiny", 5, 1).eval()
    (_, _, first), (_, _, second), *_ = model.blocks()
    x = torch.randn(1, 64, 4, 4)
    y = torch.relu(second.bn1(second.conv1(2 * (x + 5 + 1))))
    y = torch.relu(second.bn2(second.conv2(y + 2)) * 3)
    expected = torch.relu(second.bn3(second.conv3(y)) + 4 + x + 5) * 6
    for place, name, module in [
        ("before_conv1", "a", Plus(1)),
        ("before_conv1", "b", Times(2)),
        ("before_conv2", "c", Plus(2)),
        ("after_bn2", "d", Times(3)),
        ("after_bn3", "e", Plus(4)),
        ("before_block", "f", Plus(5)),
        ("after_block", "g", Times(6)),
    ]:
        model.insert(place, name, lambda block, module=module: module, blocks=[(0, 1)])
    torch.testing.assert_close(second(x), expected)
    assert model.not_in_imagenet == [f"base_model.layer1.1.{name}." for name in "abcdefg"] and not hasattr(first, "a")
    model.insert("conv1", "conv1", lambda block: nn.Conv2d(64, 16, 1), blocks=[(0, 1)])
    assert second.conv1.bias is not None
    for place, name, message in [
        ("before_conv1", "a", "the bottleneck has a 'a' already; choose another name"),
        ("after_bn3", "relu", "the bottleneck has a 'relu' already"),
        ("before", "x", "place 'before' must be one of before_block, before_conv1, conv1, before_conv2, conv2, after_"),
        ("conv2", "x", "a module at conv2 replaces conv2, so its name must be conv2, not 'x'"),
        ("conv1", "conv2", "a module at conv1 replaces conv1, so its name must be conv1, not 'conv2'"),
    ]:
        with pytest.raises(ValueError, match=message):
            second.insert(place, name, Plus(0))


def test_the_shortcut_sees_a_module_before_the_block():
    model = build_model("tsn_tiny", 5, 1).eval()
    (_, _, first), *_ = model.blocks()
    x = torch.randn(1, 16, 4, 4)
    expected = first(x + 5)
    model.insert("before_block", "plus", lambda block: Plus(5), blocks=[(0, 0)])
    assert torch.equal(first(x), expected)


def test_rsanet_refuses_what_its_network_cannot_take():
    with pytest.raises(ValueError, match="num_heads 8 x value_dim 16 gives 128 channels, the network has 64"):
        build_model("rsanet_r50", 5, 8, value_dim=16)


@pytest.mark.parametrize(
    ("name", "options", "millions"),
    [
        # Parameters that follow from the released code (174 classes), for variants that have no golden values.
        ("rsanet_r50", {"kernel_type": "V", "feat_type": "V"}, 20.011),
        ("rsanet_r50", {"kernel_type": "V", "feat_type": "VplusR"}, 20.067),
        ("rsanet_r50", {"kernel_type": "R", "feat_type": "R"}, 22.019),
        ("rsanet_r50", {"kernel_type": "VplusR", "feat_type": "V"}, 21.978),
        ("rsanet_r50", {"kernel_size": (3, 5, 5)}, 20.650),
        ("rsanet_r50", {"num_heads": 4}, 28.0),
        ("rsanet_r50", {"num_heads": 16}, 20.49),
        ("sda_tsn_r50", {"dependencies": ("LST",)}, 24.583),
        ("sda_tsn_r50", {"dependencies": ("LT",)}, 25.212),
        ("sda_tsn_r50", {"dependencies": ("LS",)}, 24.740),
        ("sda_tsm_r50", {"reduction": 2}, 30.18),
        ("sda_tsm_r50", {"reduction": 16}, 24.15),
    ],
)
def test_parameters_of_variants(name, options, millions):
    parameters = sum(p.numel() for p in build_model(name, 174, 8, **options).parameters())
    digits = len(str(millions).split(".")[1])
    # A single dependency needs no query. The published count of such a variant includes one of 16 + 32 + ... channels.
    assert round(parameters / 1e6, digits) == pytest.approx(millions, abs=1.01 * 10**-digits)
