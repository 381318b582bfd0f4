"""The table of situations has no empty cell, and every row is driven by a test."""

import re

from settings import ROOT
from tests.situations.table import FACES, TABLE, DoesNotApply, Expected


def test_no_cell_is_empty() -> None:
    for situation, row in TABLE.items():
        assert set(row) == set(FACES), situation
        for cell in row.values():
            assert isinstance(cell, Expected | DoesNotApply)
            assert isinstance(cell, Expected) or len(cell.reason) > 20


def test_every_row_has_its_test() -> None:
    source = "".join(
        (ROOT / "tests" / "situations" / name).read_text() for name in ("test_refusals.py", "test_faults.py")
    )
    tests = set(re.findall(r"^def test_(\w+)\(", source, re.MULTILINE))
    rows = {re.sub(r"\W+", "_", situation).lower() for situation in TABLE}
    assert tests == rows
