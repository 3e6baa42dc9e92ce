import pytest
import torch

from rsdistill.methods.lad import LAD


def cells(case, **options):
    """The global branch as student and the local one as teacher, on 4 × 4 cells."""
    return case(tile=(4, 4), widths=(3, 5), **options)


def affinities_by_hand(maps, kept, n, by_hand):
    return [[by_hand.cosine(by_hand.at(maps, n, *i), by_hand.at(maps, n, *j)) for j in kept] for i in kept]


def test_mse_by_hand(case, by_hand):
    example = cells(case)
    images = []
    for n in range(2):
        kept = [(row, col) for m, row, col, _ in example.pixels() if m == n]
        own, other = (affinities_by_hand(f, kept, n, by_hand) for f in (example.student.features, example.teacher.features))
        images.append(by_hand.mean((a - b) ** 2 for rows in zip(own, other, strict=True) for a, b in zip(*rows, strict=True)))
    assert example.values(LAD())["lad"] == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_kl_by_hand(case, by_hand):
    example, tau = cells(case), 0.3
    images = []
    for n in range(2):
        kept = [(row, col) for m, row, col, _ in example.pixels() if m == n]
        own, other = (affinities_by_hand(f, kept, n, by_hand) for f in (example.student.features, example.teacher.features))
        images.append(by_hand.mean(by_hand.kl(by_hand.softmax(b, tau), by_hand.softmax(a, tau)) for a, b in zip(own, other, strict=True)))
    assert example.values(LAD(mode="kl", tau=tau))["lad"] == pytest.approx(by_hand.mean(images), rel=1e-9)


@pytest.mark.parametrize("mode", ["mse", "kl"])
def test_equal_relations_cost_nothing_whatever_rotation_or_gain(case, mode):
    example = cells(case)
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    alike = example._replace(student=example.teacher).with_student(lambda f: 7 * torch.einsum("de,behw->bdhw", basis, f))
    assert alike.values(LAD(mode=mode))["lad"] == pytest.approx(0, abs=1e-12)
    assert example.values(LAD(mode=mode))["lad"] > 1e-3


@pytest.mark.parametrize("mode", ["mse", "kl"])
def test_only_the_global_branch_learns(case, mode):
    example = cells(case)
    example.run(LAD(mode=mode))["lad"].backward()
    assert example.student.features.grad.abs().sum() > 0
    assert example.teacher.features.grad is None


def test_it_warms_up_over_the_first_tenth(case):
    example, method = cells(case), LAD()
    values = []
    for progress in (0.0, 0.05, 0.1, 1.0):
        method.schedule(progress)
        values.append(example.values(method)["lad"])
    assert values[0] == 0
    assert values[1] == pytest.approx(values[2] / 2)
    assert values[3] == values[2]


def test_few_cells_are_noted_once(case):
    coarse, fine = LAD(), LAD()
    few = case(tile=(12, 12), student=(3, 3), teacher=(3, 3))
    few.run(coarse), few.run(coarse)
    assert len(coarse.notes) == 1
    assert "3 x 3 cells" in coarse.notes[0]
    cells(case).run(fine)
    assert fine.notes == []


def test_none_leaves_the_term_out(case):
    method = LAD(mode="none")
    assert method.weights == {}
    assert cells(case).run(method) == {}


@pytest.mark.parametrize("mode", ["mse", "kl"])
def test_a_tile_without_a_valid_cell_gives_a_finite_zero(case, mode):
    example = cells(case)
    empty = example._replace(batch=example.batch._replace(valid=torch.zeros_like(example.batch.valid)))
    loss = empty.run(LAD(mode=mode))["lad"]
    loss.backward()
    assert loss.item() == 0
    assert not example.student.features.grad.any()
