"""The example of the README runs as printed."""

import re
from pathlib import Path

import pytest

from crest.report.strategy_table import strategies_as_markdown

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs_and_is_short():
    (code,) = re.findall(r"<!-- example -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) < 17
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    history = names["loader"].history
    assert history.steps == 10 * len(names["loader"])
    assert sum(r["length"] for r in history.records if r["selected"]) > history.steps / 2


@pytest.mark.parametrize("path", re.findall(r"`((?:\w+/)*\w+\.py)`", README.read_text()))
def test_files_in_the_table_exist(path):
    root = README.parent
    assert (root / "src" / "crest" / path).exists() or (root / path).exists()


def test_the_table_of_strategies_is_the_one_that_they_register():
    (table,) = re.findall(
        r"<!-- strategies -->\n(.*?)\n<!-- `crest strategies --markdown`",
        README.read_text(),
        re.DOTALL,
    )
    assert table == strategies_as_markdown()
