"""Hand a pipeline to a Kubeflow Pipelines server, and watch its run."""

import sys
import time
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

import kfp
import kfp_server_api
from kfp.dsl import base_component
from urllib3.exceptions import HTTPError

from b4m.errors import B4MError
from pipelines.versions import upload
from pipelines.waiting import cluster, reasons

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


@dataclass(frozen=True)
class Request:
    """What is asked of a server.

    Attributes:
        experiment: experiment under which the server lists the run; made if it is not there.
        namespace: namespace of the user, on servers with several users.
        name: of the run; None gives it the pipeline's name and the time.
        recurring: when to start runs from now on, as a cron expression; None starts one now.
        wait: stay until the run has ended, and print the states of its tasks.
    """

    experiment: str
    namespace: Optional[str] = None
    name: Optional[str] = None
    recurring: Optional[str] = None
    wait: bool = False


def submit(
    pipeline: base_component.BaseComponent,
    arguments: Mapping[str, Any],
    server: Server,
    request: Request,
) -> int:
    """Start a run on a server, or a series of runs, and print its id; its address goes to stderr.

    The pipeline goes there as a version named after the commit, unless it is there already.

    Args:
        pipeline: The pipeline.
        arguments: Its parameters by name; the rest are its defaults.
        server: The server.
        request: What is asked of it.

    Returns:
        The exit status: 0, or 1 for a run that was waited for and did not succeed.

    Raises:
        B4MError: if the server cannot be reached or refuses.
    """
    cron = _cron(request)
    client = server.client()
    name = request.name or f"{pipeline.name} {time.strftime('%Y-%m-%d %H:%M:%S')}"
    with server.sentences(), redirect_stdout(sys.stderr):  # the client prints addresses
        version = upload(pipeline, client, request.namespace)
        experiment = client.create_experiment(request.experiment, namespace=request.namespace)
        given = (str(experiment.experiment_id), name)
        kept = {
            "params": dict(arguments),
            "pipeline_id": version.pipeline,
            "version_id": version.version,
        }
        if cron:
            series = client.create_recurring_run(
                *given, cron_expression=cron, no_catchup=True, max_concurrency=1, **kept
            )
            started_id = str(series.recurring_run_id)
        else:
            started_id = str(client.run_pipeline(*given, **kept).run_id)
    print(started_id, flush=True)
    if not request.wait:
        return 0
    state = watch(client, server, started_id, request.namespace or "kubeflow")
    print(state)
    return int(state != "SUCCEEDED")


def _cron(request: Request) -> str:
    """The server's form of a cron expression, which has seconds; "" without one.

    Raises:
        B4MError: for another number of fields, or a series that is to be waited for.
    """
    fields = (request.recurring or "").split()
    if request.recurring is None:
        return ""
    if len(fields) not in (5, 6):
        raise B4MError(
            f"recurring {request.recurring!r} has {len(fields)} fields; write five: minute, hour, "
            "day, month, weekday"
        )
    if request.wait:
        raise B4MError("a series of runs has no end; leave out --wait")
    return " ".join(fields if len(fields) == 6 else ["0", *fields])


def watch(
    client: kfp.Client,
    server: Server,
    run_id: str,
    namespace: str = "kubeflow",
    pause_s: float = 5.0,
) -> str:
    """Print what changes in a run until it has ended, and return its last state.

    Where the current Kubernetes context leads to the run's cluster, this includes what pods wait
    for: a node, a claim, an image.

    Raises:
        B4MError: if the server is away for longer than a few minutes.
    """
    shown: Dict[str, str] = {}
    away, kubernetes = 0, cluster()
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
        lines = dict(_lines(run))
        if kubernetes is not None and run.state not in ENDED:
            waiting = reasons(kubernetes, run_id, namespace)
            lines.update({f"waits {k}": f"{k} waits ({v})" for k, v in waiting.items()})
        for key, line in lines.items():
            if shown.get(key) != line:
                shown[key] = line
                print(line, file=sys.stderr, flush=True)
        if run.state in ENDED:
            return str(run.state)
        time.sleep(pause_s)


def _lines(run: Any) -> Iterator[Tuple[str, str]]:
    """What to say of a run and its tasks, by what it is about."""
    for task in (run.run_details.task_details if run.run_details else None) or []:
        line = _line(task)
        if line:
            yield str(task.task_id), line
    if run.error and run.error.message:
        yield "run", f"the run: {run.error.message}"


def _line(task: Any) -> str:
    """A task's name, state and why; "" for the drivers before tasks."""
    name = task.display_name or ""
    if not task.state or name == "driver" or name.endswith("-driver"):
        return ""
    errors = [task.error, *(past.error for past in reversed(task.state_history or []))]
    reason = next((error.message for error in errors if error and error.message), "")
    return f"{name}: {task.state}{f' ({reason})' if reason else ''}"
