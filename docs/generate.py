"""The generated parts of the documentation: the command line's reference, and the tables and trees that other pages hold.

python docs/generate.py            writes them
python docs/generate.py --check    writes nothing; names what is out of date and leaves with 1
"""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import rsdistill
from rsdistill import errors
from rsdistill.cli import application
from rsdistill.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rsdistill"
FLOORS = (
    *("__init__.py", "__main__.py", "cli.py", "terminal.py", "completion.py", "commands", "training", "inference", "data", "models"),
    *("methods", "metrics.py", "batches.py", "outputs", "geo", "config.py", "reporting.py", "errors.py"),
)
"""The package from top to bottom, as imports run; what is not named here comes last."""
BESIDE = {
    "tests/": "mirrors rsdistill/; the same names with test_ before them",
    "examples/": "scripts and TOML files that run",
    "docs/": "this documentation; generate.py makes its generated parts",
}
COMMENT_WIDTH = 100
REFERENCE = re.compile(r"arXiv (\d{4}\.\d{4,5})|(10\.\d{4,}/[^\s,;]+[^\s,;.])")


def main(arguments: list[str]) -> int:
    """Write the generated parts, or with ``--check`` only compare them; return the exit code."""
    old = [path for path, text in pages() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in arguments:
        for path in old:
            print(f"{path.relative_to(ROOT)} is out of date: python docs/generate.py")
        return 1 if old else 0
    for path, text in pages():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


def pages() -> Iterator[tuple[Path, str]]:
    """Yield every page that holds generated text, and what it should be."""
    yield ROOT / "docs/reference/cli.md", command_line()
    for page, parts in {
        "README.md": {"methods": method_table(), "tree": tree()},
        "docs/reference/errors.md": {"errors": error_table()},
        "docs/reference/python.md": {"functions": function_table()},
        "docs/benchmarks/predict.md": {"bench": bench_table(ROOT / "docs/benchmarks/predict.json")},
    }.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, content in parts.items():
            start, end = f"<!-- {name}:start (made by docs/generate.py) -->", f"<!-- {name}:end -->"
            before, _, rest = text.partition(start)
            _, _, after = rest.partition(end)
            text = f"{before}{start}\n\n{content}\n\n{end}{after}"
        yield ROOT / page, text


def bench_table(path: Path) -> str:
    """Return what ``rsdistill bench`` found, from the file that it wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))
    options, machine = found["options"], found["machine"]
    met = {True: "yes", False: "**no**", None: ""}
    rows = [f"| {one['key']} | {one['what']} | {one['goal']} | {one['found']} | {met[one['met']]} |" for one in found["lines"]]
    network = Path(options["model"]).name if options["model"] else f"an untrained `{options['arch']}`"
    where = ", ".join(f"{name} {machine[name]}" for name in ("system", "processor", "python", "torch", "rsdistill"))
    told = f"Network: {network}; threads: {options['threads']}; rounds: {options['rounds']}; {where}; cores: {machine['cores']}."
    return "\n".join(["| | what | goal | found | met |", "|---|---|---|---|---|", *rows, "", told])


def command_line() -> str:
    """Return the page of all commands, their arguments and options, from what ``--help`` is made of."""
    parts = [
        "# Command line\n",
        "Results' paths go to stdout, one a line; progress and messages to stderr. Every command takes `--config FILE`, `--json`, `-q` and",
        "`-v`; flags win over the file. [Exit codes](errors.md) are the same everywhere. This page is made from the commands themselves.\n",
        "`rsdistill --install-completion` teaches your shell the commands, their flags, and the names of methods, networks, datasets,",
        "classes, and models in the workspace.\n",
    ]
    for name, command in sorted(typer.main.get_command(application()).commands.items(), key=lambda item: _order(item[0])):  # type: ignore[attr-defined]
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        parts += [f"## {name}\n", f"```\nrsdistill {name} {''.join(f'[{one.metavar}] ' for one in arguments)}[OPTIONS]\n```\n"]
        parts += [_prose(command.help), "\n| | | |\n|---|---|---|", *map(_row, command.params), ""]
    return "\n".join(parts).rstrip() + "\n"


def _order(name: str) -> int:
    return rsdistill.COMMANDS.index(name.replace("-", "_"))


def _row(parameter: Any) -> str:
    """One line of a command's table: names, value, meaning."""
    value = "" if parameter.metavar is None else f"`{parameter.metavar}`".replace("|", "\\|")
    if parameter.param_type_name == "argument":
        return f"| {value} | | {_prose(parameter.help)} |"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    many = " (repeatable)" if parameter.multiple else ""
    return f"| {names} | {value}{many} | {_prose(parameter.help)} |"


def _prose(text: str | None) -> str:
    """Text of a docstring or help as Markdown: double backticks halved, bars kept out of tables' way, no accidental HTML."""
    text = (text or "").replace("``", "`").replace("|", "\\|").strip()
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def method_table() -> str:
    """Return the table of METHODS: name, what is transferred, paper, when to choose it; read from docstrings, without torch."""
    rows = ["| method | what the student learns from the teacher | paper | choose it when |", "|---|---|---|---|"]
    for name, target in METHODS.items():
        if name == "ce":
            rows.append("| [ce](docs/methods/ce.md) | nothing: the labels alone | | always: the baseline of every comparison |")
            continue
        module = target.partition(":")[0]
        source = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        paragraphs = [_flat(text) for text in (ast.get_docstring(source) or "").split("\n\n")]
        what = paragraphs[0].partition(": ")[2].rstrip(".")
        own = any(text.startswith("Ours.") for text in paragraphs)
        paper = "ours" if own else next((_link(text) for text in paragraphs if REFERENCE.search(text)), "")
        when = next(text for text in paragraphs if "Choose it when: " in text).partition("Choose it when: ")[2]
        rows.append(f"| [{name}](docs/methods/{name}.md) | {_cell(what)} | {paper} | {_cell(_first(when))} |")
    return "\n".join(rows)


def _link(citation: str) -> str:
    """Shorten a citation to its first author and year, linked to the paper."""
    arxiv, doi = next(iter(REFERENCE.findall(citation)))
    where = f"https://arxiv.org/abs/{arxiv}" if arxiv else f"https://doi.org/{doi}"
    authors = citation.partition(":")[0].split(", ")
    author = authors[0].removesuffix(" et al.") + (" et al." if len(authors) > 1 or "et al." in citation else "")
    year = re.findall(r"\b20\d\d\b(?!\.\d)", citation)[-1]
    return f"[{author} {year}]({where})"


def tree() -> str:
    """Return the package's files, each with the first sentence of its docstring."""
    lines = ["```text", "rsdistill/"]
    names = sorted(path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())
    for name in sorted(names, key=lambda name: FLOORS.index(name) if name in FLOORS else len(FLOORS)):
        path = PACKAGE / name
        if path.is_file():
            lines.append(_entry(2, name, path))
            continue
        lines.append(_entry(2, f"{name}/", path / "__init__.py"))
        inside = sorted(file for file in path.iterdir() if file.suffix in (".py", ".j2") and file.name != "__init__.py")
        lines += [_entry(4, file.name, file) for file in inside]
    return "\n".join([*lines, *(f"{name:<24} {what}" for name, what in BESIDE.items()), "```"])


def _entry(indent: int, name: str, path: Path) -> str:
    if path.suffix == ".j2":
        first = path.read_text(encoding="utf-8").splitlines()[0]
        return f"{' ' * indent + name:<24} {first.removeprefix('{# ').removesuffix(' #}')}"
    sentence = _first(_flat(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")).replace("``", "")
    sentence = re.sub(rf"^{path.stem.replace('_', '-')}: ", "", sentence)
    while len(sentence) > COMMENT_WIDTH and re.search(r"[;:] ", sentence):
        sentence = re.split(r"[;:] (?!.*[;:] )", sentence)[0]
    return f"{' ' * indent + name:<24} {sentence}"


def error_table() -> str:
    """Return the tree of errors with exit codes and meanings."""
    rows = ["| error | exit | meaning |", "|---|---|---|"]
    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, errors.RsdistillError)]
    for kind in kinds:
        depth = len(kind.__mro__) - len(errors.RsdistillError.__mro__)
        rows.append(f"| {'&ensp;' * 2 * depth}`{kind.__name__}` | {kind.exit_code} | {_cell(_first(_flat(kind.__doc__ or '')))} |")
    return "\n".join(rows)


def function_table() -> str:
    """Return the functions that the commands are, with what each says of itself first."""
    rows = ["| function | command | |", "|---|---|---|"]
    for name in rsdistill.COMMANDS:
        function = getattr(rsdistill, name)
        given = [one for one in inspect.signature(function).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
        call = f"{name}({''.join(f'{one.name}, ' for one in given)}**options)"
        command = name.replace("_", "-")
        rows.append(f"| `{call}` | [`{command}`](cli.md#{command}) | {_cell(_first(_flat(function.__doc__ or '')))} |")
    return "\n".join(rows)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _first(text: str) -> str:
    """The first sentence."""
    return re.split(r"(?<=[.!?]) (?=[A-Z])", text)[0].rstrip(".")


def _cell(text: str) -> str:
    return _prose(re.sub(r":\w+:`~?\.?([^`]+)`", r"`\1`", text))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
