import pytest
import torch

from rsdistill.errors import ConfigError
from rsdistill.methods import load_method
from rsdistill.methods.base import Method


def test_terms_and_weights_carry_their_methods_name_and_kd_stands_once(case):
    method = load_method("kd+ifvd+cwd", {"kd.weight": "2", "kd.tau": 4, "ifvd.weight": 7})
    terms = case().values(method)
    assert method.weights == {"kd": 2, "ifvd.variation": 7, "cwd.logits": 3, "cwd.features": 50}
    assert set(terms) == set(method.weights)
    alone = {"kd": load_method("kd", {"kd.tau": 4}), "ifvd.variation": load_method("ifvd"), "cwd.logits": load_method("cwd")}
    for term, part in alone.items():
        assert terms[term] == pytest.approx(case().values(part)[term.rpartition(".")[2]], rel=1e-12)


def test_the_first_method_with_kd_keeps_it_where_kd_itself_is_not_named():
    assert load_method("ifvd+skd").weights["kd"] == 1
    assert load_method("skd+ifvd").weights["kd"] == 10
    assert load_method("ifvd+skd", {"ifvd.kd": 0}).weights["kd"] == 10
    assert "kd" not in load_method("dist+nfd", {"dist.kd": 0, "nfd.kd": 0}).weights


@pytest.mark.parametrize(("spec", "option", "owner"), [("kd+ifvd", "ifvd.kd", "kd.weight"), ("ifvd+cwd", "cwd.kd_tau", "ifvd.kd")])
def test_an_option_of_a_kd_that_was_given_up_is_refused(spec, option, owner):
    with pytest.raises(ConfigError, match="kd stands once") as caught:
        load_method(spec, {option: 3})
    assert owner in caught.value.hint


def test_two_critics_train_side_by_side(case):
    example = case(dtype=torch.float32, tile=(32, 32))
    method = load_method("skd+mgsad+idd")
    sum(example.run(method).values()).backward()
    assert all(parameter.grad is None for parameter in method.critic.parameters())
    terms = method.critic_terms(*example[:2], *example.teachers)
    assert set(terms) == {"skd.holistic", "mgsad.affinity", "idd.position"}
    sum(terms.values()).backward()
    assert all(parameter.grad is not None for parameter in method.critic.parameters())
    critics = {id(parameter) for parameter in method.critic.parameters()}
    assert not critics & {id(parameter) for parameter in method.student_parameters()}


def test_its_state_goes_into_a_fresh_one(case):
    example = case(widths=(3, 6))
    first, second = load_method("nfd+idd"), load_method("nfd+idd")
    example.run(first)
    second.setup(example.student, *example.teachers)
    assert example.values(first) != example.values(second)
    second.load_state_dict(first.state_dict())
    assert example.values(first) == example.values(second)


def test_every_member_is_told_how_far_the_run_is(case):
    method = load_method("mgsad+idd")
    method.schedule(0.05)
    assert (method.named["mgsad"].fade, method.named["idd"].fade) == (0.95, 0.5)


def test_members_share_their_notes():
    method = load_method("ifvd+cwd")
    method.named["cwd"].notes.append("read this once")
    assert method.notes == ["read this once"]


def test_it_is_semi_supervised_where_a_member_is():
    assert not load_method("kd+ifvd").semi_supervised
    assert load_method("kd+ifvd", {"kd.where": "valid"}).semi_supervised


def test_ce_may_stand_beside_others(case):
    method = load_method("ce+kd")
    assert method.teachers == 1
    assert set(case().run(method)) == {"kd"}


def test_a_method_that_mixes_the_students_images_stands_alone():
    with pytest.raises(ConfigError, match="mgd mixes the student's images") as caught:
        load_method("mgd+kd")
    assert caught.value.hint == "--method mgd alone"
    assert load_method("mgd").prepare.__func__ is not Method.prepare
