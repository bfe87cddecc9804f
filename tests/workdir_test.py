"""A stage is made once, from one set of inputs, and nothing on disk is lost."""

import errno
import json

import pytest

from kdjax import workdir
from kdjax.types import UserError

INPUTS = {"model": {"name": "resnet8"}, "seeds": (0, 1), "temperature": 4.0}


def test_a_stage_is_done_only_after_finish(tmp_path):
    stage = tmp_path / "teacher"
    assert workdir.begin(stage, INPUTS) is None
    assert workdir.begin(stage, INPUTS) is None
    with pytest.raises(UserError, match="run the stage that makes it first"):
        workdir.require(stage)
    workdir.finish(stage, {"steps": 3})
    assert workdir.begin(stage, INPUTS) == {"steps": 3}
    workdir.require(stage)


def test_other_inputs_are_refused_by_name_and_change_nothing(tmp_path):
    stage = tmp_path / "student"
    workdir.begin(stage, INPUTS)
    before = (stage / "inputs.json").read_bytes()
    changed = INPUTS | {"temperature": 8.0, "model": {"name": "resnet14"}}
    with pytest.raises(UserError) as error:
        workdir.begin(stage, changed)
    assert "model.name was 'resnet8', is 'resnet14'" in str(error.value)
    assert "temperature was 4.0, is 8.0" in str(error.value)
    assert "seeds" not in str(error.value)
    assert (stage / "inputs.json").read_bytes() == before


def test_broken_json_is_one_sentence(tmp_path):
    workdir.begin(tmp_path / "student", INPUTS)
    (tmp_path / "student" / "result.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"Expected JSON in .*result\.json"):
        workdir.begin(tmp_path / "student", INPUTS)


def test_json_is_whole_or_absent(tmp_path):
    class Broken:
        pass

    path = tmp_path / "result.json"
    workdir.write_json(path, {"steps": 1})
    with pytest.raises(TypeError):
        workdir.write_json(path, {"steps": Broken()})
    assert json.loads(path.read_text()) == {"steps": 1}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("x: No space left on device"),
    ],
)
def test_a_full_disk_is_one_sentence(tmp_path, error):
    with (
        pytest.raises(UserError, match=r"the disk is full .* run the same command"),
        workdir.full_disk_is_a_user_error(tmp_path),
    ):
        raise RuntimeError("while saving") from error


def test_other_errors_pass_through(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"^something else$"),
        workdir.full_disk_is_a_user_error(tmp_path),
    ):
        raise RuntimeError("something else")


def test_processes_that_write_one_file_do_not_take_each_others(tmp_path, monkeypatch):
    path, mine = tmp_path / "seconds.json", workdir.os.getpid()
    replace, done = type(path).replace, []

    def interrupted(temporary, target):
        if not done:  # Between my writing and my renaming, another writes and renames.
            done.append(True)
            monkeypatch.setattr(workdir.os, "getpid", lambda: mine + 1)
            workdir.write_json(path, {"theirs": 1})
        return replace(temporary, target)

    monkeypatch.setattr(type(path), "replace", interrupted)
    workdir.write_json(path, {"mine": 1})
    assert json.loads(path.read_text()) == {"mine": 1}
    assert [x.name for x in tmp_path.iterdir()] == ["seconds.json"]
