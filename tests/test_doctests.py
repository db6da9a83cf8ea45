"""Examples in public docstrings do what they show."""

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest
import torch

import mixvae

SOURCE = Path(mixvae.__file__).parent
WITH_EXAMPLES = [path for path in sorted(SOURCE.rglob("*.py")) if ">>> " in path.read_text()]


def module_of(path):
    return ".".join(["mixvae", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_examples_show_what_they_give(path, tmp_path, monkeypatch):
    if "single_cell" in path.parts and importlib.util.find_spec("scvi") is None:
        pytest.skip("needs scvi-tools")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module = importlib.import_module(module_of(path))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    done = doctest.testmod(module, optionflags=flags)
    assert done.attempted > 0
    assert done.failed == 0
