import pytest
import torch

from rsdistill.batches import IGNORE, Segmentation
from rsdistill.methods import base


@pytest.mark.parametrize("size", [(3, 5), (7, 7), (14, 21), (1, 1)])
def test_nearest_takes_the_pixel_under_the_centre_of_each_cell(size):
    maps = torch.arange(2 * 7 * 9).reshape(2, 7, 9)
    found = base.nearest_pixels(maps, size)
    for row in range(size[0]):
        for col in range(size[1]):
            assert torch.equal(found[:, row, col], maps[:, int((row + 0.5) * 7 / size[0]), int((col + 0.5) * 9 / size[1])])


def test_labels_at_hides_nodata_and_unlabelled_pixels(case):
    batch = case().batch
    label = base.labels_at(batch, (5, 4))
    assert ((label == IGNORE) == ((batch.label == IGNORE) | ~batch.valid)).all()
    assert (batch.label[~batch.valid] != IGNORE).any(), "validity alone hides a pixel in this case"


def test_masked_mean_ignores_what_is_outside_even_if_it_is_not_a_number():
    values = torch.tensor([1.0, 3.0, torch.nan], requires_grad=True)
    mean = base.masked_mean(values, torch.tensor([True, True, False]))
    mean.backward()
    assert mean.item() == 2
    assert values.grad.tolist() == [0.5, 0.5, 0]
    assert base.masked_mean(values, torch.zeros(3, dtype=torch.bool)).item() == 0


def test_unit_has_no_direction_and_no_gradient_for_a_dead_vector():
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    unit = base.unit(vectors, 1)
    unit.sum().backward()
    torch.testing.assert_close(unit.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert vectors.grad[1].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_distance_is_that_of_the_matrices_it_does_not_build(dtype):
    a, b = torch.randn(2, 5, 11, dtype=dtype), torch.randn(2, 3, 11, dtype=dtype)
    full = (a.mT @ a - b.mT @ b).square().sum((1, 2))
    torch.testing.assert_close(base.gram_distance(a, b), full, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=0)


def test_gram_distance_of_equal_columns_is_never_negative():
    columns = base.unit(torch.randn(4, 64, 900), 1)
    distance = base.gram_distance(columns, columns.clone())
    assert (distance >= 0).all()
    assert (distance / 900**2 < 1e-9).all()


def test_gram_distance_keeps_its_memory_when_pixels_grow(largest):
    columns = torch.randn(1, 8, 64 * 64, requires_grad=True)
    with largest:
        base.gram_distance(columns, columns.detach() * 2).sum().backward()
    assert largest.elements == columns.numel()


def test_affinity_distance_by_hand(by_hand):
    a, b = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 3, 6, dtype=torch.float64)
    part = torch.tensor([[True, True, False, True, True, False], [False, True, True, True, False, False]])
    images = []
    for n in range(2):
        kept = part[n].nonzero().flatten().tolist()
        pairs = [
            (by_hand.cosine(a[n, :, i].tolist(), a[n, :, j].tolist()) - by_hand.cosine(b[n, :, i].tolist(), b[n, :, j].tolist())) ** 2
            for i in kept
            for j in kept
        ]
        images.append(by_hand.mean(pairs))
    assert float(base.affinity_distance(a, b, part)) == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_pearson_distance_by_hand_and_where_correlation_is_undefined(by_hand):
    a, b = torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    part = torch.tensor([[True] * 5 + [False] * 3])
    found = base.pearson_distance(a, b, part, dim=1)
    for row in range(3):
        assert float(found[row]) == pytest.approx(1 - by_hand.pearson(a[row, :5].tolist(), b[row, :5].tolist()), rel=1e-9)
    constant = torch.ones(3, 8, dtype=torch.float64)
    assert base.pearson_distance(constant, 2 * constant, part, dim=1).tolist() == [0, 0, 0]


def test_an_adapter_is_made_only_where_channels_differ():
    narrow, wide = torch.randn(1, 2, 3, 3), torch.randn(1, 5, 3, 3, dtype=torch.float16)
    assert isinstance(base.adapter(wide, wide), torch.nn.Identity)
    made = base.adapter(narrow, wide)
    assert made(narrow).shape == wide.shape
    assert next(made.parameters()).dtype == torch.float32


def test_half_precision_is_promoted_and_more_than_that_is_left():
    half = Segmentation(
        *(torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16) for _ in range(2)), aux=torch.zeros(1, 2, 1, 1, dtype=torch.float16)
    )
    promoted = base.promoted(half)
    assert {promoted.logits.dtype, promoted.features.dtype, promoted.aux.dtype} == {torch.float32}
    assert base.promoted(Segmentation(half.logits.double(), half.features.double())).logits.dtype == torch.float64


def test_upsample_keeps_a_constant_and_returns_the_same_maps_at_the_same_size():
    maps = torch.full((1, 2, 3, 4), 2.5)
    assert base.upsample(maps, (3, 4)) is maps
    torch.testing.assert_close(base.upsample(maps, (7, 9)), torch.full((1, 2, 7, 9), 2.5))
