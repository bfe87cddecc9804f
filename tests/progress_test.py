"""Laws of the progress display: rates, estimates, widths, and whose terminal it is."""

import contextlib
import io
import itertools
import logging
import os
import pty
import re
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from kdjax import progress

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def piped():
    return rich.console.Console(file=io.StringIO(), force_terminal=False, width=40)


def terminal(width=120):
    return rich.console.Console(
        file=io.StringIO(), force_terminal=True, width=width, height=20, _environ={}
    )


def lines_of(console):
    return console.file.getvalue().splitlines()


def test_plain_line_is_self_contained():
    console, clock = piped(), Clock()
    with progress.stage("student", 7020, 0, console, clock=clock) as bar:
        bar.update(0)
        clock.now += 1200 / 29.1
        bar.update(1200, {"loss": 1.2341, "validation_accuracy": 0.81})
        expected = (
            "student  step 1200/7020  17 %  loss 1.234  validation_accuracy 0.81"
            "  eta 3 min 20 s"
        )
        assert lines_of(console)[-1] == expected


def test_plain_lines_come_first_then_bounded_then_last():
    console, clock = piped(), Clock()
    with progress.stage("student", 1000, 0, console, clock=clock) as bar:
        for step in range(1, 1001):
            clock.now += 0.1
            bar.update(step, {"loss": 1 / step})
    steps = [int(re.search(r"step (\d+)/", line)[1]) for line in lines_of(console)]
    assert steps[0] == 1
    assert steps[-1] == 1000
    assert len(steps) <= 2 + 100 / progress.LINE_INTERVAL
    gaps = np.diff([*steps[:-1]])
    assert gaps.min() * 0.1 >= progress.LINE_INTERVAL - 1e-6
    assert lines_of(console)[-1].endswith("100 %  loss 0.001  took 1 min 40 s")


def test_last_state_is_shown_once():
    console, clock = piped(), Clock()
    with progress.stage("student", 10, 0, console, clock=clock) as bar:
        clock.now += 5
        bar.update(10)
    assert lines_of(console) == ["student  step 10/10  100 %  took 5 s"]


def test_percent_is_100_only_at_the_end():
    console, clock = piped(), Clock()
    with progress.stage("student", 1000, 0, console, clock=clock) as bar:
        bar.update(999)
        assert "  99 %" in lines_of(console)[-1]


@pytest.mark.parametrize("start_step", [0, 900])
def test_eta_knows_only_the_steps_of_this_process(start_step):
    clock = Clock()
    with progress.stage("student", 1000, start_step, piped(), clock=clock) as bar:
        clock.now += 5
        bar.update(start_step + 10)
        assert bar.steps_per_second == pytest.approx(2)
        assert bar.eta == pytest.approx((990 - start_step) / 2)


def test_eta_leaves_out_the_compilation():
    clock = Clock()
    with progress.stage("student", 1000, 500, piped(), clock=clock) as bar:
        clock.now += 60  # Compiles.
        bar.update(501)
        for step in range(502, 600):
            clock.now += 0.1
            bar.update(step)
        assert bar.steps_per_second == pytest.approx(10)
        assert bar.eta == pytest.approx(40.1)
        assert bar.elapsed == pytest.approx(69.8)


def test_nothing_is_estimated_from_nothing():
    clock = Clock()
    with progress.stage("student", 10, 4, piped(), clock=clock) as bar:
        assert bar.eta is None
        clock.now += 60
        bar.update(5)  # One step, and its compilation.
        assert bar.eta is None
        bar.update(5)  # No step.
        assert bar.eta is None
        bar.update(6)  # No time.
        assert bar.eta is None


@pytest.mark.parametrize(("total", "start"), [(0, 0), (10, 10), (10, 12)])
def test_a_stage_without_steps_to_do(total, start):
    for console in (piped(), terminal()):
        with progress.stage("student", total, start, console) as bar:
            bar.update(start)
        assert bar.fraction == 1.0
        assert bar.finished


def test_metrics_stay_until_replaced():
    console, clock = piped(), Clock()
    with progress.stage("student", 10, 0, console, clock=clock) as bar:
        bar.update(1, {"loss": 2.0, "validation_accuracy": 0.5})
        bar.update(2, {"loss": 1.0})
    assert "loss 1  validation_accuracy 0.5" in lines_of(console)[-1]


def test_shown_metrics_and_their_order():
    def facts(**arguments):
        console = piped()
        with progress.stage("student", 1, 0, console, clock=Clock(), **arguments) as b:
            b.update(1, {"alpha": Unread(), "learning_rate": 0.05, "loss": 1.0})
        return lines_of(console)[-1].split("  ")[3:-1]

    assert facts() == ["loss 1", "learning_rate 0.05"]
    assert facts(shown=("learning_rate", "loss")) == ["learning_rate 0.05", "loss 1"]
    assert facts(shown=()) == []
    with pytest.raises(AssertionError, match="read though not shown"):
        facts(shown=None)


class Unread:
    """A number that can't be read, as from a device that would have to be awaited."""

    def __float__(self):
        raise AssertionError("read though not shown")


@pytest.mark.parametrize("make_console", [piped, terminal])
def test_metrics_are_read_only_when_shown(make_console):
    clock = Clock()
    with progress.stage("student", 100, 0, make_console(), clock=clock) as bar:
        bar.update(1, {"loss": jnp.float32(1)})
        for step in range(2, 90):
            bar.update(step, {"loss": Unread()})
        bar.update(90, {"loss": np.float32(1)})


def test_long_lines_do_not_wrap_and_markup_is_text():
    console = piped()
    with progress.stage("[bold]student", 10, 0, console, shown=None) as bar:
        bar.update(10, {f"metric_{i}": i / 7 for i in range(20)})
        bar.log("[red]not markup[/] :smile: " + "x" * 200)
    first, second = lines_of(console)
    assert first.startswith("[bold]student  step 10/10")
    assert "metric_19 2.714" in first
    assert second == "[red]not markup[/] :smile: " + "x" * 200


def test_disabled_stage_is_silent(capfd):
    console = terminal()
    with progress.stage("student", 10, 0, console, enabled=False) as bar:
        bar.update(5, {"loss": Unread()})
        bar.log("message")
    with progress.stage("student", 10, enabled=False) as bar:
        bar.update(10)
    assert console.file.getvalue() == ""
    assert capfd.readouterr() == ("", "")
    assert bar.finished


@pytest.mark.parametrize("width", [1, 2, 5, 10, 20, 40, 59, 60, 80, 200])
def test_bar_is_one_line_on_any_terminal(width):
    console, clock = terminal(width), Clock()
    with progress.stage("student", 7020, 0, console, clock=clock) as bar:
        for step in (1, 3000, 7020):
            clock.now += 60
            bar.update(step, {"loss": 1.234, "validation_accuracy": 0.81})
            rendered = console.render_lines(bar._render(), pad=False)
            assert len(rendered) == 1
            assert sum(segment.cell_length for segment in rendered[0]) <= width
    # As many line ends as the bar's own last one: no refresh has moved it down.
    assert console.file.getvalue().count("\n") == 1


def test_bar_shows_the_facts():
    console, clock = terminal(200), Clock()
    with progress.stage("student", 100, 0, console, clock=clock) as bar:
        bar.update(0)
        clock.now += 10
        bar.update(40, {"loss": 1.2345, "learning_rate": 0.05})
        [line] = console.render_lines(bar._render(), pad=False)
        text = "".join(segment.text for segment in line)
    for fact in ("student", "━", "step 40/100", "40 %", "loss 1.234", "eta 15 s"):
        assert fact in text
    for fact in ("learning_rate 0.05", "elapsed 10 s", "4 steps/s"):
        assert fact in text


def test_bar_fits_an_ascii_terminal():
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = rich.console.Console(file=file, force_terminal=True, width=30)
    with progress.stage("student", 10, 0, console) as bar:
        bar.update(10, {"validation_accuracy": 0.81})
    file.flush()
    assert b"student step 10/10" in raw.getvalue()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
@pytest.mark.parametrize("make_console", [piped, terminal])
def test_display_closes_on_errors(make_console, error):
    console, clock = make_console(), Clock()

    def fail():
        with progress.stage("student", 10, 0, console, clock=clock) as bar:
            bar.update(3, {"loss": 1.0})
            bar.update(4, {"loss": 2.0})
            raise error

    with pytest.raises(error):
        fail()
    text = CONTROL.sub("", console.file.getvalue())
    assert "step 4/10" in text.splitlines()[-1]
    assert "took" not in text
    if console.is_terminal:
        assert console.file.getvalue().endswith("\x1b[?25h")  # The cursor is back.
    with progress.stage("next", 1, 0, console) as bar:  # The console is free again.
        bar.update(1)


def test_display_closes_when_its_last_drawing_fails():
    console = terminal()

    def draw():
        with progress.stage("student", 10, 0, console, clock=Clock()) as bar:
            bar.update(1)
            bar.update(2, {"loss": Unread()})

    with pytest.raises(AssertionError, match="read though not shown"):
        draw()
    assert console.file.getvalue().endswith("\x1b[?25h")


def test_prints_and_logs_stay_above_the_bar():
    console = terminal()
    logger, handler = logging.getLogger(), logging.StreamHandler(sys.__stderr__)
    logger.addHandler(handler)
    try:
        with progress.stage("student", 10, 0, console) as bar:
            bar.update(1)
            print("from print")
            logger.warning("from a logger")
            bar.log("from the stage")
            bar.update(10)
    finally:
        logger.removeHandler(handler)
    assert handler.stream is sys.__stderr__
    lines = CONTROL.sub("", console.file.getvalue()).splitlines()
    for message in ("from print", "from a logger", "from the stage"):
        assert any(line.endswith(message) for line in lines)
    assert "step 10/10" in lines[-1]


SCRIPT = """
import itertools, signal, sys, time
from kdjax import progress
# A shell that starts the tests in the background has them, and this, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
with progress.stage("student", 10**9, 0) as bar:
    for step in itertools.count(1):
        bar.update(step, {"loss": 1.0})
        if step == 100:
            bar.log("ready")
        time.sleep(0.001)
"""


def start_script(stdout):
    """Starts a stage in another process; `ready` means that it is well under way."""
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=environment,
    )


def test_ctrl_c_on_a_real_terminal():
    parent, child = pty.openpty()
    process = start_script(child)
    os.close(child)
    output, interrupted = b"", False
    with contextlib.suppress(OSError):  # How a terminal says that nobody is left.
        for part in iter(lambda: os.read(parent, 4096), b""):
            output += part
            if b"ready" in output and not interrupted:
                process.send_signal(signal.SIGINT)
                interrupted = True
    os.close(parent)
    assert b"KeyboardInterrupt" in process.communicate()[1]
    assert b"\x1b[?25l" in output  # A live bar, the cursor hidden,
    assert output.rstrip().endswith(b"\x1b[?25h")  # and back.


def test_ctrl_c_in_a_pipe():
    process = start_script(subprocess.PIPE)
    lines = [process.stdout.readline() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    lines += rest.splitlines(keepends=True)
    assert lines[0] == b"student  step 1/1000000000  0 %  loss 1\n"
    assert lines[1] == b"ready\n"
    assert lines[-1].startswith(b"student  step ")
    assert b"\x1b" not in b"".join(lines)
    assert b"KeyboardInterrupt" in errors


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.9, "1 h 0 min"),
        (7260.0, "2 h 1 min"),
        (86400.0 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds, expected):
    assert progress.format_seconds(seconds) == expected


def test_durations_never_decrease():
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    sizes = [
        sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+) (\w+)", t))
        for t in map(progress.format_seconds, np.geomspace(0.1, 1e6, 500))
    ]
    assert all(a <= b for a, b in itertools.pairwise(sizes))
