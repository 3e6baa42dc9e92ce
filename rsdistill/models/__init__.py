"""Networks that segment: GINet teachers, baselines, small students, and the files they are kept in.

Importing this package does not import torch; a name below is loaded on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rsdistill.models.card import ModelCard, read_card
    from rsdistill.models.checkpoints import build_network, load_model, save_model
    from rsdistill.models.network import Network
    from rsdistill.models.weights import load_encoder_weights

ARCHITECTURES: dict[str, str] = {
    # teachers
    "ginet": "rsdistill.models.ginet:GINet",  # local branch guided by the whole scene made small
    "local": "rsdistill.models.local:Local",  # the same local branch alone: what GINet is to be compared with
    "pspnet": "rsdistill.models.pspnet:PSPNet",  # dilated ResNet, output stride 8, pyramid pooling
    "deeplabv3plus": "rsdistill.models.baselines:DeepLabV3Plus",
    "fpn": "rsdistill.models.baselines:FPN",
    "segformer": "rsdistill.models.baselines:SegFormer",
    # students
    "ginet-lite": "rsdistill.models.ginet:GINetLite",  # one light encoder for tile and context, guided at strides 16 and 32
    "base": "rsdistill.models.students:Base",
    "small": "rsdistill.models.students:Small",
    "tiny": "rsdistill.models.students:Tiny",
    "linear": "rsdistill.models.linear:Linear",  # one 1x1 convolution: a spectral classifier
}
"""Every network by the name that ``--arch`` takes, and where its class is; the class's ``Args`` are its options."""

_LAZY = {
    "ModelCard": "card",
    "read_card": "card",
    "build_network": "checkpoints",
    "load_model": "checkpoints",
    "save_model": "checkpoints",
    "Network": "network",
    "load_encoder_weights": "weights",
}

__all__ = ["ARCHITECTURES", "ModelCard", "Network", "build_network", "load_encoder_weights", "load_model", "read_card", "save_model"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
