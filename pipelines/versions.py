"""Versions of a pipeline on a server: one for each commit and compiled form."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Optional

import kfp
import kfp_server_api
from kfp import compiler
from kfp.compiler.compiler_utils import KubernetesManifestOptions
from kfp.dsl import base_component

from b4m import __version__
from b4m.version import git_commit


class Version(NamedTuple):
    """Ids of a pipeline and of one of its versions."""

    pipeline: str
    version: str


def upload(
    pipeline: base_component.BaseComponent, client: kfp.Client, namespace: Optional[str] = None
) -> Version:
    """The version of this commit on the server, uploaded if it is not there.

    Its name has the commit and a hash of the compiled form, which the environment changes too.

    Args:
        pipeline: The pipeline.
        client: Of the server.
        namespace: Of the user, on servers with several users.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{pipeline.name}.yaml"
        compiler.Compiler().compile(pipeline, str(file))
        name = version_name(file)
        pipeline_id = _pipeline_id(pipeline, client, namespace)
        found = client.list_pipeline_versions(pipeline_id, filter=_named(name))
        if found.pipeline_versions:
            return Version(pipeline_id, str(found.pipeline_versions[0].pipeline_version_id))
        made = client.upload_pipeline_version(str(file), name, pipeline_id=pipeline_id)
        return Version(pipeline_id, str(made.pipeline_version_id))


def version_name(file: Path) -> str:
    """Name of the version that a compiled file is: its code and its content."""
    return f"{_code()}-{_digest(file)}"


def write_manifest(
    pipeline: base_component.BaseComponent, file: Path, parameters: Any, namespace: Optional[str]
) -> None:
    """Write Pipeline and PipelineVersion as Kubernetes resources, for servers that keep them so.

    Args:
        pipeline: The pipeline.
        file: To write.
        parameters: New defaults of parameters.
        namespace: Of the resources; None leaves it to who applies them.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.yaml"
        compiler.Compiler().compile(pipeline, str(plain), pipeline_parameters=parameters)
        digest = _digest(plain)
    options = KubernetesManifestOptions(
        pipeline_name=pipeline.name,
        pipeline_version_name=f"{pipeline.name}-{digest}",
        pipeline_version_display_name=f"{_code()}-{digest}",
        namespace=namespace,
        include_pipeline_manifest=True,
    )
    compiler.Compiler().compile(
        pipeline,
        str(file),
        pipeline_parameters=parameters,
        kubernetes_manifest_options=options,
        kubernetes_manifest_format=True,
    )


def _code() -> str:
    """The commit, or the release where there is none."""
    commit, dirty, _ = git_commit().partition("-dirty")
    return f"{commit[:12]}{dirty}" if commit else __version__


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def _pipeline_id(
    pipeline: base_component.BaseComponent, client: kfp.Client, namespace: Optional[str]
) -> str:
    """The pipeline of this name, made without a version if it is not there."""
    # The client's own upload would make a first version with a name of its own.
    pipelines = client._pipelines_api
    listed = pipelines.pipeline_service_list_pipelines(
        filter=_named(pipeline.name), **({"namespace": namespace} if namespace else {})
    )
    if listed.pipelines:
        return str(listed.pipelines[0].pipeline_id)
    described = kfp_server_api.V2beta1Pipeline(
        name=pipeline.name,
        display_name=pipeline.name,
        description=(pipeline.component_spec.description or "").splitlines()[0],
        namespace=namespace,
    )
    return str(pipelines.pipeline_service_create_pipeline(described).pipeline_id)


def _named(name: str) -> str:
    """The server's filter for a name."""
    wanted = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [wanted]})
