import subprocess
import sys
from math import hypot

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index

from rsdistill.geo.classes import IGNORE
from rsdistill.metrics import Boundary, Confusion, Scores

K = 4
NAMES = ("a", "b", "c", "d")


def maps(seed: int, height: int = 60, width: int = 45, agree: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a label in lumps of five pixels, both with holes."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, K, (-(-height // 5), -(-width // 5)), dtype=np.uint8), np.ones((5, 5), np.uint8))[:height, :width]
    prediction = np.where(rng.random(label.shape) < agree, label, rng.integers(0, K, label.shape, dtype=np.uint8)).astype(np.uint8)
    prediction = np.roll(prediction, 1, axis=1)
    label, prediction = label.copy(), prediction.copy()
    label[rng.random(label.shape) < 0.05] = IGNORE
    prediction[:7, :9] = IGNORE
    return prediction, label


def naive_confusion(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    matrix = np.zeros((K, K), np.int64)
    for guess, truth in zip(prediction.ravel(), label.ravel(), strict=True):
        if IGNORE not in (guess, truth):
            matrix[truth, guess] += 1
    return matrix


def naive_boundary_iou(prediction: np.ndarray, label: np.ndarray, distance: int) -> np.ndarray:
    """Class by class, pixel by pixel: region minus its erosion by the square of ``distance`` pixels."""
    known = (prediction != IGNORE) & (label != IGNORE)

    def edge(region: np.ndarray) -> np.ndarray:
        out = np.zeros_like(region)
        for row, col in np.argwhere(region):
            top, left = row - distance, col - distance
            near = region[max(0, top) : row + distance + 1, max(0, left) : col + distance + 1]
            out[row, col] = not near.all() or near.shape != (2 * distance + 1, 2 * distance + 1)
        return out

    scores = []
    for k in range(K):
        first, second = edge((prediction == k) & known), edge((label == k) & known)
        union = (first | second).sum()
        scores.append((first & second).sum() / union if union else np.nan)
    return np.array(scores)


def boundary_of(*scenes: tuple[np.ndarray, np.ndarray], strip: int = 1000) -> Boundary:
    boundary = Boundary(K)
    for prediction, label in scenes:
        boundary.start(*label.shape)
        for row in range(0, label.shape[0], strip):
            boundary.update(prediction[row : row + strip], label[row : row + strip])
        boundary.finish()
    return boundary


def scores_of(prediction: np.ndarray, label: np.ndarray) -> Scores:
    confusion = Confusion(K)
    confusion.update(prediction, label)
    return confusion.scores(NAMES)


@pytest.mark.parametrize("kind", ["arrays", "tensors", "mixed"])
def test_the_confusion_matrix_is_the_naive_count(kind: str) -> None:
    prediction, label = maps(0)
    confusion = Confusion(K)
    guess = prediction if kind == "arrays" else torch.from_numpy(prediction)
    truth = torch.from_numpy(label) if kind == "tensors" else label
    confusion.update(guess, truth)
    assert (confusion.matrix == naive_confusion(prediction, label)).all()
    assert confusion.unpredicted == ((prediction == IGNORE) & (label != IGNORE)).sum() > 0


def test_strips_and_sums_of_scenes_count_what_the_whole_does() -> None:
    whole, by_row, one, two = (Confusion(K) for _ in range(4))
    prediction, label = maps(1)
    whole.update(prediction, label)
    for row in range(len(label)):
        by_row.update(prediction[row], label[row])
    one.update(prediction[:20], label[:20])
    two.update(prediction[20:], label[20:])
    one.add(two)
    assert (whole.matrix == by_row.matrix).all()
    assert (whole.matrix == one.matrix).all()
    assert whole.unpredicted == by_row.unpredicted == one.unpredicted


def test_scores_are_those_of_torchmetrics() -> None:
    prediction, label = maps(2)
    keep = torch.from_numpy((prediction != IGNORE) & (label != IGNORE))
    guess, truth = torch.from_numpy(prediction)[keep].long(), torch.from_numpy(label)[keep].long()
    scores = scores_of(prediction, label)
    assert scores.iou == pytest.approx(multiclass_jaccard_index(guess, truth, K, average="none").numpy(), rel=1e-6)
    assert scores.f1 == pytest.approx(multiclass_f1_score(guess, truth, K, average="none").numpy(), rel=1e-6)
    assert scores.pixel_accuracy == pytest.approx(float((guess == truth).float().mean()), rel=1e-6)
    assert scores.miou == pytest.approx(scores.iou.mean())


def test_the_mean_is_over_classes_that_the_labels_hold() -> None:
    label = np.array([[0, 0, 0, 1]], np.uint8)
    prediction = np.array([[0, 0, 2, 1]], np.uint8)
    scores = scores_of(prediction, label)
    assert scores.miou == pytest.approx((2 / 3 + 1) / 2)
    assert scores.iou[2] == 0
    assert np.isnan(scores.iou[3])


def test_what_does_not_exist_is_null_in_json() -> None:
    empty = Confusion(K).scores(NAMES).as_dict()
    assert empty["miou"] is empty["pixel_accuracy"] is empty["boundary_iou"] is None
    assert empty["per_class"]["a"] == {"iou": None, "f1": None, "pixels": 0}
    assert np.array(empty["confusion"]).shape == (K, K)


@pytest.mark.parametrize("shape", [(60, 45), (9, 80), (1, 1), (3, 2)])
def test_boundary_iou_is_the_naive_one(shape: tuple[int, int]) -> None:
    prediction, label = maps(3, *shape)
    prediction[prediction == IGNORE] = 0
    wanted = naive_boundary_iou(prediction, label, max(1, round(0.02 * hypot(*shape))))
    assert boundary_of((prediction, label)).iou == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("strip", [1, 2, 7, 59, 60, 200])
def test_boundary_iou_does_not_depend_on_strips(strip: int) -> None:
    scene = maps(4, 150, 200)
    assert boundary_of(scene, strip=strip).iou == pytest.approx(boundary_of(scene).iou)


def test_boundary_iou_of_scenes_pools_their_pixels() -> None:
    first, second = maps(5), maps(6, 100, 30)
    one, two, both = boundary_of(first), boundary_of(second), boundary_of(first, second)
    assert both.iou == pytest.approx((one.intersection + two.intersection) / (one.union + two.union))


def test_boundary_iou_sees_what_the_mean_iou_hardly_does() -> None:
    """A disc that grew by one pixel: nearly the same area, a contour that is off everywhere."""
    rows, cols = np.mgrid[-100:100, -100:100]
    label = (np.hypot(rows, cols) < 80).astype(np.uint8)
    prediction = (np.hypot(rows, cols) < 84).astype(np.uint8)
    confusion = Confusion(K)
    confusion.update(prediction, label)
    scores = confusion.scores(NAMES, boundary_of((prediction, label)))
    assert scores.miou > 0.9
    assert scores.boundary_iou < 0.6
    assert confusion.scores(NAMES, boundary_of((label, label))).boundary_iou == 1


def test_masks_are_compared_without_torch() -> None:
    code = (
        "import sys, numpy as np; from rsdistill.metrics import Confusion; c = Confusion(2); x = np.zeros((4, 4), np.uint8); "
        "c.update(x, x); assert c.matrix[0, 0] == 16; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
