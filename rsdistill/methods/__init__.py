"""The distillation methods, one paper a file; METHODS is the contents page.

Listing names needs no torch; :func:`load_method` imports what it loads.
"""

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from rsdistill.errors import ConfigError, nearest

if TYPE_CHECKING:
    from rsdistill.methods.base import Method

METHODS: dict[str, str] = {
    "ce": "rsdistill.methods.base:CrossEntropy",
    "kd": "rsdistill.methods.kd:KD",
    "skd": "rsdistill.methods.skd:SKD",
    "ifvd": "rsdistill.methods.ifvd:IFVD",
    "cwd": "rsdistill.methods.cwd:CWD",
    "mgsad": "rsdistill.methods.mgsad:MGSAD",
    "drd": "rsdistill.methods.drd:DRD",
    "idd": "rsdistill.methods.idd:IDD",
    "mgd": "rsdistill.methods.mgd:MGD",
    "nfd": "rsdistill.methods.nfd:NFD",
    "dist": "rsdistill.methods.dist:DIST",
    "cbd": "rsdistill.methods.cbd:CBD",
}
"""Name on the command line to ``module:Class``."""


def load_method(spec: str, options: Mapping[str, Any] | None = None) -> "Method":
    """Return the method that ``spec`` names.

    Args:
        spec: a name in METHODS, an import string ``package.module:Class``, or several joined by ``+``.
        options: hyper-parameters as ``name.option`` (or nested tables), text or values; an import string's name is its class.

    Raises:
        ConfigError: an unknown method or option (the nearest is named), a value of the wrong kind, or methods that cannot be combined.
    """
    from rsdistill.methods.combined import Combined

    classes = dict(_find(part.strip()) for part in spec.split("+"))
    if len(classes) < spec.count("+") + 1:
        raise ConfigError(f"--method {spec} names a method twice", hint="name each once; weights are options, e.g. kd.weight=2")
    chosen = _by_method(options or {}, classes)
    for name, found in classes.items():
        if missing := [k for k, default in options_of(found).items() if default is inspect.Parameter.empty and k not in chosen[name]]:
            raise ConfigError(f"{name} has no default for its option '{missing[0]}'", hint=f"set {name}.{missing[0]}")
    members = {name: found(**chosen[name]) for name, found in classes.items()}
    if len(members) == 1:
        return members.popitem()[1]
    combined = Combined(members)
    owner = combined.kd_owner
    for name, own in chosen.items():
        if owner not in (None, name) and (own.get("kd") or "kd_tau" in own):
            raise ConfigError(f"kd stands once in {spec}, and not in {name}", hint=f"set {owner}.{'weight' if owner == 'kd' else 'kd'}")
    return combined


def check_names(spec: str) -> None:
    """Refuse a ``spec`` whose names are neither in METHODS nor import strings, before anything is imported.

    Raises:
        ConfigError: the first such name, with the nearest known one.
    """
    for name in map(str.strip, spec.split("+")):
        if name not in METHODS and ":" not in name:
            hint = "methods: " + ", ".join(METHODS) + ", several joined by +, or package.module:Class"
            raise ConfigError(f"unknown method '{name}'{nearest(name, METHODS)}", hint=hint)


def asks_teachers(spec: str) -> bool:
    """Return whether the method that ``spec`` names learns from a teacher; only somebody else's class has to be imported for that.

    Raises:
        ConfigError: as :func:`load_method`.
    """
    return any(_find(part)[1].teachers > 0 if ":" in part else part != "ce" for part in map(str.strip, spec.split("+")))


def options_of(method: "type[Method]") -> dict[str, Any]:
    """Return the options of a method's class and their defaults."""
    parameters = inspect.signature(method).parameters.values()
    return {p.name: p.default for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}


def _find(name: str) -> "tuple[str, type[Method]]":
    """Return the name that options go by and the class."""
    from rsdistill.methods.base import Method

    check_names(name)
    module, _, attribute = METHODS.get(name, name).partition(":")
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"'{name}' names no module", hint="a method of yours is named package.module:Class")
    try:
        found = getattr(import_module(module), attribute)
    except ImportError as error:
        hint = "is the package installed, or its folder in PYTHONPATH?"
        raise ConfigError(f"cannot import the method {name}: {error}", hint=hint) from None
    except AttributeError:
        raise ConfigError(f"{module} has no '{attribute}'", hint="a method is named package.module:Class") from None
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"{name} is not a method", hint="derive the class from rsdistill.methods.base.Method")
    return (name if name in METHODS else attribute), found


def _by_method(options: Mapping[str, Any], classes: "Mapping[str, type[Method]]") -> dict[str, dict[str, Any]]:
    """Return the checked options of each method."""
    chosen: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, value in _flat(options).items():
        name, dot, option = key.partition(".")
        if name not in classes or not dot:
            hint = f"this run knows: {', '.join(classes)}" if dot else f"write method.option: {next(iter(classes))}.{key}"
            raise ConfigError(f"option '{key}' belongs to no method of this run{nearest(name, classes) if dot else ''}", hint=hint)
        known = options_of(classes[name])
        if option not in known:
            hint = "known options: " + (", ".join(f"{name}.{k}" for k in known) or "none")
            raise ConfigError(f"{name} has no option '{option}'{nearest(option, known)}", hint=hint)
        chosen[name][option] = _value(key, value, get_type_hints(classes[name].__init__, include_extras=True).get(option, Any))
    return chosen


def _flat(options: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _value(key: str, value: Any, kind: Any) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise ConfigError(f"{key}: {problem} (got {value!r})", hint="see the method's page in docs/methods") from None
