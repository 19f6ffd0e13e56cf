"""Eq. (6) to (10)."""

import math

import pytest
import torch
from torch import nn

from crest.quadratic import (
    QuadraticModel,
    SmoothedMoments,
    flatten,
    gradient_and_hessian_diagonal,
    rademacher_probes,
    relative_error,
)


def probes_for(parameters, count, seed=0):
    return rademacher_probes(parameters, count, torch.Generator().manual_seed(seed))


def test_probes_are_signs_of_mean_zero_in_the_dtype_of_the_parameters():
    (probe,) = probes_for([torch.zeros(10_000, dtype=torch.float64)], 1)
    assert probe[0].dtype == torch.float64
    assert set(probe[0].tolist()) == {-1.0, 1.0}
    assert abs(float(probe[0].mean())) < 4 / math.sqrt(10_000)  # four standard errors


def test_one_probe_is_exact_on_a_diagonal_hessian():
    w = torch.randn(6, dtype=torch.float64).requires_grad_()
    curvature = torch.linspace(-1, 4, 6, dtype=torch.float64)
    loss = 0.5 * (curvature * w.square()).sum() + w.sum()
    gradient, diagonal = gradient_and_hessian_diagonal(loss, [w], probes_for([w], 1))
    assert torch.allclose(gradient, (curvature * w + 1).detach(), atol=1e-12)
    assert torch.allclose(diagonal, curvature, atol=1e-12)


def test_a_parameter_of_constant_gradient_has_no_curvature():
    """Such as the last bias under a hinge loss."""
    w = torch.randn(3, dtype=torch.float64).requires_grad_()
    bias = torch.zeros(2, dtype=torch.float64).requires_grad_()
    loss = w.pow(3).sum() + bias.sum()
    gradient, diagonal = gradient_and_hessian_diagonal(loss, [w, bias], probes_for([w, bias], 1))
    assert gradient[3:].tolist() == [1, 1]
    assert torch.allclose(diagonal[:3], 6 * w.detach())
    assert diagonal[3:].tolist() == [0, 0]


def test_the_mean_of_many_probes_is_the_diagonal_of_the_exact_hessian():
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    shapes = [(4, 3), (2, 4)]
    sizes = [math.prod(shape) for shape in shapes]

    def loss_of(vector):
        first, last = (
            part.view(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)
        )
        return nn.functional.cross_entropy(torch.tanh(inputs @ first.T) @ last.T, targets)

    vector = torch.randn(sum(sizes), dtype=torch.float64).requires_grad_()
    exact = torch.func.hessian(loss_of)(vector.detach()).diagonal()
    draws = torch.stack(
        [
            gradient_and_hessian_diagonal(loss_of(vector), [vector], probes_for([vector], 1, s))[1]
            for s in range(400)
        ]
    )
    standard_error = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) - exact).abs() <= 4.5 * standard_error + 1e-12).all()


def test_hessian_products_equal_finite_differences():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs = torch.randn(5, 3, dtype=torch.float64)
    parameters = list(model.parameters())
    (probe,) = probes_for(parameters, 1)
    _, diagonal = gradient_and_hessian_diagonal(model(inputs).square().mean(), parameters, [probe])
    gradients = []
    for sign in (1, -1):
        with torch.no_grad():
            for parameter, z in zip(parameters, probe, strict=True):
                parameter.add_(z, alpha=sign * 1e-5 * (1 if sign == 1 else 2))
        loss = model(inputs).square().mean()
        gradients.append(flatten(torch.autograd.grad(loss, parameters)))
    # the second evaluation stands at -1e-5: +1e-5 was added first and 2e-5 taken off
    expected = flatten(probe) * (gradients[0] - gradients[1]) / 2e-5
    assert torch.allclose(diagonal, expected, atol=1e-8)


def test_no_probes_spare_the_second_derivative():
    w = torch.ones(3, requires_grad=True)
    gradient, diagonal = gradient_and_hessian_diagonal((w**3).sum(), [w], [])
    assert torch.equal(gradient, torch.full((3,), 3.0))
    assert torch.equal(diagonal, torch.zeros(3))


def test_parameters_that_the_loss_does_not_use_count_as_zero():
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    gradient, diagonal = gradient_and_hessian_diagonal(
        used.square().sum(), [used, unused], probes_for([used, unused], 2)
    )
    assert gradient.tolist() == [2, 2, 0, 0]
    assert diagonal.tolist() == [2, 2, 0, 0]


def test_a_loss_without_curvature_has_none():
    w = torch.ones(2, requires_grad=True)
    _, diagonal = gradient_and_hessian_diagonal(w.sum(), [w], probes_for([w], 1))
    assert diagonal.tolist() == [0, 0]


def test_three_rounds_of_smoothing_equal_hand_numbers():
    moments = SmoothedMoments((0.5, 0.75))
    rounds = [(2.0, 3.0), (4.0, -1.0), (-2.0, 2.0)]
    results = [moments.update(torch.tensor([g]), torch.tensor([h])) for g, h in rounds]
    # Eq. (8): 2; (0.25 * 2 + 0.5 * 4) / 0.75; (0.125 * 2 + 0.25 * 4 - 0.5 * 2) / 0.875
    expected_gradients = [2.0, 2.5 / 0.75, 0.25 / 0.875]
    # Eq. (9): squares 9, 1, 4 with weights 1; 0.1875, 0.25 over 0.4375; and so on
    expected_curvatures = [
        3.0,
        math.sqrt((0.1875 * 9 + 0.25 * 1) / 0.4375),
        math.sqrt((0.140625 * 9 + 0.1875 * 1 + 0.25 * 4) / 0.578125),
    ]
    for (gradient, curvature), g, h in zip(
        results, expected_gradients, expected_curvatures, strict=True
    ):
        assert float(gradient) == pytest.approx(g, rel=1e-6)
        assert float(curvature) == pytest.approx(h, rel=1e-6)


def test_zero_betas_smooth_nothing():
    moments = SmoothedMoments((0.0, 0.0))
    for value in (1.0, -3.0):
        gradient, curvature = moments.update(torch.tensor([value]), torch.tensor([value]))
        assert float(gradient) == value
        assert float(curvature) == abs(value)


def test_smoothing_starts_anew_with_other_parameters():
    moments = SmoothedMoments((0.5, 0.75))
    moments.update(torch.ones(2), torch.ones(2))
    gradient, curvature = moments.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1, -2]))
    assert gradient.tolist() == [1, 2, 3]
    assert curvature.tolist() == [0, 1, 2]


def test_smoothing_continues_from_its_state():
    one, other = SmoothedMoments((0.9, 0.999)), SmoothedMoments((0.9, 0.999))
    draws = torch.randn(4, 2, 3)
    for gradient, diagonal in draws[:2]:
        one.update(gradient, diagonal)
    other.load_state_dict(one.state_dict())
    for gradient, diagonal in draws[2:]:
        for a, b in zip(
            one.update(gradient, diagonal), other.update(gradient, diagonal), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("length", [0.0, 0.1, 1.0, 10.0])
def test_the_model_is_exact_on_a_quadratic_loss(length):
    torch.manual_seed(0)
    curvature = torch.rand(5, dtype=torch.float64) + 0.5
    anchor = torch.randn(5, dtype=torch.float64)

    def loss_at(w):
        return 0.5 * (curvature * w.square()).sum() + 3

    w = anchor.clone().requires_grad_()
    gradient, diagonal = gradient_and_hessian_diagonal(loss_at(w), [w], probes_for([w], 1))
    model = QuadraticModel(float(loss_at(anchor)), gradient, diagonal)
    displacement = length * torch.randn(5, dtype=torch.float64)
    assert relative_error(model(displacement), float(loss_at(anchor + displacement))) < 1e-12


def test_on_a_cubic_the_error_crosses_the_threshold_where_computed_by_hand():
    # L(w) = 1 + w^3 at w = 0 has g = 0 and H = 0, so F = 1 and rho = d^3 / (1 + d^3) > 0.05 from
    # d^3 > 0.05 / 0.95 = 0.0526 on, d > 0.3747.
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = 1 + (w**3).sum()
    model = QuadraticModel(1.0, *gradient_and_hessian_diagonal(loss, [w], probes_for([w], 1)))
    errors = [
        relative_error(model(torch.tensor([d], dtype=torch.float64)), 1 + d**3)
        for d in (0.3746, 0.3748)
    ]
    assert errors[0] < 0.05 < errors[1]


def test_relative_error_of_a_vanished_loss():
    assert relative_error(0.0, 0.0) == 0.0
    assert relative_error(0.1, 0.0) == math.inf
