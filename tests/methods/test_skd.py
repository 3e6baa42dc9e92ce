import pytest
import torch

from rsdistill.batches import IGNORE
from rsdistill.methods import load_method
from rsdistill.methods.critics import HolisticCritic


def skd(**options):
    return load_method("skd", {"skd.kd": 0, **{f"skd.{name}": value for name, value in options.items()}})


def pairwise(**options):
    return skd(holistic=0, **options)


def nodes_by_hand(maps, part, kernel, pool):
    """The nodes of one image: lists of D numbers, only of cells with a pixel that takes part."""
    nodes = []
    for top in range(0, part.shape[0], kernel[0]):
        for left in range(0, part.shape[1], kernel[1]):
            cell = [
                (row, col)
                for row in range(top, min(top + kernel[0], part.shape[0]))
                for col in range(left, min(left + kernel[1], part.shape[1]))
                if part[row, col]
            ]
            if cell:
                nodes.append([pool([maps[d, row, col].item() for row, col in cell]) for d in range(len(maps))])
    return nodes


@pytest.mark.parametrize(("nodes", "kernel", "pool"), [("average", (2, 2), sum), ("half", (2, 3), max)])
def test_pairwise_by_hand_with_different_channels(case, by_hand, nodes, kernel, pool):
    example = case(tile=(5, 7), widths=(3, 6))
    images = []
    for n in range(2):
        part = example.batch.valid[n] & (example.batch.label[n] != IGNORE)
        own, other = (nodes_by_hand(f[n], part, kernel, pool) for f in (example.student.features, example.teacher.features))
        count = range(len(own))
        images.append(
            by_hand.mean((by_hand.cosine(own[i], own[j]) - by_hand.cosine(other[i], other[j])) ** 2 for i in count for j in count)
        )
    assert example.values(pairwise(nodes=nodes))["pairwise"] == pytest.approx(by_hand.mean(images), rel=1e-9)


def test_half_the_map_makes_three_by_three_nodes_where_sides_are_odd(case):
    example = case(tile=(65, 33), masked=False)
    method = pairwise(nodes="half")
    part = torch.ones(2, 65, 33, dtype=torch.bool)
    assert method.nodes(example.student.features, part, 2)[0].shape == (2, 4, 9)


def test_published_weights_follow_the_nodes():
    assert skd().weights == {"pairwise": 10, "holistic": 0.1}
    assert skd(nodes="half").weights["pairwise"] == 0.5
    assert skd(nodes="half", pairwise=3).weights["pairwise"] == 3


@pytest.mark.parametrize("gain", [1e-2, 7, 1e3])
def test_a_gain_of_one_network_changes_nothing(case, gain):
    example = case()
    value = example.values(pairwise())["pairwise"]
    assert example.with_student(lambda f: gain * f).values(pairwise())["pairwise"] == pytest.approx(value, rel=1e-9)


def test_a_rotation_of_channels_changes_nothing_where_a_node_is_a_pixel(case):
    example = case()
    rotation = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    turned = example.with_student(lambda f: torch.einsum("de,behw->bdhw", rotation, f))
    assert turned.values(pairwise(patch=1)) == pytest.approx(example.values(pairwise(patch=1)), rel=1e-9)


def test_the_gradient_has_no_radial_part(case):
    example = case()
    example.run(pairwise(patch=1))["pairwise"].backward()
    features = example.student.features
    radial = (features.grad * features.detach()).sum(1)
    assert features.grad.abs().max() > 1e-6
    assert radial.abs().max() < 1e-15


def test_the_verdict_is_the_critics_score_with_its_sign_turned(case):
    example = case(dtype=torch.float32, tile=(8, 8))
    method = skd(pairwise=0)
    value = example.values(method)["holistic"]
    assert isinstance(method.critic, HolisticCritic)
    part = example.batch.valid & (example.batch.label != IGNORE)
    shown = example.student.logits.detach() * part[:, None]
    method.critic.eval()
    assert value == pytest.approx(-method.critic(shown).mean().item(), rel=1e-5)


def test_a_critic_at_zero_is_undecided(case):
    example = case(dtype=torch.float32)
    method = skd(pairwise=0)
    method.setup(example.student, *example.teachers)
    last = method.critic[-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    assert method.critic_terms(*example[:2], *example.teachers)["holistic"].item() == 2
    assert example.values(method)["holistic"] == 0


def test_the_student_step_moves_no_weight_or_buffer_of_the_critic_and_the_critic_step_no_student(case):
    example = case(dtype=torch.float32)
    method = skd()
    example.run(method)["holistic"].backward()
    assert example.student.logits.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in method.critic.parameters())
    before = {name: value.clone() for name, value in method.critic.state_dict().items()}
    example.run(method)
    assert all(torch.equal(before[name], value) for name, value in method.critic.state_dict().items())
    example.student.logits.grad = None
    sum(method.critic_terms(*example[:2], *example.teachers).values()).backward()
    assert example.student.logits.grad is None
    assert all(parameter.grad is not None for parameter in method.critic.parameters())


@pytest.mark.parametrize("adversary", ["hinge", "wgan-gp"])
def test_a_critic_learns_to_tell_the_networks_apart(case, adversary):
    example = case(dtype=torch.float32, tile=(16, 16)).with_teachers(lambda z: z.clone().index_fill_(1, torch.tensor([0]), 4.0), "logits")
    method = skd(adversary=adversary)
    method.setup(example.student, *example.teachers)
    adam = torch.optim.Adam(method.critic.parameters(), lr=4e-4, betas=(0.9, 0.99))
    losses = []
    for _ in range(6):
        terms = method.critic_terms(*example[:2], *example.teachers)
        assert set(terms) == ({"holistic"} if adversary == "hinge" else {"holistic", "penalty"})
        loss = sum(terms.values())
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_without_the_holistic_term_there_is_no_critic(case):
    method = pairwise()
    assert set(case().run(method)) == {"pairwise"}
    assert method.critic is None
    assert method.critic_terms(*case()[:2], case().teacher) == {}
