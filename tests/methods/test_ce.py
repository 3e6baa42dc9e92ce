from rsdistill.methods import load_method


def test_ce_adds_no_term_and_needs_no_teacher(case):
    method = load_method("ce")
    example = case()
    assert method.teachers == 0
    assert method(example.batch, example.student) == {}
    assert method.weights == {}
    assert not list(method.parameters())
    assert method.prepare(example.batch, None) is example.batch
