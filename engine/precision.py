"""The number format of training and testing."""

import torch

from .config import ConfigError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One of the number formats ``"fp32"``, ``"tf32"``, ``"bf16"``, ``"fp16"`` and ``"auto"``, on a device.

    The published runs used ``"fp32"``: every product is computed in 32 bits. ``"tf32"`` rounds the inputs of products
    to 10 bits on NVIDIA GPUs since Ampere. ``"bf16"`` and ``"fp16"`` use autocast, and weights and optimiser stay in 32
    bits. ``"fp16"`` also scales the loss (``scaler``) and skips a step if its gradients overflow. ``"auto"`` is bf16 on
    a GPU that supports it, fp16 on an older GPU, and fp32 on a CPU.

    Call ``apply`` before computing on the device, because creating the object changes nothing.

    Errors: ``ConfigError`` if the device does not support the format.
    """

    def __init__(self, name: str, device: torch.device):
        gpu = device.type == "cuda"
        ampere = gpu and torch.cuda.get_device_capability(device) >= (8, 0)
        if name == "auto":
            name = "fp32" if not gpu else "bf16" if ampere else "fp16"
        if name == "tf32" and not ampere:
            raise ConfigError(f"precision tf32 needs an NVIDIA GPU since Ampere, this is {device}; use fp32 or bf16")
        if name == "bf16" and gpu and not ampere:
            raise ConfigError(f"precision bf16, but {torch.cuda.get_device_name(device)} has none; use fp16")
        self.name, self.device = name, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def apply(self) -> None:
        """Switch TF32 for the whole process: off for fp32, on for other formats. On a CPU this does nothing."""
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.name != "fp32"

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, AUTOCAST.get(self.name), enabled=self.name in AUTOCAST)
