"""A map made in shards, of any number and size and by any executor, is the map made in one piece, byte for byte."""

import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
import rasterio
from cases import OPTIONS, Inline, holed
from harness import write_linear, write_raster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rsdistill.commands.merge import merge
from rsdistill.commands.predict import predict
from rsdistill.errors import ConfigError, OutputExistsError, SceneError
from rsdistill.inference.array_jobs import parse_shard
from rsdistill.inference.sharding import Shard, make_shard


def in_shards(case, folder, count, **options):
    """Map every shard by itself, last one first, and merge."""
    shards = folder / "shards"
    for index in range(count, 0, -1):
        predict(case.scene, work=case.work, shard=f"{index}/{count}", **case.products(shards), **OPTIONS, **options)
    return merge(shards, **case.products(folder))


@pytest.mark.parametrize("blend", ["core", "hann"])
def test_four_shards_and_merge_make_the_same_bytes(case, in_one_piece, folder, blend):
    folder.mkdir()
    result = in_shards(case, folder, 4, blend=blend)
    assert case.bytes_in(folder) == in_one_piece[blend]
    assert set(result.paths) == {folder / name for name in ("mask.tif", "mask.gpkg", "shares.tif", "odds.tif")}
    assert {path.name for path in (folder / "shards").iterdir()} == {f"mask.{index}-of-4.tif" for index in range(1, 5)}


@pytest.mark.parametrize("blend", ["core", "hann"])
def test_any_executor_makes_the_same_bytes(case, in_one_piece, folder, blend, inline):
    with ThreadPoolExecutor(3) as threads:
        for executor in (inline, threads):
            result = predict(
                case.scene,
                work=case.work,
                blend=blend,
                executor=executor,
                shard_size=100,
                overwrite=True,
                **case.products(folder),
                **OPTIONS,
            )
            assert case.bytes_in(folder) == in_one_piece[blend]
            assert result.failures == ()
    assert len(inline.calls) > 10
    data = result.data["scenes"][0]
    assert data["windows"] > data["skipped"] > 0
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    size=st.integers(8, 140),
    batch=st.integers(1, 4),
    blend=st.sampled_from(["core", "gaussian"]),
    nodata=st.sampled_from([None, 0]),
    part=st.booleans(),
)
def test_no_size_of_scene_or_shard_shows_in_the_map(tmp_path, case, height, width, size, batch, blend, nodata, part):
    scene = write_raster(tmp_path / "s.tif", holed(height, width, seed=height), nodata=nodata)
    window = (height // 3, width // 3, height - height // 3, width - width // 3) if part else None
    options = {**OPTIONS, "batch": batch, "blend": blend, "window": window, "work": case.work, "overwrite": True}
    predict(scene, out=[tmp_path / "a.tif"], **options)
    predict(scene, out=[tmp_path / "b.tif"], executor=Inline(), shard_size=size, **options)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_an_area_of_interest_and_a_resampled_scene_are_cut_too(case, folder, inline):
    import geopandas
    import shapely

    folder.mkdir()
    with rasterio.open(case.scene) as file:
        left, bottom, right, top = file.bounds
        crs = file.crs
    corner = shapely.Point((left + right) / 2, (bottom + top) / 2).buffer((top - bottom) / 4)
    geopandas.GeoDataFrame(geometry=[corner], crs=crs).to_file(folder / "aoi.gpkg")
    options = {**OPTIONS, "work": case.work, "aoi": folder / "aoi.gpkg", "pixel_size": 0.7}
    predict(case.scene, out=[folder / "a.tif", folder / "a.geojson"], **options)
    predict(case.scene, out=[folder / "b.tif", folder / "b.geojson"], executor=inline, shard_size=60, **options)
    assert (folder / "a.tif").read_bytes() == (folder / "b.tif").read_bytes()
    assert (folder / "a.geojson").read_text().replace('"a"', '"b"') == (folder / "b.geojson").read_text()


def test_several_scenes_are_one_list_of_shards(case, folder, inline):
    folder.mkdir()
    scenes = [write_raster(folder / f"s{number}.tif", holed(90 + 40 * number, 100, seed=number)) for number in range(3)]
    (folder / "s1.tif").write_bytes((folder / "s1.tif").read_bytes()[:5000])
    options = {**OPTIONS, "work": case.work}
    result = predict([folder], out=[folder / "masks"], executor=inline, shard_size=60, **options)
    assert len(result.paths) == 2
    (failure,) = {failure.partition(",")[0] for failure in result.failures}
    assert failure.startswith(str(folder / "s1.tif"))
    for scene in (scenes[0], scenes[2]):
        predict(scene, out=[folder / "alone.tif"], overwrite=True, **options)
        assert (folder / "alone.tif").read_bytes() == (folder / "masks" / scene.name).read_bytes()
        assert (folder / "masks" / f"{scene.stem}.run.toml").exists()


def test_a_task_is_plain_values_and_does_its_work_in_another_folder(case, folder, inline, monkeypatch):
    folder.mkdir()
    monkeypatch.chdir(case.root)
    held = []
    monkeypatch.setattr(inline, "submit", lambda call, task: held.append(task) or Inline.submit(inline, call, task))
    predict("s.tif", out=["elsewhere/mask.tif"], work="work", executor=inline, shard_size=200, **OPTIONS)
    shards = [pickle.loads(pickle.dumps(task)) for task in held if isinstance(task, Shard)]
    assert len(shards) >= 4
    assert len(pickle.dumps(shards[0])) < 10_000
    assert (shards[0].path.is_absolute(), shards[0].model.is_absolute()) == (True, True)
    monkeypatch.chdir(folder)
    assert make_shard(shards[0]).window == shards[0].card.window
    assert shards[0].path.exists()


def test_finished_shards_are_left_alone_and_foreign_ones_refused(case, folder):
    how = {"work": case.work, "out": [folder / "m.tif"], **OPTIONS}
    (path,) = predict(case.scene, shard="2/3", **how).paths
    before = path.stat().st_mtime_ns
    predict(case.scene, shard="2/3", **how)
    predict(case.scene, shard="2/3", overwrite=True, **how)
    assert path.stat().st_mtime_ns == before
    with pytest.raises(OutputExistsError, match=r"2-of-3\.tif exists"):
        predict(case.scene, shard="2/3", **how | {"margin": 4})
    predict(case.scene, shard="2/3", overwrite=True, **how | {"margin": 4})
    assert path.stat().st_mtime_ns > before


def test_a_shard_of_several_scenes_leaves_out_the_bad_ones(case, folder):
    folder.mkdir()
    scenes = [write_raster(folder / f"s{number}.tif", holed(90, 100, seed=number)) for number in range(3)]
    scenes[1].write_bytes(scenes[1].read_bytes()[:3000])
    how = {"work": case.work, "out": [folder / "masks"], **OPTIONS}
    result = predict(scenes, shard="1/2", **how)
    assert [path.name for path in result.paths] == ["s0.1-of-2.tif", "s2.1-of-2.tif"]
    (failure,) = result.failures
    assert str(scenes[1]) in failure
    with pytest.raises(SceneError):
        predict(scenes[1], shard="1/2", **how)


@pytest.mark.parametrize("how", [{"resume": True}, {"margin": 4}], ids=["resumed", "anew"])
def test_shards_of_an_interrupted_run_go_when_the_map_is_made_without_workers(case, folder, monkeypatch, how):
    from rsdistill.inference import scaling

    usual = {"work": case.work, "out": [folder / "m.tif"], **OPTIONS}
    monkeypatch.setattr(scaling, "put_together", lambda assembly: (_ for _ in ()).throw(SceneError("torn")))
    assert predict(case.scene, shard_size=150, executor=Inline(), **usual).failures
    monkeypatch.undo()
    assert (folder / ".m.tif.shards").is_dir()
    predict(case.scene, **usual | how)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_shards_of_something_else_give_no_leave_to_replace_a_map(case, folder, monkeypatch):
    from rsdistill.inference import scaling

    how = {"work": case.work, "out": [folder / "m.tif"], **OPTIONS}
    predict(case.scene, **how | {"margin": 4})
    stood = (folder / "m.tif").read_bytes()
    monkeypatch.setattr(scaling, "put_together", lambda assembly: (_ for _ in ()).throw(SceneError("torn")))
    assert predict(case.scene, shard_size=150, executor=Inline(), overwrite=True, **how).failures
    monkeypatch.undo()
    with pytest.raises(OutputExistsError):
        predict(case.scene, shard_size=150, executor=Inline(), resume=True, **how | {"margin": 2})
    assert (folder / "m.tif").read_bytes() == stood


def test_there_are_no_more_shards_than_windows(case, in_one_piece, folder, inline):
    (told,) = predict(case.scene, work=case.work, executor=inline, shard_size=1, **case.products(folder), **OPTIONS).data["scenes"]
    assert told["shards"] <= told["windows"]
    assert case.bytes_in(folder) == in_one_piece["core"]


def test_an_executor_that_forks_is_refused(case, folder):
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool, pytest.raises(ConfigError, match="forked"):
        predict(case.scene, work=case.work, out=[folder / "m.tif"], executor=pool, **OPTIONS)


def test_a_shard_that_nothing_is_left_for_leaves_a_marker(case, folder):
    folder.mkdir()
    scene = write_raster(folder / "tiny.tif", holed(30, 30))
    for index in (1, 2):
        result = predict(scene, work=case.work, out=[folder / "m.tif"], shard=f"{index}/2", **OPTIONS)
    assert result.paths == (folder / "m.2-of-2.empty",)
    assert result.failures == ()
    merge(folder)
    predict(scene, work=case.work, out=[folder / "alone.tif"], **OPTIONS)
    assert (folder / "m.tif").read_bytes() == (folder / "alone.tif").read_bytes()


def test_a_scene_that_changes_after_it_was_cut_is_noticed(case, folder, inline, monkeypatch):
    folder.mkdir()
    scene = shutil.copy(case.scene, folder / "s.tif")
    real = Inline.submit

    def change(self, call, task):
        os.utime(scene, (1, 1 + len(self.calls)))
        return real(self, call, task)

    monkeypatch.setattr(Inline, "submit", change)
    result = predict(scene, work=case.work, out=[folder / "m.tif"], executor=inline, **OPTIONS)
    assert result.paths == ()
    assert "not what it was when it was cut: scene" in result.failures[0]


def test_a_poisoned_shard_is_named_and_the_others_finish(case, folder, inline):
    """Blocks of one corner are overwritten: only shards that read them fail, and bad input is not tried again."""
    folder.mkdir()
    scene = shutil.copy(case.scene, folder / "s.tif")
    with rasterio.open(scene) as file:
        place, size = (int(file.get_tag_item(f"{name}_5_6", "TIFF", bidx=1)) for name in ("BLOCK_OFFSET", "BLOCK_SIZE"))
    content = bytearray(scene.read_bytes())
    content[place : place + size] = bytes(size)
    scene.write_bytes(content)
    result = predict(scene, work=case.work, out=[folder / "m.tif"], executor=inline, shard_size=150, **OPTIONS)
    assert result.paths == ()
    assert result.data["retries"] == 0
    assert result.failures
    assert all("shard" in failure and "s.tif" in failure for failure in result.failures)
    kept = list((folder / ".m.tif.shards").glob("part.*.tif"))
    assert len(kept) + len(result.failures) == len(inline.calls)
    assert len(kept) > len(result.failures)


def test_a_shard_that_fails_once_is_tried_again(case, in_one_piece, folder, monkeypatch):
    from rsdistill.inference import sharding

    real, failed = sharding.ShardWriter.write, []

    def flaky(self, row, labels, shares):
        if self.card.index not in failed:
            failed.append(self.card.index)
            raise OSError("the network drive is away")
        real(self, row, labels, shares)

    monkeypatch.setattr(sharding.ShardWriter, "write", flaky)
    result = predict(case.scene, work=case.work, executor=Inline(), shard_size=200, **case.products(folder), **OPTIONS)
    assert result.data["retries"] == len(failed) > 3
    assert case.bytes_in(folder) == in_one_piece["core"]
    failed.clear()
    monkeypatch.setattr(sharding.ShardWriter, "write", lambda *_: (_ for _ in ()).throw(OSError("the drive is away")))
    result = predict(case.scene, work=case.work, executor=Inline(), retries=1, overwrite=True, **case.products(folder), **OPTIONS)
    assert result.data["retries"] == len(result.failures)
    assert "OSError: the drive is away" in result.failures[0]


def test_what_another_run_finished_is_not_made_again(case, in_one_piece, folder, monkeypatch):
    from rsdistill.inference import sharding

    real, made = sharding.ShardWriter.write, set()

    def torn(self, row, labels, shares):
        if len(made) > 3:
            raise SceneError("torn")
        made.add(self.card.index)
        real(self, row, labels, shares)

    how = {"work": case.work, "shard_size": 150, "executor": Inline(), **case.products(folder), **OPTIONS}
    monkeypatch.setattr(sharding.ShardWriter, "write", torn)
    assert predict(case.scene, **how).failures
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / ".mask.tif.shards").glob("part.*.tif")}
    again = []
    monkeypatch.setattr(sharding.ShardWriter, "write", lambda self, *given: again.append(self.card.index) or real(self, *given))
    result = predict(case.scene, resume=True, **how | {"shard_size": 90})
    assert kept
    assert not set(again) & {int(name.split(".")[1].split("-")[0]) for name in kept}
    assert result.failures == ()
    assert case.bytes_in(folder) == in_one_piece["core"]


@pytest.mark.parametrize("place", ["while polygons are made", "before the run file", "before the shards go"])
def test_a_run_that_ends_before_all_its_files_stand_is_gone_on_with(case, in_one_piece, folder, monkeypatch, place):
    from rsdistill.inference import merging, run_files

    real = shutil.rmtree

    def end(*_):
        raise KeyboardInterrupt

    def clear(path, **how):
        return end() if (path / "run.json").exists() else real(path, **how)

    how = {"work": case.work, "shard_size": 150, "executor": Inline(), **case.products(folder), **OPTIONS}
    with monkeypatch.context() as patched:
        if place == "while polygons are made":
            patched.setattr(merging, "write_drawn", end)
            assert predict(case.scene, **how).failures
        else:
            patched.setattr(*((run_files, "beside", end) if place == "before the run file" else (shutil, "rmtree", clear)))
            with pytest.raises(KeyboardInterrupt):
                predict(case.scene, **how)
    assert (folder / "mask.tif").exists()
    with pytest.raises(OutputExistsError):
        predict(case.scene, **how)
    result = predict(case.scene, resume=True, **how)
    assert result.failures == ()
    assert case.bytes_in(folder) == in_one_piece["core"]
    assert (folder / "mask.run.toml").exists()
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_a_shard_that_cannot_be_written_lets_go_of_its_scene_at_once(case, folder, monkeypatch):
    from rsdistill.inference import sharding

    real, held = sharding.Mapper.strips, []

    def watched(self, *given, **named):
        held.append(real(self, *given, **named))  # as a debugger holds it, so that it does not end for want of references
        return held[-1]

    def full(*_):
        raise OSError("the drive is full")

    monkeypatch.setattr(sharding.Mapper, "strips", watched)
    monkeypatch.setattr(sharding.ShardWriter, "write", full)
    with pytest.raises(OSError, match="full"):
        predict(case.scene, work=case.work, shard="1/1", out=[folder / "m.tif"], **OPTIONS)
    assert [next(strips, "ended") for strips in held] == ["ended"]


def test_other_options_make_all_shards_anew(case, folder, monkeypatch):
    from rsdistill.inference import scaling

    how = {"work": case.work, "shard_size": 150, "executor": Inline(), **OPTIONS}
    monkeypatch.setattr(scaling, "put_together", lambda assembly: (_ for _ in ()).throw(SceneError("torn")))
    assert predict(case.scene, out=[folder / "m.tif"], **how).failures
    monkeypatch.undo()
    write_linear(case.root / "other.safetensors", classes=4, seed=3)
    predict(case.scene, out=[folder / "m.tif"], resume=True, model=case.root / "other.safetensors", **how)
    predict(case.scene, out=[folder / "n.tif"], model=case.root / "other.safetensors", work=case.work, **OPTIONS)
    assert (folder / "m.tif").read_bytes() == (folder / "n.tif").read_bytes()


@pytest.mark.parametrize(
    ("text", "variables", "found"),
    [
        ("3/8", {"SLURM_ARRAY_TASK_ID": "5"}, (3, 8)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "5"}, (5, 8)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1"}, (5, 8)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "0"}, (6, 8)),
        ("auto/8", {"SLURM_ARRAY_TASK_ID": "0"}, (1, 8)),
        ("auto/8", {"JOB_COMPLETION_INDEX": "0"}, (1, 8)),
        ("auto/8", {"AWS_BATCH_JOB_ARRAY_INDEX": "7"}, (8, 8)),
    ],
)
def test_the_shard_is_named_or_asked_of_the_array_job(text, variables, found):
    assert parse_shard(text, variables) == found


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("0/8", {}),
        ("9/8", {}),
        ("1", {}),
        ("1/0", {}),
        ("one/8", {}),
        ("-1/8", {}),
        ("auto/8", {}),
        ("auto/8", {"JOB_COMPLETION_INDEX": "8"}),
        ("1/1000000000000000000000", {}),
    ],
)
def test_what_is_no_shard_is_refused(text, variables):
    with pytest.raises(ConfigError):
        parse_shard(text, variables)


@pytest.mark.parametrize(
    "options",
    [
        {"shard": "1/2", "workers": 2},
        {"scheduler": "tcp://host:8786"},
        {"shard": "1/2", "engine": "dask"},
        {"workers": 0},
        {"shard": "5/4"},
    ],
)
def test_options_that_contradict_each_other_are_refused(case, folder, options):
    with pytest.raises(ConfigError):
        predict(case.scene, work=case.work, out=[folder / "m.tif"], **options)


def test_a_teacher_s_context_is_made_once_for_all_shards(folder, inline, monkeypatch):
    import torch

    from rsdistill.models import ModelCard, build_network, save_model
    from rsdistill.models.ginet import GINet

    folder.mkdir()
    torch.manual_seed(0)
    network = build_network(
        "ginet", {"encoder": "mobilenetv4_conv_small_035", "dim": 8, "hidden": 8, "context_ratio": 4}, bands=3, classes=4
    )
    with torch.no_grad():
        for weights in network.parameters():  # guidance begins at zero: without noise, context would change nothing
            weights += 0.05 * torch.randn_like(weights)
    classes = [{"id": i + 1, "name": f"class {i}", "color": "#808080"} for i in range(4)]
    card = ModelCard(arch="ginet", classes=classes, bands=(1, 2, 3), mean=(100.0,) * 3, std=(50.0,) * 3, tile=64, margin=8)
    save_model(folder / "teacher.safetensors", network.eval(), card)
    scene = write_raster(folder / "s.tif", holed(260, 200), nodata=0)
    how = {"work": folder, "model": "teacher", "tile": 64, "threads": 1}
    predict(scene, out=[folder / "a.tif"], **how)
    made, real = [], GINet.encode_context
    monkeypatch.setattr(GINet, "encode_context", lambda self, *given: made.append(1) or real(self, *given))
    predict(scene, out=[folder / "b.tif"], executor=inline, shard_size=70, **how)
    assert len(inline.calls) > 6
    assert made == [1]
    assert (folder / "a.tif").read_bytes() == (folder / "b.tif").read_bytes()
    (foreign,) = predict(scene, out=[folder / "shards" / "c.tif"], shard="1/2", **how).paths
    foreign.unlink()
    made.clear()
    for index in range(1, 4):
        predict(scene, out=[folder / "shards" / "c.tif"], shard=f"{index}/3", **how)
    assert made == [1]
    merge(folder / "shards", out=folder / "c.tif")
    assert (folder / "a.tif").read_bytes() == (folder / "c.tif").read_bytes()
    assert not [path for path in (folder / "shards").iterdir() if path.name.startswith(".")]
    assert np.unique(rasterio.open(folder / "c.tif").read(1)).size > 2
