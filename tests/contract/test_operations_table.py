"""The table of layers and operations in the docs is what the code does."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import operations_case as case


@pytest.mark.filterwarnings("ignore")  # torch warns about itself
def test_the_page_is_what_the_code_does():
    assert case.PAGE.read_text() == case.page(), "run python tests/operations_case.py"
