"""Networks have the shapes and sizes of the paper."""

import pytest
import torch
from torch import nn

from crest.lab.networks.vision import NETWORKS, build_network


def count(name, **shape):
    return sum(p.numel() for p in build_network(name, **shape).parameters())


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_images_become_logits(name, channels, size):
    network = build_network(name, channels, size, 7)
    assert network(torch.randn(2, channels, size, size)).shape == (2, 7)
    assert [m for m in network.modules() if isinstance(m, nn.Linear)][-1].out_features == 7


def test_resnet20_has_270_thousand_parameters():
    # He et al. (2016), Table 6: 0.27M. Stem 3*16*9, 6 + 6 + 6 convolutions, norms, head.
    stages = 6 * 16 * 16 * 9, (16 + 5 * 32) * 32 * 9, (32 + 5 * 64) * 64 * 9
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    expected = 3 * 16 * 9 + sum(stages) + norms + 64 * 10 + 10
    assert count("resnet20", in_channels=3, image_size=32, num_classes=10) == expected == 269_722


def test_resnet18_has_11_million_parameters():
    size = count("resnet18", in_channels=3, image_size=32, num_classes=10)
    assert size == 11_173_962


def test_resnet50_has_23_million_parameters():
    # 23 508 032 without head, with a 3 x 3 stem in place of 7 x 7, and a head of 200 classes.
    size = count("resnet50", in_channels=3, image_size=64, num_classes=200)
    assert size == 23_508_032 - 3 * 64 * (49 - 9) + 2048 * 200 + 200


def test_resnet8_has_one_block_per_stage():
    assert count("resnet8", in_channels=3, image_size=32, num_classes=10) == 75_290


@pytest.mark.parametrize(("name", "size", "last"), [("resnet8", 32, 8), ("resnet50", 64, 4)])
def test_the_last_stage_sees_the_usual_size(name, size, last):
    network = build_network(name, 3, size, 10).eval()
    hidden = network.blocks(network.stem(torch.randn(1, 3, size, size)))
    assert hidden.shape[2:] == (last, last)


def test_option_a_shortcut_keeps_every_other_pixel_and_pads_channels():
    block = build_network("resnet8", 3, 32, 10).blocks[1]
    inputs = torch.randn(1, 16, 6, 6)
    outputs = block.shortcut(inputs)
    assert not list(block.shortcut.parameters())
    assert torch.equal(outputs[:, 8:24], inputs[:, :, ::2, ::2])
    assert outputs[:, :8].abs().sum() == outputs[:, 24:].abs().sum() == 0


def test_the_seed_makes_the_weights():
    torch.manual_seed(3)
    one = build_network("resnet8", 1, 8, 10).state_dict()
    torch.manual_seed(3)
    other = build_network("resnet8", 1, 8, 10).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_unknown_network_suggests_the_closest():
    with pytest.raises(
        ValueError, match=r"one of mlp, cnn, .*got 'ResNet20'. Did you mean resnet20"
    ):
        build_network("ResNet20", 3, 32, 10)
    with pytest.raises(ValueError, match=r"got 'transformer'\.$"):
        build_network("transformer", 3, 32, 10)


def test_cnn_needs_four_pixels():
    with pytest.raises(ValueError, match="4 pixels or more on a side; got 3"):
        build_network("cnn", 3, 3, 10)
