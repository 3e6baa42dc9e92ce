"""Encoders and decoders from timm and segmentation-models-pytorch: the only place that knows these two libraries."""

from functools import lru_cache
from typing import Any

import timm
import torch
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn

from rsdistill.errors import ConfigError, nearest
from rsdistill.models.registration import cell_offsets

STRIDES = (4, 8, 16, 32)
"""Strides of the four maps that an encoder gives, finest first."""

SEAMS = ("InstanceNorm", "GroupNorm", "GroupNormAct")
"""Norms that take statistics over a tile: two tiles that overlap disagree, and the mask shows seams."""

_MISFIT = (RuntimeError, AttributeError, AssertionError, TypeError, ValueError, NotImplementedError, IndexError)
"""What the two libraries raise when a network cannot be built as asked."""

_HINT = "take a convolutional network, such as resnet18"


class Encoder(nn.Module):
    """A timm network cut down to its feature maps at strides 4, 8, 16 and 32.

    Attributes:
        name: in timm.
        channels: of each map, finest first.
        strides: of each map; dilation replaces strides above ``output_stride``.
        offsets: of each map's cells on the image, in pixels (see :mod:`rsdistill.models.registration`).
    """

    def __init__(self, name: str, bands: int, output_stride: int = 32) -> None:
        """Make the encoder with random weights.

        Args:
            name: a network of timm with convolutional feature maps, such as ``resnet18`` or ``mobilenetv2_100``.
            bands: of the image.
            output_stride: 32, or 16 or 8 for a network that timm can dilate.

        Raises:
            ConfigError: timm does not know the name, or the network has no such maps, or norms that make seams.
        """
        super().__init__()
        self.name = name
        self.body = _features(name, bands, output_stride)
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.body.feature_info.reduction())
        # On the meta device there is only a shape to look at, and nothing to measure.
        self.offsets = () if next(self.parameters()).is_meta else measured_offsets(name, output_stride)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return maps (B, channels[i], H / strides[i], W / strides[i])."""
        return tuple(self.body(image))


def _features(name: str, bands: int, output_stride: int) -> Any:
    known = timm.list_models()
    if name not in known:
        raise ConfigError(f"timm has no encoder '{name}'{nearest(name, known)}", hint="such as mobilenetv2_100, resnet18, convnext_atto")
    dilation: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
    try:
        body: Any = timm.create_model(name, pretrained=False, in_chans=bands, features_only=True, out_indices=(-4, -3, -2, -1), **dilation)
        reductions = tuple(body.feature_info.reduction())
    except _MISFIT as error:
        raise ConfigError(f"encoder '{name}' gives no feature maps: {error}", hint=_HINT) from None
    wanted = tuple(min(stride, output_stride) for stride in STRIDES)
    if reductions != wanted:
        raise ConfigError(f"encoder '{name}' has maps at strides {reductions}, not {wanted}", hint="take another, such as resnet18")
    seams = sorted({type(module).__name__ for module in body.modules()} & set(SEAMS))
    if seams:
        hint = "take one with BatchNorm or LayerNorm"
        raise ConfigError(f"encoder '{name}' has {seams[0]}, whose statistics differ from tile to tile", hint=hint)
    return body


@lru_cache(maxsize=64)
def measured_offsets(name: str, output_stride: int = 32) -> tuple[float, ...]:
    """Return the offsets in pixels of the maps of the timm encoder ``name``; measured once a process, without touching random states.

    Raises:
        ConfigError: its maps have no place on the image, as those of a network that is not convolutional.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        body = _features(name, 1, output_stride)
        try:
            return cell_offsets(body, tuple(body.feature_info.reduction()))
        except (*_MISFIT, StopIteration) as error:
            raise ConfigError(f"cannot tell where the maps of '{name}' lie: {error}", hint=_HINT) from None


def smp_network(decoder: str, encoder: str, bands: int, classes: int, **options: Any) -> Any:
    """Return the segmentation-models-pytorch network ``decoder`` (``FPN``, ``DeepLabV3Plus``, ``Segformer``) with random weights.

    GroupNorm is replaced by BatchNorm, so that overlapping tiles agree.

    Args:
        decoder: name of the class.
        encoder: a name of segmentation-models-pytorch or of timm.
        bands: of the image.
        classes: number of logits.
        options: of the class.

    Raises:
        ConfigError: neither library knows the encoder, or it does not fit the decoder.
    """
    import segmentation_models_pytorch as smp

    own, timms = list(smp.encoders.encoders), timm.list_models()
    if encoder not in own and encoder not in timms:
        hint = "such as mobilenet_v2, resnet18, mit_b0"
        raise ConfigError(f"no library has an encoder '{encoder}'{nearest(encoder, own + timms)}", hint=hint)
    name = encoder if encoder in own else f"tu-{encoder}"
    try:
        network = getattr(smp, decoder)(encoder_name=name, encoder_weights=None, in_channels=bands, classes=classes, **options)
    except _MISFIT as error:
        raise ConfigError(f"encoder '{encoder}' does not fit {decoder}: {error}", hint="take another, such as resnet18") from None
    _without_seams(network)
    return network


def _without_seams(network: nn.Module) -> None:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, nn.BatchNorm2d(child.num_channels))


def hub_weights(encoder: nn.Module, name: str) -> tuple[str, str, str | None] | None:
    """Return (repository, file, revision) of an encoder's ImageNet weights on the Hugging Face hub; None where there are none.

    Args:
        encoder: an :class:`Encoder`, or the encoder of a network made by :func:`smp_network`.
        name: in its library.
    """
    if not isinstance(encoder, Encoder):
        import segmentation_models_pytorch as smp

        own = smp.encoders.encoders.get(name)
        if own is not None:
            settings = own["pretrained_settings"].get("imagenet")
            return (settings["repo_id"], "model.safetensors", settings["revision"]) if settings and "repo_id" in settings else None
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError:  # a tag that the network does not have
        return None
    if config is None or not config.hf_hub_id:
        return None
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, "model.safetensors", revision or None


def synchronise_norms(network: nn.Module) -> None:
    """Let every BatchNorm of ``network`` take its statistics over all processes of a run; weights and names stay what they are."""
    convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # torch's own drops the activation of timm's norms
