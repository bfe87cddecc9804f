"""Every way of distilling, killed in the middle and run again, ends with the same bits.

Run as a user runs it: in processes of their own, killed by SIGKILL.
"""

import json

import pytest

CONFIGS = (
    "born_again",
    "self_distillation",
    "mutual",
    "ensemble",
    "assistants",
    "data_free",
    "cross_modal",
    "visual_questions",
    "federated",
    "study_why",
    "consistency",
    "cifar_methods",
    "lm_kd",
    "tinybert",
    "learned_temperature",
)

# Each is a moment that some file betrays, in the order in which they come.
MOMENTS = {
    "in the first training": "**/metrics.jsonl",
    "after a checkpoint": "**/checkpoints/[0-9]*",
    "between two trainings": "**/result.json",
}


def _results(workdir):
    """What must not depend on whether the run was interrupted, by path."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        relative = path.relative_to(workdir)
        if "checkpoints" in relative.parts or "report" in relative.parts:
            continue
        if path.name == "result.json":
            found[str(relative)] = _without_seconds(json.loads(path.read_text()))
        elif path.suffix in (".npz", ".safetensors") or path.name == "metrics.jsonl":
            found[str(relative)] = path.read_bytes()
    report = json.loads((workdir / "report" / "report.json").read_text())
    found["report"] = [(arm["name"], arm["values"]) for arm in report["arms"]]
    return found


def _without_seconds(value):
    if isinstance(value, dict):
        return {k: _without_seconds(v) for k, v in value.items() if "seconds" not in k}
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_and_run_again_equals_uninterrupted(name, runs, tmp_path):
    def start(workdir):
        return runs.start(f"--config=configs/{name}.py:smoke", f"--workdir={workdir}")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.finish(start(whole))
    kills = [
        runs.kill_when(start(killed), killed, pattern) for pattern in MOMENTS.values()
    ]
    assert sum(kills) >= 2, f"{name} came to its end before it was killed"
    runs.finish(start(killed))
    expected, actual = _results(whole), _results(killed)
    assert actual.keys() == expected.keys()
    for path, content in expected.items():
        assert actual[path] == content, f"{path} differs"
