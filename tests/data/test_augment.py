import pytest
import torch

from rsdistill.batches import IGNORE, Batch, Context
from rsdistill.data import augment


def batch(side=16, tiles=8, context_side=12):
    generator = torch.Generator().manual_seed(0)
    context = Context(
        torch.rand(tiles, 3, context_side, context_side, generator=generator),
        torch.rand(tiles, context_side, context_side, generator=generator) > 0.2,
        torch.tensor([[0.25, 0.5, 0.75, 1.0]]).repeat(tiles, 1),
        torch.arange(tiles),
        torch.randint(0, 4, (tiles, context_side, context_side), generator=generator),
    )
    label = torch.randint(0, 4, (tiles, side, side), generator=generator)
    valid = torch.rand(tiles, side, side, generator=generator) > 0.2
    image = torch.rand(tiles, 3, side, side, generator=generator) * valid[:, None]
    return Batch(image, label, valid, torch.ones(tiles, dtype=torch.bool), context)


ALL = torch.arange(augment.ELEMENTS)


@pytest.mark.parametrize("element", range(augment.ELEMENTS))
def test_a_box_moves_with_the_pixels_it_frames(element):
    side = 12
    image = torch.zeros(1, side, side)
    image[0, 3:6, 8:12] = 1
    box = torch.tensor([[3, 8, 6, 12]]) / side
    turned = augment.turn(image, torch.tensor([element]))[0]
    top, left, bottom, right = (augment.turn_boxes(box, torch.tensor([element]))[0] * side).round().int().tolist()
    assert turned[top:bottom, left:right].sum() == turned.sum() == 12


def test_the_eight_elements_are_different():
    image = torch.arange(9.0).reshape(1, 3, 3).repeat(8, 1, 1)
    assert len({tuple(turned.flatten().tolist()) for turned in augment.turn(image, ALL)}) == 8


def test_image_label_valid_and_context_move_together():
    before = batch()
    still = augment.Draw(ALL, torch.zeros(8), torch.ones(8))
    after = augment.apply(before, still)
    for k in range(8):
        assert torch.equal(after.label[k], augment.turn_one(before.label[k], k))
        assert torch.equal(after.valid[k], augment.turn_one(before.valid[k], k))
        assert torch.equal(after.image[k], augment.turn_one(before.image[k], k))
        assert torch.equal(after.context.label[k], augment.turn_one(before.context.label[k], k))
        assert torch.equal(after.context.valid[k], augment.turn_one(before.context.valid[k], k))


def test_thumbnails_move_and_change_with_their_contexts():
    before, generator = batch(), torch.Generator().manual_seed(1)
    image, valid = torch.rand(8, 3, 10, 10, generator=generator), torch.rand(8, 10, 10, generator=generator) > 0.2
    wider = Context(image * valid[:, None], valid, torch.tensor([[0.2, 0.5, 0.4, 0.7]]).repeat(8, 1), ALL)
    before = before._replace(context=before.context._replace(wider=wider))
    after = augment.apply(before, augment.Draw(ALL, torch.full((8,), 0.1), torch.full((8,), 1.5))).context.wider
    for k in range(8):
        known = augment.turn_one(valid[k], k)
        assert torch.equal(after.valid[k], known)
        torch.testing.assert_close(after.image[k], (augment.turn_one(wider.image[k], k) * 1.5 + 0.1) * known)
        assert torch.equal(after.box[k], augment.turn_boxes(wider.box[k : k + 1], ALL[k : k + 1])[0])


def test_light_changes_tile_and_context_alike_and_leaves_nodata_alone():
    before = batch()
    drawn = augment.Draw(torch.zeros(8, dtype=torch.long), torch.full((8,), 0.1), torch.full((8,), 1.5))
    after = augment.apply(before, drawn)
    expected = (before.image * 1.5 + 0.1) * before.valid[:, None]
    torch.testing.assert_close(after.image, expected)
    torch.testing.assert_close(after.context.image, (before.context.image * 1.5 + 0.1) * before.context.valid[:, None])


def test_a_draw_depends_on_its_generator_alone():
    first, second = (augment.draw(batch(), torch.Generator().manual_seed(5), strength=0.2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tiles_of_one_context_share_their_draw():
    shared = batch()
    shared = shared._replace(context=shared.context._replace(image=shared.context.image[:2], index=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])))
    drawn = augment.draw(shared, torch.Generator().manual_seed(1), strength=0.2)
    assert len(set(drawn.element[:4].tolist())) == len(set(drawn.brightness[4:].tolist())) == 1


def test_ignored_labels_stay_ignored():
    ignored = batch()._replace(label=torch.full((8, 16, 16), IGNORE))
    assert bool((augment.apply(ignored, augment.draw(ignored, torch.Generator().manual_seed(0), strength=0.2)).label == IGNORE).all())


def test_an_element_and_its_inverse_leave_a_map_as_it_was():
    image = torch.rand(8, 3, 6, 6)
    assert torch.equal(augment.turn(augment.turn(image, ALL), augment.inverse(ALL)), image)
