"""Pretrained encoder weights: from a file or published ones, matched tensor by tensor and never by luck."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rsdistill.errors import ConfigError, WeightsError
from rsdistill.models.backbones import Encoder
from rsdistill.models.network import Network
from rsdistill.models.published import HINT, Published, find_published

MIN_MATCH = 0.95
"""Weights that fill a smaller share of an encoder's tensors are refused."""

MAX_PICKLE_BYTES = 4 << 30
"""A .pt or .pth file that unpacks to more is refused unread."""

PUBLISHED = ("timm:", "torchgeo:")
"""Beginnings of what names published weights; everything else is a path."""

_HEADS = re.compile(r"^(classifier|fc|head|last_linear)\b")


class LoadedWeights(NamedTuple):
    """What became of pretrained weights."""

    source: str
    matched: int
    """Tensors of the network's encoders that were filled."""
    total: int
    """Tensors that these encoders have (without counters of batches)."""
    mean: tuple[float, ...] = ()
    """Of each band, as the weights want to see it; empty where they do not say."""
    std: tuple[float, ...] = ()

    def __str__(self) -> str:
        if not self.total:
            return "encoder weights: none, training starts from random numbers"
        return f"encoder weights: {self.matched} of {self.total} tensors from {self.source}"


def load_encoder_weights(network: Network, spec: str, *, offline: bool = False) -> LoadedWeights:
    """Fill the encoders of ``network`` with pretrained weights.

    The first convolution is folded to the network's number of bands: bands take the weights of red, green and blue in turn, scaled so
    that the layer answers as strongly as before.

    Args:
        network: its ``encoders`` are filled in place.
        spec: ``none``; ``imagenet``, ``timm:TAG`` or ``torchgeo:NAME`` (from a cache, or fetched: see
            :func:`rsdistill.models.published.find_published`); or the path of a safetensors file (or a .pt/.pth of plain tensors)
            with names of the encoder's own library, or with other names in the same order.
        offline: do not touch the network; neither does HF_HUB_OFFLINE=1.

    Raises:
        WeightsError: the weights cannot be had or read, or fill less than 95 % of an encoder.
        ConfigError: the network has no encoder.
    """
    if spec == "none":
        return LoadedWeights("none", 0, 0)
    if not network.encoders:
        raise ConfigError(f"a {type(network).__name__} network has no encoder that takes weights", hint="use --weights none")
    matched = total = 0
    found = Published(Path(spec))
    for encoder in network.encoders:
        if spec == "imagenet" or spec.startswith(PUBLISHED):
            found = find_published(encoder, spec, bands_of(encoder), offline=offline)
        filled, wanted = _fill(encoder, _read(found.path), spec)
        matched, total = matched + filled, total + wanted
    network.pretrained = True
    return LoadedWeights(spec, matched, total, found.mean, found.std)


def bands_of(encoder: nn.Module) -> int:
    """The number of bands that an encoder reads: those of its first convolution."""
    return next(int(parameter.shape[1]) for parameter in encoder.parameters() if parameter.ndim == 4)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"weights {path} are not a file", hint=HINT)
    if path.suffix not in {".safetensors", ".pt", ".pth"}:
        raise WeightsError(f"weights {path} are neither .safetensors nor .pt or .pth", hint=HINT)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _unpacked(path) > MAX_PICKLE_BYTES:
            raise WeightsError(f"weights {path} unpack to more than {MAX_PICKLE_BYTES >> 30} GiB", hint=HINT)
        read = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # both readers raise half a dozen kinds on a file that is not their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot read weights {path}: {reason}", hint=HINT) from None
    read = read.get("state_dict", read) if isinstance(read, dict) else {}
    return {name: tensor for name, tensor in read.items() if isinstance(tensor, Tensor)}


def _unpacked(path: Path) -> int:
    """Return the bytes that a .pt or .pth says it unpacks to; such a file is a zip archive, which a few bytes can make claim anything."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(entry.file_size for entry in archive.infolist())


def _fill(encoder: nn.Module, source: Mapping[str, Tensor], spec: str) -> tuple[int, int]:
    """Copy tensors of ``source`` into ``encoder``; return how many of how many."""
    body = encoder.body if isinstance(encoder, Encoder) else encoder
    target = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith("num_batches_tracked")}
    pairs = max(_by_name(target, source), _by_order(target, source), key=len)
    if len(pairs) < MIN_MATCH * len(target):
        name = getattr(encoder, "name", type(encoder).__name__)
        raise WeightsError(f"weights {spec} fit {len(pairs)} of the {len(target)} tensors of encoder {name}", hint=HINT)
    with torch.no_grad():
        for name, tensor in pairs.items():
            target[name].copy_(_folded(tensor, target[name].shape[1]) if tensor.ndim == 4 else tensor)
    return len(pairs), len(target)


def _by_name(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pair tensors of equal name and shape."""
    first = next((name for name, tensor in target.items() if tensor.ndim == 4), "")
    return {name: source[name] for name, tensor in target.items() if name in source and _fits(source[name], tensor, foldable=name == first)}


def _by_order(target: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pair the n-th tensor of each kind (weight, bias, running_mean …) with the n-th in the order of the other library's names.

    An encoder may lack layers at the end that the source has. A single shape that differs means that the orders do, and pairs nothing.
    """
    pairs: dict[str, Tensor] = {}
    first = next((name for name, tensor in target.items() if tensor.ndim == 4), "")
    names = sorted((name for name in source if not _HEADS.match(name)), key=_natural)
    for kind in ("weight", "bias", "running_mean", "running_var"):
        wanted = [name for name in target if name.rpartition(".")[2] == kind]
        offered = [name for name in names if name.rpartition(".")[2] == kind]
        if len(offered) < len(wanted):
            return {}
        for name, other in zip(wanted, offered, strict=False):
            if not _fits(source[other], target[name], foldable=name == first):
                return {}
            pairs[name] = source[other]
    return pairs


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _fits(source: Tensor, target: Tensor, *, foldable: bool) -> bool:
    if not foldable:
        return source.shape == target.shape
    return source.ndim == target.ndim and source.shape[0] == target.shape[0] and source.shape[2:] == target.shape[2:]


def _folded(kernel: Tensor, bands: int) -> Tensor:
    """Return a kernel (D, C, h, w) for ``bands`` input bands that answers as strongly to equal bands."""
    channels = kernel.shape[1]
    if channels == bands:
        return kernel
    if bands < channels:
        return kernel.float().mean(dim=1, keepdim=True).expand(-1, bands, -1, -1) * (channels / bands)
    return kernel.float()[:, torch.arange(bands) % channels] * (channels / bands)
