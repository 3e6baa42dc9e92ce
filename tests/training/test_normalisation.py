"""Pretrained weights that bring a normalisation: the network is trained, and its card written, with that one."""

from pathlib import Path

import pytest
import torch

from rsdistill.commands.tile import tile
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.models import build_network, load_encoder_weights, read_card


def test_the_card_holds_the_normalisation_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = write_land_cover(tmp_path, size=384, seed=3)
    work = tmp_path / "work"
    tile(scenes=drawn.scene, labels=drawn.labels, classes=drawn.classes, work=work, tile=64)
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    encoder = build_network("base", {"encoder": "resnet18"}, 3, 2)
    torch.save(encoder.encoder.body.state_dict(), tmp_path / "checkpoints" / "resnet18_sentinel2_rgb_moco-e3a335e3.pth")
    name = "torchgeo:ResNet18_Weights.SENTINEL2_RGB_MOCO"
    wanted = load_encoder_weights(encoder, name, offline=True)
    result = train_teacher(work=work, arch="local", encoder="resnet18", set={"dim": 8}, weights=name, offline=True, steps=1, batch=2)
    card = read_card(result.paths[0])
    assert card.mean == wanted.mean
    assert card.std == wanted.std
    assert card.mean != load_tile_set(work / "tiles").card.mean
