"""Imports point one way, and importing costs and changes nothing."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import crest

SOURCE = Path(crest.__file__).parent

FLOOR = ["checks", "data_checks", "own_passes", "randomness", "containers", "items"]
ROOMS = [
    "selection",
    "looking",
    "watching",
    "quadratic",
    "schedule",
    "pool",
    "exclusion",
    "options",
]
# Each layer may import the ones before it, and layers above the rooms their own kind.
LAYERS = [
    FLOOR,
    ROOMS,
    ["strategies"],
    [
        *("history", "reader", "collation", "data_view", "order", "open_region", "batches"),
        *("resume", "first_batch", "epoch", "feed", "ranks", "labels", "observers"),
        *("trackers", "ledger", "example_table", "page", "insight"),
    ],
    ["loader"],
    ["diagnostics", "findings", "checkup", "adapters"],
    ["lab"],
    ["report"],
    ["cli", "__main__"],
]


def layer_of(room):
    return next(i for i, layer in enumerate(LAYERS) if room in layer)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("crest."):
            yield node.module.split(".")[1]


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize(
    "path",
    [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"],
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_imports_point_one_way(path):
    room = room_of(path)
    for imported in imports_of(path):
        if imported == room:
            continue
        assert layer_of(imported) <= layer_of(room), f"{room} imports {imported}"
        assert not (room in ROOMS and imported in ROOMS), f"{room} imports {imported}"


def test_there_is_no_room_for_everything():
    assert not list(SOURCE.rglob("util*.py"))


PROBE = """
import sys, torch, numpy, random, warnings
from torch.utils.data import DataLoader
before = [id(value) for value in (
    torch.Tensor.backward, torch.nn.Module.__call__, torch.optim.Optimizer.step,
    torch.autograd.grad, DataLoader.__iter__, warnings.showwarning,
)]
loaded = set(sys.modules)
states = torch.get_rng_state(), numpy.random.get_state()[1].copy(), random.getstate()
import crest
after = [id(value) for value in (
    torch.Tensor.backward, torch.nn.Module.__call__, torch.optim.Optimizer.step,
    torch.autograd.grad, DataLoader.__iter__, warnings.showwarning,
)]
assert before == after, "crest patches something"
assert torch.equal(states[0], torch.get_rng_state())
assert (states[1] == numpy.random.get_state()[1]).all() and states[2] == random.getstate()
print(*sorted({name.split(".")[0] for name in set(sys.modules) - loaded}))
"""

OPTIONAL = {
    "sklearn",
    "matplotlib",
    "PIL",
    "rich",
    "scipy",
    "numba",
    "transformers",
    "lightning",
    "triton",
    "accelerate",
    "peft",
}


def test_importing_patches_nothing_and_imports_nothing_optional():
    run = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not OPTIONAL & set(run.stdout.split())


def test_all_is_the_public_api_and_dir_shows_no_module():
    assert sorted(dir(crest)) == sorted([*crest.__all__, "__version__"])
    assert len(set(crest.__all__)) == len(crest.__all__)
    for name in crest.__all__:
        assert not isinstance(getattr(crest, name), ModuleType), name
        assert getattr(crest, name).__doc__, name
    names = {}
    exec("from crest import *", names)
    assert names.keys() - {"__builtins__"} == set(crest.__all__)


def test_python_m_crest_is_the_command():
    run = [sys.executable, "-m", "crest", "--version"]
    assert subprocess.check_output(run, text=True) == f"crest {crest.__version__}\n"


def test_no_file_is_too_long_to_be_read_at_once():
    for path in SOURCE.rglob("*.py"):
        if "kernels" not in path.parts:
            assert len(path.read_text().splitlines()) <= 450, path
