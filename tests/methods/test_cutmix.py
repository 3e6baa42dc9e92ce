import pytest
import torch

from rsdistill.batches import IGNORE, Context
from rsdistill.methods.cutmix import AREA, Mix, draw_boxes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def half_labelled(case, labelled=(True, True, False, False)):
    """Four tiles of which the last ones are unlabelled."""
    batch = case(images=len(labelled), tile=(12, 10)).batch
    known = torch.tensor(labelled)
    return batch._replace(labelled=known, label=batch.label.masked_fill(~known[:, None, None], IGNORE))


def test_a_box_covers_a_quarter_to_half_of_the_tile():
    share = draw_boxes(200, (80, 64), 1, generator()).float().mean((1, 2))
    assert (share > AREA[0] - 0.02).all()
    assert (share < AREA[1] + 0.02).all()
    assert share.max() - share.min() > 0.2


def test_boxes_are_rectangles_and_overlaps_cancel():
    one = draw_boxes(50, (20, 30), 1, generator())
    for inside in one:
        rows, cols = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & cols[None, :])
        assert (rows.long().diff().abs().sum(), cols.long().diff().abs().sum()) <= (2, 2)
    three = draw_boxes(400, (20, 30), 3, generator()).float().mean((1, 2))
    assert (three < AREA[1] + 0.05).all()
    assert three.min() < AREA[0] - 0.05, "some boxes overlap, and there the base shows again"


def test_boxes_lie_anywhere_and_repeat_with_the_generator():
    where = draw_boxes(400, (16, 16), 1, generator()).float().mean(0)
    assert (where > 0).all()
    torch.testing.assert_close(where, where.flip(0, 1), rtol=0, atol=0.1)
    assert torch.equal(draw_boxes(5, (16, 9), 3, generator(1)), draw_boxes(5, (16, 9), 3, generator(1)))
    assert not torch.equal(draw_boxes(5, (16, 9), 3, generator(1)), draw_boxes(5, (16, 9), 3, generator(2)))


def test_the_same_boxes_mix_images_and_validity_and_hide_labels(case):
    batch = half_labelled(case)
    mix = Mix.draw(batch, 2, generator())
    shown = mix.batch(batch)
    assert torch.equal(shown.image[:2], batch.image[:2])
    assert torch.equal(shown.label[:2], batch.label[:2])
    for row, (base, pasted) in enumerate([(2, 3), (3, 2)]):
        inside = mix.inside[row]
        assert inside.any()
        assert torch.equal(shown.image[2 + row], torch.where(inside, batch.image[pasted], batch.image[base]))
        assert torch.equal(shown.valid[2 + row], torch.where(inside, batch.valid[pasted], batch.valid[base]))
    assert (shown.label[2:] == IGNORE).all()
    assert shown.labelled.tolist() == [True, True, False, False]


def test_maps_at_any_stride_follow_the_same_boxes(case):
    mix = Mix.draw(half_labelled(case), 2, generator())
    coarse = mix.maps(torch.arange(4.0)[:, None, None, None].expand(4, 2, 6, 5))
    for row in range(6):
        for col in range(5):
            pasted = bool(mix.inside[0, int((row + 0.5) * 2), int((col + 0.5) * 2)])
            assert coarse[2, 0, row, col].item() == (3 if pasted else 2)


def test_without_unlabelled_tiles_copies_of_the_labelled_ones_serve(case):
    batch = half_labelled(case, (True, True, True))
    shown = Mix.draw(batch, 3, generator()).batch(batch)
    assert shown.labelled.tolist() == [True] * 3 + [False] * 3
    assert torch.equal(shown.label[:3], batch.label)
    assert (shown.label[3:] == IGNORE).all()


def test_a_mixed_tile_lies_where_the_tile_below_lies(case):
    batch = half_labelled(case)
    box = torch.rand(4, 4)
    context = Context(torch.zeros(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool), box, torch.tensor([0, 0, 1, 1]))
    shown = Mix.draw(batch._replace(context=context), 2, generator()).batch(batch._replace(context=context))
    assert torch.equal(shown.context.box, box)
    assert shown.context.index.tolist() == [0, 0, 1, 1]
    assert torch.equal(shown.box_in_scene, batch.box_in_scene)


def test_no_mix_is_the_batch_itself(case):
    batch = half_labelled(case)
    shown = Mix.none(batch).batch(batch)
    for name in ("image", "label", "valid", "labelled"):
        assert torch.equal(getattr(shown, name), getattr(batch, name))


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (7, 2)])
def test_odd_tiles_are_mixed(size):
    assert draw_boxes(3, size, 3, generator()).shape == (3, *size)
