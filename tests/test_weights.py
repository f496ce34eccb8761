"""load_weights reads every layout that users have, and refuses other files."""

import os
import pickle
import re
import warnings
from typing import ClassVar

import numpy as np
import pytest
import torch
from golden_values import released_state
from torch import nn
from torchvision.models import resnet50

from models import Layout, VideoResNet, WeightsError, build_model, families, load_weights
from models.weight_files import read_checkpoint
from models.weights import released_model
from ops import RSA


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_own_files(tmp_path):
    first, second = build_model("rsanet_tiny", 5, 4), build_model("rsanet_tiny", 5, 4)
    assert not same(first, second)
    file = tmp_path / "own.pth.tar"
    torch.save({"state_dict": first.state_dict(), "epoch": 3, "arch": "rsanet_tiny", "best_prec1": 1.0}, file)
    report = load_weights(second, file)
    assert same(first, second) and report.layout == "own" and not report.missing
    assert str(report).count("\n") == 2 and str(file) in str(report)
    assert load_weights(second, str(file)).loaded and load_weights(second, first.state_dict()).loaded


def test_tsm_layout():
    tsm = build_model("tsm_r50", 174, 8)
    in_block = re.compile(r"(layer\d\.\d\.conv1)\.")
    released = {"module." + in_block.sub(r"\1.net.", key): value for key, value in tsm.state_dict().items()}
    assert "module.base_model.layer1.0.conv1.net.weight" in released and "module.base_model.conv1.weight" in released
    other = build_model("tsm_r50", 174, 16)
    assert load_weights(other, {"state_dict": released}).layout == "TSM" and same(tsm, other)
    assert released_model(released) == "tsm_r50"
    with pytest.raises(WeightsError, match="holds a network with temporal shift, the model has none"):
        load_weights(build_model("tsn_r50", 174, 8), released)


def test_rsa_and_sda_layouts():
    """test_models_golden tests the names. This test is about the other entries of the files."""
    rsa = released_state("rsanet_r50")
    assert released_model({"state_dict": rsa}) == "rsanet_r50"
    without_dropout = {k.replace("new_fc", "base_model.fc1"): v for k, v in rsa.items()}
    model = build_model("rsanet_r50", 174, 8)
    assert load_weights(model, without_dropout).layout == "RSA"
    sda = released_state("sda_tsn_r50")
    stray = {f"{k.rsplit('.', 1)[0]}.{name}": torch.zeros(1) for k in sda for name in ("total_ops", "total_params")}
    report = load_weights(build_model("sda_tsn_r50", 174, 8), sda | stray)
    assert report.layout == "SDA" and not report.unexpected and released_model(sda) is None


def test_imagenet(tmp_path, monkeypatch):
    imagenet = resnet50()
    file = tmp_path / "resnet50.pth"
    torch.save(imagenet.state_dict(), file)
    torch.manual_seed(0)
    fresh = build_model("rsanet_r50", 174, 8)
    torch.manual_seed(0)
    model = build_model("rsanet_r50", 174, 8, pretrained=str(file))
    for stage, index, block in model.blocks():
        start = list(fresh.blocks())[[(s, i) for s, i, _ in fresh.blocks()].index((stage, index))][2]
        if isinstance(block.conv2, RSA):  # the whole bottleneck keeps its initialisation, also the zero gamma
            assert same(block, start) and not block.bn3.weight.any()
        else:
            source = getattr(imagenet, f"layer{stage + 1}")[index]
            assert torch.equal(block.conv2.weight, source.conv2.weight) and torch.equal(block.bn3.bias, source.bn3.bias)
    assert torch.equal(model.base_model.conv1.weight, imagenet.conv1.weight)
    assert torch.equal(model.new_fc.weight, fresh.new_fc.weight)

    report = load_weights(build_model("sda_tsm_r50", 174, 8), file)
    assert report.layout == "imagenet" and all(".sda." in k or k.startswith("new_fc") for k in report.missing)

    calls = []
    fetch = "models.weights.load_state_dict_from_url"
    monkeypatch.setattr(fetch, lambda url, **kw: calls.append((url, kw)) or imagenet.state_dict())
    assert build_model("tsn_r50", 174, 8, pretrained="imagenet") is not None
    ((url, options),) = calls
    assert url.endswith("/resnet50-0676ba61.pth") and options["check_hash"] and not options["progress"]

    def failing(error):
        def get(*_, **__):
            raise error

        return get

    for error in (OSError("no route to host"), RuntimeError("invalid hash value")):
        monkeypatch.setattr(fetch, failing(error))
        with pytest.raises(WeightsError, match=f"cannot fetch the ImageNet ResNet-50 .{error}"):
            build_model("tsn_r50", 174, 8, pretrained="imagenet")
    build_model("tsn_r50", 174, 8)  # without pretrained, nothing is downloaded
    with pytest.raises(WeightsError, match="other shapes|not in the model"):
        build_model("tsn_tiny", 12, 8, pretrained=str(file))


def test_what_does_not_fit_is_named():
    state = build_model("tsn_tiny", 5, 8).state_dict()
    with pytest.raises(WeightsError, match="new_fc.weight .5, 256. for .7, 256.*another number of classes"):
        load_weights(build_model("tsn_tiny", 7, 8), state)
    with pytest.raises(WeightsError, match="missing: base_model.layer1.0.sda.channel_down.weight"):
        load_weights(build_model("sda_tsn_tiny", 5, 8), state)
    with pytest.raises(WeightsError, match="not in the model: extra"):
        load_weights(build_model("tsn_tiny", 5, 8), state | {"extra": torch.zeros(1)})
    with pytest.raises(WeightsError, match="none of its tensors fits"):
        load_weights(build_model("tsn_tiny", 5, 8), {"a.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_weights(build_model("tsn_tiny", 5, 8), {"epoch": 1})
    with pytest.raises(WeightsError, match="the file holds tsn_tiny, the model is tsm_tiny"):
        load_weights(build_model("tsm_tiny", 5, 8), {"state_dict": state, "arch": "tsn_tiny"})
    model = build_model("tsn_tiny", 7, 8)
    report = load_weights(model, state | {"extra": torch.zeros(1)}, strict=False)
    assert report.unexpected == ["extra"] and len(report.mismatched) == 2 and len(report.missing) == 2
    assert torch.equal(model.base_model.conv1.weight, state["base_model.conv1.weight"])


@pytest.mark.parametrize("size", ["imagenet", "own"])
def test_what_thop_left_is_no_weight_in_any_file(size):
    """It counted operations in the released SDA files; anybody may have counted those of another network."""
    model = build_model("tsn_r50", 5, 8)
    state = resnet50().state_dict() if size == "imagenet" else build_model("tsn_r50", 5, 8).state_dict()
    stray = {f"{key.rpartition('.')[0]}.total_ops": torch.zeros(1) for key in state}
    report = load_weights(model, state | stray)
    assert report.layout == ("imagenet" if size == "imagenet" else "SDA") and not report.unexpected


def test_a_shifted_network_with_the_marks_of_two_layouts_is_not_taken_for_another():
    state = build_model("tsm_tiny", 5, 8).state_dict()
    shifted = {re.sub(r"(layer\d\.\d\.conv1)\.", r"\1.net.", key): value for key, value in state.items()}
    for marked in ({"total_ops": torch.zeros(1)} | shifted, shifted | {"total_ops": torch.zeros(1)}):
        assert load_weights(build_model("tsm_tiny", 5, 8), marked).loaded
        with pytest.raises(WeightsError, match="holds a network with temporal shift, the model has none"):
            load_weights(build_model("tsn_tiny", 5, 8), marked)


def test_old_files_without_the_batch_counter():
    state = {k: v for k, v in build_model("tsn_tiny", 5, 8).state_dict().items() if "num_batches_tracked" not in k}
    assert not load_weights(build_model("tsn_tiny", 5, 8), state).missing


class Payload:
    def __reduce__(self):
        return print, ("executed",)


def test_files_are_not_executed(tmp_path, capsys):
    file = tmp_path / "evil.pth"
    file.write_bytes(pickle.dumps(Payload()))
    torch.save({"state_dict": Payload()}, tmp_path / "evil2.pth")
    for path in (file, tmp_path / "evil2.pth"):
        with pytest.raises(WeightsError, match="not a weight file that can be read safely"):
            load_weights(build_model("tsn_tiny", 5, 8), path)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(WeightsError, match="no such weight file"):
        load_weights(build_model("tsn_tiny", 5, 8), tmp_path / "none.pth")


def test_a_checkpoint_with_flipped_bytes_is_refused(tmp_path):
    """PyTorch does not check the checksums in its files, and silently loads 400 wrong numbers."""
    model, file = build_model("tsn_tiny", 5, 8), tmp_path / "own.pth.tar"
    torch.save({"state_dict": model.state_dict(), "arch": "tsn_tiny"}, file)
    whole = file.read_bytes()
    weight = whole.index(model.base_model.layer3[0].conv2.weight.detach().numpy().tobytes()[:64])
    places = {"data/": range(weight, weight + 400), "data.pkl": [whole.index(b"state_dict")], "byteorder": None}
    for record, flipped in places.items():
        content = bytearray(whole)
        for place in flipped or [whole.index(b"little")]:
            content[place] ^= 1
        file.write_bytes(content)
        message = (
            f"own.pth.tar: record .*{record}.* is damaged .wrong checksum.; copy or download it again; .*another checkp"
        )
        with pytest.raises(WeightsError, match=message):
            load_weights(model, file)
    file.write_bytes(whole[:-1000])
    with pytest.raises(WeightsError, match="own.pth.tar: damaged or cut off .*; copy or download it again"):
        load_weights(model, file)


def test_files_without_checksums_load(tmp_path):
    model, other = build_model("tsn_tiny", 5, 8), build_model("tsn_tiny", 5, 8)
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    try:
        torch.serialization.set_crc32_options(False)
        torch.save(model.state_dict(), tmp_path / "without.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    for name in ("old.pth", "without.pth"):
        other.new_fc.bias.data += 1
        assert not same(model, other)
        load_weights(other, tmp_path / name)
        assert same(model, other)


# PyTorch warns about quantised and nested tensors.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("what", ["nested", "sparse", "quantised", "meta", "complex"])
def test_tensors_that_are_no_weights_are_refused_by_name(what):
    """Otherwise the imaginary part of complex weights would be dropped."""
    model = build_model("tsn_tiny", 5, 8)
    state = model.state_dict()
    weight = state["new_fc.weight"]
    state["new_fc.weight"] = {
        "nested": lambda: torch.nested.nested_tensor(list(weight)),
        "sparse": weight.to_sparse,
        "quantised": lambda: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "meta": lambda: weight.to("meta"),
        "complex": lambda: weight * 1j,
    }[what]()
    with pytest.raises(WeightsError, match=f"^x.pth: new_fc.weight is a {what} tensor; make it a dense one of real"):
        load_weights(model, state, name="x.pth", strict=False)


def test_weights_of_another_precision_are_cast_and_other_numbers_refused():
    model, state = build_model("tsn_tiny", 5, 8), build_model("tsn_tiny", 5, 8).state_dict()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        load_weights(model, {key: value.to(dtype) for key, value in state.items()})  # also counters (averaged weights)
        assert torch.equal(model.new_fc.weight, state["new_fc.weight"].to(dtype).float())
    for dtype in (torch.int64, torch.bool, torch.uint8):
        changed = state | {"new_fc.weight": state["new_fc.weight"].to(dtype)}
        with pytest.raises(WeightsError, match=f"or types: new_fc.weight {dtype} for torch.float32; missing") as error:
            load_weights(model, changed)
        assert "classes" not in str(error.value)
        report = load_weights(model, changed, strict=False)
        assert report.mismatched == [f"new_fc.weight {dtype} for torch.float32"] and "new_fc.weight" in report.missing


def test_a_name_that_stands_for_two_tensors_is_refused():
    state = build_model("tsn_tiny", 5, 8).state_dict()
    with pytest.raises(WeightsError, match="holds new_fc.bias twice, also as module.new_fc.bias; leave one out"):
        load_weights(build_model("tsn_tiny", 5, 8), state | {"module.new_fc.bias": torch.zeros(5)})


def test_nobody_is_advised_to_execute_a_file(tmp_path):
    """PyTorch's own message explains how to load an unsafe pickle anyway."""
    model = build_model("tsn_tiny", 5, 8)
    torch.save({"state_dict": model.state_dict(), "best_prec1": np.float64(50)}, tmp_path / "numpy.pth")
    torch.save({"state_dict": Payload()}, tmp_path / "print.pth")
    torch.save(model, tmp_path / "model.pth")
    torch.save({"state_dict": Payload()}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "jit.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Payload()))
    reasons = {
        "numpy.pth": "it would have to execute numpy.*multiarray.scalar",
        "print.pth": "it would have to execute print",
        "model.pth": "it would have to execute models.resnet.VideoResNet",
        "old.pth": "it would have to execute print",
        "jit.pth": "it is a TorchScript program",
        "raw.pth": "damaged, or it holds more than tensors and plain values",
    }
    for name, reason in reasons.items():
        with pytest.raises(
            WeightsError, match=f"{name}: not a weight .* safely .{reason}.; .*save the model's state_dict"
        ) as e:
            load_weights(model, tmp_path / name)
        text = str(e.value)
        assert len(text) < 400 and text.isprintable() and "weights_only" not in text and "safe_globals" not in text


def test_messages_stay_short_whatever_the_names_are():
    state = build_model("tsn_tiny", 5, 8).state_dict()
    for key in ("x" * 10**6, "two\nlines", 10**5000, b"bytes", ("a", 1), None):
        with pytest.raises(WeightsError, match="not in the model: ") as error:
            load_weights(build_model("tsn_tiny", 5, 8), state | {key: torch.zeros(1)})
        assert len(str(error.value)) < 500 and str(error.value).isprintable()
        with pytest.raises(WeightsError, match="holds no state dict; its keys are ") as error:
            load_weights(build_model("tsn_tiny", 5, 8), {key: key})
        assert len(str(error.value)) < 500 and str(error.value).isprintable()


def test_what_came_instead_of_a_weight_file_is_shown(tmp_path):
    """A web page, a pointer of Git LFS, an empty file and a pipe; nobody waits for the other end of the pipe."""
    for name, content, begin in [
        ("page.pth", b"<!DOCTYPE html>\n" * 99, "is text, which begins with '<!DOCTYPE html> .*', not a weight file"),
        (
            "a.pth.tar",
            b"version https://git-lfs.github.com/spec/v1\n",
            "is text, which begins with 'version https://git",
        ),
        ("word.pt", b"hello", "is text, which begins with 'hello', not a weight file; copy or download it again$"),
        ("empty.pth", b"", "is empty; copy or download it again$"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=f"{name}: {begin}"):
            read_checkpoint(tmp_path / name)
    for ending in "pth", "safetensors":
        os.mkfifo(tmp_path / f"pipe.{ending}")
        with pytest.raises(
            WeightsError, match=rf"pipe.{ending}: not a regular file but a pipe or a device; name a file"
        ):
            read_checkpoint(tmp_path / f"pipe.{ending}")


class Doubled(nn.Module):
    """A convolution in place of conv2. It takes twice the ImageNet weight; ``own`` depends on the number of frames."""

    not_in_imagenet = ("own.",)
    sized_by_segments: ClassVar = {"own.weight": 1}

    def __init__(self, conv: nn.Conv2d, num_segments: int):
        super().__init__()
        self.inner = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride, 1, bias=False)
        self.own = nn.Linear(num_segments, 1)

    def forward(self, x):
        return self.inner(x)

    def from_imagenet(self, weight):
        return {"inner.weight": 2 * weight}


def doubled(num_segments: int, backbone: str = "r50"):
    model = VideoResNet(backbone, 5, num_segments)
    model.insert("conv2", "conv2", lambda block: Doubled(block.conv2, num_segments), blocks=[(0, 1)])
    return model


def test_a_module_takes_what_it_declares_from_an_imagenet_file():
    model, imagenet = doubled(4), resnet50().state_dict()
    report = load_weights(model, imagenet)
    assert torch.equal(model.base_model.layer1[1].conv2.inner.weight, 2 * imagenet["layer1.1.conv2.weight"])
    own = [f"base_model.layer1.1.conv2.own.{leaf}" for leaf in ("weight", "bias")]
    assert report.missing == [*own, "new_fc.weight", "new_fc.bias"]
    del imagenet["layer1.1.conv2.weight"]
    with pytest.raises(WeightsError, match=r"missing: base_model.layer1.1.conv2.inner.weight.;"):
        load_weights(doubled(4), imagenet)


def test_parameters_that_depend_on_the_number_of_frames():
    with pytest.raises(WeightsError, match="trained with 8 frames, the model has num_segments 4, and the parameters"):
        load_weights(doubled(4, "tiny"), doubled(8, "tiny").state_dict())


def test_a_network_without_imagenet_weights_says_so(monkeypatch):
    monkeypatch.setattr(VideoResNet, "imagenet", None)
    with pytest.raises(WeightsError, match="nobody released ImageNet weights of tsn_tiny; add --pretrained none"):
        build_model("tsn_tiny", 5, 4, pretrained="imagenet")


def test_a_layout_converts_tensors(monkeypatch):
    layout = Layout(
        "TURNED",
        mark=lambda state: "turned" in state,
        rename=lambda key: None if key == "turned" else key,
        convert=lambda key, value: value.flip(0) if key == "new_fc.bias" else value,
    )
    monkeypatch.setattr(families, "FAMILIES", [*families.FAMILIES, families.Family("turned", VideoResNet, layout)])
    model, state = build_model("tsn_tiny", 5, 4), build_model("tsn_tiny", 5, 4).state_dict()
    state["new_fc.bias"] = torch.arange(5.0)
    load_weights(model, state | {"turned": torch.zeros(1)})
    assert model.new_fc.bias.tolist() == [4, 3, 2, 1, 0]
