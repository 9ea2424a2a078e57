"""Hand a pipeline to a Kubeflow Pipelines server, and watch its run."""

import sys
import time
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Mapping, Optional

import kfp
import kfp_server_api
from kfp.dsl import base_component
from urllib3.exceptions import HTTPError

from b4m.errors import B4MError

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_ANSWERS = {
    401: "it does not know you; give --token or --cookies, or new ones",
    403: "it does not let you do this; give another --token, or the --namespace that is yours",
    404: "nothing is there; is --endpoint the address of Kubeflow Pipelines?",
}


@dataclass(frozen=True)
class Server:
    """A server, and how it is entered.

    Attributes:
        endpoint: its address; without one it is found through the current Kubernetes context, or
            inside a cluster by its name there.
        token: bearer token.
        cookies: of a browser's session, "NAME=VALUE".
        ca: file with the certificates of who signed its own.
        insecure: do not check its certificate.
        namespace: in which the server itself runs; asked for only without an endpoint.
    """

    endpoint: Optional[str] = None
    token: Optional[str] = None
    cookies: Optional[str] = None
    ca: Optional[str] = None
    insecure: bool = False
    namespace: str = "kubeflow"

    def client(self) -> kfp.Client:
        """A client that has reached the server.

        Raises:
            B4MError: if it cannot be reached, or does not let us in.
        """
        with self.sentences():
            if self.endpoint:
                self._knock()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # it is for servers since 2.0
                return kfp.Client(
                    host=self.endpoint,
                    namespace=self.namespace,
                    existing_token=self.token,
                    cookies=self.cookies,
                    ssl_ca_cert=self.ca,
                    verify_ssl=not self.insecure,
                )

    @contextmanager
    def sentences(self) -> Iterator[None]:
        """What the server or the way to it says, as one sentence.

        Raises:
            B4MError: for an answer that is no success, and for none.
        """
        place = self.endpoint or "the server of the Kubernetes context"
        try:
            yield
        except kfp_server_api.ApiException as error:
            reason = _ANSWERS.get(error.status, f"it answers {error.reason or 'nothing we know'}")
            raise B4MError(f"{place} refuses ({error.status}): {reason}") from None
        except (HTTPError, OSError) as error:
            cause = str(getattr(error, "reason", error)).split(": ", 1)[-1]
            raise B4MError(f"{place} cannot be reached: {cause}") from None

    def _knock(self) -> None:
        """One request: the client would make five and wait between them."""
        config = kfp_server_api.Configuration(host=str(self.endpoint).rstrip("/"))
        config.ssl_ca_cert, config.verify_ssl = self.ca, not self.insecure
        config.retries = False
        if self.token:
            config.api_key["authorization"] = self.token
            config.api_key_prefix["authorization"] = "Bearer"
        client = kfp_server_api.ApiClient(config, cookie=self.cookies)
        kfp_server_api.HealthzServiceApi(client).healthz_service_get_healthz()


def submit(
    pipeline: base_component.BaseComponent,
    arguments: Mapping[str, Any],
    server: Server,
    experiment: str,
    namespace: Optional[str] = None,
    run_name: Optional[str] = None,
    wait: bool = False,
) -> int:
    """Start a run on a server and print its id; its address goes to stderr.

    Args:
        pipeline: The pipeline.
        arguments: Its parameters by name; the rest are its defaults.
        server: The server.
        experiment: Experiment under which the server lists the run; made if it is not there.
        namespace: Namespace of the user, on servers with several users.
        run_name: Name of the run; None lets KFP choose.
        wait: Stay until the run has ended, and print the states of its tasks.

    Returns:
        The exit status: 0, or 1 for a run that was waited for and did not succeed.

    Raises:
        B4MError: if the server cannot be reached or refuses.
    """
    client = server.client()
    with server.sentences(), redirect_stdout(sys.stderr):  # the client prints addresses
        started = client.create_run_from_pipeline_func(
            pipeline,
            arguments=dict(arguments),
            experiment_name=experiment,
            namespace=namespace,
            run_name=run_name,
        )
    run_id = str(started.run_id)
    print(run_id, flush=True)
    if not wait:
        return 0
    state = watch(client, server, run_id)
    print(state)
    return int(state != "SUCCEEDED")


def watch(client: kfp.Client, server: Server, run_id: str, pause_s: float = 5.0) -> str:
    """Print what changes in a run until it has ended, and return its last state.

    Raises:
        B4MError: if the server is away for longer than a few minutes.
    """
    shown: Dict[str, str] = {}
    away = 0
    while True:
        try:
            with server.sentences():
                run = client.get_run(run_id)
            away = 0
        except B4MError:
            away += 1
            if away * pause_s > 300:
                raise
            time.sleep(pause_s)
            continue
        details = run.run_details.task_details if run.run_details else None
        for task in details or []:
            line = _line(task)
            if line and shown.get(task.task_id) != line:
                shown[task.task_id] = line
                print(line, file=sys.stderr, flush=True)
        if run.state in ENDED:
            return str(run.state)
        time.sleep(pause_s)


def _line(task: Any) -> str:
    """A task's name and state; "" for the drivers before tasks."""
    name = task.display_name or ""
    if not task.state or name == "driver" or name.endswith("-driver"):
        return ""
    reason = task.error.message if task.error and task.error.message else ""
    return f"{name}: {task.state}{f' ({reason})' if reason else ''}"
