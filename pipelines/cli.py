"""`b4m pipeline` and `python -m pipelines`: plan, compile, run or submit; bring results back.

A pipeline's parameters become flags; names, defaults and help come from its definition.
"""

import inspect
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, List, Mapping, Optional, Sequence, get_type_hints

from cyclopts import App, CycloptsError, Parameter

from b4m.errors import B4MError
from b4m.settings import parse_pairs
from pipelines.presets import PRESETS, preset

PIPELINES: Mapping[str, str] = {
    "customize": "Show one content in one style.",
    "compare": "Compare methods on every pair of some contents and styles.",
}
"""What each does, by its name and its module's. Building one takes a second: only one is built."""
EXAMPLES = """Examples:

  b4m pipeline run customize --out runs/demo
  b4m pipeline run customize --content octopus --style openmoji \\
      --methods b4m direct --train-settings steps=300 b4m.rank=8
  b4m pipeline plan compare --contents octopus owl --styles openmoji
  b4m pipeline run compare --preset smoke --out runs/smoke
  b4m pipeline submit customize --endpoint http://localhost:8080 --wait
  b4m pipeline results RUN --out runs/from-the-cluster
"""
Action = Callable[..., int]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Do what the command line says.

    Args:
        argv: the arguments; those of the process if left out.

    Returns:
        The exit status: 0, 1 if a run failed, 2 for bad input, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        status = application(next((name for name in arguments[1:2] if name in PIPELINES), ""))(
            arguments, exit_on_error=False, print_error=False, result_action="return_value"
        )
    except (B4MError, CycloptsError) as error:
        text = " ".join(str(error).split()).rstrip(".")
        print(f"b4m pipeline: {text[:1].lower()}{text[1:]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("b4m pipeline: interrupted", file=sys.stderr)
        return 130
    return int(status or 0)


def application(selected: str = "") -> App:
    """The whole command line: VERB PIPELINE --flags.

    Args:
        selected: the pipeline whose parameters are flags.
    """
    app = App(
        name="b4m pipeline",
        help="Plan, compile, run or submit a pipeline, and bring back results.",
        help_format="plaintext",
        help_epilogue=EXAMPLES,
        version_flags=(),
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(consume_multiple=1, negative_iterable=(), negative_bool=()),
    )
    for number, action in enumerate((_plan, _compile, _run, _submit)):
        verb = action.__name__.strip("_")
        commands = App(name=verb, help=inspect.getdoc(action), sort_key=number, version_flags=())
        for name, text in PIPELINES.items():
            command = _command(action, name) if name == selected else _unused
            commands.command(command, name=name, help=text)
        app.command(commands)
    app.command(_results, name="results", sort_key=9)
    return app


def _plan(name: str, parameters: Dict[str, Any]) -> int:
    """Say which jobs, tasks and pods a run would have."""
    from pipelines.pods import describe

    pipeline = pipeline_of(name)
    defaults = {key: spec.default for key, spec in pipeline.component_spec.inputs.items()}
    print(describe(name, pipeline.pipeline_spec, {**defaults, **parameters}))
    return 0


def _compile(
    name: str,
    parameters: Dict[str, Any],
    out: Annotated[
        Optional[Path], Parameter(help="file to write (default: build/PIPELINE.yaml)")
    ] = None,
    manifest: Annotated[
        bool, Parameter(help="as resources Pipeline and PipelineVersion, for kubectl apply")
    ] = False,
    namespace: Annotated[Optional[str], Parameter(help="of these resources")] = None,
) -> int:
    """Write a pipeline as YAML for a Kubeflow Pipelines server."""
    from kfp import compiler

    file = out or Path(f"build/{name}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    if manifest:
        from pipelines.versions import write_manifest

        write_manifest(pipeline_of(name), file, parameters, namespace)
        print(file)
        return 0
    compiler.Compiler().compile(
        pipeline_of(name), str(file), pipeline_parameters=parameters, type_check=True
    )
    print(file)
    return 0


def _run(
    name: str,
    parameters: Dict[str, Any],
    out: Annotated[
        Optional[Path], Parameter(help="folder for the results (default: runs/PIPELINE)")
    ] = None,
    runner: Annotated[
        str, Parameter(help="how tasks run: subprocess, or docker for the components' image")
    ] = "subprocess",
) -> int:
    """Run a pipeline on this machine."""
    from pipelines import local

    if runner not in local.RUNNERS:
        raise B4MError(f"unknown runner {runner!r}; choose {' or '.join(local.RUNNERS)}")
    return local.run(pipeline_of(name), parameters, out or Path(f"runs/{name}"), runner)


def _submit(
    name: str,
    parameters: Dict[str, Any],
    endpoint: Annotated[
        Optional[str],
        Parameter(
            env_var="KFP_ENDPOINT", help="address of the server; default: the Kubernetes context's"
        ),
    ] = None,
    token: Annotated[
        Optional[str], Parameter(env_var="KFP_TOKEN", help="bearer token", show_default=False)
    ] = None,
    cookies: Annotated[
        Optional[str],
        Parameter(env_var="KFP_COOKIES", help="cookies of a session", show_default=False),
    ] = None,
    ca: Annotated[
        Optional[str],
        Parameter(env_var="KFP_CA", help="file with the certificates that vouch for the server"),
    ] = None,
    insecure: Annotated[bool, Parameter(help="do not check the server's certificate")] = False,
    server_namespace: Annotated[
        str, Parameter(help="where the server runs, if it is found without an endpoint")
    ] = "kubeflow",
    namespace: Annotated[
        Optional[str],
        Parameter(env_var="KFP_NAMESPACE", help="yours, on servers with several users"),
    ] = None,
    experiment: Annotated[
        str, Parameter(env_var="KFP_EXPERIMENT", help="where the server lists the run")
    ] = "b4m",
    run_name: Annotated[Optional[str], Parameter(help="name of the run on the server")] = None,
    recurring: Annotated[
        Optional[str],
        Parameter(help="start a run at these times from now on, as cron: '0 3 * * *'"),
    ] = None,
    wait: Annotated[
        bool, Parameter(help="stay until it has ended; the exit status says how")
    ] = False,
) -> int:
    """Run a pipeline on a Kubeflow Pipelines server."""
    from pipelines.submit import Request, Server, submit

    server = Server(endpoint, token, cookies, ca, insecure, server_namespace)
    request = Request(experiment, namespace, run_name, recurring, wait)
    return submit(pipeline_of(name), parameters, server, request)


def _results(
    run: Annotated[str, Parameter(help="id of the run, as submit prints it")],
    *,
    out: Annotated[Optional[Path], Parameter(help="folder to write (default: runs/RUN)")] = None,
) -> int:
    """Bring back report, scores, images and adapters of a run, from MLflow."""
    from b4m.tracking import fetch

    for file in fetch(run, out or Path("runs") / run):
        print(file)
    return 0


def pipeline_of(name: str) -> Any:
    """A pipeline by its name."""
    return getattr(import_module(f"pipelines.{name}"), name)


def _unused() -> None:
    """Stand for a command whose flags are not needed now."""


def _command(action: Action, name: str) -> Callable[..., int]:
    """A function with the flags of a verb and the parameters of a pipeline."""
    pipeline = pipeline_of(name)
    own = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in inspect.signature(action).parameters.values()
        if each.name not in ("name", "parameters")
    ]
    flags = _flags(pipeline)
    presets = list(PRESETS.get(name, {}))
    if presets:
        hint = Annotated[Optional[str], Parameter(help=f"parameters by name: {', '.join(presets)}")]
        own.append(_keyword("preset", hint))

    def command(**given: Any) -> int:
        chosen = given.pop("preset", None)
        parameters = preset(name, chosen) if chosen else {}
        for key in flags:
            if given.get(key) is not None:
                parameters[key] = _value(key, pipeline, given[key])
        return action(name, parameters, **{k: v for k, v in given.items() if k not in flags})

    signature = inspect.Signature([*own, *flags.values()])
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    return command


def _flags(pipeline: Any) -> Dict[str, inspect.Parameter]:
    """A flag for each parameter of a pipeline; those that are not given keep its default."""
    flags = {}
    for key, hint in get_type_hints(pipeline.pipeline_func).items():
        spec = pipeline.component_spec.inputs[key]
        text = " ".join((spec.description or "").split())
        several = isinstance(spec.default, list)
        shown = " ".join(map(str, spec.default)) if several else str(spec.default or "")
        form = Parameter(help=f"{text} (default: {shown})" if shown else text, show_default=False)
        flags[key] = _keyword(key, Annotated[Optional[_read_as(hint)], form])
    return flags


def _read_as(hint: Any) -> Any:
    """What a command line reads for a parameter: pairs are texts for a dictionary."""
    return List[str] if hint is Dict else hint


def _value(key: str, pipeline: Any, given: Any) -> Any:
    settings = get_type_hints(pipeline.pipeline_func)[key] is Dict
    return parse_pairs(given) if settings else given


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )
