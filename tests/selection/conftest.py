from __future__ import annotations

import importlib

import pytest


@pytest.fixture(params=["plain", "compiled"])
def version(request, monkeypatch):
    """Run a test in plain torch and with compiled kernels."""
    if request.param == "plain":
        for name in ("distances", "facility_location", "large_set"):
            module = importlib.import_module(f"crest.selection.{name}")
            monkeypatch.setattr(module, "compiled_for", lambda _: None)
    return request.param
