"""The Kubernetes manifests: what KubeRay, Kubernetes, Ray and our own configuration demand of them; no cluster."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeDeploySchema

from cacovid.config import TrainConfig
from cacovid.config_files import load_config
from serving.config import ServiceConfig
from serving.config_file import parse_service_config
from serving.schema import service_values
from tests.support.manifests import DEPLOY, FOLDERS, KUBERAY, cluster_spec, ray_resources, rendered, resource

SCHEMAS = Path(__file__).parents[2] / "support" / "kuberay"
ROOT = DEPLOY.parents[1]
DRAIN_S = 30  # of `ray start --block` after SIGTERM
SAVING_S = 30  # a checkpoint, after run.stop_grace_s
every_ray_resource = pytest.mark.parametrize(("folder", "kind"), ray_resources())


def closed(schema: Any) -> Any:
    """``schema``, refusing fields that it does not list: Kubernetes would drop them without a word."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    return {"additionalProperties": False, **inner} if isinstance(schema.get("properties"), dict) else inner


def groups(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}


def pods(resource: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates by group, a job's submitter among them."""
    found = {name: group["template"] for name, group in groups(cluster_spec(resource)).items()}
    if "submitterPodTemplate" in resource["spec"]:
        found["submitter"] = resource["spec"]["submitterPodTemplate"]
    return found


def seen_by_autoscaler(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Each group's resources and labels as Ray's own autoscaler reads them."""
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "x", "namespace": "y"}, "spec": spec})
    types = config["available_node_types"]
    return {"head" if name == config["head_node_type"] else name: each for name, each in types.items()}


def train_config(folder: str, tmp_path: Path) -> TrainConfig:
    path = tmp_path / "train.toml"
    path.write_text(resource(folder, "ConfigMap", "cacovid-train")["data"]["train.toml"])
    return load_config(path, [])


@every_ray_resource
def test_fits_the_schema_of_its_custom_resource(folder, kind):
    schema = json.loads((SCHEMAS / f"{kind.lower()}s.v1.schema.json").read_text())
    jsonschema.validate(resource(folder, kind), closed(schema))


def test_a_misspelt_field_is_found():
    schema = closed(json.loads((SCHEMAS / "rayjobs.v1.schema.json").read_text()))
    job = json.loads(json.dumps(resource("base/train", "RayJob")))
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(job, schema)


@every_ray_resource
def test_fits_what_the_operator_checks_beyond_the_schema(folder, kind):
    found = resource(folder, kind)
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", found["metadata"]["name"])
    spec = cluster_spec(found)
    assert spec["authOptions"] == {"mode": "token", "secretName": "cacovid-ray-token"}
    assert spec["rayVersion"] == ray.__version__
    for group in groups(spec).values():
        assert "labels" not in group["rayStartParams"]
        assert "restartPolicy" not in group["template"]["spec"]
        assert not group.get("resources")
    if kind == "RayJob":
        assert found["spec"]["shutdownAfterJobFinishes"]
        assert found["spec"]["backoffLimit"] > 0


@every_ray_resource
def test_pods_have_no_privileges_and_name_what_they_use(folder, kind):
    for name, pod in pods(resource(folder, kind)).items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], name
        assert pod["spec"]["securityContext"]["runAsUser"] >= 1000, name
        assert pod["metadata"]["labels"] == {"app.kubernetes.io/part-of": "cacovid"}, name
        mounted = pod["spec"].get("automountServiceAccountToken", True)
        scaled = cluster_spec(resource(folder, kind))["enableInTreeAutoscaling"]
        assert mounted == (name == "head" and scaled), name
        (container,) = pod["spec"]["containers"]
        context = container["securityContext"]
        assert context["runAsNonRoot"], name
        assert not context["allowPrivilegeEscalation"], name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(container["resources"][bound]), name
        if name != "submitter":
            assert "httpGet" in container["readinessProbe"], name
            assert "httpGet" in container["livenessProbe"], name


@every_ray_resource
def test_image_is_one_of_the_dockerfile(folder, kind):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    target = "cpu" if folder == "overlays/embedded-cpu" else "cuda"
    for pod in pods(resource(folder, kind)).values():
        assert pod["spec"]["containers"][0]["image"] == f"cacovid:{version}-{target}"


@every_ray_resource
def test_volumes_are_there(folder, kind):
    claims = {"cacovid-work"}
    maps = {"cacovid-train"}
    for pod in pods(resource(folder, kind)).values():
        volumes = {each["name"]: each for each in pod["spec"].get("volumes", [])}
        mounts = pod["spec"]["containers"][0].get("volumeMounts", [])
        assert [each["name"] for each in mounts] == list(volumes)
        for volume in volumes.values():
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in {*claims, None}
            assert volume.get("configMap", {}).get("name") in {*maps, None}
            assert volume.get("secret", {}).get("secretName") in {"cacovid-api-keys", None}
    assert resource("base/cluster", "PersistentVolumeClaim")["metadata"]["name"] in claims
    assert resource("base/cluster", "ConfigMap")["metadata"]["name"] in maps


@every_ray_resource
def test_head_holds_no_work_and_no_replay(folder, kind):
    head = groups(cluster_spec(resource(folder, kind)))["head"]["rayStartParams"]
    assert head["num-cpus"] == head["num-gpus"] == "0"
    assert int(head["object-store-memory"]) <= 256 << 20


@pytest.mark.parametrize("folder", ["base/train", "overlays/kueue", "overlays/embedded-cpu"])
def test_driver_and_learners_start_on_machines_that_stay_and_actors_on_the_others(folder, tmp_path):
    """As Ray's own autoscaler reads the groups."""
    job, config = resource(folder, "RayJob"), train_config(folder, tmp_path)
    types = seen_by_autoscaler(cluster_spec(job))
    driver = json.loads(job["spec"]["entrypointResources"])
    fit = [name for name, each in types.items() if all(each["resources"].get(key, 0) >= driver[key] for key in driver)]
    assert fit == ["learner"]
    assert [name for name, each in types.items() if each["resources"]["CPU"] >= config.learners.cpus] == ["learner"]
    labels = dict(label.split("=") for label in config.actors.labels)
    assert [name for name, each in types.items() if labels.items() <= each["labels"].items()] == ["rollout"]
    assert types["rollout"]["resources"]["CPU"] >= config.actors.cpus
    for kind, resources in (("GPU", types["rollout"]["resources"]), ("GPU", types["learner"]["resources"])):
        assert resources.get(kind, 0) == config.actors.gpus == config.learners.gpus
    learner = types["learner"]["resources"]
    assert learner["CPU"] >= config.learners.count * config.learners.cpus
    assert config.actors.max >= types["rollout"]["max_workers"]


@pytest.mark.parametrize("folder", ["base/cluster", "base/train"])
def test_rollout_machines_are_spot_and_come_with_the_work(folder):
    (found,) = [each for each in rendered(folder) if each["kind"] in ("RayCluster", "RayJob")]
    group = groups(cluster_spec(found))["rollout"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    pod = group["template"]["spec"]
    (key,) = pod["nodeSelector"]
    assert {key, "nvidia.com/gpu"} == {each["key"] for each in pod["tolerations"]}


@every_ray_resource
def test_grace_is_longer_than_ray_drains_and_a_run_saves(folder, kind, tmp_path):
    for name, pod in pods(resource(folder, kind)).items():
        if name == "submitter":
            continue
        needed, (container,) = DRAIN_S, pod["spec"]["containers"]
        if "lifecycle" in container:
            saving = train_config(folder, tmp_path).run.stop_grace_s + SAVING_S
            environment = {each["name"]: each["value"] for each in container["env"]}
            assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) >= saving
            needed += saving
        assert pod["spec"]["terminationGracePeriodSeconds"] > needed, name


def test_run_and_service_name_the_same_folder():
    command = resource("base/train", "RayJob")["spec"]["entrypoint"]
    out = re.search(r"--out (\S+)", command)
    for folder in ("base/serve", "overlays/embedded-cpu"):
        assert out
        assert list(service(folder).policies.values()) == [f"{out[1]}/policy"]


def service(folder: str) -> ServiceConfig:
    declared = yaml.safe_load(resource(folder, "RayService")["spec"]["serveConfigV2"])
    return parse_service_config(service_values(declared, folder))


@pytest.mark.parametrize("folder", ["base/serve", "overlays/embedded-cpu"])
def test_service_is_declared_as_ray_serve_takes_it_and_asks_for_keys(folder):
    found = resource(folder, "RayService")
    schema = ServeDeploySchema.model_validate(yaml.safe_load(found["spec"]["serveConfigV2"]))
    config = service(folder)
    assert schema.http_options.host == "0.0.0.0"
    assert schema.http_options.request_timeout_s > config.api.body_timeout_s + config.api.request_timeout_s
    assert config.api.keys_file
    engine = groups(cluster_spec(found))["engine"]["template"]["spec"]["containers"][0]
    assert (
        schema.http_options.port == engine["readinessProbe"]["httpGet"]["port"] == engine["ports"][0]["containerPort"]
    )
    for pod in pods(found).values():  # the head looks at keys and policies too
        mounts = [each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]]
        for path in (config.api.keys_file, *config.policies.values()):
            assert any(path.startswith(f"{mount}/") for mount in mounts)
    types = seen_by_autoscaler(cluster_spec(found))
    assert types["engine"]["resources"].get("GPU", 0) == config.engine.gpus
    assert types["engine"]["max_workers"] >= config.engine.max_replicas


def test_queue_of_kueue_takes_the_job():
    job = resource("overlays/kueue", "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert job["spec"]["suspend"]
    spec = cluster_spec(job)
    assert not spec["enableInTreeAutoscaling"]  # which Kueue refuses
    for group in spec["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_network_is_closed_but_for_the_service():
    (policy,) = [each for each in rendered("base/cluster") if each["kind"] == "NetworkPolicy"]
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert policy["spec"]["podSelector"] == {"matchLabels": {"app.kubernetes.io/part-of": "cacovid"}}
    (serve,) = [each for each in rendered("base/serve") if each["kind"] == "NetworkPolicy"]
    assert serve["spec"]["ingress"] == [{"ports": [{"port": 8000}]}]


def test_every_folder_is_rendered_here():
    folders = {str(path.parent.relative_to(KUBERAY)) for path in KUBERAY.rglob("kustomization.yaml")}
    assert folders == set(FOLDERS)
