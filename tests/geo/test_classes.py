"""The class table: ids, indices, sources, and every way to write it wrongly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsdistill.errors import ClassTableError, LabelError
from rsdistill.geo.classes import IGNORE, ClassTable, LandClass, load_class_table

TABLE = ClassTable(
    (LandClass(10, "building", "#e41a1c", (1, 7)), LandClass(3, "water", "#377eb8"), LandClass(0, "land", "#4daf4a", (-5, 300))), (0, 255)
)


def test_values_become_indices_and_ids():
    values = np.array([[1, 7, 3], [-5, 300, 0]], np.int32)
    index = TABLE.to_index(values)
    assert index.tolist() == [[0, 0, 1], [2, 2, IGNORE]]
    assert TABLE.to_ids(index).tolist() == [[10, 10, 3], [0, 0, 255]]
    assert TABLE.from_ids(TABLE.to_ids(index)).tolist() == index.tolist()
    assert TABLE.to_index(np.array([1, 3, 255], np.uint8)).tolist() == [0, 1, IGNORE]


def test_unknown_values_are_named_with_their_pixels():
    with pytest.raises(LabelError, match=r"label value 9 \(2 pixels\), 12 \(1 pixels\) is not in the class table"):
        TABLE.to_index(np.array([9, 12, 9, 1], np.uint8))
    with pytest.raises(LabelError, match=r"1\.5"):
        TABLE.to_index(np.array([1.5, 1.0], np.float32))
    with pytest.raises(LabelError, match="and 2 more"):
        TABLE.to_index(np.arange(100, 107, dtype=np.int16))


@given(st.lists(st.sampled_from([1, 7, 3, -5, 300, 0, 255]), min_size=1), st.sampled_from(["int16", "int32", "int64", "float32"]))
def test_the_type_of_labels_does_not_matter(values, dtype):
    assert np.array_equal(TABLE.to_index(np.array(values, dtype)), TABLE.to_index(np.array(values)))


def test_an_id_of_255_makes_masks_wide():
    assert (TABLE.dtype, TABLE.nodata) == ("uint8", 255)
    wide = ClassTable((LandClass(255, "a", "#000000"), LandClass(1, "b", "#ffffff")))
    assert (wide.dtype, wide.nodata) == ("uint16", 65535)
    assert wide.to_ids(np.array([0, 1, IGNORE], np.uint8)).tolist() == [255, 1, 65535]


def test_a_table_survives_toml_and_card(tmp_path: Path):
    path = tmp_path / "classes.toml"
    path.write_text(TABLE.to_toml())
    assert load_class_table(path) == TABLE
    again = ClassTable.from_card(TABLE.to_card(), TABLE.ignore)
    assert again.ids == TABLE.ids
    assert again.ignore == (0, 255)
    assert again.to_index(np.array([10, 1, 7, 3, 300, 0, 255])).tolist() == [0, 0, 0, 1, 2, IGNORE, IGNORE]
    assert again.by_id().to_index(np.array([10, 3, 0, 255])).tolist() == [0, 1, 2, IGNORE]


def test_csv_says_the_same(tmp_path: Path):
    path = tmp_path / "classes.csv"
    path.write_text("\ufeffid,name,color,sources\n10,building,#e41a1c,1 7\n3,water,#377eb8,\n0,land,#4daf4a,-5;300\n0,ignore,,0 255\n")
    assert load_class_table(path) == TABLE


def test_classes_are_found_by_name_or_id():
    assert TABLE.find("water") is TABLE.find(3) is TABLE.find("3")
    with pytest.raises(ClassTableError, match="did you mean 'building'"):
        TABLE.find("bulding")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table of 0 classes"),
        ("ignor = [0]", "did you mean 'ignore'"),
        ("[[class]]\nid = 1", "lacks its id or name"),
        ('[[class]]\nid = 1\nname = "a"\ncolour = "#000000"', "did you mean 'color'"),
        ('[[class]]\nid = 1\nname = "a"\ncolor = "red"', "colour 'red'"),
        ('[[class]]\nid = 1.5\nname = "a"', "not a whole number"),
        ('[[class]]\nid = true\nname = "a"', "not a whole number"),
        ('[[class]]\nid = -1\nname = "a"', "out of range"),
        ('[[class]]\nid = 70000\nname = "a"', "out of range"),
        ('[[class]]\nid = 1\nname = " "', "no readable name"),
        ('[[class]]\nid = 1\nname = "a"\n[[class]]\nid = 1\nname = "b"', "class id 1 stands twice"),
        ('[[class]]\nid = 1\nname = "a"\n[[class]]\nid = 2\nname = "a"', "class name 'a' stands twice"),
        ('[[class]]\nid = 1\nname = "a"\n[[class]]\nid = 2\nname = "b"\nsources = [1]', "label value 1 stands twice"),
        ('ignore = [1]\n[[class]]\nid = 1\nname = "a"', "label value 1 stands twice"),
        ("class = 3", "is not a class table"),
        ("id = [", "not TOML"),
    ],
)
def test_every_wrong_table_is_refused_in_one_line(tmp_path: Path, text, message):
    path = tmp_path / "classes.toml"
    path.write_text(text)
    with pytest.raises(ClassTableError, match=message) as caught:
        load_class_table(path)
    assert "classes.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_crooked_csv_is_refused(tmp_path: Path):
    with pytest.raises(ClassTableError, match=r"none.csv: cannot be read"):
        load_class_table(tmp_path / "none.csv")
    path = tmp_path / "classes.csv"
    path.write_text("name,color\nwater,#000000\n")
    with pytest.raises(ClassTableError, match=r"classes\.csv"):
        load_class_table(path)


def test_too_many_classes_are_refused():
    with pytest.raises(ClassTableError, match="255 classes"):
        ClassTable(tuple(LandClass(i, str(i), "#000000") for i in range(255)))


def test_a_card_keeps_what_label_values_mean():
    table = ClassTable((LandClass(9, "building", "#e41a1c", (7,)), LandClass(1, "land", "#4daf4a")), (0,))
    read = ClassTable.from_card(table.to_card(), table.ignore)
    assert read.to_index(np.array([7, 9, 1, 0, 255])).tolist() == [0, 0, 1, IGNORE, IGNORE]
    assert ClassTable.from_card(read.to_card(), read.ignore) == read
    assert read.by_id().to_index(np.array([9, 1, 0, 255])).tolist() == [0, 1, IGNORE, IGNORE]
    with pytest.raises(LabelError, match="label value 7"):
        read.by_id().to_index(np.array([7]))


def test_an_id_that_means_another_class_in_labels_is_only_an_id_in_masks():
    table = ClassTable(
        (LandClass(1, "one", "#e41a1c", (2,)), LandClass(2, "two", "#4daf4a", (1,)), LandClass(3, "three", "#000000", (4, 255))), (3,)
    )
    read = ClassTable.from_card(table.to_card(), table.ignore)
    assert read.to_index(np.array([1, 2, 3, 4, 255])).tolist() == [1, 0, IGNORE, 2, 2]
    assert read.by_id().to_index(np.array([1, 2, 3, 255])).tolist() == [0, 1, 2, IGNORE]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id;name;color\n1;water;#000000\n", "no column id and no name .found: id;name;color"),
        ("id,color\n1,#000000\n", "no column name .found: id, color"),
        ("id,name,color,sources\n1,water,#000000,1,7\n", "row 1,water,#000000,1 has more cells than columns"),
    ],
)
def test_a_csv_with_other_columns_says_which(tmp_path: Path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(ClassTableError, match=message):
        load_class_table(tmp_path / "c.csv")


@pytest.mark.parametrize("cell", ['"1,7"', "1;7", "1 7", '"1, 7"'])
def test_sources_in_a_csv_are_parted_by_any_sign(tmp_path: Path, cell):
    (tmp_path / "c.csv").write_text(f"id,name,color,sources\n9,water,#000000,{cell}\n")
    assert load_class_table(tmp_path / "c.csv").classes[0].sources == (1, 7)
