import time

from kdjax import timing


def test_models_take_turns_and_warm_up_is_not_counted(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def program(name, duration):
        def run():
            calls.append(name)
            # A cold first run, ten times slower.
            clock[0] += duration * (10 if calls.count(name) == 1 else 1)

        return run

    programs = {"teacher": program("teacher", 4.0), "student": program("student", 1.0)}
    seconds = timing.in_turns(programs, runs=5, max_seconds=1e9)
    rounds = [calls[i : i + 2] for i in range(0, len(calls), 2)]
    assert len(rounds) == 2 + 5
    # Each round has every model once, and not always in the same order.
    assert {tuple(turn) for turn in rounds} == {
        ("teacher", "student"),
        ("student", "teacher"),
    }
    assert seconds == {"teacher": [4.0] * 5, "student": [1.0] * 5}


def test_rounds_end_when_the_time_is_up_but_not_before_three(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def run():
        clock[0] += 1.0

    assert len(timing.in_turns({"a": run}, 50, max_seconds=0.5)["a"]) == 3
    assert len(timing.in_turns({"a": run}, 50, max_seconds=10.5)["a"]) == 9
