"""Run a pipeline on this machine, task by task, in processes or in Docker containers."""

import builtins
import fcntl
import logging
import os
import sys
import traceback
import uuid
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping

from kfp import local
from kfp.dsl import base_component

from b4m.errors import B4MError
from b4m.plan import Comparison
from b4m.tracking import end_pipeline, tracking_uri
from pipelines.containers import honour_exit_status
from pipelines.pods import comparison_of
from pipelines.results import Results, clear
from pipelines.transcript import Task, Transcript

LOG = "pipeline.log"
CLAIM = ".run"  # holds the id of the run that is writing here
RUNNERS = ("subprocess", "docker")
# Settings of the library that containers share with this process
PASSED_ON = (
    "B4M_KFP_RUN_ID",
    "B4M_TRACKING",
    "B4M_TRACKING_WAIT",
    "B4M_WORK",
    "HF_HUB_OFFLINE",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
    "OMP_NUM_THREADS",
)


def run(
    pipeline: base_component.BaseComponent,
    arguments: Mapping[str, Any],
    out: Path,
    runner: str = "subprocess",
) -> int:
    """Run `pipeline` and put its results into `out`.

    Args:
        pipeline: The pipeline.
        arguments: Its parameters by name; the rest are its defaults.
        out: Folder for the results; those of an earlier run are removed first.
        runner: "subprocess", or "docker" for the components' image.

    Returns:
        The exit status: 0 only if all results are there.

    Raises:
        B4MError: if `out` holds something else, or the parameters cannot be planned.
    """
    defaults = {key: spec.default for key, spec in pipeline.component_spec.inputs.items()}
    comparison = comparison_of({**defaults, **arguments})
    ours = (out / LOG).exists() or (out / CLAIM).exists()
    if out.exists() and not ours and any(out.iterdir()):
        raise B4MError(f"{out} holds something else than a run; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    _local_environment(out)
    with _alone(out):
        return _carry_out(pipeline, arguments, out, runner, comparison)


def _carry_out(
    pipeline: base_component.BaseComponent,
    arguments: Mapping[str, Any],
    out: Path,
    runner: str,
    comparison: Comparison,
) -> int:
    clear(out)
    root = out / "pipeline"
    _simplify(pipeline.pipeline_spec, runner)
    local.init(_runner(runner), pipeline_root=str(root), workspace_root=str(root / "workspace"))
    with (out / LOG).open("w", encoding="utf-8") as log:
        transcript = Transcript(sys.stdout, log, _display_names(pipeline))
        failure = ""
        with _captured(transcript):
            try:
                pipeline(**arguments)
            except KeyboardInterrupt:
                end_pipeline("KILLED")
                raise
            except Exception as error:  # a RuntimeError of KFP, or Docker that is not there
                traceback.print_exc(file=log)
                failure = f"{type(error).__name__}: {error}"
    unfinished = [task for task in transcript.tasks if task.ended is None]
    if failure or unfinished:
        end_pipeline("FAILED")  # of a process that was killed, the run is open
        _explain(failure, unfinished, out)
        return 1
    end_pipeline("FINISHED")  # a server that was away at the end may have missed it
    results = Results(root, out, comparison)
    results.collect()
    lacking = [*results.missing(), *_missing_database()]
    if lacking:
        print(f"The run ended, but these results are missing: {', '.join(lacking)}")
        return 1
    print(results.summary())
    print(f"Report: {out / 'report.html'}")
    print("Runs:   make ui   (MLflow: parameters, losses, scores, images, adapters)")
    return 0


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the results' folder, and close the MLflow runs of a run there that was killed outright.

    Raises:
        B4MError: if another run has it.
    """
    with (out / CLAIM).open("a+", encoding="utf-8") as claim:
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process lets go of it
        except BlockingIOError:
            raise B4MError(
                f"another run writes to {out}; wait for it, or give another folder"
            ) from None
        claim.seek(0)
        killed = claim.read().strip()
        if killed:
            end_pipeline("KILLED", killed)
        claim.truncate(0)
        claim.write(os.environ["B4M_KFP_RUN_ID"])
        claim.flush()
        yield
        claim.truncate(0)


def _simplify(spec: Any, runner: str) -> None:
    """Leave out what only a cluster needs.

    A task that failed here would fail again; who waits wants to know now. And a process of this
    machine must not say that it ran in an image.
    """
    for dag in (spec.root.dag, *(c.dag for c in spec.components.values() if c.HasField("dag"))):
        for task in dag.tasks.values():
            task.ClearField("retry_policy")
    if runner == "subprocess":
        for executor in spec.deployment_spec["executors"].values():
            executor["container"]["env"] = []


@contextmanager
def _captured(transcript: Transcript) -> Iterator[None]:
    """All output goes to the transcript; afterwards `print` and the log are as they were.

    KFP replaces `print` while a task runs, and forgets the original when two tasks do. Its log
    handler keeps the stream that it found.
    """
    original, root = builtins.print, logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with redirect_stdout(transcript), redirect_stderr(transcript), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # accelerator and image do not act locally: known
        try:
            yield
        finally:
            builtins.print = original
            root.handlers[:], root.level = handlers, level


def _local_environment(out: Path) -> None:
    """Defaults for tasks on this machine; what is set already stays."""
    os.environ["B4M_KFP_RUN_ID"] = f"{out.name}-{uuid.uuid4().hex[:12]}"
    if "MLFLOW_TRACKING_URI" not in os.environ:
        Path("runs").mkdir(exist_ok=True)
    defaults = {
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # two tasks run beside each other, so each gets its share of the cores
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2)),
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # a task's code lies in a temporary folder, so the library is not beside it
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), *([path] if path else [])])


def _missing_database() -> List[str]:
    """The file of MLflow's database, when runs should be in one and it is not there."""
    kind, _, file = os.environ["MLFLOW_TRACKING_URI"].partition(":///")
    recorded = os.environ.get("B4M_TRACKING", "").lower() != "off"
    return [file] if kind == "sqlite" and recorded and not Path(file).is_file() else []


def _runner(kind: str) -> Any:
    if kind == "subprocess":
        return local.SubprocessRunner(use_venv=False)
    honour_exit_status()
    here = Path.cwd()
    folders = [here / name for name in ("data", "runs") if (here / name).is_dir()]
    return local.DockerRunner(
        environment={
            "HOME": "/tmp",  # the image's user is not this one
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
        },
        mounts=[
            {"Type": "bind", "Source": str(f), "Target": str(f), "ReadOnly": f.name == "data"}
            for f in folders
        ],
        working_dir=str(here),
        user=f"{os.getuid()}:{os.getgid()}",
        network_mode="host",
    )


def _display_names(pipeline: base_component.BaseComponent) -> Dict[str, str]:
    spec = pipeline.pipeline_spec
    dags = [spec.root.dag, *(c.dag for c in spec.components.values() if c.HasField("dag"))]
    return {key: task.task_info.name for dag in dags for key, task in dag.tasks.items()}


def _explain(failure: str, unfinished: List[Task], out: Path) -> None:
    print()
    for task in unfinished:
        print(f"Task failed: {task.title}")
        for line in task.reason():
            print(f"    {line}")
    if not unfinished:
        print(f"The run failed: {failure}")
    print(f"Everything that was printed: {out / LOG}")
