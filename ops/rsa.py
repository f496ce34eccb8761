"""Relational self-attention (RSA, NeurIPS 2021, Fig. 2): the module, its plain reference, and the choice of a path.

This file is a complete operator. ``ops/__init__.py`` adds the faster paths to ``BACKENDS``.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RELATIONS = ("V", "R", "VplusR")


class Backend(NamedTuple):
    """A path, which is one way to compute RSA.

    ``compute`` takes an ``RSA`` and its input (N, C, T, H, W) and returns (N, T, H, W, C'). ``why_not`` takes (device,
    dtype, kernel_type, feat_type) and returns the reason why the path cannot be used, or ``None``.
    """

    compute: Callable[["RSA", Tensor], Tensor]
    why_not: Callable[[torch.device, torch.dtype, str, str], str | None]


BACKENDS: dict[str, Backend] = {}  # the paths by name
PREFERENCE = ("fused", "reference")  # for "auto", and for replacing a path that cannot be used
UNTRIED = "triton"  # path for GPUs that "auto" does not choose, because this version of it has not run on a GPU


class Choice(NamedTuple):
    name: str  # of the path that is taken
    reason: str
    as_asked: bool


def add_backend(name: str, function: Callable[..., Tensor], why_not: Callable[..., str | None]) -> None:
    """Add a path to ``BACKENDS``. ``function`` takes the values that ``RSA.projected`` returns."""
    BACKENDS[name] = Backend(lambda rsa, x: function(*rsa.projected(x)), why_not)


def choose_backend(asked: str, device: torch.device, dtype: torch.dtype, kernel_type: str, feat_type: str) -> Choice:
    """Choose one of ``BACKENDS``; returns its name and the reason.

    ``asked`` is one of these names or ``"auto"``. If it is ``"auto"``, the environment variable ``RSA_BACKEND`` can
    name the path. A path that cannot be used is replaced by the next one in ``PREFERENCE``.

    Errors: ``ValueError`` for an unknown name.
    """
    source = f"backend={asked!r}"
    if asked == "auto" and os.environ.get("RSA_BACKEND"):
        asked = os.environ["RSA_BACKEND"]
        source = f"RSA_BACKEND={asked}"
    *others, last = "auto", *BACKENDS
    if asked not in (*others, last):
        raise ValueError(f"{source} must be {', '.join(others)} or {last}")
    reason = source
    for name in dict.fromkeys(PREFERENCE if asked == "auto" else (asked, *PREFERENCE)):
        if name not in BACKENDS:  # its file was not copied
            continue
        obstacle = BACKENDS[name].why_not(device, dtype, kernel_type, feat_type)
        if obstacle is None:
            return Choice(name, reason, as_asked=asked in ("auto", name))
        reason += f", but {name} cannot be used: {obstacle}"
    raise AssertionError("the reference can always be used")


def rsa_backend_reason(
    backend: str = "auto",
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    kernel_type: str = "VplusR",
    feat_type: str = "VplusR",
) -> str:
    """One line that names the path which an ``RSA`` with these settings takes on this device and type, and the reason.

    If ``device`` is ``None``, the GPU is meant if there is one, otherwise the CPU.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name, reason, _ = choose_backend(backend, device, dtype, kernel_type, feat_type)
    by_preference = backend == "auto" and os.environ.get("RSA_BACKEND", "auto") in ("", "auto")
    untried = BACKENDS.get(UNTRIED) if by_preference and device.type == "cuda" else None
    if untried and untried.why_not(device, dtype, kernel_type, feat_type) is None:
        reason += f"; {UNTRIED} is not chosen because this version of it has not run on a GPU: check it with "
        reason += f"./scripts/check_gpu.sh, then set RSA_BACKEND={UNTRIED}"
    return f"{name} ({reason})"


class RSA(nn.Module):
    r"""Relational self-attention over a space-time neighbourhood, in place of a convolution.

    For a position with query :math:`x^Q` and a neighbourhood of M = kT*kH*kW positions with keys :math:`X^K` and
    values :math:`X^V`, both (M, C), the paper's Fig. 2 defines

    .. math::
        \kappa^V &= P\, x^Q                                        &&\text{basic kernel, (M)} \\
        \kappa^R &= \mathrm{vec}(1 (x^Q)^\top \odot X^K)\, H       &&\text{relational kernel, (M)} \\
        X^R      &= X^V ((X^V)^\top G)                             &&\text{relational context, (M, C)} \\
        y        &= (\kappa^V + \kappa^R)\,(X^V + X^R)             &&\text{output, (C)}

    with the decomposition H = H1 H2^T, P = H2 P1^T. Because of it, nothing of size M*C is computed at a position. If L
    query heads share one key and one value of D = C / L channels, the output of head l (the released computation) is

    .. math:: y_l = q_l\,(P_1 + X^K \circledast H_1)\;(H_2^\top X^V)\;(I + (X^V)^\top G)

    where every product with H1, H2, G over the neighbourhood is a zero-padded convolution. Queries, keys and values
    are L2-normalised over their channels; there is no softmax. ``I`` starts as the identity and is learned. Channel v
    of head l is output channel v*L + l. The released weights of the next layer expect this order.

    ``kernel_type`` and ``feat_type`` choose the basic term ``"V"``, the relational term ``"R"`` or both, ``"VplusR"``.
    As released, the ``"V"`` kernel has no P1 and uses the query itself as the code. Therefore it differs from
    ``"VplusR"`` with H1 = 0.

    Args:
        in_channels, out_channels: C and C'.
        num_heads: L, the number of queries at a position.
        key_dim, value_dim, latent_dim: channels of a query/key, of a value, and of the code between H1 and H2.
            ``None`` means ``out_channels // num_heads``. The output has ``num_heads * value_dim``
            channels, which can differ from ``out_channels`` only if ``value_dim`` is given.
        kernel_size: (kT, kH, kW) or one number, all odd.
        stride: spatial stride, a number or (1, sH, sW). As released, a 3x3 average pool after the operator does it.
        kernel_type, feat_type: ``"V"``, ``"R"`` or ``"VplusR"``.
        backend: ``"reference"`` uses the released order of operations. ``"fused"`` (any device) and ``"triton"`` (GPUs,
            if kernel_type and feat_type are "VplusR") compute the same faster, with gradients of first order only.
            ``"auto"`` is ``"fused"``, or the path that the environment variable ``RSA_BACKEND`` names. It does not yet
            choose ``"triton"`` because this version of the kernels has not run on a GPU.
            ``rsa_backend_reason`` says which path is used and why.

    Shapes: ``(N, C, T, H, W) -> (N, C', T, ceil(H/sH), ceil(W/sW))``, any N, T, H, W.

    Errors: ``ValueError`` if the settings contradict each other, or if the input has a wrong shape.
    """

    # Parameters that are not in a standard layer. As released, an optimiser treats them as weights, with weight decay.
    optim_params = {"P1": "weight", "I": "weight"}

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_heads: int = 8,
        key_dim: int | None = None,
        value_dim: int | None = None,
        latent_dim: int | None = None,
        kernel_size: int | tuple[int, int, int] = (5, 7, 7),
        stride: int | tuple[int, int, int] = 1,
        kernel_type: str = "VplusR",
        feat_type: str = "VplusR",
        backend: str = "auto",
    ):
        super().__init__()
        choose_backend(backend, torch.device("cpu"), torch.float32, kernel_type, feat_type)  # raises for a wrong name
        self.backend = backend
        if kernel_type not in RELATIONS or feat_type not in RELATIONS:
            raise ValueError(f"kernel_type={kernel_type!r} and feat_type={feat_type!r} must each be one of {RELATIONS}")
        if None in (key_dim, value_dim, latent_dim) and out_channels % num_heads:
            raise ValueError(
                f"out_channels={out_channels} is not a multiple of num_heads={num_heads}; "
                "give key_dim, value_dim and latent_dim, or another number of heads"
            )
        kernel_size = (kernel_size,) * 3 if isinstance(kernel_size, int) else tuple(kernel_size)
        if len(kernel_size) != 3 or any(k < 1 or k % 2 == 0 for k in kernel_size):
            raise ValueError(f"kernel_size={kernel_size} must be three odd numbers (T, H, W)")
        stride = (1, stride, stride) if isinstance(stride, int) else tuple(stride)
        if len(stride) != 3 or stride[0] != 1 or min(stride) < 1:
            raise ValueError(f"stride={stride} must be (1, sH, sW): frames are not dropped")

        share = out_channels // num_heads
        self.in_channels, self.num_heads, self.kernel_size, self.stride = in_channels, num_heads, kernel_size, stride
        self.key_dim = share if key_dim is None else key_dim
        self.value_dim = share if value_dim is None else value_dim
        self.latent_dim = share if latent_dim is None else latent_dim
        self.out_channels = num_heads * self.value_dim
        self.kernel_type, self.feat_type = kernel_type, feat_type
        if kernel_type == "V" and self.key_dim != self.latent_dim:
            raise ValueError(
                f"kernel_type='V' uses the query as the code: key_dim={self.key_dim} must equal "
                f"latent_dim={self.latent_dim}"
            )

        key, value, latent = self.key_dim, self.value_dim, self.latent_dim
        padding = tuple(k // 2 for k in kernel_size)
        keys = 0 if kernel_type == "V" else key
        self.projection = nn.Conv3d(in_channels, num_heads * key + keys + value, 1, bias=False)
        if kernel_type != "V":
            self.H1 = nn.Conv3d(key, key * latent, kernel_size, padding=padding, groups=key, bias=False)
        if kernel_type == "VplusR":
            self.P1 = nn.Parameter(torch.empty(1, key, latent))
        self.H2 = nn.Conv3d(1, latent, kernel_size, padding=padding, bias=False)
        if feat_type != "V":
            self.G = nn.Conv3d(1, value, kernel_size, padding=padding, bias=False)
        if feat_type == "VplusR":
            self.I = nn.Parameter(torch.empty(1, value, value))
        pool = tuple(3 if s > 1 else 1 for s in stride[1:])
        # The pool is two-dimensional (frame by frame), because AvgPool3d refuses maps that are smaller than its kernel.
        self.pool = nn.AvgPool2d(pool, stride[1:], tuple(k // 2 for k in pool)) if max(stride) > 1 else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """MSRA (fan-out) for every convolution, P1 ~ N(0, 1/(M*D)), I = identity, as released."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if self.kernel_type == "VplusR":
            context = self.kernel_size[0] * self.kernel_size[1] * self.kernel_size[2]  # M
            nn.init.normal_(self.P1, std=sqrt(1 / (context * self.latent_dim)))
        if self.feat_type == "VplusR":
            with torch.no_grad():
                self.I.copy_(torch.eye(self.value_dim))

    def forward(self, x: Tensor) -> Tensor:
        self._check(x)
        choice = choose_backend(self.backend, x.device, x.dtype, self.kernel_type, self.feat_type)
        if not choice.as_asked and not torch.compiler.is_compiling():
            warnings.warn(f"RSA runs as {choice.name}: {choice.reason}", stacklevel=2)
        y = BACKENDS[choice.name].compute(self, x)
        t = y.shape[1]
        y = self.pool(y.flatten(0, 1).permute(0, 3, 1, 2))  # (N*T, C', ceil(H/sH), ceil(W/sW)), channels_last
        return y.unflatten(0, (-1, t)).transpose(1, 2)  # (N, C', T, ceil(H/sH), ceil(W/sW))

    def projected(self, x: Tensor) -> tuple[Tensor | int | None, ...]:
        """Queries, keys and values (N, T, H, W, L*K [+ K] + V) of ``x``, then H2, H1, P1, G, I and L.

        Parameters that this kernel_type or feat_type does not use are ``None``.
        """
        # A matrix product over the channels of each position computes the same as the 1x1x1 convolution.
        projected = F.linear(x.movedim(1, -1), self.projection.weight.flatten(1))
        h1 = None if self.kernel_type == "V" else self.H1.weight
        g = None if self.feat_type == "V" else self.G.weight
        return projected, self.H2.weight, h1, getattr(self, "P1", None), g, getattr(self, "I", None), self.num_heads

    def reference(self, x: Tensor) -> Tensor:
        """Compute RSA in the released order, without the pool: ``(N, C, T, H, W) -> (N, T, H, W, C')``."""
        n, _, t, h, w = x.shape
        value = self.value_dim
        q, k, v = self._queries_keys_values(x)
        code = self._code(q, k, self.kernel_type)  # (N*T*H*W, L, D)

        v = _l2_normalise(v, dim=1).flatten(0, 1).unsqueeze(1)  # (N*V, 1, T, H, W): H2 and G are shared by the channels
        context = _by_position(self.H2(v).unflatten(0, (n, value)).flatten(1, 2), value)  # (X^V)^T H2: (N*T*H*W, V, D)
        if self.feat_type != "V":
            mixing = _by_position(self.G(v).unflatten(0, (n, value)).flatten(1, 2), value)  # (X^V)^T G: (N*T*H*W, V, V)
            if self.feat_type == "VplusR":
                mixing = mixing + self.I
            context = mixing.transpose(1, 2) @ context  # (N*T*H*W, V, D)

        y = context @ code.transpose(1, 2)  # (N*T*H*W, V, L): as released, head l of value v is channel v*L + l
        return y.reshape(n, t, h, w, self.out_channels)

    def kernels(
        self, x: Tensor, positions: Sequence[tuple[int, int, int]] | None = None, part: str | None = None
    ) -> Tensor:
        r"""The kernels :math:`\kappa = \kappa^V + \kappa^R` (paper, Fig. 2) that RSA makes from its input ``x``.

        ``forward`` never computes them. With the decomposition, the kernel of head l is

        .. math:: \kappa_l = q_l\,(P_1 + X^K \circledast H_1)\,H_2^\top

        or :math:`q_l\,H_2^\top` if ``kernel_type`` is ``"V"``, which has no P1.

        Weight (i, j, m) of the kernel at position (t, y, x) is for position (t + i - kT//2, y + j - kH//2,
        x + m - kW//2). If this position is outside of the clip, the weight exists but has no effect, because it
        multiplies the zeros of the padding. The kernels are those before the stride's pool. They are computed as in
        the reference, whatever ``backend`` is, and gradients flow through them.

        Args:
            x: (N, C, T, H, W), as for ``forward``.
            positions: (t, y, x) of each position, from 0. Only their kernels are computed. ``None`` means all
                positions, and the result then holds L*kT*kH*kW numbers for each.
            part: ``"V"`` is the basic kernel, ``"R"`` the relational kernel, and ``"VplusR"`` their sum. ``None``
                means ``kernel_type``.

        Shapes: ``(N, L, T, H, W, kT, kH, kW)``, or ``(N, L, positions, kT, kH, kW)`` if positions are given.

        Errors: ``ValueError`` if the input has a wrong shape, if a position is outside of it, or if the module's
        ``kernel_type`` does not have the part.
        """
        self._check(x)
        n, _, t, h, w = x.shape
        part = self.kernel_type if part is None else part
        if part not in RELATIONS or self.kernel_type not in (part, "VplusR"):
            parts = "V, R or VplusR" if self.kernel_type == "VplusR" else f"{self.kernel_type}, or leave part out"
            raise ValueError(f"part={part!r}, but kernel_type is {self.kernel_type!r}; choose {parts}")
        q, k, _ = self._queries_keys_values(x)
        code = self._code(q, k, part).unflatten(0, (n, t, h, w))  # (N, T, H, W, L, D)
        if positions is None:
            code = code.permute(0, 4, 1, 2, 3, 5)  # (N, L, T, H, W, D)
        else:
            for place in positions:
                if len(place) != 3 or not all(0 <= i < size for i, size in zip(place, (t, h, w), strict=True)):
                    raise ValueError(
                        f"position {tuple(place)} must be (t, y, x) from (0, 0, 0) to {(t - 1, h - 1, w - 1)}"
                    )
            frames, rows, columns = torch.tensor(positions, dtype=torch.long, device=x.device).view(-1, 3).unbind(1)
            code = code[:, frames, rows, columns].transpose(1, 2)  # (N, L, positions, D)
        return (code @ self.H2.weight.flatten(1)).unflatten(-1, self.kernel_size)

    def _check(self, x: Tensor) -> None:
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(f"RSA takes (N, {self.in_channels}, T, H, W), got {tuple(x.shape)}")

    def _queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, L*K, T, H, W), (N, K or 0, T, H, W) and (N, V, T, H, W), not yet normalised."""
        projected = self.projection(x)  # (N, L*K [+ K] + V, T, H, W)
        queries, value = self.num_heads * self.key_dim, self.value_dim
        return projected.split([queries, projected.shape[1] - queries - value, value], dim=1)

    def _code(self, q: Tensor, k: Tensor, part: str) -> Tensor:
        """The kernels before H2^T: q (P1 + X^K * H1), or only one of its two terms, (N*T*H*W, L, D)."""
        heads, key = self.num_heads, self.key_dim
        q = _l2_normalise(q.unflatten(1, (heads, key)), dim=2)  # (N, L, K, T, H, W)
        code = _by_position(q.flatten(1, 2), heads)  # (N*T*H*W, L, K)
        if part == "V":
            return code if self.kernel_type == "V" else code @ self.P1
        relation = _by_position(self.H1(_l2_normalise(k, dim=1)), key)  # X^K * H1: (N*T*H*W, K, D)
        if part == "VplusR":
            relation = relation + self.P1
        return code @ relation

    def describe_backend(self, device: torch.device) -> str:
        """A line for the log that names the path used on this device, and the reason."""
        reason = rsa_backend_reason(self.backend, device, kernel_type=self.kernel_type, feat_type=self.feat_type)
        return f"RSA: {reason}"

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, num_heads={self.num_heads}, key_dim={self.key_dim}, "
            f"value_dim={self.value_dim}, latent_dim={self.latent_dim}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, kernel_type={self.kernel_type!r}, feat_type={self.feat_type!r}, "
            f"backend={self.backend!r}"
        )


BACKENDS["reference"] = Backend(RSA.reference, lambda *_: None)


def _l2_normalise(x: Tensor, dim: int) -> Tensor:
    # As released, the epsilon is added under the root. F.normalize would clamp the norm instead.
    return x / (x.square().sum(dim, keepdim=True) + 1e-6).sqrt()


def _by_position(x: Tensor, rows: int) -> Tensor:
    """(N, rows*cols, T, H, W) -> (N*T*H*W, rows, cols): one small matrix for each position."""
    return x.permute(0, 2, 3, 4, 1).flatten(0, 3).unflatten(1, (rows, -1))
