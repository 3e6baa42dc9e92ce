import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from rsdistill.geo.classes import ClassTable, LandClass
from rsdistill.outputs.report import LARGEST_SIDE, Report, picture_side, scene_picture, write_report
from rsdistill.training.logs import RunLog

TABLE = ClassTable((LandClass(1, "field", "#f0d060"), LandClass(2, "<b>water</b> & ice", "#2060e0"), LandClass(3, "absent", "#888888")))
FIGURES = {
    "miou": 0.5,
    "pixel_accuracy": 0.75,
    "boundary_iou": None,
    "per_class": {
        "field": {"iou": 0.6, "f1": 0.75, "pixels": 30_000},
        "<b>water</b> & ice": {"iou": 0.4, "f1": 0.57, "pixels": 10_000},
        "absent": {"iou": None, "f1": None, "pixels": 0},
    },
    "confusion": [[27_000, 3_000, 0], [7_000, 3_000, 0], [0, 0, 0]],
    "scenes": [{"name": name, "miou": 0.5, "pixel_accuracy": 0.75, "pixels": 20_000} for name in ("north", "south")],
}


class Page(HTMLParser):
    """What a browser would make of a report, as far as a test asks."""

    VOID = ("meta", "img", "input", "link", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def report(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 2, (8, 12), dtype=np.uint8), np.ones((25, 25), np.uint8))
    prediction = np.where(rng.random(label.shape) < 0.8, label, 1 - label).astype(np.uint8)
    label[:20] = 255
    photo = rng.integers(0, 255, (*label.shape, 3), dtype=np.uint8)
    log = RunLog(tmp_path / "student.log.csv", 1)
    log.write({"step": 1, "loss": 2.0, "miou": 0.4})
    log.write({"step": 2, "loss": 1.0, "miou": 0.5})
    pictures = (scene_picture("north", TABLE, label, prediction, photo), scene_picture("south", TABLE, label, prediction))
    made = Report(
        "student on north, south",
        FIGURES,
        TABLE,
        pictures,
        log.path,
        (("rsdistill distill --config work/student.run.toml", 'method = "kd"'),),
        ("a note & more",),
    )
    write_report(tmp_path / "out" / "report.html", made)
    return tmp_path / "out" / "report.html"


def test_the_page_is_whole_and_asks_nobody_for_anything(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    page = Page(text)
    for tag in ("img", "script", "link", "iframe"):
        for attributes in page.all(tag):
            for name in ("src", "href"):
                assert (attributes.get(name) or "data:").startswith("data:")
    outside = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"(https?:)?//[a-z]|url\(|@import", outside)
    assert "default-src 'none'" in text


def test_names_are_text_never_markup(report: Path) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    assert "<b>water</b> & ice" in page.text
    assert not page.all("b")


def test_figures_stand_in_the_page(report: Path) -> None:
    text = " ".join(filter(None, Page(report.read_text(encoding="utf-8")).text))
    assert "mean IoU 50.0 %" in text
    assert "boundary IoU – %" in text
    assert "40\u202f000" in text
    assert "a note & more" in text
    assert re.search(r"field\s+60\.0 75\.0 30\u202f000 75\.0", text)
    assert re.search(r"field\s+90\.0 10\.0 0\.0", text)
    assert re.search(r"absent\s+– – –", text)
    assert re.search(r"north 50\.0 75\.0 20\u202f000", text)
    assert "rsdistill distill --config work/student.run.toml" in text


def test_every_scene_has_its_layers_and_every_control_a_name(report: Path) -> None:
    page = Page(report.read_text(encoding="utf-8"))
    layers = [image["data-layer"] for image in page.all("img") if "data-layer" in image]
    assert layers == ["scene", "label", "prediction", "errors", "label", "prediction", "errors"]
    assert all(image.get("alt") for image in page.all("img") if image.get("src"))
    assert all("aria-label" in control for control in page.all("input"))
    assert sum(attributes.get("tabindex") == "0" for _, attributes in page.tags) == 2
    sections = [section["aria-labelledby"] for section in page.all("section")]
    assert sections == ["pictures", "classes", "confusion", "scenes", "training", "made"]


def test_a_colour_that_two_classes_share_means_both(tmp_path: Path) -> None:
    table = ClassTable((*TABLE.classes[:2], LandClass(3, "absent", "#2060E0")))
    write_report(tmp_path / "report.html", Report("mask", FIGURES, table))
    (line,) = re.findall(r"const meanings = (.*);", (tmp_path / "report.html").read_text(encoding="utf-8"))
    assert json.loads(line)["classes"] == {"#f0d060": "field", "#2060e0": "<b>water</b> & ice or absent"}


def test_what_is_not_there_leaves_no_section(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", Report("mask", {**FIGURES, "scenes": FIGURES["scenes"][:1]}, TABLE))
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [section["aria-labelledby"] for section in page.all("section")] == ["classes", "confusion"]


def test_a_second_model_stands_beside_the_first(tmp_path: Path) -> None:
    label = np.zeros((20, 30), np.uint8)
    picture = scene_picture("north", TABLE, label, label, beside=("teacher", 1 - label))
    assert [layer.name for layer in picture.layers] == ["label", "teacher", "prediction", "errors"]
    beside = {"model": "teacher.safetensors", "miou": 0.7, "pixel_accuracy": 0.8, "boundary_iou": 0.6}
    write_report(tmp_path / "report.html", Report("student", FIGURES | {"beside": beside}, TABLE, (picture,)))
    text = " ".join(filter(None, Page((tmp_path / "report.html").read_text(encoding="utf-8")).text))
    assert "teacher.safetensors: mean IoU 70.0\xa0%" in text


def test_errors_are_shown_only_where_the_label_counts() -> None:
    label = np.zeros((20, 30), np.uint8)
    everywhere, here = (
        scene_picture("north", TABLE, label, label, counted=counted).layers
        for counted in (None, np.where(np.arange(30) < 15, label, np.uint8(255)))
    )
    assert [one.source == other.source for one, other in zip(everywhere, here, strict=True)] == [True, True, False]


def test_a_page_of_one_or_many_large_noisy_scenes_stays_below_five_megabytes(tmp_path: Path) -> None:
    for scenes in (1, 20):
        side = picture_side(scenes)
        assert side <= LARGEST_SIDE
        rng = np.random.default_rng(0)
        label = np.kron(rng.integers(0, 3, (side // 10, side // 10), dtype=np.uint8), np.ones((10, 10), np.uint8))
        prediction = np.where(rng.random(label.shape) < 0.9, label, (label + 1) % 3).astype(np.uint8)
        photo = np.kron(rng.integers(0, 255, (*(length // 2 for length in label.shape), 3), dtype=np.uint8), np.ones((2, 2, 1), np.uint8))
        pictures = tuple(scene_picture(str(i), TABLE, label, prediction, photo) for i in range(min(scenes, 8)))
        write_report(tmp_path / "report.html", Report("large", FIGURES, TABLE, pictures))
        assert (tmp_path / "report.html").stat().st_size < 5e6


PROBE = """
<script>
const seen = {};
const viewer = document.querySelector(".viewer"), bar = viewer.nextElementSibling, slider = bar.querySelector("input");
const over = viewer.querySelector(".right img"), shown = () => viewer.querySelector(".left img:not([hidden])");
const press = (key) => viewer.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
seen.start = [shown().dataset.layer, over.alt, viewer.style.getPropertyValue("--cut")];
slider.value = 20; slider.dispatchEvent(new Event("input"));
seen.swiped = getComputedStyle(viewer.querySelector(".right")).clipPath;
press("ArrowRight"); seen.key = slider.value;
press("+"); seen.zoomed = [viewer.classList.contains("zoomed"), over.style.transform === shown().style.transform];
const before = over.style.transform; press("ArrowRight"); seen.moved = before !== over.style.transform;
press("0"); seen.fit = [viewer.classList.contains("zoomed"), over.style.transform];
const left = bar.querySelector("select"); left.value = "scene"; left.dispatchEvent(new Event("change"));
seen.chosen = shown().dataset.layer;
const box = viewer.getBoundingClientRect();
viewer.dispatchEvent(new PointerEvent("pointermove", { buttons: 1, clientX: box.left + box.width * 0.75 })); seen.dragged = slider.value;
const readout = bar.nextElementSibling;
viewer.dispatchEvent(new PointerEvent("pointermove", { clientX: box.left + 3, clientY: box.top + 3 }));
seen.unknown = readout.textContent; press("Enter"); seen.middle = readout.textContent;
seen.loaded = [...document.images].filter((image) => image.src).every((image) => image.complete && image.naturalWidth > 0);
document.body.innerHTML = ""; document.body.append(JSON.stringify(seen));
</script></body>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_in_a_browser_the_swipe_moves_zooms_and_answers_keys(report: Path) -> None:
    probe = report.with_name("probe.html")
    probe.write_text(report.read_text(encoding="utf-8").replace("</body>", PROBE), encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--user-data-dir={report.parent / 'profile'}"]
    command = ["chromium", *options, "--virtual-time-budget=4000", "--dump-dom", probe.as_uri()]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    seen = json.loads(re.search(r"<body>(\{.*\})\s*</body>", done.stdout, re.DOTALL)[1])  # type: ignore[index]
    assert seen["start"] == ["scene", "prediction of north", "50"]
    assert seen["swiped"] == "inset(0px 0px 0px 20%)"
    assert seen["key"] == "22"
    assert seen["zoomed"] == [True, True]
    assert seen["moved"]
    assert seen["fit"] == [False, "translate(0px, 0px) scale(1)"]
    assert seen["chosen"] == "scene"
    assert seen["dragged"] == "75"
    assert seen["loaded"]
    assert seen["unknown"] == "label: nothing known, prediction: field, errors: nothing known"
    assert seen["middle"] in [
        f"label: {label}, prediction: {given}, errors: {'right' if label == given else 'wrong'}"
        for label in TABLE.names[:2]
        for given in TABLE.names[:2]
    ]
