"""Hand a pipeline to a Kubeflow Pipelines server."""

from typing import Any, Mapping, Optional

import kfp
from kfp.dsl import base_component


def submit(
    pipeline: base_component.BaseComponent,
    arguments: Mapping[str, Any],
    endpoint: Optional[str],
    experiment: str,
    namespace: str,
    run_name: Optional[str] = None,
) -> str:
    """Start a run on a server and return the run's id.

    Args:
        pipeline: The pipeline.
        arguments: Its parameters by name; the rest are its defaults.
        endpoint: Address of the server; None finds it through the current Kubernetes context.
        experiment: Experiment under which the server lists the run; made if it is not there.
        namespace: Namespace of the user, on servers with several users.
        run_name: Name of the run; None lets KFP choose.
    """
    client = kfp.Client(host=endpoint, namespace=namespace)
    started = client.create_run_from_pipeline_func(
        pipeline,
        arguments=dict(arguments),
        experiment_name=experiment,
        namespace=namespace,
        run_name=run_name,
    )
    return str(started.run_id)
