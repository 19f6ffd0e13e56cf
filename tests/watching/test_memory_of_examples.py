"""What is remembered of each example is what training showed, averaged as told."""

import pytest
import torch
from torch.nn import functional

from crest.watching.examples import ExampleMemory

N, C = 12, 5


def told(logits, targets, indices, memory):
    logits = logits.clone().requires_grad_()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    (errors,) = torch.autograd.grad(losses.sum(), logits)
    memory.tell(indices, losses.detach())
    memory.tell_errors(indices, errors)
    memory.take_in()
    return losses.detach(), logits.detach().softmax(1), errors


def make(seed=0, rows=N, classes=C):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    return logits, torch.randint(classes, (rows,), generator=generator)


def test_the_first_look_is_kept_as_it_is():
    memory = ExampleMemory(N)
    logits, targets = make()
    indices = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    losses, p, errors = told(logits, targets, indices, memory)
    assert torch.equal(memory.loss[indices], losses)
    assert torch.equal(memory.given[indices], targets.int())
    rows = torch.arange(N)
    assert torch.allclose(memory.p_given[indices], p[rows, targets], atol=1e-6)
    rivals = p.clone()
    rivals[rows, targets] = -1
    assert torch.equal(memory.other[indices], rivals.argmax(1).int())
    assert torch.allclose(memory.p_other[indices], rivals.amax(1), atol=1e-6)
    assert torch.allclose(memory.norm[indices], errors.norm(dim=1))
    assert torch.allclose(memory.sketch[indices].float(), errors, atol=1e-3)
    assert memory.is_cross_entropy


def test_later_looks_are_averaged_in():
    memory = ExampleMemory(N)
    indices = torch.arange(N)
    first, targets = make(0)
    second, _ = make(1)
    one, p, _ = told(first, targets, indices, memory)
    two, q, _ = told(second, targets, indices, memory)
    assert torch.allclose(memory.loss, (one + two) / 2)
    rows = torch.arange(N)
    expected = (p + q)[rows, targets] / 2
    assert torch.allclose(memory.p_given, expected, atol=1e-6)
    assert (memory.times_seen == 2).all()


def test_a_rival_gives_way_once_another_has_become_stronger():
    memory = ExampleMemory(1)
    targets, index = torch.tensor([0]), torch.tensor([0])
    told(torch.tensor([[0.0, 3.0, 0.0]]), targets, index, memory)
    assert int(memory.other[0]) == 1
    told(torch.tensor([[0.0, 0.0, 3.0]]), targets, index, memory)
    assert int(memory.other[0]) == 1  # as strong as the new: it stays
    for _ in range(3):
        told(torch.tensor([[0.0, 0.0, 3.0]]), targets, index, memory)
    assert int(memory.other[0]) == 2


def test_a_corrected_label_begins_anew():
    memory = ExampleMemory(1)
    logits, index = torch.tensor([[0.0, 4.0, 0.0]]), torch.tensor([0])
    told(logits, torch.tensor([0]), index, memory)
    assert float(memory.margin[0]) < -0.9
    told(logits, torch.tensor([1]), index, memory)
    assert float(memory.margin[0]) > 0.9


def test_many_outputs_are_sketched_and_distances_kept():
    memory = ExampleMemory(200)
    logits, targets = make(rows=200, classes=400)
    _, _, errors = told(3 * logits, targets, torch.arange(200), memory)
    assert memory.sketch.shape == (200, 32)
    assert memory.sketch.dtype == torch.float16
    true, kept = torch.cdist(errors, errors), torch.cdist(*2 * [memory.sketch.float()])
    off = torch.triu_indices(200, 200, 1)
    ratio = kept[off[0], off[1]] / true[off[0], off[1]]
    # A sum of 32 squares: its root has a relative standard deviation of 1 / 8.
    assert abs(float(ratio.mean()) - 1) < 0.05
    assert float(ratio.std()) < 0.2


def test_sequences_leave_their_losses_alone():
    memory = ExampleMemory(N)
    memory.tell(torch.arange(N), torch.ones(N))
    memory.tell_errors(torch.arange(N), torch.ones(N, 7, 3))
    memory.take_in()
    assert memory.known.all()
    assert memory.num_outputs == 0


@pytest.mark.parametrize("kind", ["several labels", "numbers"])
def test_losses_without_classes_are_noticed(kind):
    memory = ExampleMemory(N)
    outputs = torch.randn(N, C, generator=torch.Generator().manual_seed(0))
    errors = outputs.sigmoid() - (outputs > 0).float() if kind == "several labels" else outputs
    memory.tell(torch.arange(N), torch.ones(N))
    memory.tell_errors(torch.arange(N), errors)
    memory.take_in()
    assert not memory.is_cross_entropy


def test_losses_that_are_not_finite_are_named():
    memory = ExampleMemory(N)
    memory.tell(torch.tensor([3, 4]), torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match="must be finite; got nan for example 4"):
        memory.take_in()


def test_a_million_examples_of_a_thousand_classes_fit():
    memory = ExampleMemory(1_000_000)
    errors = torch.randn(4, 1000)
    memory.tell(torch.arange(4), torch.ones(4))
    memory.tell_errors(torch.arange(4), errors)
    memory.take_in()
    state = memory.state_dict()
    size = sum(t.numel() * t.element_size() for t in state.values() if torch.is_tensor(t))
    assert size < 120e6  # bytes: a hundred and some for each example


def test_a_memory_resumes():
    memory, other = ExampleMemory(N), ExampleMemory(N)
    logits, targets = make()
    told(logits, targets, torch.arange(N), memory)
    other.load_state_dict(memory.state_dict())
    second, _ = make(1)
    for one in (memory, other):
        told(second, targets, torch.arange(N), one)
    for name, value in memory.state_dict().items():
        same = torch.equal(value, other.state_dict()[name]) if torch.is_tensor(value) else True
        assert same, name
