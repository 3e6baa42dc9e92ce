"""Kept canvases: the teacher answers as with its context, runs its global branch once, and anew where anything changed."""

import pytest
import torch

from rsdistill.commands.distill import distill
from rsdistill.commands.tile import tile
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.data.dataset import BatchSource, Composition, TileReader, collate, normalise
from rsdistill.geo.scenes import open_scene
from rsdistill.geo.synthetic import write_land_cover
from rsdistill.geo.tile_index import load_tile_set
from rsdistill.geo.windows import Window
from rsdistill.inference.canvas import SceneCanvas
from rsdistill.models import build_network, load_model, save_model
from rsdistill.models.ginet import GINet
from rsdistill.reporting import SILENT
from rsdistill.training import canvases
from rsdistill.training.canvases import CanvasTeacher, look_ahead
from rsdistill.training.teachers import Ensemble, load_teachers

QUICK = {"batch": 4, "threads": 1, "steps": 3, "validate_every": 3, "validation": "tile"}
LIGHT = {"encoder": "mobilenetv4_conv_small_035", "set": {"dim": 8}}


@pytest.fixture(scope="module")
def teacher(tiles, tmp_path_factory):
    """Return a GINet whose context matters."""
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(tiles=tiles, out=out, **LIGHT, **QUICK)
    network, card = load_model(out)
    torch.manual_seed(0)
    for guide in network.context.guides:
        torch.nn.init.normal_(guide.outer.weight, std=0.1)
    save_model(out, network, card.model_copy(update={"canvas_margin": 32}))
    return out


@pytest.fixture
def encoded(monkeypatch):
    """Return a list that grows by one entry whenever a global branch runs."""
    runs, real = [], GINet.encode_context
    monkeypatch.setattr(GINet, "encode_context", lambda self, *given: runs.append(1) or real(self, *given))
    return runs


def keeping(path, tile_set, folder, mark="mark"):
    return load_teachers([path], 1, tile_set, lambda plain, card, _: CanvasTeacher(plain, card, mark, tile_set, folder))[0]


def batch_of(tile_set, *, with_context=True):
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    return normalise(BatchSource(tile_set, Composition(4, 2, 0, with_context), seed=0)[0], mean, std, torch.device("cpu"))


def test_a_kept_canvas_answers_as_the_context_does(tiles, teacher, tmp_path):
    """Scenes here are seen at once, so the whole context is what the batch shows too; only half precision differs."""
    tile_set = load_tile_set(tiles)
    (asked,) = load_teachers([teacher], 1, tile_set)
    kept = keeping(teacher, tile_set, tmp_path)
    with torch.inference_mode():
        direct = asked(batch_of(tile_set))
        found = kept(batch_of(tile_set)._replace(context=None))
        blind = asked.network(asked._own(batch_of(tile_set).image, batch_of(tile_set).valid), elsewhere(asked, batch_of(tile_set)))
    for one, other in ((found.logits, direct.logits), (found.features, direct.features), (found.aux, direct.aux)):
        assert (one - other).square().mean().sqrt() < 1e-3 * other.std()
    assert [stage.shape for stage in found.stages] == [stage.shape for stage in direct.stages]
    assert (blind.logits - direct.logits).square().mean().sqrt() > 1e-2 * direct.logits.std(), "context matters to this teacher"


def elsewhere(asked, batch):
    return asked._seen(batch.context._replace(image=-batch.context.image))


def test_windows_of_a_large_context_are_those_of_the_map(teacher, tmp_path, monkeypatch, encoded):
    monkeypatch.setattr(canvases, "WINDOW", 32)
    drawn = write_land_cover(tmp_path, size=(192, 2400), seed=3)
    tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=tmp_path, tile=64)
    tile_set, (network, card) = load_tile_set(tmp_path / "tiles"), load_model(teacher)
    path = tmp_path / "near.safetensors"
    save_model(path, network, card.model_copy(update={"canvas_margin": 0}))
    mean, std = torch.tensor(card.mean), torch.tensor(card.std)
    places = [0, len(tile_set.tiles) // 2, len(tile_set.tiles) - 1]
    batch = collate(TileReader(tile_set), [tile_set.tiles[place] for place in places], [], Composition(3, 1))
    batch = normalise(batch, torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std), torch.device("cpu"))

    def to_image(values, valid):
        known = torch.from_numpy(valid)
        return (torch.from_numpy(values).float() - mean[:, None, None]) / std[:, None, None] * known[:, None], known

    with torch.inference_mode(), open_scene(drawn.scene) as scene:
        kept = keeping(path, tile_set, tmp_path / "kept")
        found = kept(batch._replace(place=torch.tensor(places))).logits
        made = len(encoded)
        mapped = SceneCanvas(network, scene, [1, 2, 3], to_image, margin=0, window=32)
        expected = mapped.decode(kept._own(batch.image, batch.valid), [tile_set.tiles[place].window for place in places]).logits
    assert made == len(encoded) - made > 1, "windows"
    assert (found - expected).square().mean().sqrt() < 1e-4 * expected.std()


def test_the_second_epoch_and_a_later_run_read_what_the_first_made(tiles, teacher, tmp_path, encoded):
    options = {"tiles": tiles, "work": tmp_path, "teacher": (teacher,), "student": "tiny", "method": "nfd", "overwrite": True, **QUICK}
    distill(**options)
    files = sorted((tmp_path / "cache" / "canvases").iterdir())
    assert len(encoded) == len(files) == 1, "one scene, which one window holds"
    written = files[0].stat().st_mtime_ns
    distill(**options, seed=1)
    assert len(encoded) == 1
    assert files[0].stat().st_mtime_ns == written


def test_another_model_makes_its_own(tiles, teacher, tmp_path, encoded):
    tile_set = load_tile_set(tiles)
    for mark, made in (("one", 1), ("one", 1), ("two", 2)):
        with torch.inference_mode():
            keeping(teacher, tile_set, tmp_path, mark)(batch_of(tile_set))
        assert len(encoded) == made
    assert len(list(tmp_path.iterdir())) == 2


def test_another_scene_of_the_same_name_makes_its_own(teacher, tmp_path, encoded):
    for seed, made in ((3, 1), (3, 1), (4, 2)):
        drawn = write_land_cover(tmp_path, size=512, seed=seed)
        tile(scenes=[drawn.scene], labels=[drawn.labels], classes=drawn.classes, work=tmp_path / "work", tile=64, overwrite=True)
        tile_set = load_tile_set(tmp_path / "work" / "tiles")
        with torch.inference_mode():
            keeping(teacher, tile_set, tmp_path / "kept")(batch_of(tile_set))
        assert len(encoded) == made


def test_a_broken_off_canvas_is_no_canvas(tiles, teacher, tmp_path, monkeypatch):
    tile_set, real = load_tile_set(tiles), GINet.canvas_part

    def broken(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(GINet, "canvas_part", broken)
    with pytest.raises(KeyboardInterrupt):
        keeping(teacher, tile_set, tmp_path)(batch_of(tile_set))
    assert not list(tmp_path.glob("*.safetensors"))
    monkeypatch.setattr(GINet, "canvas_part", real)
    with torch.inference_mode():
        keeping(teacher, tile_set, tmp_path)(batch_of(tile_set))
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_kept_canvases_serve_training_in_bfloat16(tiles, teacher, tmp_path):
    tile_set = load_tile_set(tiles)
    batch, kept = batch_of(tile_set), keeping(teacher, tile_set, tmp_path)
    with torch.inference_mode():
        expected = kept(batch).logits
        with torch.autocast("cpu", torch.bfloat16):
            found = kept(batch).logits
    assert (found.float() - expected).square().mean().sqrt() < 0.05 * expected.std()


def test_what_a_run_will_ask_for_is_made_before_it_begins(tiles, teacher, tmp_path, encoded):
    tile_set = load_tile_set(tiles)
    kept = keeping(teacher, tile_set, tmp_path)
    source = BatchSource(tile_set, Composition(4, 1, 0), seed=0)
    for steps in (1, 10_000):
        look_ahead([Ensemble([kept])], source, steps, SILENT)
        assert len(encoded) == 1


def test_a_batch_without_places_is_a_mistake_of_the_caller(tiles, teacher, tmp_path):
    tile_set = load_tile_set(tiles)
    with pytest.raises(ValueError, match="place"):
        keeping(teacher, tile_set, tmp_path)(batch_of(tile_set)._replace(place=None))


def test_a_thumbnail_is_part_of_what_is_kept(tiles, teacher, tmp_path):
    tile_set = load_tile_set(tiles)
    network, card = load_model(teacher)
    path = tmp_path / "far.safetensors"
    far = build_network("ginet", {**network.args.model_dump(), "thumbnail_from": 100}, 3, len(tile_set.table)).eval()
    torch.nn.init.normal_(far.thumbnail.added.weight)
    torch.nn.init.normal_(far.context.guides[0].outer.weight, std=0.1)
    save_model(path, far, card.model_copy(update={"arch_args": far.args.model_dump(mode="json")}))
    (asked,) = load_teachers([path], 1, tile_set)
    reader, windows = TileReader(tile_set), [Window(0, 0, 64, 64)]
    mean, std = torch.tensor(tile_set.card.mean), torch.tensor(tile_set.card.std)
    tiles_ = [tile_set.tiles[9]]
    whole, near = (
        normalise(collate(reader, tiles_, windows, Composition(1, 1, 0, True, thumbnail_from=threshold)), mean, std, torch.device("cpu"))
        for threshold in (100, 0)
    )
    with torch.inference_mode():
        expected, without = asked(whole).logits, asked(near).logits
        found = keeping(path, tile_set, tmp_path / "kept")(whole._replace(place=torch.tensor([9]))).logits
    assert (found - expected).square().mean().sqrt() < 1e-3 * expected.std()
    assert (without - expected).square().mean().sqrt() > 1e-2 * expected.std()
