"""What is minimised: terms, weights, and which tensors they may move."""

import pytest
import torch

from rsdistill.batches import IGNORE, Batch, Context
from rsdistill.methods import load_method
from rsdistill.methods.lad import LAD
from rsdistill.models import build_network
from rsdistill.training.losses import Supervised
from rsdistill.training.objectives import AUXILIARY, DistillObjective, TeacherObjective
from rsdistill.training.teachers import Ensemble, Teacher

CLASSES = 4


def batch(side=32, tiles=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, CLASSES, (tiles, side, side), generator=generator)
    valid = torch.rand(tiles, side, side, generator=generator) > 0.1
    image = torch.randn(tiles, 3, side, side, generator=generator) * valid[:, None]
    return Batch(image, label.masked_fill(~valid, IGNORE), valid, torch.ones(tiles, dtype=torch.bool))


def network(arch="linear", seed=0, **args):
    torch.manual_seed(seed)
    made = build_network(arch, args, 3, CLASSES)
    for parameter in made.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter)
    return made


def objective(method, student, *teachers, augmentation=0.0):
    rule = load_method(method, {})
    made = DistillObjective(student, Supervised(("ce",)), rule, [Teacher(one) for one in teachers], augmentation=augmentation, seed=5)
    made.begin(batch())
    return made


def test_a_student_that_equals_its_teacher_has_no_kd_loss_however_tiles_are_turned():
    """A 1 x 1 convolution commutes with every turn and flip: kd is zero exactly if the teacher's answer is turned as the student's tile."""
    teacher = network()
    student = network()
    student.load_state_dict(teacher.state_dict())
    made = objective("kd", student, teacher)
    elements = set()
    for step in range(4):
        terms = made(batch(seed=step), step)
        assert terms["kd"].item() == pytest.approx(0, abs=1e-6)
        elements.add(terms["ce"].item())
    assert len(elements) == 4


def test_turns_differ_from_step_to_step_and_repeat_with_the_step():
    made = objective("kd", network("tiny"), network(seed=1))
    made.eval()
    same = batch()
    losses = [made(same, step)["kd"].item() for step in (0, 1, 2, 0)]
    assert losses[0] == losses[3]
    assert len(set(losses[:3])) == 3


def test_the_teacher_is_no_part_of_what_learns_or_is_saved():
    teacher = network("tiny", seed=1)
    made = objective("kd", network(), teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert len(list(made.parameters())) == 2
    made.train()
    assert not teacher.training
    terms = made(batch(), 0)
    sum(terms.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    made.to(torch.float64)
    assert next(teacher.parameters()).dtype == torch.float64


def test_unlabelled_tiles_give_no_supervised_loss_but_are_taught():
    made = objective("kd", network(), network(seed=1))
    hidden = batch()
    hidden = hidden._replace(label=torch.full_like(hidden.label, IGNORE), labelled=torch.zeros(8, dtype=torch.bool))
    terms = made(hidden, 0)
    assert terms["ce"].item() == 0
    assert all(torch.isfinite(term) for term in terms.values())


def test_a_critic_learns_apart_from_the_student():
    made = objective("skd", network("tiny"), network("tiny", seed=1))
    critic = list(made.critic.parameters())
    assert critic
    terms = made(batch(), 0)
    sum(terms.values()).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in critic)
    student = [parameter.grad.clone() for parameter in made.network.parameters() if parameter.grad is not None]
    sum(made.critic_terms(made.seen).values()).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in critic)
    after = [parameter.grad for parameter in made.network.parameters() if parameter.grad is not None]
    assert all(torch.equal(before, now) for before, now in zip(student, after, strict=True))


def test_a_plain_teacher_has_its_supervised_terms():
    made = TeacherObjective(network("tiny"), Supervised(("ce", "dice")), augmentation=0.2, seed=0)
    assert set(made(batch(), 0)) == {"ce", "dice"}


def test_a_ginet_trains_on_a_tile_without_a_label():
    """All terms are finite, none moves a weight."""
    teacher = network("ginet", encoder="test_resnet", dim=8)
    made = TeacherObjective(teacher, Supervised(("ce",)), augmentation=0.2, seed=0, lad=LAD())
    tiles = batch(side=64, tiles=2)
    places = torch.tensor([[0.1, 0.1, 0.3, 0.3]]).repeat(2, 1)
    unknown = torch.full((2, 64, 64), IGNORE)
    seen = Context(torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.bool), places, torch.arange(2), unknown)
    terms = made(tiles._replace(label=torch.full_like(tiles.label, IGNORE), context=seen), 0)
    assert set(terms) == {"ce", "aux", "global", "lad"}
    sum(terms.values()).backward()
    assert all(term.item() == 0 for term in terms.values())
    assert all(p.grad is None or not p.grad.any() for p in teacher.parameters())


def test_an_auxiliary_head_counts_less():
    made = TeacherObjective(network("local", dim=8, encoder="mobilenetv4_conv_small_035"), Supervised(("ce",)), augmentation=0.0, seed=0)
    assert set(made(batch(side=64), 0)) == {"ce", "aux"}
    assert made.weights()["aux"] == AUXILIARY


def test_a_teacher_sees_the_normalisation_that_it_was_trained_with():
    known = network()
    seen = batch()
    raw = seen.image * 20.0 + 100.0
    own = (raw - 90.0) / 40.0 * seen.valid[:, None]
    answer = Teacher(known, torch.full((3,), 20.0 / 40.0), torch.full((3,), (100.0 - 90.0) / 40.0))(seen)
    torch.testing.assert_close(answer.logits, known(own).logits)


def test_an_ensemble_answers_with_the_mean_probability():
    members = [Teacher(network(seed=1)), Teacher(network(seed=2))]
    seen = batch()
    mean = sum(member(seen).logits.softmax(1) for member in members) / 2
    torch.testing.assert_close(Ensemble(members)(seen).logits.softmax(1), mean)
    assert not any(parameter.requires_grad for parameter in Ensemble(members).parameters())
