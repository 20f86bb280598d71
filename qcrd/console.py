"""What a person sees while a run goes on: stages, progress with rate and time left, warnings, tables.

On a terminal progress is drawn in place; elsewhere (a log file, CI) it is one plain line now and then. This module
knows nothing about what is being done; it gets names and numbers. All methods may be called from any thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

PLAIN_WIDTH = 160


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class _Task:
    """A task under way. What was done before it was first seen (a resumed run) does not count for the rate."""

    started: float
    first: int
    printed: float
    done: int = 0
    bar: TaskID | None = None

    def times(self, now: float, total: int) -> str:
        elapsed = now - self.started
        rate = (self.done - self.first) / elapsed if elapsed > 0 else 0.0
        left = duration((total - self.done) / rate) if rate > 0 else "?"
        return f"{rate:.{1 if rate < 100 else 0}f}/s  elapsed {duration(elapsed)}  left {left}"


class Display:
    """The console of one run. Use it as a context manager, so that the terminal is left in order."""

    def __init__(
        self, console: Console | None = None, interval: float = 10.0, clock: Callable[[], float] = time.monotonic,
        prefix: str = "",
    ) -> None:  # fmt: skip
        """`prefix`: before every line, of one run among several at once; their progress is not drawn in place."""
        self.console = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self._prefix, self._draws = prefix, self.console.is_terminal and not prefix
        self._interval, self._clock = interval, clock
        self._tasks: dict[str, _Task] = {}
        self._lock = threading.RLock()
        self._live: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_tasks()

    def progress(self, task: str, done: int, total: int, info: str = "") -> None:
        """`done` of `total` items of `task`; `info` is shown behind the numbers."""
        with self._lock:
            now = self._clock()
            state = self._tasks.setdefault(task, _Task(started=now, first=done, printed=now))
            was_done, state.done = state.done, done
            times = state.times(now, total)
            if self._draws:
                self._draw(task, state, total, times, info)
                return
            ends = done >= total and was_done < total
            if ends or now - state.printed >= self._interval:
                state.printed = now
                share = f"{100 * done // total}%" if total else "-"
                self._say(f"  {task}  {done}/{total}  {share}  {times}  {info}".rstrip())

    def stage_started(self, name: str) -> None:
        self._say(f"▶ {name}", "bold")

    def stages_skipped(self, names: Sequence[str]) -> None:
        """Stages in a row that were finished before; nothing for none."""
        if names:
            self._say(f"✓ already there: {', '.join(names)}", "dim")

    def stage_finished(self, name: str, seconds: float, summary: str = "") -> None:
        """Ends the stage's progress bars too."""
        self._end_tasks()
        self._say(f"✓ {name} in {duration(seconds)}" + (f": {summary}" if summary else ""), "green")

    def say(self, text: str) -> None:
        """A plain line."""
        self._say(text)

    def warn(self, text: str) -> None:
        self._say(f"! {text}", "yellow")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Numbers stand to the right, the rest to the left."""
        table = Table(title=Text(title), title_justify="left")
        for index, column in enumerate(columns):
            numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
            table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        with self._lock:
            self.console.print(table)

    def markdown(self, text: str) -> None:
        """A text with headings and tables."""
        with self._lock:
            self.console.print(Markdown(text))

    def _say(self, text: str, style: str | None = None) -> None:
        with self._lock:
            self.console.print(Text(self._prefix + text, style=style or ""), soft_wrap=True)

    def _draw(self, task: str, state: _Task, total: int, times: str, info: str) -> None:
        if self._live is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[times]}  {task.fields[info]}", markup=False),
            )
            self._live = Progress(*columns, console=self.console, refresh_per_second=4, transient=True)
            self._live.start()
        if state.bar is None:
            state.bar = self._live.add_task(task, total=total, completed=state.done, times=times, info=info)
        self._live.update(state.bar, total=total, completed=state.done, times=times, info=info)

    def _end_tasks(self) -> None:
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None
            self._tasks.clear()
