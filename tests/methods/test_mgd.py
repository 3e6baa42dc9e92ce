import math

import pytest
import torch

from rsdistill.batches import IGNORE, Segmentation
from rsdistill.errors import ConfigError
from rsdistill.methods import load_method
from rsdistill.methods.mgd import hard_mean, pseudo_labels


def mgd(**options):
    return load_method("mgd", {f"mgd.{name}": value for name, value in options.items()})


def semi(case, **options):
    """Four tiles of which two are unlabelled, a student of the four tiles that it is shown, and two teachers."""
    example = case(images=4, teachers=2, **{"tile": (14, 14), **options})
    labelled = torch.tensor([True, True, False, False])
    label = example.batch.label.masked_fill(~labelled[:, None, None], IGNORE)
    return example._replace(batch=example.batch._replace(label=label, labelled=labelled))


def prepared(example, method, seed=0):
    """What the student is shown."""
    return method.prepare(example.batch, torch.Generator().manual_seed(seed))


def cross_entropy_by_hand(logits, label, by_hand):
    kept = (label != IGNORE).nonzero().tolist()
    return by_hand.mean(-math.log(by_hand.softmax(by_hand.at(logits, n, r, c))[int(label[n, r, c])]) for n, r, c in kept)


def test_pixel_by_hand(case, by_hand):
    example, method = semi(case), mgd(region=0, image=0)
    shown = prepared(example, method)
    mix, total = method._mix, 0.0
    for teacher in example.teachers:
        said = teacher.logits.argmax(1)
        mixed = torch.stack([torch.where(mix.inside[k], said[mix.pasted[k]], said[mix.base[k]]) for k in range(2)])
        plain = said[:2].masked_fill(~(example.batch.valid[:2] & (example.batch.label[:2] != IGNORE)), IGNORE)
        total += cross_entropy_by_hand(example.student.logits[:2], plain, by_hand)
        total += cross_entropy_by_hand(example.student.logits[2:], mixed.masked_fill(~shown.valid[2:], IGNORE), by_hand)
    assert example.values(method)["pixel"] == pytest.approx(total, rel=1e-9)


def test_region_by_hand_with_different_channels(case, by_hand):
    example, method = semi(case, widths=(3, 6)), mgd(pixel=0, image=0)
    shown = prepared(example, method)
    part = shown.valid & (~shown.labelled[:, None, None] | (shown.label != IGNORE))
    images = []
    for n in range(4):
        relations = []
        for maps in (example.student.features, method._mix.maps(example.teachers[0].features)):
            cells = []
            for row in range(7):
                for col in range(7):
                    kept = [(r, c) for r in (2 * row, 2 * row + 1) for c in (2 * col, 2 * col + 1) if part[n, r, c]]
                    if kept:
                        cells.append([by_hand.mean(d) for d in zip(*(by_hand.at(maps, n, r, c) for r, c in kept), strict=True)])
            relations.append([by_hand.cosine(a, b) for a in cells for b in cells])
        images.append(by_hand.mean((a - b) ** 2 for a, b in zip(*relations, strict=True)))
    assert example.values(method)["region"] == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_image_by_hand_from_the_deep_teacher(case, by_hand):
    example, method = semi(case), mgd(pixel=0, region=0)
    shown = prepared(example, method)
    part = shown.valid & (~shown.labelled[:, None, None] | (shown.label != IGNORE))
    deep = method._mix.maps(example.teachers[1].logits)
    gaps = []
    for n in range(4):
        kept = part[n].nonzero().tolist()
        for k in range(3):
            own, other = (by_hand.mean(maps[n, k, r, c].item() for r, c in kept) for maps in (example.student.logits, deep))
            gaps.append(abs(own - other))
    assert example.values(method)["image"] == pytest.approx(by_hand.mean(gaps), rel=1e-9)


def test_a_student_that_says_of_mixed_tiles_what_the_teachers_said_of_whole_ones_has_no_relation_loss(case):
    example, method = semi(case), mgd(pixel=0)
    prepared(example, method)
    teacher = example.teachers[0]
    student = Segmentation(*(method._mix.maps(maps.detach()).requires_grad_() for maps in teacher[:2]))
    values = example._replace(student=student, teachers=(teacher, teacher)).values(method)
    assert values == pytest.approx({"region": 0, "image": 0}, abs=1e-12)


def test_gradients_reach_the_student_only(case):
    example, method = semi(case, student=(7, 7), teacher=(4, 4)), mgd()
    prepared(example, method)
    sum(example.run(method).values()).backward()
    assert example.student.logits.grad.abs().sum() > 0
    assert example.student.features.grad.abs().sum() > 0
    assert all(maps.grad is None for teacher in example.teachers for maps in teacher[:2])


def test_nodata_that_is_pasted_stays_nodata(case):
    example, method = semi(case), mgd()
    valid = example.batch.valid.clone()
    valid[2:] = False
    valid[3, :7] = True
    example = example._replace(batch=example.batch._replace(valid=valid))
    shown = prepared(example, method)
    sum(example.run(method).values()).backward()
    assert shown.valid[2:].any()
    assert (~shown.valid[2:]).any()
    reached = example.student.logits.grad.abs().sum(1)[2:] > 0
    assert torch.equal(reached, shown.valid[2:])


def test_pseudo_labels_below_the_threshold_are_ignored():
    logits = torch.tensor([[2.0, 0.1], [0.0, 0.0]])[None, :, None]
    assert pseudo_labels(logits, (1, 2), 0).tolist() == [[[0, 0]]]
    assert pseudo_labels(logits, (1, 2), 0.8).tolist() == [[[0, IGNORE]]]


def test_a_threshold_that_no_teacher_reaches_leaves_nothing_to_learn(case):
    example, method = semi(case), mgd(threshold=0.999999, region=0, image=0)
    prepared(example, method)
    loss = example.run(method)["pixel"]
    loss.backward()
    assert loss.item() == 0
    assert not example.student.logits.grad.any()


def test_hard_pixels_only(by_hand):
    logits = 3 * torch.randn(1, 3, 10, 16, dtype=torch.float64)
    label = torch.randint(0, 3, (1, 10, 16))
    label[0, 0] = IGNORE
    losses = sorted(
        -math.log(by_hand.softmax(by_hand.at(logits, 0, r, c))[int(label[0, r, c])]) for _, r, c in (label != IGNORE).nonzero().tolist()
    )
    hard = [loss for loss in losses if loss >= -math.log(0.4)]
    assert 9 < len(hard) < len(losses)
    found = torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    part = label != IGNORE
    assert float(hard_mean(found, part, 0.0)) == pytest.approx(by_hand.mean(losses), rel=1e-9)
    assert float(hard_mean(found, part, 0.4)) == pytest.approx(by_hand.mean(hard), rel=1e-9)
    assert float(hard_mean(found, part, 1e-9)) == pytest.approx(by_hand.mean(losses[-10:]), rel=1e-9), "a sixteenth and one"
    assert float(hard_mean(found, part & False, 0.4)) == 0


def test_one_teacher_serves_twice_and_says_so(case):
    example, method = semi(case), mgd()
    prepared(example, method)
    once = method(example.batch, example.student, example.teachers[0])
    assert any("serves as both" in note for note in method.notes)
    twice = method(example.batch, example.student, example.teachers[0], example.teachers[0])
    assert {term: value.item() for term, value in once.items()} == {term: value.item() for term, value in twice.items()}
    assert len(method.notes) == 1


def test_two_teachers_need_no_note(case):
    example, method = semi(case), mgd()
    prepared(example, method)
    example.run(method)
    assert method.notes == []


def test_labelled_tiles_alone_serve_with_their_labels_hidden_and_it_says_so(case):
    example, method = case(images=2, teachers=2), mgd()
    for seed in (0, 1):
        shown = prepared(example, method, seed)
    assert len(shown.image) == 4
    assert [note for note in method.notes if "labels hidden" in note] == method.notes
    assert len(method.notes) == 1
    twice = Segmentation(*(torch.cat([maps.detach()] * 2).requires_grad_() for maps in example.student[:2]))
    terms = example._replace(student=twice).run(method)
    assert all(value.isfinite() for value in terms.values())


def test_a_dead_region_gives_no_nan(case):
    example, method = semi(case), mgd(pixel=0, image=0)
    prepared(example, method)
    dead = example.with_student(torch.zeros_like)
    loss = dead.run(method)["region"]
    loss.backward()
    assert loss.isfinite()
    assert dead.student.features.grad.isfinite().all()


def test_every_batch_has_boxes_of_its_own(case):
    example, method = semi(case), mgd()
    first, again, other = (prepared(example, method, seed).image for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_learns_from_unlabelled_tiles_alone():
    assert mgd().semi_supervised
    assert mgd().teachers == 2
    for option, value in {"threshold": 1.0, "ohem": -0.1, "boxes": 0}.items():
        with pytest.raises(ConfigError, match=f"mgd.{option}"):
            mgd(**{option: value})
