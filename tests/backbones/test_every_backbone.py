"""Every classifier of the libraries, put to every check; docs/backbones.md tells it by family."""

import pytest

from benchmarks.backbones.examine import examine
from benchmarks.backbones.sources import SOURCES
from benchmarks.backbones.table import works_but_for_split

UNORDERED = "efficientvim"
"""Its exits' norms stand in one list, of which each is used by another block."""


@pytest.mark.sweep
@pytest.mark.parametrize("source", SOURCES)
def test_every_name_that_can_be_built_works(source: str) -> None:
    library = SOURCES[source]()

    wrong = {
        finding.name: finding.problems
        for finding in (examine(library, name) for name in library.names())
        if not finding.cannot_be_built and not works_but_for_split(finding)
    }

    assert {name: why for name, why in wrong.items() if UNORDERED not in name} == {}
