"""The stage identities of every recipe and preset, and the cells' names, stay as they are: finished work is found."""

import json

from qcrd.storage.fingerprints import digest_of
from tests.golden.identities import FILE, today
from tests.golden.renaming import BEFORE, RESULTS, renamed, stages_before


def test_the_identities_of_all_recipes_are_those_that_were_frozen():
    frozen, found = json.loads(FILE.read_text()), today()
    assert len(frozen["recipes"]) > 40 and len(frozen["stages"]) > 100
    assert found["recipes"].keys() == frozen["recipes"].keys()
    for recipe, cells in frozen["recipes"].items():
        assert found["recipes"][recipe].keys() == cells.keys(), recipe
        for cell, keys in cells.items():
            expected = [frozen["stages"][key] for key in keys]
            assert [found["stages"][key] for key in found["recipes"][recipe][cell]] == expected, (recipe, cell)


def test_a_frozen_stage_stands_under_its_digest():
    stages = json.loads(FILE.read_text())["stages"]
    assert all(digest_of(stage)[:12] == key for key, stage in stages.items())


def test_the_finished_cells_are_named_by_the_identity_that_theirs_of_989d59e_became():
    """With the models' and questions' true digests, which cells_before.json holds."""
    before = json.loads(BEFORE.read_text())
    names = set()
    for known in before["cells"]:
        stages = stages_before(before, known["stages"])
        assert digest_of(stages) == known["identity"]
        name = known["folder"].rpartition("-")[0]
        names.add(f"{name}-{digest_of(renamed(stages))[:12]}")
    assert len(names) == 12 and names == {path.name for path in RESULTS.iterdir() if path.is_dir()}
