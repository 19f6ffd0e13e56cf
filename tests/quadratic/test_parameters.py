"""A quadratic model of any parameters: complex, sparse, or none that has a second derivative."""

import copy

import pytest
import torch
from torch import nn

import crest
from crest.looking.observer import Observer
from crest.quadratic import (
    flat_size,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
)
from toys import CRITERION, make_loader, train

TOKENS = torch.randint(50, (400, 6), generator=torch.Generator().manual_seed(0))
CLASSES = TOKENS.sum(1) % 3


def complex_and_real():
    """The same function of complex parameters, and of their parts."""
    generator = torch.Generator().manual_seed(0)
    complex_ = torch.randn(4, dtype=torch.complex128, generator=generator).requires_grad_()
    real = torch.view_as_real(complex_.detach()).clone().requires_grad_()
    factors = torch.randn(4, dtype=torch.complex128, generator=generator)

    def loss(values):
        product = values * factors
        return (product.abs().square() + (product**2).real.tanh() + values.imag**3).sum()

    return complex_, real, loss


def test_complex_parameters_count_as_their_two_parts():
    complex_, real, loss = complex_and_real()
    probes = rademacher_probes([complex_], 5, torch.Generator().manual_seed(1))
    gradient, diagonal = gradient_and_hessian_diagonal(loss(complex_), [complex_], probes)
    expected = gradient_and_hessian_diagonal(
        loss(torch.view_as_complex(real)),
        [real],
        [[torch.view_as_real(probe)] for (probe,) in probes],
    )
    torch.testing.assert_close(gradient, expected[0])
    torch.testing.assert_close(diagonal, expected[1])
    assert flat_size([complex_, real]) == len(flatten([complex_, real])) == 16


def test_probes_of_complex_parameters_have_a_sign_for_each_part():
    ((probe,),) = rademacher_probes(
        [torch.zeros(100, dtype=torch.cfloat)], 1, torch.Generator().manual_seed(0)
    )
    parts = torch.view_as_real(probe)
    assert parts.abs().eq(1).all()
    assert parts.unique(dim=0).shape == (4, 2)


def test_probes_of_real_parameters_are_those_of_before():
    (found,) = rademacher_probes([torch.zeros(3, 4)], 1, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(2, (3, 4), generator=generator, dtype=torch.int8)
    assert torch.equal(found[0], 2.0 * bits - 1)


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.spectrum = nn.Parameter(torch.randn(11, dtype=torch.cfloat))
        self.fc = nn.Linear(20, 5)

    def forward(self, inputs):
        return self.fc(torch.fft.irfft(torch.fft.rfft(inputs) * self.spectrum, n=20))


class Words(nn.Module):
    def __init__(self, kind, *, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.fc = kind(50, 8, sparse=sparse), nn.Linear(8, 3)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        return self.fc(hidden.mean(1) if hidden.ndim == 3 else hidden)


class FunctionalWords(Words):
    def forward(self, tokens):
        return self.fc(nn.functional.embedding(tokens, self.embedding.weight, sparse=True).mean(1))


def words():
    return torch.utils.data.TensorDataset(TOKENS, CLASSES)


QUADRATIC = {
    "paper": crest.Crest.paper(),
    "linear": crest.Crest(error_threshold=0.05, curvature="none", switch_off=False),
    "head": crest.Crest(error_threshold=0.05, curvature="head", switch_off=False),
}


def tensors_like(model):
    return words() if isinstance(model, Words) else None


@pytest.mark.parametrize("strategy", QUADRATIC.values(), ids=QUADRATIC.keys())
@pytest.mark.parametrize(
    "make",
    [
        Fourier,
        lambda: Words(nn.Embedding, sparse=True),
        lambda: Words(nn.EmbeddingBag, sparse=True),
        lambda: Words(nn.EmbeddingBag, sparse=False),
        lambda: FunctionalWords(nn.Embedding, sparse=True),
    ],
    ids=["complex", "sparse", "sparse bag", "bag", "functional sparse"],
)
def test_a_run_with_a_quadratic_model_works_or_names_what_to_choose(strategy, make):
    model = make()
    loader = make_loader(strategy, model=model, dataset=tensors_like(model), budget=0.5)
    try:
        train(loader, model, lr=0.01)
    except ValueError as error:
        message = str(error)
    else:
        return
    has_no_second_derivative = isinstance(model, Words) and strategy.curvature == "trainable"
    assert has_no_second_derivative
    assert "curvature='head'" in message


def test_sparse_gradients_give_the_model_of_dense_ones():
    batch = (TOKENS[:32], CLASSES[:32])
    found = []
    for sparse in (False, True):
        model = Words(nn.Embedding, sparse=sparse)
        observer = Observer(model, CRITERION)
        parameters = observer.parameters("trainable")
        probes = rademacher_probes(parameters, 2, torch.Generator().manual_seed(0))
        with observer.differentiable_losses(batch) as losses:
            found.append(gradient_and_hessian_diagonal(losses.mean(), parameters, probes))
        assert model.embedding.sparse is sparse
    torch.testing.assert_close(*found)


def test_a_sparse_gradient_is_flattened_like_a_dense_one():
    dense = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    assert flatten([dense.to_sparse(), dense]).tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values):
        return values * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_what_has_no_second_derivative_is_refused_with_a_choice():
    values = torch.ones(3, requires_grad=True)
    probes = rademacher_probes([values], 1, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"differentiable twice .* curvature='head'"):
        gradient_and_hessian_diagonal(Once.apply(values**2).pow(2).sum(), [values], probes)
    gradient_and_hessian_diagonal(Once.apply(values**2).pow(2).sum(), [values], [])


def test_a_run_with_complex_parameters_resumes():
    model = Fourier()
    loader = make_loader(QUADRATIC["paper"], model=model, budget=0.5)
    iterator = iter(loader)
    for _ in range(4):
        inputs, targets, weights = next(iterator)
        crest.weighted_mean(CRITERION(model(inputs), targets), weights).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.01 * parameter.grad)
                parameter.grad = None
    other = make_loader(QUADRATIC["paper"], model=copy.deepcopy(model), budget=0.5)
    other.load_state_dict(loader.state_dict())
    next(iterator)
    next(iter(other))
    assert torch.equal(loader.handed_out.indices, other.handed_out.indices)
