"""1 × 1 convolutions, for which torch picks slow code on one thread."""

import torch
from torch import nn


def quicken(network: nn.Module, device: torch.device | str) -> None:
    """Let torch compute the 1 × 1 convolutions of ``network`` with oneDNN where ``device`` is a processor, also on one thread.

    In float32 on one thread, torch sends a plain 1 × 1 convolution of fewer than 16 images to an older kernel, which takes two to four
    times as long. A dilated one it leaves to oneDNN, and spreading a kernel of one pixel changes nothing else. On another device, and
    for a graph that other programs read (``meta``), kernels are plain again.
    """
    spread = 2 if torch.device(device).type == "cpu" else 1
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (spread, spread)
