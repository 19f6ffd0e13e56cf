"""Data sets are read from the layouts people have, and bad files are named."""

import dataclasses
import gzip
import lzma
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from crest.lab.data.datasets import load_dataset
from crest.lab.paper.tasks import SCALES, load_task

IDX_PARTS = {"train": ("train", 6), "test": ("t10k", 4)}


def idx_bytes(values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    return header + values.astype(np.uint8).tobytes()


def write_idx(folder, suffix="", dot=False):
    folder.mkdir(parents=True, exist_ok=True)
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    written = {}
    for part, (prefix, n) in IDX_PARTS.items():
        images = np.arange(n * 28 * 28).reshape(n, 28, 28) % 251
        labels = np.arange(n) % 10
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            name = f"{prefix}-{kind}-ubyte{suffix}"
            with opener(folder / (name.replace("-idx", ".idx") if dot else name), "wb") as file:
                file.write(idx_bytes(values))
        written[part] = torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels)
    return written


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("mnist", "MNIST/raw"),
        ("mnist", "."),
        ("fashion_mnist", "FashionMNIST/raw"),
        ("fashion_mnist", "FashionMNIST"),
    ],
)
def test_idx_files_are_read_in_any_compression_and_layout(tmp_path, name, place, suffix):
    written = write_idx(tmp_path / place, suffix)
    data = load_dataset(name, tmp_path)
    assert torch.equal(data.train_images.squeeze(1), written["train"][0])
    assert torch.equal(data.test_images.squeeze(1), written["test"][0])
    assert torch.equal(data.train_labels, written["train"][1])
    assert data.train_images.shape == (6, 1, 28, 28)
    assert len(data.classes) == 10
    assert data.flip == (name == "fashion_mnist")


def test_idx_names_may_have_a_dot_before_idx(tmp_path):
    write_idx(tmp_path, dot=True)
    assert len(load_dataset("mnist", tmp_path).train_images) == 6


def test_missing_idx_files_are_listed_with_where_to_get_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte.*looked in.*http"):
        load_dataset("mnist", tmp_path)
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs the files t10k-labels-idx1-ubyte \(plain"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "begin like an idx file"),
        (b"not an idx file", "begin like an idx file"),
        (b"\0\0\x08\x01\0\0", "values must follow its header"),
        (idx_bytes(np.zeros((6, 28, 28)))[:-1], "4704 values must follow its header; got 4703"),
        (idx_bytes(np.zeros(6)), "must have 3 dimension"),
    ],
)
def test_damaged_idx_file_is_named(tmp_path, content, reason):
    write_idx(tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train-images-idx3-ubyte.*{reason}"):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("damage", [lambda content: content[:20], lambda content: b"x" * 40])
def test_damaged_archive_is_named(tmp_path, suffix, damage):
    write_idx(tmp_path, suffix)
    path = tmp_path / f"t10k-images-idx3-ubyte{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        load_dataset("mnist", tmp_path)


def test_labels_must_match_images(tmp_path):
    write_idx(tmp_path)
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.arange(5)))
    with pytest.raises(ValueError, match=r"one label for each train image; got 6 images and 5"):
        load_dataset("mnist", tmp_path)
    path.write_bytes(idx_bytes(np.full(6, 10)))
    with pytest.raises(ValueError, match=r"train labels in \[0, 9\]; got 10 to 10"):
        load_dataset("mnist", tmp_path)


def cifar_batch(n, classes, label_key, seed):
    rng = np.random.default_rng(seed)
    return {
        b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8),
        label_key: rng.integers(0, classes, n).tolist(),
    }


def write_cifar(folder, name="cifar10"):
    folder.mkdir(parents=True, exist_ok=True)
    if name == "cifar10":
        batches = {f"data_batch_{i}": cifar_batch(3, 10, b"labels", i) for i in range(1, 6)}
        batches["test_batch"] = cifar_batch(4, 10, b"labels", 6)
        batches["batches.meta"] = {b"label_names": [b"class%d" % i for i in range(10)]}
    else:
        batches = {"train": cifar_batch(5, 100, b"fine_labels", 1)}
        batches["test"] = cifar_batch(4, 100, b"fine_labels", 2)
        batches["meta"] = {b"fine_label_names": [b"class%d" % i for i in range(100)]}
    for file, batch in batches.items():
        (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    return batches


@pytest.mark.parametrize("parent", [True, False], ids=["parent", "folder"])
@pytest.mark.parametrize(
    ("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_cifar_is_read_from_the_folder_or_its_parent(tmp_path, name, folder, parent):
    batches = write_cifar(tmp_path / folder, name)
    data = load_dataset(name, tmp_path if parent else tmp_path / folder)
    train = [batch for file, batch in batches.items() if "test" not in file and b"data" in batch]
    pixels = np.concatenate([batch[b"data"] for batch in train]).reshape(-1, 3, 32, 32)
    labels = [x for batch in train for x in batch.get(b"labels", batch.get(b"fine_labels"))]
    assert torch.equal(data.train_images, torch.from_numpy(pixels))
    assert data.train_labels.tolist() == labels
    assert len(data.test_images) == 4
    assert data.classes[3] == "class3"


def test_missing_cifar_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1.*looked in.*cifar-10-python.tar.gz"):
        load_dataset("cifar10", tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "test_batch").unlink()
    with pytest.raises(FileNotFoundError, match=r"needs the files test_batch; looked in"):
        load_dataset("cifar10", tmp_path)


class Malicious:
    def __reduce__(self):
        return os.mkdir, ("planted",)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"garbage", ""),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8)})[:50], ""),
        (pickle.dumps([1, 2]), "must hold a dict with the key 'data'"),
        (pickle.dumps({b"data": np.zeros((3, 3072), np.uint8)}), "the key 'labels'"),
        (pickle.dumps({b"data": np.zeros((3, 3072)), b"labels": [0, 1, 2]}), "array of bytes"),
        (
            pickle.dumps({b"data": np.zeros((3, 30), np.uint8), b"labels": [0, 1, 2]}),
            "images of 3072 bytes",
        ),
        (
            pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1]}),
            "one integer label for each",
        ),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}),
            r"labels must be in \[0, 9\]",
        ),
        (pickle.dumps(Malicious()), "asks for (posix|nt).mkdir, which is no data"),
    ],
)
def test_damaged_or_malicious_pickle_is_named_and_not_run(tmp_path, monkeypatch, content, reason):
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(content)
    with pytest.raises(ValueError, match=rf"data_batch_2 is damaged: .*{reason}"):
        load_dataset("cifar10", tmp_path)
    assert not (tmp_path / "planted").exists()


def write_images(folder, parts=("train", "test"), classes=("cat", "dog"), count=2):
    for part in parts:
        for number, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                picture = Image.new("RGB", (20 + i, 30), (50 * number, 10 * i, 200))
                picture.save(folder / part / name / f"{i}.{'png' if i else 'jpg'}")


@pytest.mark.parametrize("test_part", ["test", "val"])
def test_image_folders_are_read_and_resized(tmp_path, test_part):
    write_images(tmp_path, ("train", test_part))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_dataset("images", tmp_path, image_size=16)
    assert data.train_images.shape == data.test_images.shape == (4, 3, 16, 16)
    assert data.train_images.dtype == torch.uint8
    assert data.classes == ("cat", "dog")
    assert data.train_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images[3, :, 0, 0].tolist() == [50, 10, 200]


def test_grey_images_become_three_channels_and_the_default_size_is_64(tmp_path):
    write_images(tmp_path)
    Image.new("L", (9, 9), 77).save(tmp_path / "train" / "cat" / "1.png")
    data = load_dataset("images", tmp_path)
    assert data.image_size == 64
    assert data.train_images[1].unique().tolist() == [77]


def test_missing_image_folders_show_the_layout(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train/CLASS/\*\.png and .*--data-dir"):
        load_dataset("images", tmp_path)
    write_images(tmp_path, ("train",))
    with pytest.raises(FileNotFoundError, match=r"train/CLASS/\*\.png and"):
        load_dataset("images", tmp_path)


def test_empty_image_folders_are_named(tmp_path):
    write_images(tmp_path, count=0)
    with pytest.raises(FileNotFoundError, match="train must hold images .*got none"):
        load_dataset("images", tmp_path)


def test_unreadable_image_is_named(tmp_path):
    write_images(tmp_path)
    path = tmp_path / "test" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"test/dog/1\.png must be a readable image"):
        load_dataset("images", tmp_path)


def test_test_class_without_train_images_is_named(tmp_path):
    write_images(tmp_path, ("train",))
    write_images(tmp_path, ("test",), ("cat", "cow"))
    with pytest.raises(ValueError, match="must have a folder in .*train; got 'cow'"):
        load_dataset("images", tmp_path)


def test_image_size_must_not_vanish(tmp_path):
    write_images(tmp_path)
    with pytest.raises(ValueError, match="image_size must be >= 4 pixels; got 2"):
        load_dataset("images", tmp_path, image_size=2)


def test_digits_need_no_files_and_are_split_by_class():
    data = load_dataset("digits", "no/such/folder")
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.max() == 255
    assert not data.flip
    shares = torch.bincount(data.test_labels) / (
        torch.bincount(data.test_labels) + torch.bincount(data.train_labels)
    )
    assert ((shares - 0.2).abs() < 0.01).all()
    assert data.fingerprint == load_dataset("digits").fingerprint


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"digits needs .*pip install 'crest-coresets\[cli\]'"):
        load_dataset("digits")


def test_unknown_data_set_suggests_the_closest():
    with pytest.raises(ValueError, match=r"one of digits, mnist, .*Did you mean cifar10\?"):
        load_dataset("cifar_10")


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_official_cifar(name, classes):
    if "CREST_DATA" not in os.environ:
        pytest.skip("set CREST_DATA to the folder that holds the official CIFAR files")
    data = load_dataset(name, os.environ["CREST_DATA"])
    assert data.train_images.shape == (50000, 3, 32, 32)
    assert data.test_images.shape == (10000, 3, 32, 32)
    assert (torch.bincount(data.train_labels) == 50000 // classes).all()
    if name == "cifar10":
        mean, std = data.moments
        assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=1e-4)
        assert std.tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=1e-4)
        assert data.classes[0] == "airplane"


def write_tiny_imagenet(root, size=8):
    """Two classes of three train and two validation images, each of one colour."""
    image = pytest.importorskip("PIL.Image")
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    lines = []
    for wnid, red in (("n02", 250), ("n01", 10)):
        (folder / "train" / wnid / "images").mkdir(parents=True)
        for number in range(3):
            picture = image.new("RGB", (size, size), (red, 0, number))
            picture.save(folder / "train" / wnid / "images" / f"{wnid}_{number}.JPEG", "JPEG")
        for number in range(2):
            file = f"val_{wnid}_{number}.JPEG"
            image.new("RGB", (size, size), (red, 0, 0)).save(folder / "val" / "images" / file)
            lines.append(f"{file}\t{wnid}\t0\t0\t8\t8")
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("inside", [False, True], ids=["parent", "folder"])
def test_tiny_imagenet_is_read_from_its_own_folder(tmp_path, inside):
    folder = write_tiny_imagenet(tmp_path)
    data = load_dataset("tinyimagenet", folder if inside else tmp_path, image_size=4)
    assert data.classes == ("n02", "n01")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1]
    assert data.train_images.shape == (6, 3, 4, 4)
    assert (data.test_images[:2, 0] > 200).all()
    assert (data.test_images[2:, 0] < 50).all()


def test_missing_tiny_imagenet_is_named_with_its_origin(tmp_path):
    expected = (
        "tinyimagenet needs wnids.txt, train, val/images, val/val_annotations.txt; looked in "
        ".*tiny-imagenet-200. They come from http://cs231n.stanford.edu/tiny-imagenet-200.zip"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        load_dataset("tinyimagenet", tmp_path)


def test_damaged_tiny_imagenet_is_named(tmp_path):
    folder = write_tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").write_text("val_n02_0.JPEG\tn99\t0\n")
    with pytest.raises(ValueError, match=r"must be of a class in wnids.txt; val_n02_0.JPEG is 'n9"):
        load_dataset("tinyimagenet", tmp_path)
    for path in folder.glob("train/*/images/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train must hold images as WNID/images/\*.JPEG"):
        load_dataset("tinyimagenet", tmp_path)


def test_fewer_images_are_spread_over_the_data_set(tmp_path):
    write_tiny_imagenet(tmp_path)
    few = load_dataset("tinyimagenet", tmp_path).every(2, 100)
    assert few.train_labels.tolist() == [0, 1]
    assert len(few.test_labels) == 4


def test_halved_images_average_each_two_by_two_pixels(tmp_path):
    write_cifar(tmp_path)
    whole = load_dataset("cifar10", tmp_path)
    half = load_task(SCALES["small"]["cifar10"], tmp_path)
    assert (half.image_size, half.num_train) == (16, whole.num_train)
    for small, large in (
        (half.train_images, whole.train_images),
        (half.test_images, whole.test_images),
    ):
        blocks = large.double().unflatten(3, (16, 2)).unflatten(2, (16, 2)).mean((3, 5))
        assert small.dtype == torch.uint8
        assert (small.double() - blocks).abs().max() <= 0.5
    pixel = dataclasses.replace(
        whole,
        train_images=whole.train_images[..., :1, :1],
        test_images=whole.test_images[..., :1, :1],
    )
    with pytest.raises(ValueError, match="two pixels or more on a side"):
        pixel.halve()
