"""Picks that wait for no device are those of `facility_location`."""

import pytest
import torch

from crest.looking.gradients import LastLayerGradients
from crest.selection import facility_location, last_layer_distances
from crest.selection.facility_location import cover
from crest.selection.on_device import cover_features, cover_last_layer
from crest.strategies import coresets

pytestmark = pytest.mark.usefixtures("version")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30, 0.0])
@pytest.mark.parametrize("d", [4, 50])
def test_picks_are_those_with_checks(d, scale):
    features = gauss(3, 30, d) * scale
    for dtype in (torch.float32, torch.float64):
        expected = facility_location(features.to(dtype), 7)
        picked = cover_features(features.to(dtype), 7)
        assert torch.equal(picked.indices, expected.indices)
        assert torch.equal(picked.cluster_sizes, expected.cluster_sizes)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_last_layers_are_covered_as_by_their_distances(bias, scale):
    errors, inputs = gauss(3, 30, 4) * scale, gauss(3, 30, 9, seed=1)
    expected = cover(last_layer_distances(errors, inputs, bias=bias), 7)
    assert torch.equal(cover_last_layer(errors, inputs, 7, bias=bias).indices, expected.indices)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_the_picks(value):
    errors, inputs = gauss(2, 10, 4), gauss(2, 10, 9)
    errors[1, 3, 2] = value
    assert (cover_features(errors, 3).indices == -1).all()
    assert (cover_last_layer(errors, inputs, 3, bias=True).indices == -1).all()
    assert (cover_last_layer(inputs, errors, 3, bias=True).indices == -1).all()


@pytest.mark.parametrize("features", ["logits", "input", "weight"])
@pytest.mark.parametrize("positions", [(), (3,)])
def test_strategies_pick_alike_on_either_way(features, positions):
    seen = LastLayerGradients(
        gauss(40).abs(),
        gauss(40, *positions, 4),
        gauss(40, *positions, 6, seed=1),
        gauss(40, *positions, 6, seed=2),
    )
    rows = torch.stack([torch.arange(30), torch.arange(10, 40)])
    expected = coresets._pick(seen, rows, 8, features)
    picked = coresets._pick_without_waiting(seen, rows, 8, features)
    assert torch.equal(picked.indices, expected.indices)
    assert torch.equal(picked.cluster_sizes, expected.cluster_sizes)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("features", ["logits", "input", "weight"])
def test_from_gradients_to_picks_nothing_waits_for_the_gpu(features):
    parts = [gauss(600, d, seed=d).cuda() for d in (10, 64, 64)]
    seen = LastLayerGradients(gauss(600).abs().cuda(), *parts)
    rows = torch.stack([torch.arange(500), torch.arange(100, 600)]).cuda()
    picked = coresets._pick_without_waiting(seen, rows, 128, features)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = coresets._pick_without_waiting(seen, rows, 128, features)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again.indices, picked.indices)
    on_cpu = LastLayerGradients(gauss(600).abs(), *(part.cpu() for part in parts))
    expected = coresets._pick(on_cpu, rows.cpu(), 128, features)
    assert torch.equal(again.indices.cpu(), expected.indices)
