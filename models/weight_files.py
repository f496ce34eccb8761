"""Reading weight files. Nothing in a file is executed, and a damaged file is not loaded."""

import hashlib
import json
import os
import pickle
import re
import reprlib
import warnings
import zipfile

import torch
from torch import Tensor

ZIP_START = b"PK\x03\x04"  # torch.load uses the same bytes to tell zip files from older files
CHECKSUM = "content_sha256"  # its key in the metadata of a .safetensors file
COPY_AGAIN = "copy or download it again"
SAVE_WEIGHTS = "save the model's state_dict() alone, with the program that wrote the file"

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
# Kinds of tensor that a file may hold but that cannot be a weight.
UNUSABLE = {
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout is not torch.strided,
    "quantised": lambda tensor: tensor.is_quantized,
    "meta": lambda tensor: tensor.is_meta,  # a shape without numbers
    "complex": lambda tensor: tensor.is_complex(),
    # The tensor holds fewer numbers than its shape says. A small file could otherwise describe a network of any size.
    "repeated": lambda tensor: tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size(),
}


class WeightsError(ValueError):
    """A weight file that cannot be read or does not fit the model."""


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The dictionary in a file that ``torch.save`` wrote, or in a ``.safetensors`` file. Nothing in it is executed.

    The checksums of zip files (``torch.save`` since PyTorch 1.6) and of our own ``.safetensors`` files are verified.

    Errors: ``WeightsError`` if a file is damaged, or if it holds more than tensors and plain values.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise WeightsError(
                f"{path}: not a regular file but a pipe or a device; name a file"
            )  # it may block for ever
        if str(path).endswith(".safetensors"):
            checkpoint = _read_safetensors(path)
        else:
            _check_start(path)
            _verify_zip(path)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns and then also raises an error
                checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such weight file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or explained(error)[0]})") from None
    except Exception as error:
        reason, remedy = explained(error)
        raise WeightsError(f"{path}: not a weight file that can be read safely ({reason}); {remedy}") from error
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path}: holds a {type(checkpoint).__name__}, not a state dict; {SAVE_WEIGHTS}")
    return checkpoint


def explained(error: Exception) -> tuple[str, str]:
    """A short text that says why a file cannot be read, and the remedy.

    PyTorch's own advice is to load the file without ``weights_only``. That would execute code in the file.
    """
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in text:
        found = re.search(r"GLOBAL (\S+)", text)
        if found:
            return f"it would have to execute {shown_name(found[1])}", SAVE_WEIGHTS
        if "TorchScript" in text:
            return "it is a TorchScript program", SAVE_WEIGHTS
        return "damaged, or it holds more than tensors and plain values", f"{COPY_AGAIN}, or {SAVE_WEIGHTS}"
    return shown_name(text.strip().split("\n")[0], 200) or type(error).__name__, COPY_AGAIN


def checksum(state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """SHA-256 of the names, types, shapes and bytes of tensors, and of the file's other metadata."""
    digest = hashlib.sha256(json.dumps(sorted(item for item in metadata.items() if item[0] != CHECKSUM)).encode())
    for key, value in sorted(state.items()):
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def unusable(tensor: Tensor) -> str | None:
    """The kind of a tensor that cannot be a weight, such as ``"sparse"``; ``None`` if the tensor can be a weight."""
    return next((what for what, holds in UNUSABLE.items() if holds(tensor)), None)


def misfit(value: Tensor, target: Tensor, counter: bool = False) -> str | None:
    """The reason why ``value`` cannot be copied to ``target`` (its shape, or floats for integers); ``None`` if it can.

    If ``counter`` is true, floats may become integers, because averaged weights have averaged counters.
    """
    if value.shape != target.shape:
        return f"{tuple(value.shape)} for {tuple(target.shape)}"
    kinds = (FLOATS, INTEGERS) if counter else (FLOATS,) if target.is_floating_point() else (INTEGERS,)
    return None if any(value.dtype in kind for kind in kinds) else f"{value.dtype} for {target.dtype}"


def shown(value: object) -> str:
    """Any value as one line of at most 80 characters, for a message."""
    return shown_name(_SHORT.repr(value))


def shown_name(text: str, length: int = 80) -> str:
    """``text`` without quotes, in one line, cut to ``length`` characters."""
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return text if text.isprintable() else repr(text)[1:-1][:length]


class _Short(reprlib.Repr):
    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxdict, self.maxstring = 2, 2, 60

    def repr1(self, x: object, level: int) -> str:
        if isinstance(x, Tensor):
            return "a nested tensor" if x.is_nested else f"a {x.dtype} tensor {tuple(x.shape)}"
        if isinstance(x, dict):
            return self.repr_dict(x, level)
        try:
            return super().repr1(x, level)
        except ValueError:  # Python does not print an integer of so many digits
            return f"a whole number of {x.bit_length()} bits"


_SHORT = _Short()


def _check_start(path: str | os.PathLike) -> None:
    """Check that the first bytes may be those of a weight file.

    Errors: ``WeightsError`` for an empty file, or for text, such as a web page that says why there is no download.
    """
    with open(path, "rb") as file:
        start = file.read(200).decode("latin-1")
    if not start:
        raise WeightsError(f"{path}: is empty; {COPY_AGAIN}")
    words = " ".join(start.split())
    if words.isascii() and words.isprintable():
        raise WeightsError(f"{path}: is text, which begins with {shown(words)}, not a weight file; {COPY_AGAIN}")


def _verify_zip(path: str | os.PathLike) -> None:
    """Verify the checksums in a zip file, because ``torch.load`` does not verify them.

    Errors: ``WeightsError`` that names the damaged record.
    """
    with open(path, "rb") as file:
        if file.read(len(ZIP_START)) != ZIP_START:
            return
        try:
            with zipfile.ZipFile(file) as records:
                # All checksums are zero if torch.serialization.set_crc32_options(False) was called before saving.
                damaged = records.testzip() if any(record.CRC for record in records.infolist()) else None
        except Exception as error:  # zipfile raises many: BadZipFile, zlib.error, EOFError, NotImplementedError, ...
            raise WeightsError(f"{path}: damaged or cut off ({explained(error)[0]}); {_remedy(path)}") from error
    if damaged is not None:
        raise WeightsError(f"{path}: record {shown_name(damaged)} is damaged (wrong checksum); {_remedy(path)}")


def _remedy(path: str | os.PathLike) -> str:
    return f"{COPY_AGAIN}; if it is of a run here, go on from another checkpoint of that run"


def _read_safetensors(path: str | os.PathLike) -> dict:
    """A checkpoint from a file's tensors and, if the file has them, the metadata that ``models.export`` writes."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise WeightsError(f"{path}: to read it, pip install safetensors") from None
    with safe_open(path, framework="pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(state, metadata):
        raise WeightsError(f"{path}: damaged, or changed after its export (wrong checksum); {COPY_AGAIN}")
    checkpoint = {"state_dict": state, "config": {}}
    if "arch" in metadata:
        checkpoint["arch"] = checkpoint["config"]["model"] = metadata["arch"]
    for key, part in (("num_segments", "recipe"), ("num_classes", "dataset")):
        if key in metadata:
            checkpoint["config"][part] = {key: int(metadata[key])}
    if "config" in metadata:  # all settings of a run; it replaces the entries above
        checkpoint["config"] = json.loads(metadata["config"])
    return checkpoint
