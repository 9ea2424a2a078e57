"""The pipelines' command line: flags from definitions, one sentence for what is wrong."""

import pytest

from b4m.errors import B4MError
from pipelines import cli
from pipelines.presets import PRESETS, preset


def test_every_parameter_of_every_pipeline_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for name in cli.PIPELINES:
        assert cli.main(["run", name, "--help"]) == 0
        text = capsys.readouterr().out
        for parameter in cli.pipeline_of(name).component_spec.inputs:
            assert f"--{parameter.replace('_', '-')} " in text


def test_the_list_of_pipelines_says_what_they_say_of_themselves() -> None:
    for name, text in cli.PIPELINES.items():
        assert cli.pipeline_of(name).component_spec.description.splitlines()[0] == text


def test_flags_become_parameters_of_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr("pipelines.local.run", lambda *values: given.update(run=values) or 0)
    line = (
        "run compare --contents cat dog --seeds 3 4 --tasks 2 --fail --gpus 1 "
        "--train-settings steps=7 b4m.lr-other=0.5 --out runs/mine --runner docker"
    )
    assert cli.main(line.split()) == 0
    pipeline, parameters, out, runner = given["run"]
    assert pipeline.name == "compare"
    assert (str(out), runner) == ("runs/mine", "docker")
    assert parameters == {
        "contents": ["cat", "dog"],
        "seeds": [3, 4],
        "tasks": 2,
        "fail": True,
        "gpus": "1",
        "train_settings": {"steps": "7", "b4m.lr_other": "0.5"},
    }


def test_a_flag_goes_before_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setattr("pipelines.local.run", lambda *values: given.update(run=values) or 0)
    assert cli.main("run compare --preset smoke --seeds 9".split()) == 0
    assert given["run"][1] == {**PRESETS["compare"]["smoke"], "seeds": [9]}


def test_the_smoke_preset_is_two_by_two_pairs_and_three_methods() -> None:
    values = preset("compare", "smoke")
    assert [len(values[key]) for key in ("contents", "styles", "methods")] == [2, 2, 3]
    with pytest.raises(B4MError, match="customize has no preset 'smoke'; it has: none"):
        preset("customize", "smoke")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("run customise", "unknown command"),
        ("run customize --contents cat", "unknown option: --contents. Did you mean --content?"),
        ("run customize --train-settings steps", "'steps' is not a setting; write NAME=VALUE"),
        ("run customize --runner shell", "unknown runner 'shell'; choose subprocess or docker"),
        ("run customize --methods magic", "unknown method 'magic'"),
        ("plan compare --contents cat cat", "'cat' is given twice among the contents"),
        ("plan compare --tasks -1", "tasks=-1 must be 0 or more"),
        ("compile compare --preset none", "compare has no preset 'none'; it has: smoke"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    line: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("b4m pipeline: ")
    assert sentence in errors
    assert errors.count("\n") == 1


def test_the_plan_says_how_many_pods_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "customize"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # plan, prepare, 4 trainings, collect, 3 lists, 2 x (merge, sample), 3 samples, evaluate,
    # report, publish
    working = 1 + 1 + 4 + 1 + 3 + 4 + 3 + 1 + 1 + 1
    # one before each of them, the whole, 4 loops, and their 4 + 1 + 1 + 3 iterations
    drivers = working + 1 + 4 + 9
    assert lines[-1] == [
        *("pods", str(working + drivers) + ","),
        *(str(working), "that", "work,", str(drivers), "drivers"),
    ]


def test_the_pods_of_ten_thousand_pairs_are_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    hundred = {kind: [f"{kind}{number}" for number in range(100)] for kind in ("c", "s")}
    words = ["plan", "compare", "--contents", *hundred["c"], "--styles", *hundred["s"]]
    assert cli.main([*words, "--tasks", "64"]) == 0
    last = capsys.readouterr().out.splitlines()[-1].split()
    pods = int(last[1].rstrip(","))
    # 64 times: train; merge and sample, twice; sample. Each with its driver and its iteration's
    assert pods < 64 * (2 * 6 + 4) + 40
