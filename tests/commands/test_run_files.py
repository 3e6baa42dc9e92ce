"""The run file beside a result is the whole run: with an empty workspace it makes the same result again."""

import tomllib

import pytest
import tomli_w
from harness import content, ended, make_world, write_linear

QUICK = ["--steps", 2, "--threads", 1, "--validate-every", 1]
TRAINED = {"steps", "batch", "tiles", "out", "device"}
RUNS = {
    "tile": (["{scene}", "--labels", "{labels}", "--classes", "{classes}"], "tiles", "tiles.run.toml", {"tile", "out"}),
    "train-teacher": (["--arch", "linear", *QUICK], "teacher.safetensors", "teacher.run.toml", TRAINED),
    "distill": (["--student", "linear", *QUICK], "student.safetensors", "student.run.toml", TRAINED | {"teacher"}),
    "predict": (["{scene}"], "masks/scene.tif", "masks/scene.run.toml", {"model", "out", "backend"}),
    "evaluate": (["--split", "val"], "evaluation/metrics.json", "evaluation/evaluate.run.toml", {"model", "tiles", "out"}),
    "export": ([], "student.onnx", "student.onnx.run.toml", {"model", "out", "format", "tile"}),
}
"""Options of each command, its result, its run file, and what that must hold though nobody gave it."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_file_needs_no_workspace(world, tmp_path, monkeypatch, name):
    command, result, run_file, chosen = RUNS[name]
    if name == "export":
        pytest.importorskip("onnxscript")
    if name == "distill":
        write_linear(world.work / "teacher.safetensors", classes=7, seed=3)
    command = [part.format(**world._asdict()) if isinstance(part, str) else part for part in command]
    first = ended(name, *command, "--work", world.work, "--overwrite", "-q")
    assert first.code == 0, first.err
    before = content(world.work / result)
    options = tomllib.loads((world.work / run_file).read_text(encoding="utf-8"))
    assert chosen <= options.keys()
    del options["work"]
    (tmp_path / "run.toml").write_text(tomli_w.dumps(options), encoding="utf-8")
    monkeypatch.setenv("RSDISTILL_WORK", str(tmp_path / "empty"))
    again = ended(name, "--config", tmp_path / "run.toml", "--overwrite", "-q")
    assert again.code == 0, again.err
    after = content(world.work / result)
    if name == "tile":
        before, after = ({file: data for file, data in one.items() if file.endswith(".tif")} for one in (before, after))
    assert after == before
    assert not (tmp_path / "empty").exists()
