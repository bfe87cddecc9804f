"""Where a stage stands: a live bar on a terminal, plain lines everywhere else.

Metrics are read from the device only when they are about to be shown, so `update` may
be called after every step.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, SupportsFloat

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

LINE_INTERVAL = 10.0
"""Seconds between two plain lines, at least; a log stays readable over a long night."""

BAR_INTERVAL = 0.25
"""Seconds between two readings of the metrics under a live bar, at least."""

MIN_STEPS = 10
"""Fewer steps from the start are mostly compilation, and give no rate."""

SHOWN = ("loss", "accuracy", "validation_accuracy", "learning_rate")
"""The metrics of a training that a line has room for, the most telling first."""

Clock = Callable[[], float]


class Progress:
    """The progress of one stage; `stage` makes it and opens its display.

    The estimated time counts only the steps that this process made: a resumed run
    knows nothing of how long the steps before `start_step` took. Once two updates are
    known, it leaves out the time before the first, which holds the compilation; until
    then there is an estimate only if the first stands for `MIN_STEPS` or more.
    """

    def __init__(
        self,
        name: str,
        total_steps: int,
        start_step: int,
        shown: Sequence[str] | None = SHOWN,
        clock: Clock = time.monotonic,
    ):
        self.name = name
        self.total_steps = total_steps
        self.step = start_step
        self.shown = shown
        self.metrics: dict[str, SupportsFloat] = {}
        self._clock = clock
        self._started = clock()
        self._anchor = (start_step, self._started)
        self._latest = (start_step, self._started)
        self._first: tuple[int, float] | None = None

    def update(
        self, step: int, metrics: Mapping[str, SupportsFloat] | None = None
    ) -> None:
        """Says that `step` updates are done; `metrics` replace those of equal names."""
        self.step = step
        self.metrics.update(metrics or {})
        self._latest = (step, self._clock())
        if self._first is None:
            self._first = self._latest
        elif step > self._first[0]:
            self._anchor = self._first
        self._show()

    def log(self, message: str) -> None:
        """Prints a line, above the bar where there is one."""

    @property
    def elapsed(self) -> float:
        """Seconds since this process began the stage."""
        return self._clock() - self._started

    @property
    def steps_per_second(self) -> float | None:
        """The mean rate of this process; None before it can be known."""
        steps = self._latest[0] - self._anchor[0]
        seconds = self._latest[1] - self._anchor[1]
        enough = steps > 0 if self._anchor is self._first else steps >= MIN_STEPS
        return steps / seconds if enough and seconds > 0 else None

    @property
    def eta(self) -> float | None:
        """Seconds to the last step at that rate; None before it can be known."""
        rate = self.steps_per_second
        return None if rate is None else max(self.total_steps - self.step, 0) / rate

    @property
    def fraction(self) -> float:
        """The share of all steps that is done, those of earlier processes included."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps > 0 else 1.0

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.step >= self.total_steps

    def _show(self) -> None:
        """Brings the display up to date, when it is due."""

    def _facts(self) -> list[str]:
        """The words that both displays share: step, percentage, metrics."""
        percent = int(100 * self.fraction)  # Rounded down: 100 % means finished.
        facts = [f"step {self.step}/{self.total_steps}", f"{percent} %"]
        names = self.metrics if self.shown is None else self.shown
        known = [name for name in names if name in self.metrics]
        return facts + [f"{name} {float(self.metrics[name]):.4g}" for name in known]

    def _times(self) -> list[str]:
        if self.finished:
            return [f"took {format_seconds(self.elapsed)}"]
        return [] if self.eta is None else [f"eta {format_seconds(self.eta)}"]


@contextlib.contextmanager
def stage(
    name: str,
    total_steps: int,
    start_step: int = 0,
    console: rich.console.Console | None = None,
    *,
    shown: Sequence[str] | None = SHOWN,
    enabled: bool = True,
    clock: Clock = time.monotonic,
) -> Iterator[Progress]:
    """Shows how a stage gets on until the block is left, in whatever way.

    Args:
      name: the stage, as the first word of the bar or the line.
      total_steps: the number of the last step.
      start_step: the steps done before this process began.
      console: where to print; standard output by default. A console that is no
        terminal gets plain lines: the first update, then one every `LINE_INTERVAL`
        seconds at most, and the last.
      shown: the metrics to show, in this order; None for all of them.
      enabled: False shows nothing: for every process of a run but one.
      clock: seconds, for tests.

    Yields:
      the `Progress` to update.

    Examples:
      >>> with stage("student", total_steps=3) as bar:
      ...     bar.update(3, {"loss": 1.2345})  # doctest: +ELLIPSIS
      student  step 3/3  100 %  loss 1.234  took ... s
    """
    if not enabled:
        yield Progress(name, total_steps, start_step, shown, clock)
        return
    # In a notebook, lines of text rather than a piece of HTML for each.
    console = console or rich.console.Console(force_jupyter=False)
    kind = _Bar if console.is_interactive else _Lines
    with kind(console, name, total_steps, start_step, shown, clock) as progress:
        yield progress


class _Display(Progress):
    """A progress with a console, which shows its last state when it closes."""

    interval = 0.0

    def __init__(self, console: rich.console.Console, *arguments: Any):
        super().__init__(*arguments)
        self._console = console
        self._shown_at: float | None = None

    def __enter__(self) -> "_Display":
        return self

    def __exit__(self, *_) -> None:
        if self._first is not None:
            self._draw()

    def log(self, message: str) -> None:
        _print(self._console, message)

    def _show(self) -> None:
        now = self._latest[1]
        if self._shown_at is None or now - self._shown_at >= self.interval:
            self._shown_at = now
            self._draw()

    def _draw(self) -> None:
        raise NotImplementedError


class _Lines(_Display):
    """Self-contained lines, at a bounded rate."""

    interval = LINE_INTERVAL
    _last_line = ""

    def _draw(self) -> None:
        # Without the times: a state that was shown is not shown again at the end.
        facts = "  ".join([self.name, *self._facts()])
        if facts != self._last_line:
            _print(self._console, "  ".join([facts, *self._times()]))
        self._last_line = facts


class _Bar(_Display):
    """One line that stays in place, and is cut where the terminal ends."""

    interval = BAR_INTERVAL

    def __enter__(self) -> "_Bar":
        self._text = ""
        self._stack = contextlib.ExitStack()
        live = rich.live.Live(
            get_renderable=self._render, console=self._console, refresh_per_second=4
        )
        self._stack.enter_context(live)
        self._stack.enter_context(_loggers_follow_redirection())
        return self

    def __exit__(self, *details) -> None:
        with self._stack:  # Closes the display even if the last drawing is interrupted.
            super().__exit__(*details)

    def _draw(self) -> None:
        # Here the device is read, in the caller's thread; the display's never does.
        self._text = "  ".join(self._facts())

    def _render(self) -> rich.table.Table:
        rate = self.steps_per_second
        speed = [] if rate is None else [f"{rate:.3g} steps/s"]
        times = [] if self.finished else [f"elapsed {format_seconds(self.elapsed)}"]
        words = [self._text, *self._times(), *times, *speed]
        table = rich.table.Table.grid(padding=(0, 1))
        cells: list[rich.console.RenderableType] = [_one_line(self.name)]
        if self._console.width >= 60:
            width = min(40, self._console.width // 5)
            bar = rich.progress_bar.ProgressBar(1.0, self.fraction, width=width)
            cells.append(bar)
        table.add_row(*cells, _one_line("  ".join(words)))
        return table


def format_seconds(seconds: float) -> str:
    """A duration in its two largest units.

    Examples:
      >>> format_seconds(200.4)
      '3 min 20 s'
      >>> format_seconds(90000.0)
      '1 d 1 h'
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _one_line(words: str) -> rich.text.Text:
    # "crop", since the ellipsis can't be encoded on an ASCII terminal.
    return rich.text.Text(words, no_wrap=True, overflow="crop")


def _print(console: rich.console.Console, line: str) -> None:
    """Prints `line` as it is: no markup, no colours, no wrapping at 80 columns."""
    console.print(line, markup=False, highlight=False, soft_wrap=True, emoji=False)


@contextlib.contextmanager
def _loggers_follow_redirection() -> Iterator[None]:
    """Lets handlers made before the bar write above it, through `sys.stderr`.

    A live display redirects `sys.stdout` and `sys.stderr`; a handler that holds the
    original stream would write into the bar.
    """
    originals = (sys.__stdout__, sys.__stderr__)
    changed = []
    for handler in logging.getLogger().handlers:
        handler = getattr(handler, "python_handler", handler)  # absl wraps its own.
        if isinstance(handler, logging.StreamHandler) and handler.stream in originals:
            changed.append((handler, handler.stream))
            handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler, stream in changed:
            handler.setStream(stream)
