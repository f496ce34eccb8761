"""Training: what its options change, what they must not change, and which errors it catches."""

import re
import time

import numpy as np
import pytest
import torch
from torch import nn
from toy_run import ROOT, make_dataset, quick_flags, run, run_inside

from data.modality import RGB, Modality
from engine import loading
from engine.batch import BatchPlan
from engine.config import ConfigError, load_recipe
from engine.network import build_for_training, channels_last
from engine.optim import build_optimizer, build_sgd, parameter_groups
from engine.precision import Precision
from engine.state import TrainingState, average_weights
from engine.step import train_step
from models import build_model, list_models

CPU = torch.device("cpu")
FP32 = Precision("fp32", CPU)
TINY = list_models(toy=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return make_dataset(folder, per_class=3)


def batch(n=2, t=4, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, t, 3, size, size, generator=generator), torch.arange(n) % 5


def one_step(model, precision=FP32, seed=0, clip_gradient=20.0, dtype=None):
    """Gradients, BN statistics and loss of a step."""
    model.train()
    optimizer = build_sgd(parameter_groups(model), 0.0, 0.9, False, 0.0)
    torch.manual_seed(seed)
    clips, labels = batch()
    clips = clips if dtype is None else clips.to(dtype)
    step = train_step(model, [(clips, labels)], optimizer, BatchPlan(2), precision, clip_gradient=clip_gradient)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return gradients, {name: b.clone() for name, b in model.named_buffers()}, step


@pytest.mark.parametrize("name", TINY)
def test_activation_checkpointing_changes_nothing(name):
    """The second forward pass does not update the running statistics, and it drops the same branches as the first."""
    torch.manual_seed(0)
    model = build_model(name, 5, 4, stochastic_depth=0.5, dropout=0.5)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)  # RSANet's branches start at zero
    start = {key: value.clone() for key, value in model.state_dict().items()}
    plain = one_step(model)
    model.load_state_dict(start)
    model.activation_checkpointing()
    calls = []
    hook = next(model.blocks())[2].conv1.register_forward_hook(lambda *_: calls.append(1))
    again = one_step(model)
    hook.remove()
    assert len(calls) == 2  # it was recomputed
    for a, b in zip(plain[:2], again[:2], strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-6, msg=key)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    model.eval()(batch()[0])
    assert plain[2].loss == pytest.approx(again[2].loss, rel=1e-6)


@pytest.mark.parametrize("name", TINY)
def test_channels_last_changes_the_layout_alone(name):
    torch.manual_seed(0)
    model = build_model(name, 5, 4, dropout=0.0).double()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    plain = one_step(model, dtype=torch.float64)
    model.load_state_dict(start)
    channels_last(model)
    kernels = [p for p in model.parameters() if p.dim() == 4 and max(p.shape[2:]) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    other = one_step(model, dtype=torch.float64)
    for key, value in plain[0].items():
        torch.testing.assert_close(value, other[0][key], rtol=1e-6, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_autocast_is_near_fp32(name):
    torch.manual_seed(0)
    model = build_model("tsm_tiny", 5, 4, dropout=0.0)
    plain = one_step(model)
    dtypes = []
    hook = model.base_model.layer1[0].conv1.register_forward_hook(lambda *args: dtypes.append(args[2].dtype))
    low = one_step(model, Precision(name, CPU))
    hook.remove()
    assert dtypes == [{"bf16": torch.bfloat16, "fp16": torch.float16}[name]]
    assert low[2].loss == pytest.approx(plain[2].loss, rel=2e-2) and low[2].loss != plain[2].loss
    a, b = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (plain[0], low[0]))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert nn.functional.cosine_similarity(a, b, dim=0) > 0.98
    assert low[2].norm == pytest.approx(plain[2].norm, rel=0.1)  # the gradient is unscaled before clipping


def test_fp16_leaves_a_step_out_that_overflows_and_lowers_the_scale():
    model = build_model("tsm_tiny", 5, 4, dropout=0.0).train()
    precision = Precision("fp16", CPU)
    optimizer = build_sgd(parameter_groups(model), 0.1, 0.0, False, 0.0)
    precision.scaler._init_scale = 2.0**40
    before = [p.clone() for p in model.parameters()]
    step = train_step(model, [batch()], optimizer, BatchPlan(2), precision)
    assert step.finite and not np.isfinite(step.norm) and precision.scaler.get_scale() == 2.0**39
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_precisions_that_a_device_lacks():
    assert Precision("auto", CPU).name == "fp32"
    with pytest.raises(ConfigError, match="precision tf32 needs an NVIDIA GPU since Ampere, this is cpu"):
        Precision("tf32", CPU)


@pytest.fixture
def tf32_switches():
    """PyTorch's two switches of TF32; they are restored afterwards."""
    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [switch.allow_tf32 for switch in switches]
    yield switches
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16", "auto"])
def test_only_apply_switches_the_process(monkeypatch, tf32_switches, name):
    """This is for GPUs since Ampere (the test only pretends to have one). The precision of a CPU switches nothing."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for before in (False, True):
        for switch in tf32_switches:
            switch.allow_tf32 = before
        Precision("fp32", CPU).apply()
        precision = Precision(name, torch.device("cuda", 0))
        assert [switch.allow_tf32 for switch in tf32_switches] == [before, before]
        precision.apply()
        assert [switch.allow_tf32 for switch in tf32_switches] == [name != "fp32"] * 2


def training_state(**recipe) -> TrainingState:
    recipe = load_recipe("tsm_tiny", "toy_something", num_segments=4, **recipe)
    model = build_for_training("tsm_tiny", 5, recipe, CPU, with_weights=False)
    averaged = average_weights(model, recipe.ema_decay)
    return TrainingState(model, build_optimizer(model, recipe), Precision(recipe.precision, CPU), averaged)


def test_averaged_weights_are_an_exponential_mean():
    state = training_state(ema_decay=0.75)
    expected = None
    for _ in range(3):
        train_step(state.model, [batch()], state.optimizer, BatchPlan(2), FP32)
        state.ema.update_parameters(state.model)
        now = {k: v.clone() for k, v in state.model.state_dict().items() if v.is_floating_point()}
        expected = now if expected is None else {k: 0.75 * expected[k] + 0.25 * v for k, v in now.items()}
    averaged = state.tested.state_dict()
    assert state.tested is not state.model and training_state().tested.arch == "tsm_tiny"
    for key, value in expected.items():
        torch.testing.assert_close(averaged[key], value, msg=key)
    assert not torch.equal(averaged["new_fc.weight"], state.model.state_dict()["new_fc.weight"])
    saved = state.to_checkpoint({})
    assert torch.equal(saved["state_dict"]["new_fc.weight"], averaged["new_fc.weight"])
    other = training_state(ema_decay=0.75)
    other.restore(saved, "saved")
    for a, b in ((state.model, other.model), (state.tested, other.tested)):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert int(other.ema.n_averaged) == 3


def test_the_scale_of_fp16_is_restored():
    state = training_state(precision="fp16")
    train_step(state.model, [batch()], state.optimizer, BatchPlan(2), state.precision)
    state.precision.scaler.update(512.0)
    other = training_state(precision="fp16")
    other.restore(state.to_checkpoint({}), "saved")
    assert other.precision.scaler.get_scale() == 512.0


@pytest.mark.parametrize(("stages", "frozen"), [(-1, 0), (0, 3), (1, 3 + 21), (4, 3 + 3 * 21)])
def test_frozen_stages(stages, frozen):
    state = training_state(frozen_stages=stages)
    still = {name for name, p in state.model.named_parameters() if not p.requires_grad}
    trained = {name for group in state.optimizer.param_groups for name in group["param_names"]}
    assert trained == {name for name, _ in state.model.named_parameters()} - still
    parts = ("conv1", "bn1", "layer1", "layer2", "layer3")
    prefixes = tuple(f"base_model.{part}." for part in parts)
    assert all(name.startswith(prefixes[: 1 + stages + (stages >= 0)]) for name in still)
    assert len(still) == frozen  # the stem has 3 parameters, the bottlenecks of a stage 12 and 9
    if stages == 4:
        assert trained == {"new_fc.weight", "new_fc.bias"}
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    train_step(state.model, [batch()], state.optimizer, BatchPlan(2), FP32)
    changed = {key for key, value in state.model.state_dict().items() if not torch.equal(value, before[key])}
    assert any(key.startswith("new_fc") for key in changed)
    assert not any(key.startswith(prefixes[: max(0, 2 * (stages >= 0) + stages)]) for key in changed)


def test_norm_eval_keeps_all_statistics():
    recipe = load_recipe("sda_tsm_tiny", "toy_something", num_segments=4, norm_eval=True)
    model = build_for_training("sda_tsm_tiny", 5, recipe, CPU, with_weights=False)
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(batch()[0]).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))]
    assert len(norms) > 50 and not any(m.training or m.weight.requires_grad for m in norms)


def test_sync_bn_is_refused_where_it_does_not_run():
    recipe = load_recipe("tsm_tiny", "toy_something", sync_bn=True)
    with pytest.raises(ConfigError, match="sync_bn is true, but PyTorch's SyncBatchNorm runs on GPUs alone"):
        build_for_training("tsm_tiny", 5, recipe, CPU, with_weights=False)


def test_sync_bn_keeps_names_and_groups():
    """Released weights and parameter groups still fit the network that build_for_training makes on a GPU."""
    model = build_model("sda_tsm_tiny", 5, 4)
    names = {(group["name"], *group["param_names"]) for group in parameter_groups(model)}
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in synced.modules())
    assert {(group["name"], *group["param_names"]) for group in parameter_groups(synced)} == names


def poison(monkeypatch, dataset, videos: set[str], epochs: set[int]) -> None:
    """Clips of these videos become NaN in these epochs, on their way to the network."""
    seen = {}
    read = Modality.read

    def remember(self, video, *args, **kwargs):
        seen["path"] = video.path
        return read(self, video, *args, **kwargs)

    getitem = loading.TrainDataset.__getitem__

    def mark(self, place):
        clip, label, index = getitem(self, place)
        if seen["path"] in videos and place[0] in epochs:
            clip = clip * 0 + 255  # white, which no drawn clip is
        return clip, label, index

    normalise = Modality.normalise

    def nan(self, clips):
        white = (clips == 255).flatten(1).all(1).view(-1, 1, 1, 1, 1)
        return normalise(self, clips).masked_fill(white, float("nan"))

    monkeypatch.setattr(Modality, "read", remember)
    monkeypatch.setattr(loading.TrainDataset, "__getitem__", mark)
    monkeypatch.setattr(Modality, "normalise", nan)


def test_a_loss_that_is_not_finite_names_the_videos(small, tmp_path, monkeypatch):
    poison(monkeypatch, small, {"train/video 3"}, {0})
    flags = quick_flags(global_batch_size=3, norm_eval="true")
    result = run_inside("main.py", small, "tsn_tiny", "--run", "bad", *flags, cwd=tmp_path)
    assert result.returncode == 1, result.stdout
    error = result.stdout.splitlines()[-1]
    assert re.match(r"error: epoch 0, step \d: the loss is nan .* with the videos train/video 3; lower --lr", error)


def test_processes_say_once_that_a_loss_is_not_finite(small, tmp_path):
    flags = quick_flags(lr="1e30", epochs=3, eval_every=3)
    result = run("main.py", small, "tsn_tiny", "--run", "two", *flags, cwd=tmp_path, processes=2)
    assert result.returncode != 0 and result.stdout.count("error: epoch ") == 1, result.stdout
    assert "the loss is nan and its gradient's norm nan with the videos train/video" in result.stdout


def test_a_gradient_that_is_not_finite_is_not_applied():
    model = build_model("tsm_tiny", 5, 4, dropout=0.0).train()
    model.new_fc.bias.register_hook(lambda gradient: gradient * float("inf"))
    optimizer = build_sgd(parameter_groups(model), 0.1, 0.9, False, 0.0)
    before = [p.clone() for p in model.parameters()]
    step = train_step(model, [batch()], optimizer, BatchPlan(2), FP32, clip_gradient=20.0)
    assert not step.finite and np.isfinite(step.loss) and step.bad == []
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_compile_and_checkpointing_exclude_each_other(small, tmp_path):
    flags = [*quick_flags(), "--compile", "true", "--activation_checkpointing", "true"]
    result = run_inside("main.py", small, "tsm_tiny", "--run", "both", *flags, cwd=tmp_path)
    assert result.returncode == 1 and "error: compile and activation_checkpointing are both true" in result.stdout


def test_steps_that_are_not_finite_are_left_out_if_asked(small, tmp_path, monkeypatch):
    """The step changes nothing, not even the BN statistics. One more step than allowed stops the run."""
    poison(monkeypatch, small, {"train/video 3"}, {0, 1})
    flags = quick_flags(global_batch_size=3, skip_nonfinite=2)
    result = run_inside("main.py", small, "tsm_tiny", "--run", "skip", *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "step left out, 1 of at most 2" in result.stdout and "step left out, 2 of at most 2" in result.stdout
    file = tmp_path / "net_runs" / "skip" / "resnet_rgb_epoch_2_checkpoint.pth.tar"
    content = torch.load(file, weights_only=True)
    assert content["skipped"] == 2
    assert all(torch.isfinite(value).all() for value in content["state_dict"].values())
    flags = quick_flags(global_batch_size=3, skip_nonfinite=1)
    result = run_inside("main.py", small, "tsm_tiny", "--run", "stop", *flags, cwd=tmp_path)
    assert result.returncode == 1 and "after 1 steps left out; lower --lr" in result.stdout, result.stdout


def test_fine_tuning_takes_all_but_the_classifier(small, tmp_path):
    other = build_model("tsm_tiny", 7, 8)
    torch.save({"state_dict": other.state_dict(), "arch": "tsm_tiny"}, tmp_path / "other.pth")
    flags = quick_flags(epochs=1, lr=1e-30)  # too little to change a weight
    start = ["main.py", small, "tsm_tiny", "--run"]
    result = run_inside(*start, "tuned", *flags, "--tune_from", "other.pth", cwd=tmp_path)
    assert result.returncode == 0 and "new_fc.weight, new_fc.bias" in result.stdout, result.stdout
    file = tmp_path / "net_runs" / "tuned" / "resnet_rgb_epoch_1_checkpoint.pth.tar"
    state = torch.load(file, weights_only=True)["state_dict"]
    assert torch.equal(state["base_model.conv1.weight"], other.state_dict()["base_model.conv1.weight"])
    assert state["new_fc.weight"].shape == (2, 256)
    recipe = load_recipe("tsm_tiny", "toy_something")
    fresh = build_for_training("tsm_tiny", 2, recipe, CPU, with_weights=False)
    assert state["new_fc.weight"].abs().max() < 0.01 and fresh.new_fc.out_features == 2
    torch.save({"state_dict": build_model("tsn_tiny", 7, 8).state_dict(), "arch": "tsn_tiny"}, tmp_path / "tsn.pth")
    result = run_inside(*start, "wrong", *flags, "--tune_from", "tsn.pth", cwd=tmp_path)
    assert result.returncode == 1 and "the file holds tsn_tiny, the model is tsm_tiny" in result.stdout


def test_a_checkpoint_of_other_classes_says_how_to_use_it(small, tmp_path):
    torch.save({"state_dict": build_model("tsm_tiny", 7, 4).state_dict(), "arch": "tsm_tiny"}, tmp_path / "o.pth")
    flags = ["--weights", "o.pth", "--model", "tsm_tiny", "--num_segments", 4, "--device", "cpu"]
    result = run_inside("test_models.py", small, *flags, cwd=tmp_path)
    assert result.returncode == 1 and "trained for another number of classes; main.py --tune_from" in result.stdout


def test_shared_memory_is_checked_beforehand(monkeypatch):
    loading.check_shared_memory(2, 1000)
    loading.check_shared_memory(0, 10**15)  # no workers, no shared memory
    with pytest.raises(ConfigError, match=r"/dev/shm has \d+ MB free, 1 x 8 loading processes need 16000000 MB"):
        loading.check_shared_memory(8, 10**12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="4 x 8 loading processes need 64000000 MB; give the container more"):
        loading.check_shared_memory(8, 10**12)


def test_a_slow_loader_is_named(small, tmp_path, monkeypatch):
    flags = quick_flags(epochs=1)
    with monkeypatch.context() as patch:  # with slow steps, the loader is fast in comparison on any machine
        patch.setattr("engine.train.train_step", lambda *args: time.sleep(0.5) or train_step(*args))
        fast = run_inside("main.py", small, "tsn_tiny", "--run", "fast", *flags, cwd=tmp_path)
    assert fast.returncode == 0 and "the loader is the limit" not in fast.stdout
    getitem = loading.TrainDataset.__getitem__
    monkeypatch.setattr(loading.TrainDataset, "__getitem__", lambda self, i: time.sleep(0.5) or getitem(self, i))
    slow = run_inside("main.py", small, "tsn_tiny", "--run", "slow", *flags, cwd=tmp_path)
    line = re.search(r"epoch 0: the loader is the limit, (\d+) % of the time went into waiting for data", slow.stdout)
    assert line and int(line[1]) > 50, slow.stdout


def test_a_worker_that_dies_is_one_line(small, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(
        "import os, runpy, sys\nsys.argv[0] = 'main.py'\nfrom data import TrainDataset\n"
        "TrainDataset.__getitem__ = lambda self, i: os._exit(9)\n"
        f"runpy.run_path({str(ROOT / 'main.py')!r}, run_name='__main__')\n"
    )
    result = run(script, small, "tsn_tiny", "--run", "dead", *quick_flags(workers=1), cwd=tmp_path)
    error = [line for line in result.stdout.splitlines() if line.startswith("error: ")]
    assert result.returncode == 1 and len(error) == 1 and "Traceback" not in result.stdout, result.stdout
    assert "a loading process died" in error[0] and "lower --workers" in error[0]


def test_flow_has_multipliers_of_its_own_for_the_first_convolution():
    """TSM's multiplier for its weight is 5, because its ImageNet weights are only an average over the channels."""
    state = training_state(modality="Flow")
    (group,) = [g for g in state.optimizer.param_groups if "base_model.conv1.weight" in g["param_names"]]
    assert group["param_names"] == ["base_model.conv1.weight"] and (group["lr_mult"], group["decay_mult"]) == (5, 1)
    assert state.model.base_model.conv1.in_channels == 10
    rgb = training_state()
    assert rgb.model.base_model.conv1.in_channels == RGB.channels == 3
    assert {g["name"]: g["lr_mult"] for g in rgb.optimizer.param_groups}["weight"] == 1
    assert not any(g["name"].startswith("conv1") for g in rgb.optimizer.param_groups)
