"""What the display prints, on a terminal and off one."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from qcrd.console import Display, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def display(terminal: bool = False) -> tuple[Display, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=terminal, width=100)
    return Display(console, interval=10.0, clock=clock), stream, clock


def test_duration() -> None:
    assert [duration(x) for x in (0, 7.4, 754, 3723)] == ["0:00", "0:07", "12:34", "1:02:03"]


def test_plain_progress_is_one_line_at_most_every_interval_and_one_at_the_end() -> None:
    shown, stream, clock = display()
    with shown:
        for second in range(26):
            clock.now = float(second)
            shown.progress("train", done=100 + 4 * second, total=200, info="loss 0.5")
    first, second, last = stream.getvalue().splitlines()
    # at 10 s: 40 items since the first look, 4/s, 60 left; the 100 done before do not count for the rate
    assert first == "  train  140/200  70%  4.0/s  elapsed 0:10  left 0:15  loss 0.5"
    assert "180/200  90%  4.0/s  elapsed 0:20  left 0:05" in second
    assert "200/200  100%  4.0/s  elapsed 0:25  left 0:00" in last


def test_two_tasks_are_timed_apart() -> None:
    shown, stream, clock = display()
    shown.progress("a", 0, 10)
    clock.now = 5.0
    shown.progress("b", 0, 10)
    clock.now = 10.0
    shown.progress("a", 5, 10)
    shown.progress("b", 5, 10)
    assert stream.getvalue() == "  a  5/10  50%  0.5/s  elapsed 0:10  left 0:10\n"


def test_nothing_to_do_is_no_error() -> None:
    shown, stream, _ = display()
    shown.progress("empty", 0, 0)
    shown.progress("empty", 0, 0)
    assert stream.getvalue() == ""


def test_stages_and_warnings_are_whole_lines_and_not_markup() -> None:
    shown, stream, _ = display()
    shown.stage_started("samples")
    shown.stages_skipped([])
    shown.stages_skipped(["questions", "samples"])
    shown.stage_finished("samples", 61.0, "2000 samples [bold]")
    shown.warn("odd [red]text[/red]")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "▶ samples"
    assert lines[1] == "✓ already there: questions, samples"
    assert lines[2] == "✓ samples in 1:01: 2000 samples [bold]"
    assert lines[3] == "! odd [red]text[/red]"


def test_table_shows_all_cells() -> None:
    shown, stream, _ = display()
    shown.table("Results", ["method", "accuracy"], [["dss", 0.61], ["[qcrd]", 0.65]])
    text = stream.getvalue()
    assert all(part in text for part in ("Results", "method", "accuracy", "dss", "0.61", "[qcrd]", "0.65"))


def test_terminal_draws_bars_that_end_with_the_stage() -> None:
    shown, stream, clock = display(terminal=True)
    with shown:
        shown.progress("train", 0, 10)
        clock.now = 5.0
        shown.progress("train", 10, 10, "loss 0.1")
        shown.stage_finished("train", 5.0)
        shown.progress("predict", 1, 2)
    text = stream.getvalue()
    assert "10/10  2.0/s  elapsed 0:05  left 0:00" in text
    assert "predict" in text
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text  # the cursor is shown again


def test_many_threads_may_report() -> None:
    shown, stream, _ = display()
    names = [f"t{i}" for i in range(8)]

    def work(name: str) -> None:
        for done in range(101):
            shown.progress(name, done, 100)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert sorted(line.split()[0] for line in lines) == names
