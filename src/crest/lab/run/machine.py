"""The machine that a run is trained on."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

__all__ = ["describe_machine"]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Name what a run is trained on, for its result.

    Args:
        device: Where the model lives.

    Returns:
        Platform, processor, number of CPUs, threads and device.
    """
    on_cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if on_cuda else device.type,
    }
