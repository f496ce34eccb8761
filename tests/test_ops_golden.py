"""Compares the operators with the released code: outputs and all gradients."""

import pytest
from golden_values import fill_by_formula, formula_tensor, relative_error, table

from ops import RSA, SDA
from ops.sda import LS, LST, LT, S122

RSA_CASES = {
    f"rsa_{kernel}_{feat}": (
        (2, 16, 4, 6, 6),
        RSA(16, 16, num_heads=4, kernel_size=(3, 5, 5), kernel_type=kernel, feat_type=feat),
    )
    for kernel in ("V", "R", "VplusR")
    for feat in ("V", "R", "VplusR")
}
RSA_CASES["rsa_k577"] = ((1, 32, 5, 8, 7), RSA(32, 32))
RSA_CASES["rsa_dk_dd"] = (
    (1, 24, 3, 5, 4),
    RSA(24, 24, num_heads=2, key_dim=6, value_dim=12, latent_dim=5, kernel_size=3, feat_type="R"),
)
RSA_CASES["rsa_stride2"] = ((2, 16, 4, 7, 6), RSA(16, 16, num_heads=4, kernel_size=(3, 5, 5), stride=(1, 2, 2)))

SDA_CASES = {f"sda_{block.__name__}": ((3, 6, 4, 5, 7), block(6)) for block in (LST, LT, LS, S122)}
SDA_CASES["sda_full"] = ((12, 64, 7, 6), SDA(64, num_segments=4))


def check(golden, tag, stored, shape, module):
    fill_by_formula(module, tag)
    x = formula_tensor(f"{tag}.input", shape).requires_grad_()
    output = module(x)
    (output * formula_tensor(f"{tag}.grad_output", output.shape)).sum().backward()

    errors = {"output": relative_error(output, golden[f"{stored}/output"])}
    assert errors["output"] < 1e-5, errors
    errors["grad_input"] = relative_error(x.grad, golden[f"{stored}/grad_input"])
    names = [name for name, _ in module.named_parameters()]
    stored_names = {key.split("/")[-1] for key in golden.files if key.startswith(f"{stored}/grad/")}
    assert set(names) == stored_names
    for name, parameter in module.named_parameters():
        errors[name] = relative_error(parameter.grad, golden[f"{stored}/grad/{name}"])
        parameter.grad = None
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("tag", RSA_CASES)
def test_rsa(tag, backend):
    shape, module = RSA_CASES[tag]
    module.backend = backend
    check(table("rsa_op.npz"), tag, tag, shape, module)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("tag", SDA_CASES)
def test_sda(tag, mode):
    shape, module = SDA_CASES[tag]
    check(table("sda_module.npz"), tag, f"{tag}@{mode}", shape, module.train(mode == "train"))
