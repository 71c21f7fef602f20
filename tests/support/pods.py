"""The pods of a Ray resource on a machine apart: what KubeRay makes of groups, jobs and probes, done by hand.

All pods share the machine, so each agent but the head's has a port of its own; everything else is the manifest's.
"""

import json
import secrets
from typing import Any

from tests.support.manifests import cluster_spec
from tests.support.namespaces import Machine
from tests.support.waiting import wait_until

AGENT_PORT = 52365
TOKEN = secrets.token_hex(32)
SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # what authOptions puts into every container


def start_pods(machine: Machine, resource: dict[str, Any], replicas: dict[str, int]) -> None:
    """The head, then ``replicas`` workers of each group, until all are ready and alive."""
    spec = cluster_spec(resource)
    head = ["--head", "--port=6379", "--disable-usage-stats"]
    pods = [(spec["headGroupSpec"], head)]
    for group in spec["workerGroupSpecs"]:
        pods += [(group, ["--address=127.0.0.1:6379"])] * replicas[group["groupName"]]
    for number, (group, options) in enumerate(pods):
        _start(machine, group, [*options, f"--dashboard-agent-listen-port={AGENT_PORT + number}"], f"pod-{number}")
        container = group["template"]["spec"]["containers"][0]
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            if asked["port"] == AGENT_PORT:
                wait_until(lambda asked=asked, n=number: _answers(machine, asked["path"], AGENT_PORT + n))


def _start(machine: Machine, group: dict[str, Any], options: list[str], log: str) -> None:
    environment = {each["name"]: each["value"] for each in group["template"]["spec"]["containers"][0].get("env", [])}
    parameters = [f"--{name}={_unquoted(value)}" for name, value in group["rayStartParams"].items()]
    labels = ",".join(f"{name}={value}" for name, value in group.get("labels", {}).items())
    command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", *options, *parameters]
    machine.start(*command, *([f"--labels={labels}"] if labels else []), log=log, **environment)
    machine.wait_for(log, "Ray runtime started")


def _unquoted(value: str) -> str:
    """As the shell of KubeRay's start command reads it."""
    return json.loads(value) if value.startswith('"') else value


def _answers(machine: Machine, path: str, port: int) -> bool:
    """What the kubelet asks, which has no token."""
    return machine.run("curl", "--silent", "--fail", f"http://127.0.0.1:{port}{path}").returncode == 0


def submit(machine: Machine, resource: dict[str, Any], job: str) -> None:
    """What KubeRay's submitter runs, in the background; ``job`` is its id and the name of its log."""
    spec = resource["spec"]
    command = ["ray", "job", "submit", "--address=http://127.0.0.1:8265", f"--submission-id={job}"]
    command += [f"--entrypoint-resources={spec['entrypointResources']}", "--", *spec["entrypoint"].split()]
    machine.start(*command, log=job)


def job_status(machine: Machine, job: str) -> str:
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; empty before it is known."""
    return _info(machine, job).get("status", "")


def driver_labels(machine: Machine, job: str) -> dict[str, str]:
    """Labels of the node on which the job's command ran."""
    node = _info(machine, job)["driver_node_id"]
    script = (
        "import json, ray; ray.init('127.0.0.1:6379', log_to_driver=False);"
        "print('nodes', json.dumps({each['NodeID']: each['Labels'] for each in ray.nodes()}))"
    )
    (line,) = [each for each in machine.run("python", "-c", script).stdout.splitlines() if each.startswith("nodes ")]
    labels: dict[str, str] = json.loads(line.removeprefix("nodes "))[node]
    return labels


def _info(machine: Machine, job: str) -> dict[str, Any]:
    url = f"http://127.0.0.1:8265/api/jobs/{job}"
    done = machine.run("curl", "--silent", "--fail", "--header", f"Authorization: Bearer {TOKEN}", url)
    return json.loads(done.stdout) if done.returncode == 0 else {}
