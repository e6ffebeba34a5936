"""Models of the matrix that need PyTorch alone, its own attention classes and modules as people write them, each captured.

Covered: that every pattern is the float64 one computed by hand from the module's input and parameters, in both stores, within
the bound of tests/sweep/comparing.py; that the output has the same bits, or is the same to rounding where a fused path is left;
models of libraries that need no torchvision, where they are installed; the page that the matrix writes its table into. Not
covered: timm, torchvision and open_clip, which ``python -m tests.matrix`` runs. Without torch everything here is skipped.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the matrix runs models of PyTorch")

from tests.matrix import others
from tests.matrix.entry import Entry
from tests.matrix.judging import Row, judge
from tests.matrix.table import NOT_INSTALLED, merged, section
from tests.matrix.torch_models import ENTRIES
from tests.sweep.report import markdown, matrix_of, matrix_replaced


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_pattern_of_a_model_of_pytorch_alone_is_the_one_computed_by_hand(entry: Entry) -> None:
    row = judge(entry)
    assert (row.verdict, row.reason) == ("right", "")
    assert row.by_hand == row.layers > 0


@pytest.mark.parametrize("entry", others.ENTRIES, ids=lambda entry: f"{entry.library}: {entry.name}")
def test_a_model_of_another_library_is_captured_right_or_says_what_is_not_heard(entry: Entry) -> None:
    try:
        row = judge(entry)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    assert row.verdict == ("refused" if entry.unheard else "right"), row.reason
    assert all(path in row.reason for path in entry.unheard)


def test_the_sweep_and_the_matrix_keep_each_others_part_of_the_page() -> None:
    first, second = (section([Row("torch", version, "own", verdict="right")]) for version in ("1", "2"))
    page = matrix_replaced(markdown([], {}), first)
    assert matrix_replaced(page, second) == matrix_replaced(markdown([], {}), second)
    assert markdown([], {}, matrix_of(page)) == page


def test_a_model_that_was_run_anywhere_counts() -> None:
    run, absent = Row("timm", "1.0", "ViT", verdict="right"), Row("timm", "", "ViT", verdict=NOT_INSTALLED)
    assert merged([run, absent]) == merged([absent, run]) == [run]
