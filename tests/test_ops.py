"""Compares the operators with their definitions, on odd sizes and in every variant. Tests their error messages."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradgradcheck

from ops import RSA, SDA, ShiftedConv2d, TemporalShift
from ops.rsa import RELATIONS
from ops.sda import DEPENDENCIES, SQUEEZES, _average_to

odd = st.sampled_from([1, 3, 5])


def rsa_by_definition(rsa: RSA, x: torch.Tensor) -> torch.Tensor:
    """The paper's Fig. 2 for each position, with full H = H1 H2^T and P = H2 P1^T and an explicit context."""
    n, _, t, h, w = x.shape
    heads, key, value = rsa.num_heads, rsa.key_dim, rsa.value_dim
    projected = rsa.projection(x)
    q, k, v = projected.split([heads * key, projected.shape[1] - heads * key - value, value], dim=1)

    def unit(vector):
        return vector / (vector.square().sum(-1, keepdim=True) + 1e-6).sqrt()

    kt, kh, kw = rsa.kernel_size
    pad = (kw // 2,) * 2 + (kh // 2,) * 2 + (kt // 2,) * 2
    # Keys and values are normalised first. Positions outside the clip are zero.
    k = F.pad(unit(k.movedim(1, -1)).movedim(-1, 1), pad)
    v = F.pad(unit(v.movedim(1, -1)).movedim(-1, 1), pad)
    h2 = rsa.H2.weight.flatten(1).T  # (M, D)
    y = torch.zeros(n, t, h, w, heads * value, dtype=x.dtype)
    for b, i, j, m in torch.cartesian_prod(*map(torch.arange, (n, t, h, w))).view(-1, 4).tolist():
        around = (b, slice(None), slice(i, i + kt), slice(j, j + kh), slice(m, m + kw))
        x_v = v[around].flatten(1).T  # (M, V)
        query = unit(q[b, :, i, j, m].view(heads, key))  # (L, K)
        if rsa.kernel_type == "V":
            kernel = query @ h2.T  # (L, M)
        else:
            x_k = k[around].flatten(1).T  # (M, K)
            h1 = rsa.H1.weight.flatten(1).view(key, -1, x_k.shape[0])  # (K, D, M)
            full = torch.einsum("cdm,pd->mcp", h1, h2)  # H: (M, K, M)
            kernel = torch.einsum("lc,mc,mcp->lp", query, x_k, full)
            if rsa.kernel_type == "VplusR":
                kernel = kernel + query @ (rsa.P1[0] @ h2.T)
        context = torch.zeros_like(x_v)
        if rsa.feat_type != "V":
            context = context + x_v @ (x_v.T @ rsa.G.weight.flatten(1).T)
        if rsa.feat_type == "V":
            context = x_v
        if rsa.feat_type == "VplusR":
            context = context + x_v @ rsa.I[0]
        y[b, i, j, m] = (kernel @ context).T.flatten()  # head l of value v is channel v*L + l
    return rsa.pool(y.movedim(-1, 1).flatten(1, 2)).unflatten(1, (-1, t))


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.tuples(odd, odd, odd),
    heads=st.integers(1, 3),
    dims=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    kernel_type=st.sampled_from(RELATIONS),
    feat_type=st.sampled_from(RELATIONS),
    stride=st.sampled_from([1, 2, (1, 1, 2)]),
    backend=st.sampled_from(["reference", "fused"]),
)
def test_rsa_is_its_definition(shape, kernel_size, heads, dims, kernel_type, feat_type, stride, backend):
    key, value, latent = dims
    latent = key if kernel_type == "V" else latent
    rsa = RSA(5, 7, heads, key, value, latent, kernel_size, stride, kernel_type, feat_type, backend).double()
    n, t, h, w = shape
    x = torch.randn(n, 5, t, h, w, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(rsa(x), rsa_by_definition(rsa, x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_type": "LSA"}, "kernel_type='LSA'"),
        ({"feat_type": "r"}, "feat_type='r'"),
        ({"num_heads": 3}, "not a multiple of num_heads=3"),
        ({"kernel_size": (4, 3, 3)}, "three odd numbers"),
        ({"stride": (2, 2, 2)}, "frames are not dropped"),
        ({"kernel_type": "V", "key_dim": 3}, "key_dim=3 must equal latent_dim=2"),
    ],
)
def test_rsa_refuses(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        RSA(**{"in_channels": 8, "out_channels": 8, "num_heads": 4} | arguments)


def test_rsa_refuses_another_input():
    with pytest.raises(ValueError, match=r"takes \(N, 8, T, H, W\), got \(1, 4, 1, 2, 2\)"):
        RSA(8, 8)(torch.zeros(1, 4, 1, 2, 2))


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7)),
    dependencies=st.lists(st.sampled_from(list(DEPENDENCIES)), min_size=1, max_size=4, unique=True),
    aggregation=st.sampled_from(["query", "average"]),
    squeeze=st.sampled_from(SQUEEZES),
)
def test_sda_gates_each_clip_alone(shape, dependencies, aggregation, squeeze):
    n, t, h, w = shape
    sda = SDA(20, t, 2, dependencies, aggregation, squeeze).eval()
    x = torch.randn(n * t, 20, h, w)
    with torch.no_grad():
        y = sda(x)
        alone = torch.cat([sda(clip) for clip in x.split(t)])
    assert y.shape == x.shape
    torch.testing.assert_close(y, alone)
    gate = y / x
    assert ((gate > 0) & (gate < 1)).all()


def test_sda_tells_the_weights_of_its_branches():
    """A hook gets the weights that the network uses: the softmax of the products of query and branch means."""
    torch.manual_seed(0)
    sda, seen = SDA(32, 4, 2).eval(), []
    sda.agg.register_forward_hook(lambda agg, inputs, output: seen.append((inputs[0], agg.weights(*inputs), output)))
    with torch.no_grad():
        sda.agg.qVec.normal_()  # larger differences
        sda(torch.randn(12, 32, 6, 6) * torch.tensor([1, 2, 4]).repeat_interleave(4)[:, None, None, None])
    (branches, weights, output), query = seen[0], sda.agg.qVec[0].detach()
    assert weights.shape == (3, 4) and weights.std(0).min() > 1e-3  # each clip has its own
    for clip in range(3):
        products = [sum(branch[clip, c].mean() * query[c] for c in range(16)).exp() for branch in branches]
        for m in range(4):
            torch.testing.assert_close(weights[clip, m], products[m] / sum(products), rtol=1e-5, atol=1e-6)
        total = sum(weights[clip, m] * branches[m][clip].expand(16, 4, 6, 6) for m in range(4))
        torch.testing.assert_close(output[clip], total, rtol=1e-5, atol=1e-6)


def test_sda_squeezes_side_by_side():
    """With avg+max, LT and LS see all averages, then all maxima. S122 sees them alternating. LST adds two passes."""
    x = torch.rand(2, 3, 4, 6, 6)
    eye = torch.eye(3)
    lt = DEPENDENCIES["LT"](3, "avg+max").eval()
    with torch.no_grad():
        lt.conv.weight.zero_()[:, 3:, 1, 1] = eye  # read the second half: the maxima
        torch.testing.assert_close(lt(x)[:, :, 0], x.amax(2), rtol=1e-4, atol=1e-4)
        ls = DEPENDENCIES["LS"](3, "avg+max").eval()
        ls.conv.weight.zero_()[:, :3, 1] = eye
        torch.testing.assert_close(ls(x)[..., 0, 0], x.mean((3, 4)), rtol=1e-4, atol=1e-4)
        s122 = DEPENDENCIES["S122"](3, "avg+max").eval()
        s122.conv.weight.zero_()[:, 1::2, 1, 0, 0] = eye
        pooled = F.max_pool2d(x.flatten(1, 2), 2)
        expected = F.interpolate(pooled, scale_factor=2).unflatten(1, (3, 4))
        torch.testing.assert_close(s122(x), expected, rtol=1e-4, atol=1e-4)
        lst = DEPENDENCIES["LST"](3, "avg+max").eval()
        lst.conv.weight.copy_(eye)
        expected = x.mean((2, 3, 4)) + x.amax((2, 3, 4))
        torch.testing.assert_close(lst(x)[..., 0, 0, 0], expected, rtol=1e-4, atol=1e-4)


def test_sda_refuses():
    with pytest.raises(ValueError, match="12 frames are not a multiple of num_segments 8"):
        SDA(16)(torch.zeros(12, 16, 4, 4))
    with pytest.raises(ValueError, match="one or more of"):
        SDA(16, dependencies=("LST", "XYZ"))
    with pytest.raises(ValueError, match="one or more of"):
        SDA(16, dependencies=())
    with pytest.raises(ValueError, match="aggregation='sum'"):
        SDA(16, aggregation="sum")
    with pytest.raises(ValueError, match="squeeze='min'"):
        SDA(16, squeeze="min")


def test_temporal_shift():
    x = torch.arange(1.0, 2 * 3 * 9 + 1).view(6, 9, 1, 1)  # two clips of three frames, nine channels
    y = TemporalShift(3, fold_div=4)(x).view(2, 3, 9)
    x = x.view(2, 3, 9)
    zero = torch.zeros(2, 1, 2)
    assert torch.equal(y[:, :, :2], torch.cat([x[:, 1:, :2], zero], 1))  # from the future
    assert torch.equal(y[:, :, 2:4], torch.cat([zero, x[:, :-1, 2:4]], 1))  # from the past
    assert torch.equal(y[:, :, 4:], x[:, :, 4:])
    assert torch.equal(TemporalShift(1)(torch.ones(2, 8, 1, 1))[:, 2:], torch.ones(2, 6, 1, 1))
    with pytest.raises(ValueError, match="6 frames are not a multiple of num_segments 4"):
        TemporalShift(4)(torch.zeros(6, 8, 2, 2))


def test_temporal_shift_compiled_and_its_gradient():
    """A compiler sees plain operations. Gradients of any order are also shifts."""
    shift, x = TemporalShift(3, fold_div=4), torch.randn(6, 9, 2, 3, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(shift, fullgraph=True, backend="eager")
    weight = torch.randn_like(shift(x))
    assert torch.equal(compiled(x), shift(x))
    (gradient,) = torch.autograd.grad((shift(x) * weight).sum(), x)
    (expected,) = torch.autograd.grad((compiled(x) * weight).sum(), x)
    assert torch.equal(gradient, expected)
    assert gradgradcheck(shift, x)
    frames = torch.randn(6, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    assert shift(frames).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("shape", "frames", "outputs", "kernel", "multiplies"),
    [
        ((6, 17, 4, 3), 3, 5, 1, True),
        ((2, 16, 3, 3), 1, 4, 1, True),  # no frame has a neighbour
        ((4, 5, 3, 2), 2, 3, 1, True),  # too few channels for a shift
        ((6, 16, 4, 4), 3, 4, 3, False),
    ],
)
def test_shifted_convolution(shape, frames, outputs, kernel, multiplies):
    """The result and the gradients are those of a convolution after the shift, in any layout and number format."""
    conv = torch.nn.Conv2d(shape[1], outputs, kernel, padding=kernel // 2, bias=False)
    shifted, x = ShiftedConv2d(conv, frames), torch.randn(shape).requires_grad_()
    assert shifted.weight is conv.weight and [*shifted.state_dict()] == ["weight"]
    y = conv(TemporalShift(frames)(x))
    gradient = torch.randn_like(y)
    expected = y, *torch.autograd.grad(y, (x, conv.weight), gradient)
    for layout in (torch.contiguous_format, torch.channels_last):
        frame_by_frame = x.detach().contiguous(memory_format=layout).requires_grad_()
        y = shifted(frame_by_frame)
        assert (y.grad_fn.name() == "PermuteBackward0") == (multiplies and layout == torch.channels_last)
        found = y, *torch.autograd.grad(y, (frame_by_frame, conv.weight), gradient)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert shifted(frame_by_frame).dtype == torch.bfloat16
    compiled = torch.compile(shifted, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(frame_by_frame), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="frames are not a multiple of num_segments 5"):
        ShiftedConv2d(conv, 5)(frame_by_frame)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sda_keeps_the_layout(memory_format):
    """The layout is also kept inside, because kernels with inputs of two layouts are several times slower."""
    x = torch.randn(6, 64, 6, 4)
    sda, seen = SDA(64, 3), []
    expected = sda(x)

    def see(module, inputs):
        seen.append(inputs[0])
        inputs[0].register_hook(seen.append)

    for module in (sda.bn1, sda.bn2):
        module.register_forward_pre_hook(see)
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    y = sda(x)
    y.sum().backward()
    assert len(seen) == 4
    assert all(z.is_contiguous(memory_format=memory_format) for z in (*seen, y, x.grad))
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("size", [(8, 6), (7, 7), (8, 7), (2, 2), (1, 3)])
def test_short_range_pools_are_adaptive_ones(size):
    frames, half = torch.randn(2, 3, *size), (max(size[0] // 2, 2), max(size[1] // 2, 2))
    torch.testing.assert_close(_average_to(frames, half), F.adaptive_avg_pool2d(frames, half))
    small = torch.randn(2, 3, *half)
    torch.testing.assert_close(_average_to(small, size), F.adaptive_avg_pool2d(small, size))
