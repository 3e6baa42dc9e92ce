"""The documentation says what is: generated parts are fresh, links lead somewhere, commands, flags, files and names in it exist."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import rsdistill
from rsdistill import errors
from rsdistill.cli import application, config_of
from rsdistill.config import run_options
from rsdistill.geo.classes import load_class_table
from rsdistill.methods import METHODS, load_method

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "examples").iterdir())


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(application()).commands


def test_generated_parts_are_fresh(capsys):
    generate = load(ROOT / "docs" / "generate.py")
    assert generate.main(["--check"]) == 0, capsys.readouterr().out


def test_the_generator_notices_what_is_out_of_date(monkeypatch, capsys):
    generate = load(ROOT / "docs" / "generate.py")
    monkeypatch.setitem(generate.METHODS, "kd", METHODS["cwd"])
    assert generate.main(["--check"]) == 1
    assert "README.md is out of date" in capsys.readouterr().out


def test_readme_names_every_file_and_method():
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"```text\nrsdistill/\n(.*?)```", readme, re.DOTALL)[1]
    files = {line.split()[0] for line in shown.splitlines()}
    real = {path.name for pattern in ("*.py", "*.j2") for path in (ROOT / "rsdistill").rglob(pattern)}
    assert {name for name in files if "." in name} == real
    assert set(re.findall(r"^\| \[([\w-]+)\]\(docs/methods/", readme, re.MULTILINE)) == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_page_and_its_test(name):
    module = METHODS[name].partition(":")[0].rpartition(".")[2]
    assert (ROOT / "docs" / "methods" / f"{name}.md").exists()
    assert list((ROOT / "tests" / "methods").glob(f"test_*{module}.py"))


def targets(page: Path) -> Iterator[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in targets(page):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.is_relative_to(ROOT), target
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}, target


def test_every_page_is_reached():
    """From the navigation, or from a page that is in it."""
    docs = ROOT / "docs"
    listed = set(re.findall(r": ([\w/.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    for page in listed:
        assert (docs / page).exists(), page
    linked = {str((docs / page).parent.joinpath(target).resolve()) for page in listed for target in targets(docs / page)}
    for page in docs.rglob("*.md"):
        assert str(page.relative_to(docs)) in listed or str(page.resolve()) in linked, name_of(page)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_use_commands_and_flags_that_exist(page, commands):
    text = "\n".join(blocks(page, "bash") + re.findall(r"`(rsdistill [^`]+)`", page.read_text()))
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        words = shlex.split(line, comments=True)
        if "rsdistill" not in words or "pip" in words or "docker" in words:
            continue
        command, *rest = words[words.index("rsdistill") + 1 :] or [""]
        if command.startswith("-") or command.isupper():
            continue
        assert command in commands, line
        known = {flag for one in commands[command].params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
        assert {word.partition("=")[0] for word in rest if word.startswith("-") and not word[1:2].isdigit()} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_flags_in_prose_exist(page, commands):
    known = {flag for command in commands.values() for one in command.params for flag in (*one.opts, *one.secondary_opts)}
    known |= {"--help", "--version", "--check", "--strict", "--import-mode", "--user", "--rm", "--constraint", "--install-completion"}
    for flag in re.findall(r"`(--[a-z][a-z0-9-]*)", page.read_text()):
        assert flag in known, f"{name_of(page)}: {flag}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_import_what_exists(page):
    for block in blocks(page, "python"):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rsdistill"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "rsdistill":
                assert hasattr(rsdistill, node.attr), node.attr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_toml_blocks_are_run_files_or_class_tables(page, tmp_path):
    for number, block in enumerate(blocks(page, "toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(block)
        check_toml(path)


def check_toml(path: Path) -> None:
    content = tomllib.loads(path.read_text())
    if "class" in content:
        assert len(load_class_table(path)) >= 1
        return
    command = content["command"]
    fields = config_of(command).model_fields
    arguments = {name: ["scene.tif"] for name, field in fields.items() if field.is_required()}  # given on the command line
    config = config_of(command).of(**arguments | run_options(path, command, fields))
    if command in ("distill", "compare"):
        for method in [config.method] if command == "distill" else config.methods:
            load_method(method, config.set)


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.suffix == ".toml"], ids=name_of)
def test_example_files_are_valid_and_say_how_they_are_used(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert path.name == "classes.toml" or f"--config examples/{path.name}" in first
    check_toml(path)


@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.suffix == ".py"], ids=name_of)
def test_example_scripts_are_short_and_import_what_exists(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not path.with_name(f"{node.module}.py").exists():
            module = importlib.import_module(node.module)
            assert all(hasattr(module, one.name) for one in node.names), ast.unparse(node)


@pytest.mark.slow
def test_far_context_is_decided_by_context_alone(tmp_path):
    example = load(ROOT / "examples" / "far_context.py")
    scores = example.compare(tmp_path, steps=200)
    assert scores["ginet"] >= 0.95
    assert abs(scores["local"] - 0.5) <= 0.1
    assert scores["ginet, beacons inverted"] <= 0.05
    example.draw(tmp_path, scores, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_hand_written_model_of_the_files_page_loads(tmp_path, monkeypatch):
    (block,) = blocks(ROOT / "docs" / "reference" / "files.md", "python")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "files.md", "exec"), {})  # noqa: S102
    from rsdistill.models import load_model

    network, card = load_model(tmp_path / "threshold.safetensors")
    assert card.class_names == ("dark", "bright")
    assert network.weight.flatten().tolist() == [-1, 1]


def test_method_of_the_how_to_runs(tmp_path, monkeypatch):
    (block,) = blocks(ROOT / "docs" / "how-to" / "your-own-method.md", "python")
    (tmp_path / "sharp.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    import torch

    from rsdistill.batches import IGNORE, Batch, Segmentation

    method = load_method("sharp:SharpKD", {"SharpKD.power": "1"})
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    label = torch.full((1, 8, 8), IGNORE)
    label[:, :4] = 1
    batch = Batch(torch.zeros(1, 3, 8, 8), label, torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, dtype=torch.bool))
    teacher = Segmentation(torch.full((1, 2, 4, 4), 3.0), torch.zeros(1, 5, 4, 4))
    terms = method(batch, Segmentation(logits, torch.zeros(1, 6, 4, 4)), teacher)
    assert terms["logits"].item() == pytest.approx(3)


def test_every_error_and_exit_code_is_documented():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RsdistillError)]
    assert len(kinds) > 10
    for kind in kinds:
        assert f"`{kind.__name__}` | {kind.exit_code} |" in page


def test_card_keys_are_documented():
    from rsdistill.geo.tile_index import TileSetCard
    from rsdistill.models import ModelCard

    page = (ROOT / "docs" / "reference" / "files.md").read_text()
    for key in ModelCard.model_fields.keys() | TileSetCard.model_fields.keys():
        assert f"`{key}`" in page, key


def test_changelog_names_the_commands():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    for name in rsdistill.COMMANDS:
        assert f"`{name.replace('_', '-')}`" in changelog


def test_public_names():
    assert set(rsdistill.__all__) == {"COMMANDS", "__version__", *rsdistill.COMMANDS}
    for name in rsdistill.COMMANDS:
        function = getattr(rsdistill, name)
        assert callable(function)
        assert "The result is" in " ".join(function.__doc__.split())
        assert issubclass(config_of(name), rsdistill.config.Config)
    with pytest.raises(AttributeError, match="no attribute 'predikt'"):
        rsdistill.predikt  # noqa: B018
