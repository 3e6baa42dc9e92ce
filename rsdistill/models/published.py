"""Where published encoder weights lie: on the Hugging Face hub or at torchgeo's address; in a cache, or fetched if that works at once."""

import os
import threading
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import nn

from rsdistill.errors import ConfigError, WeightsError, nearest
from rsdistill.models.backbones import hub_weights

HINT = "name a .safetensors file of this encoder, or train from scratch with --weights none"


class Published(NamedTuple):
    """Weights that somebody published, and what they were trained on."""

    path: Path
    mean: tuple[float, ...] = ()
    """Of each band, in the scene's units, as the weights want to see it; empty where they say nothing."""
    std: tuple[float, ...] = ()
    bands: tuple[str, ...] = ()
    """Names of the bands in their order, where they are told."""


def find_published(encoder: nn.Module, spec: str, bands: int, *, offline: bool) -> Published:
    """Return the file of published weights for ``encoder``, which reads ``bands`` bands.

    Args:
        encoder: with its name in its library as ``name``.
        spec: ``imagenet``; ``timm:TAG`` such as ``timm:a1_in1k``; or ``torchgeo:NAME`` such as
            ``torchgeo:ResNet18_Weights.SENTINEL2_ALL_MOCO``.
        bands: of the tile set.
        offline: look into the caches only; so does HF_HUB_OFFLINE=1.

    Raises:
        WeightsError: they do not exist, or cannot be had.
        ConfigError: they were trained on another number of bands.
    """
    kind, _, name = spec.partition(":")
    offline = offline or os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}
    if kind == "torchgeo":
        return _of_torchgeo(encoder, name, bands, offline)
    own = str(getattr(encoder, "name", ""))
    tagged = f"{own}.{name.removeprefix(own + '.')}" if name else own
    place = hub_weights(encoder, tagged)
    if place is None:
        wanted = f"weights {spec}" if name else "ImageNet weights"
        raise WeightsError(f"there are no {wanted} for encoder {own}", hint=HINT)
    return Published(_from_hub(*place, f"{'weights ' + name if name else 'ImageNet weights'} of {own}", offline))


def _of_torchgeo(encoder: nn.Module, name: str, bands: int, offline: bool) -> Published:
    """Return torchgeo's weights ``name`` with the normalisation they were trained with."""
    from torchgeo.models import get_weight

    own = str(getattr(encoder, "name", ""))
    try:
        weights = get_weight(name)
    except ValueError:
        known = _names(own)
        hint = "for this encoder there are " + (", ".join(known) or "none")
        raise WeightsError(f"torchgeo has no weights '{name}'{nearest(name, known)}", hint=hint) from None
    meta = weights.meta
    if meta["model"] != own:
        raise WeightsError(f"weights torchgeo:{name} are of a {meta['model']}, not of {own}", hint=f"--encoder {meta['model']} takes them")
    listed = tuple(map(str, meta.get("bands", ())))
    if meta["in_chans"] != bands:
        order = f": tile with --bands in the order {', '.join(listed)}" if listed else ""
        raise ConfigError(f"weights torchgeo:{name} read {meta['in_chans']} bands, the tile set has {bands}", hint=f"take its bands{order}")
    mean, std = _normalisation(weights.transforms, bands)
    return Published(_from_address(weights.url, f"weights torchgeo:{name}", offline), mean, std, listed)


def _names(encoder: str) -> list[str]:
    """Names of torchgeo's weights for an encoder."""
    from torchgeo.models import get_model_weights

    try:
        return [str(one) for one in get_model_weights(encoder)]
    except KeyError:
        return []


def _normalisation(transforms: Any, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each band: what all steps ``(x - mean) / std`` of ``transforms`` do together."""
    mean, std = torch.zeros(bands, dtype=torch.float64), torch.ones(bands, dtype=torch.float64)
    for step in transforms.modules():
        if hasattr(step, "mean") and hasattr(step, "std"):
            mean = mean + std * torch.as_tensor(step.mean, dtype=torch.float64)
            std = std * torch.as_tensor(step.std, dtype=torch.float64)
    return tuple(mean.tolist()), tuple(std.tolist())


def _from_hub(repository: str, file: str, revision: str | None, wanted: str, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    cached = try_to_load_from_cache(repository, file, revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    _refuse_unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), f"{wanted} ({repository})", "the hub's cache", offline)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(f"cannot fetch {repository}/{file}: {str(error).splitlines()[0]}", hint=HINT) from None


def _from_address(url: str, wanted: str, offline: bool) -> Path:
    """Return the file at ``url`` from torch's cache, where torchgeo looks too, fetched if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    _refuse_unreachable(url, wanted, str(path), offline)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot fetch {url}: {str(error).splitlines()[0]}", hint=HINT) from None
    return path


def _refuse_unreachable(address: str, wanted: str, cache: str, offline: bool) -> None:
    """Refuse at once what cannot be fetched; the libraries' own clients would try for half a minute.

    Raises:
        WeightsError: the network is not to be used, or the address does not answer.
    """
    if offline:
        raise WeightsError(f"{wanted} are not in the cache ({cache}), and the network is not to be used", hint=HINT)
    if not answers(address):
        raise WeightsError(f"{wanted} are not in the cache ({cache}), and {address} does not answer", hint=HINT)


def answers(address: str, seconds: float = 1.5) -> bool:
    """Whether ``address`` answers a request within ``seconds``, by a proxy if one is set."""
    answered = threading.Event()

    def knock() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=seconds):
                answered.set()
        except HTTPError as error:
            if error.code < 500:  # it is there, and only does not like the question
                answered.set()
        except (OSError, ValueError, HTTPException):
            pass

    # A thread, because no timeout bounds the look-up of a name.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()
