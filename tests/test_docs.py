"""Every Python block of the documentation runs, and every page is in the menu."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from crest.strategies import registry

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text())]


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.stem)
def test_the_blocks_of_a_page_run_one_after_the_other(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # some register their own
    module = ModuleType("docs")  # where dataclasses look up their types
    monkeypatch.setitem(sys.modules, "docs", module)
    for code in BLOCK.findall(path.read_text()):
        exec(compile(code, str(path), "exec"), vars(module))


def test_every_page_is_in_the_menu():
    menu = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    assert sorted(menu) == sorted(
        str(path.relative_to(ROOT / "docs"))
        for path in PAGES
        if "results/paper/" not in str(path)  # tables that its page shows
    )
    assert len(set(menu)) == len(menu)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_to_files(path):
    for link in re.findall(r"\]\(([^)#]+?)(?:#[\w-]+)?\)", path.read_text()):
        if "://" not in link:
            assert (path.parent / link).exists(), link
