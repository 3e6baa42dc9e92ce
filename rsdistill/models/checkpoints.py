"""Model files: one safetensors with weights and card, from which the network is built again."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rsdistill.errors import CheckpointError, ConfigError, nearest
from rsdistill.geo.files import atomic
from rsdistill.models import ARCHITECTURES
from rsdistill.models.card import HEADER_KEY, ModelCard, read_card
from rsdistill.models.network import Network


def build_network(arch: str, arch_args: Mapping[str, Any], bands: int, classes: int) -> Network:
    """Return a network with random weights.

    Args:
        arch: a name in :data:`rsdistill.models.ARCHITECTURES`.
        arch_args: options of the architecture, its ``Args``; those not named have their defaults.
        bands: of the image.
        classes: number of logits K.

    Raises:
        ConfigError: there is no such architecture or option, or an option has an impossible value.
    """
    if arch not in ARCHITECTURES:
        raise ConfigError(f"unknown architecture '{arch}'{nearest(arch, ARCHITECTURES)}", hint="known: " + ", ".join(ARCHITECTURES))
    module, _, name = ARCHITECTURES[arch].partition(":")
    network_class: Any = getattr(import_module(module), name)
    return network_class(network_class.Args.of(**arch_args), bands, classes)


def save_model(path: str | Path, model: Network, card: ModelCard) -> None:
    """Write ``model`` and its card to ``path``, whole or not at all.

    The card's ``arch_args`` are written out in full, so that a default that changes later does not change the file's meaning.

    Raises:
        DiskError: the file cannot be written.
        CheckpointError: the card does not describe the network, or its weights are not finite.
    """
    card = card.model_copy(update={"arch_args": model.args.model_dump(mode="json")})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _check_fit(Path(path), card, tensors)
    # One metadata key, because their order in the file is random; and bytes, because save_file hides that a disk is full.
    content = save(tensors, metadata={HEADER_KEY: card.model_dump_json(exclude_none=True)})
    with atomic(Path(path)) as partial:
        partial.write_bytes(content)


def load_model(path: str | Path) -> tuple[Network, ModelCard]:
    """Return the network in the file ``path``, in eval mode on the CPU, and its card.

    Raises:
        CheckpointError: the file is missing, not a model, of an architecture that is not known, or its tensors do not fit it.
    """
    path = Path(path)
    card = read_card(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}", hint="it was cut short or damaged") from None
    _check_fit(path, card, tensors)
    network = build_network(card.arch, card.arch_args, len(card.bands), len(card.classes))
    network.load_state_dict(tensors)
    return network.eval(), card


def _check_fit(path: Path, card: ModelCard, tensors: Mapping[str, Tensor]) -> None:
    """Compare ``tensors`` with the network that the card describes, which is drawn up on the meta device and so takes no memory."""
    try:
        with torch.device("meta"), _DrawnUp():
            network = build_network(card.arch, card.arch_args, len(card.bands), len(card.classes))
    except ConfigError as error:
        raise CheckpointError(f"the card in {path}: {error}", hint=error.hint) from None
    described = f"{card.arch} of {len(card.bands)} bands and {len(card.classes)} classes"
    hint = "the file's card and weights do not belong together, or another version of the encoder's library wrote them"
    wanted = network.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            missing = len(wanted.keys() - tensors.keys())
            raise CheckpointError(f"{path} lacks the tensor '{name}' of {described} ({missing} of {len(wanted)} are missing)", hint=hint)
        if tensors[name].shape != tensor.shape or tensors[name].is_floating_point() != tensor.is_floating_point():
            found, right = _outline(tensors[name]), _outline(tensor)
            raise CheckpointError(f"the tensor '{name}' in {path} is {found}; {described} has {right}", hint=hint)
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"the tensor '{name}' in {path} holds numbers that are not finite", hint="training diverged: train anew")
    if extra := sorted(tensors.keys() - wanted.keys()):
        raise CheckpointError(f"{path} holds the tensor '{extra[0]}' that {described} does not have ({len(extra)} such)", hint=hint)


class _DrawnUp(TorchFunctionMode):
    """Keeps ``linspace`` off the meta device, out of which networks read the drop rates of their layers, and fills no weights there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == "torch.nn.init":  # which takes long, and there is nothing to fill
            return args[0] if args else kwargs["tensor"]
        if func is torch.linspace:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)


def _outline(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
