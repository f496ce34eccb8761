"""Number formats of training and testing."""

import torch

from .config import ConfigError

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp16"`` on a device; ``"auto"`` is the fastest that needs no care.

    ``"fp32"`` is what the published runs used: every product in 32 bits. ``"tf32"`` rounds the inputs of products to
    10 bits on NVIDIA GPUs since Ampere. ``"bf16"`` and ``"fp16"`` are autocast, weights and optimiser stay in 32
    bits; ``"fp16"`` scales the loss (``scaler``) and leaves a step out whose gradients overflow. ``"auto"``: bf16 on a
    GPU that has it, fp16 on an older one, fp32 on a CPU.

    Errors: ``ConfigError`` for what the device does not have.
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
        if gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name != "fp32"

    def autocast(self) -> torch.autocast:
        """The context of a forward pass."""
        return torch.autocast(self.device.type, AUTOCAST.get(self.name), enabled=self.name in AUTOCAST)
