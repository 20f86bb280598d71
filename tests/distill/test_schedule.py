"""Steps, epochs and iterations."""

import pytest

from qcrd.distill.negatives import snapshot_for
from qcrd.distill.schedule import Schedule, iteration_length


def test_each_epoch_visits_every_example_once_in_an_order_of_its_own():
    schedule = Schedule(10, 4, 10, 5, seed=3)
    visits = [index for step in range(10) for index in schedule.batch(step)]
    epochs = [visits[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert Schedule(10, 4, 10, 5, seed=4).batch(0) != schedule.batch(0)


def test_iterations_cover_all_steps():
    schedule = Schedule(100, 8, 23, 10, seed=0)
    assert schedule.num_iterations == 3
    assert [list(schedule.steps_of(t))[::9] for t in (1, 2, 3)] == [[0, 9], [10, 19], [20]]
    assert len(schedule.visited(1)) == 80


def test_linear_decay_without_warm_up():
    schedule = Schedule(10, 1, 4, 2, seed=0)
    assert [schedule.learning_rate_factor(step) for step in range(4)] == pytest.approx([1, 0.75, 0.5, 0.25])


def test_epoch_as_iteration_and_the_snapshot_that_is_sampled():
    assert iteration_length("epoch", 17, 8) == 3
    assert iteration_length(250, 17, 8) == 250
    assert [snapshot_for(t, 5) for t in (1, 5, 6, 12)] == [0, 0, 1, 7]
