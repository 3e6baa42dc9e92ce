import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

import rsdistill.methods
from rsdistill.errors import ConfigError
from rsdistill.methods import METHODS, load_method, options_of
from rsdistill.methods.base import Method
from rsdistill.methods.lad import LAD

ROOT = Path(__file__).parents[2]
OWN_MODULE = """
from torch import Tensor
from rsdistill.methods.base import Method, Weight

class Gap(Method):
    def __init__(self, *, weight: Weight, norm: int = 2) -> None:
        super().__init__(gap=weight)
        self.norm = norm

    def forward(self, batch, student, *teachers):
        return {"gap": (student.logits - teachers[0].logits).abs().pow(self.norm).mean()}

class Stranger:
    pass
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "their_methods.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "their_methods"
    sys.modules.pop("their_methods", None)


def test_names_are_listed_without_torch():
    code = "import sys, rsdistill.methods as m; print(*m.METHODS); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_name_loads_what_it_says(name):
    method = load_method(name)
    module, _, attribute = METHODS[name].partition(":")
    assert isinstance(method, Method)
    assert (type(method).__module__, type(method).__name__) == (module, attribute)
    assert isinstance(method, nn.Module)


@pytest.mark.parametrize("name", [*METHODS, "lad"])
def test_every_method_has_a_test_file_and_a_page(name):
    assert (ROOT / "tests" / "methods" / f"test_{name}.py").is_file()
    assert (ROOT / "docs" / "methods" / f"{name}.md").is_file()


@pytest.mark.parametrize("name", [*METHODS, "lad"])
def test_every_page_lists_every_option_with_its_default(name):
    kind = LAD if name == "lad" else type(load_method(name))
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    listed = {}
    for line in page.splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if line.startswith(f"| `{name}."):
            listed[cells[0].partition(".")[2]] = cells[1]
    shown = {option: str(value).lower() if isinstance(value, bool) else str(value) for option, value in options_of(kind).items()}
    numbers = {option: f"{value:g}" for option, value in options_of(kind).items() if isinstance(value, float)}
    if name == "skd":
        shown["pairwise"] = "10"  # follows the nodes, which the page says
    assert listed == shown | numbers


@pytest.mark.parametrize("name", [*METHODS, "lad"])
def test_every_page_gives_equation_source_differences_and_choice(name):
    page = (ROOT / "docs" / "methods" / f"{name}.md").read_text(encoding="utf-8")
    index = (ROOT / "docs" / "methods" / "index.md").read_text(encoding="utf-8")
    assert page.startswith("# ")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    wanted = (
        ["The loss", "Options", "Choose it when"]
        if name == "ce"
        else ["The loss", "Options", "What is different here", "Choose it when", "Source"]
    )
    assert [heading for heading in headings if heading in wanted] == wanted
    assert f"({name}.md)" in index


@pytest.mark.parametrize("name", [*(name for name in METHODS if name != "ce"), "lad"])
def test_every_module_says_what_it_is(name):
    text = inspect.getdoc(sys.modules[type(load_method(name)).__module__] if name != "lad" else sys.modules[LAD.__module__])
    assert f"({name})" in text.splitlines()[0]
    assert "Choose it when" in text
    assert any(word in text for word in ("arXiv", "10.1007", "10.24963", "10.1109", "ECCV"))
    assert any(word in text for word in ("Differs from", "Derived", "derived"))


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    with pytest.raises(ConfigError, match=r"unknown method 'ifdv'; did you mean 'ifvd'\?") as caught:
        load_method("kd+ifdv")
    assert all(name in caught.value.hint for name in METHODS)


@pytest.mark.parametrize(
    ("spec", "options", "message", "hint"),
    [
        ("kd", {"kd.tua": 4}, r"kd has no option 'tua'; did you mean 'tau'\?", "kd.weight, kd.tau, kd.js, kd.where"),
        ("kd", {"kdd.tau": 4}, r"belongs to no method of this run; did you mean 'kd'\?", "kd"),
        ("kd", {"tau": 4}, "option 'tau'", "kd.tau"),
        ("ce", {"ce.weight": 4}, "ce has no option 'weight'", "none"),
        ("kd", {"ifvd.weight": 4}, "belongs to no method", "kd"),
        ("kd", {"kd.tau": 0}, "kd.tau: .*greater than 0", "docs/methods"),
        ("kd", {"kd.tau": "warm"}, "kd.tau: .*number.*'warm'", "docs/methods"),
        ("kd", {"kd.weight": "nan"}, "kd.weight: .*finite", "docs/methods"),
        ("kd", {"kd.weight": -1}, "kd.weight", "docs/methods"),
        ("drd", {"drd.form": "cosin"}, "drd.form: .*'cosine'", "docs/methods"),
        ("kd+kd", {}, "names a method twice", "kd.weight"),
        ("kd+", {}, "unknown method ''", "joined by"),
        (":KD", {}, "names no module", "package.module:Class"),
        ("..base:Method", {}, "names no module", "package.module:Class"),
        ("no_such_package.methods:Gap", {}, "cannot import", "PYTHONPATH"),
        ("rsdistill.methods.kd:Kd", {}, "has no 'Kd'", "package.module:Class"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(spec, options, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        load_method(spec, options)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value)


def test_options_are_read_from_text_and_from_nested_tables():
    dotted = load_method("kd", {"kd.tau": "4", "kd.js": "true"})
    nested = load_method("kd", {"kd": {"tau": 4.0, "js": True}})
    assert (dotted.tau, dotted.js) == (nested.tau, nested.js) == (4.0, True)


def test_a_method_of_someone_else_by_its_import_string(own_module, case):
    method = load_method(f"{own_module}:Gap", {"Gap.weight": "3", "Gap.norm": 1})
    assert method.weights == {"gap": 3}
    example = case()
    assert example.values(method)["gap"] == pytest.approx((example.student.logits - example.teacher.logits).abs().mean().item())
    beside = load_method(f"kd + {own_module}:Gap", {"Gap.weight": 2})
    assert beside.weights == {"kd": 1, "Gap.gap": 2}
    assert set(example.run(beside)) == {"kd", "Gap.gap"}


def test_an_option_without_a_default_is_asked_for(own_module):
    with pytest.raises(ConfigError, match="Gap has no default for its option 'weight'") as caught:
        load_method(f"{own_module}:Gap")
    assert caught.value.hint == "set Gap.weight"


def test_a_class_that_is_no_method_is_refused(own_module):
    with pytest.raises(ConfigError, match="is not a method") as caught:
        load_method(f"{own_module}:Stranger")
    assert "rsdistill.methods.base.Method" in caught.value.hint


def test_every_file_of_the_folder_is_a_method_or_serves_them():
    files = {path.stem for path in Path(rsdistill.methods.__file__).parent.glob("*.py")} - {"__init__"}
    named = {target.partition(":")[0].rpartition(".")[2] for target in METHODS.values()}
    assert files - named == {"critics", "combined", "cutmix", "lad"}
