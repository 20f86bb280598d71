"""Seeds by name."""

from qcrd.seeding import generator, stable_seed


def test_seeds_are_stable_across_versions_and_told_apart_by_every_name():
    assert stable_seed("a", 1) == 2125957440892058690
    assert len({stable_seed("a", 1), stable_seed("a1"), stable_seed("a", "1"), stable_seed(1, "a")}) == 4
    assert generator(0, "x").random() == generator(0, "x").random() != generator(1, "x").random()
