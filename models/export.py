"""Write a network as a file for other programs: torch.export, ONNX, safetensors.

Every file is read back and compared with the network.
"""

import copy
import importlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from .video_network import VideoNetwork
from .weight_files import CHECKSUM, checksum, read_checkpoint

BATCH_SIZES = (1, 3)  # of the check; the network is traced with 2 clips
TOLERANCE = 1e-4  # relative to the largest logit
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OTHER_VERSION = "try another size, or newer versions of torch and of the packages for this format"


class ExportError(RuntimeError):
    """A network cannot be exported, or the written file computes other logits than the network."""


def export_program(model: VideoNetwork, path: str | os.PathLike, size: int | tuple[int, int]) -> float:
    """Write ``model`` as a ``torch.export`` program, which ``torch.export.load(path).module()`` runs without our code.

    The program is the network in eval mode, in float32 on the CPU. ``model`` itself does not change. The batch size N
    is free; T, C, H and W are fixed.

    Args:
        path: a name that ends in ``.pt2``. The file gets this name after it has been read back and compared.
        size: H and W in pixels, or (H, W).

    Shapes: ``clips (N, T, C, H, W)`` float32, normalised as the modality needs ``-> logits (N, K)``.

    Returns the largest difference from the network's logits, relative to the largest logit, over batches of 1 and of 3
    random clips.

    Errors: ``ExportError``, also if the difference is above 1e-4. In this case no file is written, and an existing file
    of this name does not change.
    """
    model, clips = _prepared(model), _random_clips(model, size, 2)
    with _written(path, ".pt2") as part:
        with _explained(path, "cannot be traced by torch.export"):
            batch = torch.export.Dim("N", min=1)
            program = torch.export.export(model, (clips,), dynamic_shapes={"clips": {0: batch}})
            program.example_inputs = None  # they would be saved in the file, 38 MB at 16 x 224 x 224
        with _explained(path, "cannot be written or read back"):
            torch.export.save(program, part)
            module = torch.export.load(part).module()
        return _largest_difference(path, module, model, size)


def export_onnx(model: VideoNetwork, path: str | os.PathLike, size: int | tuple[int, int]) -> float:
    """Write ``model`` as one ONNX file, with input ``clips`` and output ``logits``, and check it with onnxruntime.

    Arguments, result and errors are as in ``export_program``, but ``path`` ends in ``.onnx``. This needs the packages
    onnx, onnxscript and onnxruntime.
    """
    _need(*ONNX_PACKAGES)
    model, clips = _prepared(model), _random_clips(model, size, 2)
    with _written(path, ".onnx") as part:
        with _explained(path, "cannot be exported to ONNX"):
            torch.onnx.export(
                model,
                (clips,),
                part,
                dynamo=True,
                input_names=["clips"],
                output_names=["logits"],
                dynamic_shapes={"clips": {0: "N"}},
                external_data=False,  # one file, because all our networks are far below protobuf's 2 GB
                verbose=False,
            )
        with _explained(path, "cannot be read back by onnxruntime"):
            run = _onnx_runner(part)
        return _largest_difference(path, run, model, size)


def export_safetensors(model: VideoNetwork, path: str | os.PathLike, config: dict | None = None) -> None:
    """Write the weights as safetensors, which ``load_weights`` reads. The file is read back and must be bit-equal.

    The metadata are strings: ``arch``, ``num_segments``, ``num_classes``, and a checksum, which ``load_weights``
    verifies. If ``config`` is given, the metadata also hold these settings of a run as JSON, and ``test_models.py``
    finds the same settings as in a checkpoint. This needs the package safetensors.

    Errors: ``ExportError``, also if weights are not finite. In this case no file is written.
    """
    _need("safetensors")
    from safetensors.torch import save

    # Weights may be in channels_last memory, but the format knows only contiguous memory.
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    for key, value in state.items():
        if not value.isfinite().all():
            raise ExportError(f"{path}: {key} holds numbers that are not finite; were the weights trained to the end?")
    metadata = {"num_segments": str(model.num_segments), "num_classes": str(model.num_classes)}
    if model.arch:
        metadata["arch"] = model.arch
    with _written(path, ".safetensors") as part:
        with _explained(path, "cannot be written or read back"):
            if config:
                metadata["config"] = json.dumps(config)
            metadata[CHECKSUM] = checksum(state, metadata)
            part.write_bytes(save(state, metadata))  # other users could not read a file of save_file()
            found = read_checkpoint(part)["state_dict"]
        other = [key for key in {**state, **found} if key not in found or not _same_bits(state.get(key), found[key])]
        if other:
            raise ExportError(f"{path}: {len(other)} tensors read back otherwise, first {other[0]}; write it again")


def _prepared(model: VideoNetwork) -> VideoNetwork:
    model = copy.deepcopy(model).cpu().float().eval()
    model.set_backend("reference")  # other programs know only plain operations
    return model


def _random_clips(model: VideoNetwork, size: int | tuple[int, int], batch: int) -> Tensor:
    """Clips (N, T, C, H, W), the same for each call."""
    height, width = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, model.num_segments, model.in_channels, height, width, generator=generator)


def _largest_difference(
    path: str | os.PathLike, run: Callable[[Tensor], Tensor], model: VideoNetwork, size: int | tuple[int, int]
) -> float:
    """The largest difference between the logits of ``run`` and of ``model``, relative to the largest logit.

    Errors: ``ExportError`` if it is above ``TOLERANCE``.
    """
    differences = []
    for batch in BATCH_SIZES:
        clips = _random_clips(model, size, batch)
        with torch.no_grad():
            expected = model(clips)
            with _explained(path, f"does not run on {batch} clips"):
                found = run(clips)
        if not expected.isfinite().all():
            raise ExportError(f"{path}: the network's own logits are not finite; were its weights trained to the end?")
        if found.shape != expected.shape:
            raise ExportError(f"{path}: gives logits {tuple(found.shape)}, the network {tuple(expected.shape)}")
        differences.append(float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)))
        if not differences[-1] <= TOLERANCE:  # also true for NaN
            raise ExportError(
                f"{path}: its logits of {batch} clips are off by {differences[-1]:.2g} of the network's largest, "
                f"more than {TOLERANCE:g}; it was removed, {OTHER_VERSION}"
            )
    return max(differences)


def _onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are also raised as exceptions
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda clips: torch.from_numpy(session.run(["logits"], {"clips": clips.numpy()})[0])


def _need(*packages: str) -> None:
    """Import packages.

    Errors: ``ExportError`` with the pip command if packages are missing or do not fit each other.
    """
    broken = {}
    for name in packages:
        try:
            importlib.import_module(name)
        except Exception as error:  # onnxscript raises an AttributeError if onnx is too old
            broken[name] = _reason(error)
    if broken:
        raise ExportError(
            f"this format needs {', '.join(packages)} ({'; '.join(broken.values())}); "
            f"pip install --upgrade {' '.join(broken)}"
        )


@contextmanager
def _written(path: str | os.PathLike, ending: str) -> Iterator[Path]:
    """Yield a temporary name in the same folder. If the body raises nothing, the file is renamed to ``path``."""
    path = Path(path)
    if path.suffix != ending:
        raise ExportError(f"{path}: must end in {ending}")
    part = path.with_name(f"{path.stem}.part{ending}")  # readers need the ending to know the format
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise ExportError(f"{path}: cannot be written ({error}); make room or choose another name") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@contextmanager
def _explained(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Raise any error of an exporter as an ``ExportError`` of one line, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (ExportError, OSError):
        raise
    except Exception as error:
        raise ExportError(f"{path}: {what} ({_reason(error)}); {OTHER_VERSION}") from error


def _reason(error: BaseException) -> str:
    """The first line of the original error. Exporters wrap it several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _same_bits(a: Tensor | None, b: Tensor) -> bool:
    """Whether two tensors have the same bits. (``torch.equal`` says that NaN differs from itself.)"""
    if a is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
