"""The loop on a real tile set: it learns, repeats itself, goes on after an interruption, and gives up in good order."""

import csv
import tomllib

import pytest
import torch
from safetensors.torch import load_file

from rsdistill.commands.distill import DistillConfig, distill
from rsdistill.commands.train_teacher import train_teacher
from rsdistill.errors import CheckpointError, ConfigError, DivergedError, OutputExistsError, TileSetError
from rsdistill.models.card import read_card
from rsdistill.models.margins import MARGINS
from rsdistill.reporting import Silent
from rsdistill.training import loop
from rsdistill.training.state import file_digest, load_state

QUICK = {"batch": 4, "validate_every": 4, "threads": 1}


class Interrupted(Silent):
    """A person who presses Ctrl-C at a step."""

    def __init__(self, step):
        self.step = step

    def task(self, name, total=None):
        outer = super().task(name, total)
        person = self

        class Task:
            done = 0

            def __enter__(self):
                outer.__enter__()
                return self

            def __exit__(self, *fault):
                return outer.__exit__(*fault)

            def advance(self, amount=1, **_figures):
                self.done += amount
                if name == "train" and amount and self.done >= person.step:
                    raise KeyboardInterrupt

        return Task()


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def teacher(tiles, tmp_path_factory):
    """Return a trained linear teacher, whose file is made once."""
    out = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    train_teacher(tiles=tiles, out=out, arch="linear", steps=8, lr=0.05, **QUICK)
    return out


def test_a_ginet_trains_and_leaves_what_the_contract_names(tiles, tmp_path):
    work = tmp_path / "work"
    small = {"dim": 8, "encoder": "mobilenetv4_conv_small_035"}
    result = train_teacher(tiles=tiles, work=work, steps=4, set={"dim": 8}, encoder=small["encoder"], contexts=2, **QUICK)
    assert result.paths == (work / "teacher.safetensors",)
    stem = {path.name for path in work.iterdir()}
    assert stem == {f"teacher.{end}" for end in ("safetensors", "last.safetensors", "log.csv", "curves.png", "run.toml")}
    card = read_card(work / "teacher.safetensors")
    assert card.arch == "ginet"
    assert card.arch_args["dim"] == 8
    assert card.seed == 0
    assert card.data == file_digest(tiles / "tileset.json")
    assert {"python", "rsdistill", "torch"} <= card.versions.keys()
    assert card.canvas_margin in MARGINS
    assert len(card.mean) == 3
    assert 0 <= result.data["miou"] <= 1
    assert result.data["steps"] == 4
    row = rows_of(work / "teacher.log.csv")[-1]
    assert {"step", "seconds", "lr", "loss", "ce", "global", "aux", "lad", "lad.weighted", "miou", "pixel_accuracy"} <= set(row)
    run = tomllib.loads((work / "teacher.run.toml").read_text())
    assert run["command"] == "train_teacher"
    assert run["steps"] == 4


def test_training_learns(tiles, tmp_path):
    train_teacher(tiles=tiles, out=tmp_path / "t.safetensors", arch="linear", steps=40, lr=0.05, **QUICK | {"validate_every": 40})
    losses = [float(row["loss"]) for row in rows_of(tmp_path / "t.log.csv")]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(("method", "accumulate"), [("kd", 1), ("skd", 1), ("kd", 3)])
def test_an_interrupted_run_ends_with_the_same_bytes(tiles, teacher, tmp_path, method, accumulate):
    """Interrupted where gradients wait for more of them, too: these are part of the state."""
    options = {"tiles": tiles, "teacher": (teacher,), "method": method, "student": "tiny", "steps": 6, **QUICK, "validate_every": 2}
    options["accumulate"] = accumulate
    distill(out=tmp_path / "whole.safetensors", **options)
    with pytest.raises(KeyboardInterrupt):
        distill(out=tmp_path / "cut.safetensors", progress=Interrupted(4), **options)
    assert not (tmp_path / "cut.safetensors").exists()
    distill(out=tmp_path / "cut.safetensors", resume=True, **options)
    assert not (tmp_path / "cut.state.pt").exists()
    whole, cut = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "cut.safetensors")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert rows_of(tmp_path / "whole.log.csv")[-1]["loss"] == rows_of(tmp_path / "cut.log.csv")[-1]["loss"]


def test_the_seed_decides_and_workers_do_not(tiles, tmp_path):
    def weights(name, **options):
        train_teacher(tiles=tiles, out=tmp_path / f"{name}.safetensors", arch="linear", steps=3, lr=0.05, **QUICK, **options)
        return load_file(tmp_path / f"{name}.safetensors")["weight"]

    first = weights("first")
    assert torch.equal(first, weights("again", workers=1))
    assert not torch.equal(first, weights("other", seed=1))


def test_seconds_bound_a_run(tiles, tmp_path):
    rare = QUICK | {"validate_every": 10**6}
    result = train_teacher(tiles=tiles, out=tmp_path / "t.safetensors", arch="linear", steps=100_000, max_seconds=1.0, **rare)
    assert 1.0 <= result.data["seconds"] < 10
    assert 1 < result.data["steps"] < 100_000


def test_a_run_that_leaves_the_numbers_goes_back_and_then_gives_up(tiles, tmp_path, monkeypatch):
    original, calls = loop.Fit._sum, []

    def poisoned(self, terms):
        if self.step >= 5:
            calls.append(self.rollbacks)
            terms = {**terms, "ce": terms["ce"] * float("nan")}
        return original(self, terms)

    monkeypatch.setattr(loop.Fit, "_sum", poisoned)
    options = {"tiles": tiles, "out": tmp_path / "t.safetensors", "arch": "linear", "steps": 8, **QUICK, "validate_every": 2}
    with pytest.raises(DivergedError, match="term 'ce' is nan at step 5"):
        train_teacher(**options)
    assert calls == [0, 1, 2, 3]
    assert not (tmp_path / "t.safetensors").exists()
    assert load_state(tmp_path / "t.state.pt", "other", Silent()) is None


def test_one_bad_step_costs_half_the_learning_rate_and_not_the_run(tiles, tmp_path, monkeypatch):
    original, hit = loop.Fit._sum, []

    def poisoned(self, terms):
        if self.step == 5 and not hit:
            hit.append(self.step)
            terms = {**terms, "ce": terms["ce"] * float("inf")}
        return original(self, terms)

    monkeypatch.setattr(loop.Fit, "_sum", poisoned)
    result = train_teacher(tiles=tiles, out=tmp_path / "t.safetensors", arch="linear", steps=8, **QUICK | {"validate_every": 2})
    assert hit == [5]
    assert result.data["steps"] == 8


def test_ce_needs_no_teacher(tiles, tmp_path):
    result = distill(tiles=tiles, work=tmp_path, method="ce", student="linear", steps=2, **QUICK)
    assert read_card(result.paths[0]).method == "ce"


def test_a_missing_teacher_is_refused_before_anything_is_written(tiles, tmp_path):
    with pytest.raises(CheckpointError, match="no model teacher"):
        distill(tiles=tiles, work=tmp_path / "work", steps=2)
    assert not (tmp_path / "work").exists()


def test_a_teacher_of_other_bands_is_refused_with_both(tiles, tmp_path):
    from rsdistill.models.checkpoints import build_network, save_model

    card = read_card_of(tiles, bands=(1, 2), mean=(0.0, 0.0), std=(1.0, 1.0))
    save_model(tmp_path / "two.safetensors", build_network("linear", {}, 2, len(card.classes)), card)
    with pytest.raises(CheckpointError, match=r"bands \[1, 2\].*\[1, 2, 3\]"):
        distill(tiles=tiles, work=tmp_path, teacher=(tmp_path / "two.safetensors",), steps=2)


def read_card_of(tiles, **changes):
    from rsdistill.geo.tile_index import load_tile_set
    from rsdistill.models.card import ClassEntry, ModelCard

    card = load_tile_set(tiles).card
    classes = tuple(ClassEntry(id=one["id"], name=one["name"], color=one["color"]) for one in card.classes)
    fields = {"bands": card.bands, "mean": card.mean, "std": card.std} | changes
    return ModelCard(arch="linear", classes=classes, **fields)


def test_what_exists_is_not_replaced_unasked(tiles, teacher):
    before = teacher.read_bytes()
    with pytest.raises(OutputExistsError):
        train_teacher(tiles=tiles, out=teacher, arch="linear", steps=1)
    assert teacher.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch": 6, "contexts": 4}, "multiple of contexts"),
        ({"arch": "unet9"}, "unknown architecture"),
        ({"device": "tpu"}, "unknown device"),
        ({"set": {"dmi": 4}}, "dmi"),
    ],
)
def test_impossible_options_are_one_clear_error(tiles, tmp_path, options, says):
    with pytest.raises(ConfigError, match=says):
        train_teacher(tiles=tiles, work=tmp_path, steps=1, **options)


def test_no_tile_set_is_said(tmp_path):
    with pytest.raises(TileSetError, match=r"tiles"):
        train_teacher(work=tmp_path)


def test_half_of_the_labels_serve_the_semi_supervised_method(tiles, teacher, tmp_path):
    result = distill(tiles=tiles, work=tmp_path, method="mgd", teacher=(teacher,), student="tiny", steps=2, labels_fraction=0.5, **QUICK)
    assert torch.isfinite(torch.tensor(result.data["miou"]))


def test_balance_needs_cross_entropy_to_measure_against(tiles, teacher, tmp_path):
    for options in ({"calibrate": 0}, {"loss": ("dice",)}):
        with pytest.raises(ConfigError, match="cross-entropy"):
            distill(tiles=tiles, work=tmp_path, teacher=(teacher,), balance=1.0, **options)


def test_calibration_does_not_change_the_run_and_balance_does(tiles, teacher, tmp_path):
    def weights(name, **options):
        out = tmp_path / f"{name}.safetensors"
        distill(tiles=tiles, out=out, teacher=(teacher,), method="kd", student="tiny", steps=3, **QUICK, **options)
        return load_file(out)["classifier.weight"]

    plain = weights("plain", calibrate=0)
    assert torch.equal(plain, weights("measured", calibrate=2))
    assert not torch.equal(plain, weights("balanced", calibrate=2, balance=0.1))


@pytest.mark.parametrize(("given", "share"), [("1/16", 0.0625), ("0.5", 0.5), (1, 1.0)])
def test_a_share_may_be_written_as_a_fraction(given, share):
    assert DistillConfig.of(labels_fraction=given).labels_fraction == share


@pytest.mark.parametrize("given", ["0/16", "2/1", "1/0", "a/b", "0"])
def test_no_share_is_refused(given):
    with pytest.raises(ConfigError, match="labels_fraction"):
        DistillConfig.of(labels_fraction=given)


def test_two_teachers_of_a_method_that_takes_one_answer_together(tiles, teacher, tmp_path):
    result = distill(tiles=tiles, work=tmp_path, teacher=(teacher, teacher), student="linear", steps=2, **QUICK)
    assert result.data["steps"] == 2
