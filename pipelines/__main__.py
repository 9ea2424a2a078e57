"""`python -m pipelines compile | run | submit`: one command line for all pipelines.

A pipeline's parameters become flags; names, defaults and help come from its definition.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from kfp import compiler
from kfp.dsl import base_component

from pipelines.customize import customize

PIPELINES = {"customize": customize}
EXAMPLES = """examples:
  python -m pipelines run customize --out runs/demo
  python -m pipelines run customize --content octopus --style openmoji --methods b4m direct \\
      --train-settings steps=300 rank=8 --out runs/octopus
  python -m pipelines compile customize --out build/customize.yaml
  python -m pipelines submit customize --endpoint http://localhost:8080 --experiment first
"""


def main(argv: Optional[List[str]] = None) -> int:
    """Do what the command line says and return the exit status."""
    given = vars(_parser().parse_args(argv))
    pipeline = PIPELINES[given.pop("pipeline")]
    names = pipeline.component_spec.inputs or {}
    arguments = {name: given[name] for name in names if given.get(name) is not None}
    if given["verb"] == "compile":
        out = Path(given["out"])
        out.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(
            pipeline, str(out), pipeline_parameters=arguments, type_check=True
        )
        print(out)
        return 0
    if given["verb"] == "run":
        from pipelines import local

        try:
            return local.run(pipeline, arguments, Path(given["out"]), given["runner"])
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
    from pipelines.submit import submit

    run_id = submit(
        pipeline,
        arguments,
        endpoint=given["endpoint"],
        experiment=given["experiment"],
        namespace=given["namespace"],
        run_name=given["run_name"],
    )
    print(run_id)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines",
        description="Compile a pipeline, run it on this machine, or submit it to a server.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="compile|run|submit")
    for verb, text in (
        ("compile", "write the pipeline as YAML for a Kubeflow Pipelines server"),
        ("run", "run the pipeline on this machine"),
        ("submit", "run the pipeline on a Kubeflow Pipelines server"),
    ):
        of_verb = verbs.add_parser(verb, help=text, description=text)
        choices = of_verb.add_subparsers(dest="pipeline", required=True, metavar="PIPELINE")
        for name, pipeline in PIPELINES.items():
            first = (pipeline.component_spec.description or "").split("\n")[0]
            _flags(choices.add_parser(name, help=first, description=first), verb, name, pipeline)
    return parser


def _flags(
    parser: argparse.ArgumentParser, verb: str, name: str, pipeline: base_component.BaseComponent
) -> None:
    if verb == "compile":
        parser.add_argument("--out", default=f"build/{name}.yaml", help="file to write")
    elif verb == "run":
        parser.add_argument("--out", default=f"runs/{name}", help="folder for the results")
        parser.add_argument(
            "--runner",
            choices=("subprocess", "docker"),
            default="subprocess",
            help="how tasks run: as processes here, or in the components' image",
        )
    else:
        env = os.environ.get
        parser.add_argument(
            "--endpoint",
            default=env("KFP_ENDPOINT"),
            help="address of the server (KFP_ENDPOINT); default: the current Kubernetes context",
        )
        parser.add_argument(
            "--experiment", default=env("KFP_EXPERIMENT", "b4m"), help="(KFP_EXPERIMENT)"
        )
        parser.add_argument(
            "--namespace", default=env("KFP_NAMESPACE", "kubeflow"), help="(KFP_NAMESPACE)"
        )
        parser.add_argument("--run-name", default=None, help="name of the run on the server")
    for key, spec in (pipeline.component_spec.inputs or {}).items():
        form = _FORMS.get(_kind(spec.type), {"type": str})
        text = " ".join((spec.description or "").split())
        parser.add_argument(
            f"--{key.replace('_', '-')}",
            dest=key,
            default=None,
            help=f"{text} (default: {spec.default})".replace("%", "%%"),
            **form,
        )


def _kind(annotation: Any) -> str:
    """KFP's name of a parameter's type, for the annotations that it keeps as they were."""
    text = str(annotation).removeprefix("typing.")
    return {"List[str]": "LIST", "List[int]": "INTEGERS", "Dict": "STRUCT"}.get(text, text)


class _Settings(argparse.Action):
    """NAME=VALUE NAME=VALUE as a dictionary; values stay text, the library converts them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        wrong = [value for value in values if "=" not in value]
        if wrong:
            parser.error(f"{option}: {wrong[0]!r} is not NAME=VALUE")
        setattr(namespace, self.dest, dict(value.split("=", 1) for value in values))


_FORMS: Dict[str, Dict[str, Any]] = {
    "Integer": {"type": int},
    "LIST": {"nargs": "+"},
    "INTEGERS": {"nargs": "+", "type": int},
    "STRUCT": {"nargs": "+", "action": _Settings, "metavar": "NAME=VALUE"},
}

if __name__ == "__main__":
    sys.exit(main())
