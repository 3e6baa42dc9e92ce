"""Random values in cards, class tables and configurations: each is taken, or refused by its own error."""

import json
import string
from contextlib import contextmanager

import pytest
import tomli_w
from harness import write_linear
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rsdistill
from rsdistill.cli import config_of
from rsdistill.config import run_options
from rsdistill.errors import CheckpointError, ClassTableError, ConfigError, TileSetError
from rsdistill.geo.classes import load_class_table
from rsdistill.geo.tile_index import TileSetCard
from rsdistill.geo.tile_index import read_card as read_tile_set_card
from rsdistill.models.card import ModelCard, read_card


@contextmanager
def told(kind, path):
    """What is refused is refused by an error of ``kind`` that names ``path`` and has a hint."""
    error = None
    try:
        yield
    except kind as refusal:
        error = refusal
    assert error is None or (str(path) in str(error) and error.hint)


quick = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = st.integers() | st.integers(-3, 300) | st.floats(allow_nan=True)
TEXTS = st.text(max_size=12) | st.sampled_from(["#ffffff", "red", "uint8", "a", "nan", "../x", "1e999", "\x00"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["id", "name", "color", "x", "encoder"]) | TEXTS, inner, max_size=4)
    ),
    max_leaves=8,
)
TOML_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(string.printable, max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=6), inner, max_size=4),
    max_leaves=8,
)


@quick
@given(changes=st.dictionaries(st.sampled_from(list(ModelCard.model_fields)), VALUES, min_size=1, max_size=3))
def test_model_cards(tmp_path, changes):
    path = tmp_path / "m.safetensors"
    write_linear(path, card=changes)
    with told(CheckpointError, path):
        assert read_card(path).arch == changes.get("arch", "linear")


@quick
@given(changes=st.dictionaries(st.sampled_from(list(TileSetCard.model_fields)), VALUES, min_size=1, max_size=3))
def test_tile_set_cards(world, tmp_path, changes):
    content = json.loads((world.work / "tiles" / "tileset.json").read_text())
    (tmp_path / "tileset.json").write_text(json.dumps(content | changes))
    with told(TileSetError, tmp_path):
        read_tile_set_card(tmp_path)


@quick
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["id", "name", "color", "sources"]), TOML_VALUES, max_size=4), max_size=4),
    others=st.dictionaries(st.sampled_from(["ignore", "class", "x"]), TOML_VALUES, max_size=2),
)
def test_class_tables(tmp_path, rows, others):
    path = tmp_path / "classes.toml"
    path.write_text(tomli_w.dumps({"class": rows} | others), encoding="utf-8")
    with told(ClassTableError, path):
        assert len(load_class_table(path)) == len(others.get("class", rows))


@quick
@given(text=st.text(max_size=200) | st.lists(st.lists(TEXTS, max_size=5).map(",".join), max_size=5).map("id,name,color,sources\n{}".format))
def test_class_tables_as_text(tmp_path, text):
    for suffix in (".csv", ".toml"):
        path = tmp_path / f"classes{suffix}"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with told(ClassTableError, path):
            load_class_table(path)


@pytest.mark.parametrize("name", rsdistill.COMMANDS)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_configurations(tmp_path, name, data):
    config = config_of(name)
    path = tmp_path / "run.toml"
    options = data.draw(st.dictionaries(st.sampled_from([*config.model_fields, "command", "x"]), TOML_VALUES, min_size=1, max_size=4))
    path.write_text(tomli_w.dumps(options), encoding="utf-8")
    with told(ConfigError, ""):
        config.of(**run_options(path, name, config.model_fields))
