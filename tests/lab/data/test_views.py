"""Views are crops and mirror images, and depend on torch's seed alone."""

import pytest
import torch
from torch.utils.data import DataLoader

from crest.lab.data.image_data import ImageData
from crest.lab.data.views import ImageViews, shift_and_flip


def make_data(n=12, channels=3, size=8, flip=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, channels, size, size), generator=generator).to(torch.uint8)
    labels = torch.arange(n) % 3
    return ImageData("toy", images, labels, images[:4], labels[:4], ("a", "b", "c"), flip)


def crops(image, padding):
    """All crops of a padded image, with whether they are mirrored, in the plainest way."""
    channels, size, _ = image.shape
    padded = torch.zeros(channels, size + 2 * padding, size + 2 * padding, dtype=image.dtype)
    padded[:, padding : padding + size, padding : padding + size] = image
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + size, left : left + size]
            yield (top, left, False), crop
            yield (top, left, True), crop.flip(2)


@pytest.mark.parametrize("flip", [True, False])
def test_each_view_is_a_crop_and_every_crop_comes(flip):
    image = make_data().train_images[0]
    torch.manual_seed(0)
    views = shift_and_flip(image.expand(2000, -1, -1, -1), padding=1, flip=flip)
    table = {tuple(crop.flatten().tolist()): key for key, crop in crops(image, 1)}
    seen = [table[tuple(view.flatten().tolist())] for view in views]
    # 2000 draws from 18 (or 9) equally likely views: each is missed with probability e^-111.
    assert len(set(seen)) == (18 if flip else 9)
    share = sum(mirrored for *_, mirrored in seen) / len(seen)
    assert abs(share - 0.5 * flip) < 4 * (0.25 / 2000) ** 0.5


def test_images_of_a_batch_move_independently():
    torch.manual_seed(0)
    image = make_data().train_images[0]
    views = shift_and_flip(image.expand(50, -1, -1, -1), padding=1, flip=True)
    assert len({tuple(view.flatten().tolist()) for view in views}) > 10


def test_views_depend_on_the_global_seed_alone():
    views = ImageViews(make_data(size=16))
    torch.manual_seed(1)
    one = torch.stack([view for view, _ in views.__getitems__([3, 1, 3])])
    other = torch.stack([view for view, _ in views.__getitems__([3, 1, 3])])
    torch.manual_seed(1)
    again = torch.stack([view for view, _ in views.__getitems__([3, 1, 3])])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_one_item_is_a_batch_of_one():
    views = ImageViews(make_data(size=16))
    torch.manual_seed(1)
    image, label = views[5]
    torch.manual_seed(1)
    ((expected, expected_label),) = views.__getitems__([5])
    assert torch.equal(image, expected)
    assert label == expected_label == 2


def test_without_augmentation_train_pixels_have_mean_0_and_deviation_1():
    data = make_data(n=30)
    views = ImageViews(data, augment=False)
    assert len(views) == 30
    images = torch.stack([image for image, _ in views.__getitems__(range(30))]).double()
    # float32 sums of 1920 values of size 1
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_constant_channel_stays_finite():
    data = make_data()
    data.train_images[:, 1] = 7
    images = torch.stack([image for image, _ in ImageViews(data).__getitems__([0, 1])])
    assert images.isfinite().all()


def test_default_collate_makes_batches_and_empty_black_border_is_the_padding():
    data = make_data(size=32, flip=False)
    data.train_images.fill_(255)
    data.train_images[0, :, 0, 0] = 0  # so that the deviation is not the floor
    views = ImageViews(data)
    images, labels = next(iter(DataLoader(views, batch_size=5)))
    assert images.shape == (5, 3, 32, 32)
    assert images.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 0, 1]
    dark = images[1:, 0] < 0
    assert dark.any()
    assert not dark[:, 4:-4, 4:-4].any()  # shifts of at most 4 of 32 pixels


def test_digits_are_never_mirrored():
    data = make_data(size=8, flip=False)
    torch.manual_seed(0)
    view = ImageViews(data)
    plain = {
        tuple(crop.flatten().tolist()) for (*_, m), crop in crops(data.train_images[0], 1) if not m
    }
    mean, std = (moment[:, None, None] for moment in data.moments)
    for image, _ in view.__getitems__([0] * 50):
        pixels = ((image * std + mean) * 255).round().to(torch.uint8)
        assert tuple(pixels.flatten().tolist()) in plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "one label for each train image"),
        ({"test_labels": torch.full((4,), 3)}, r"test labels in \[0, 2\]; got 3 to 3"),
        ({"test_images": torch.zeros(4, 1, 8, 8)}, "images of one shape"),
        ({"test_images": torch.zeros(0, 3, 8, 8)}, "must hold test images; got none"),
    ],
)
def test_inconsistent_data_is_refused(change, message):
    data = make_data()
    fields = {name: getattr(data, name) for name in data.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        ImageData(**{**fields, **change})


def test_fingerprint_changes_with_a_pixel_and_a_label():
    data, pixel, label = make_data(), make_data(), make_data()
    pixel.train_images[3, 0, 0, 0] += 1
    label.test_labels[0] = 2
    assert len({data.fingerprint, pixel.fingerprint, label.fingerprint}) == 3
    assert data.fingerprint == make_data().fingerprint
