"""The shipped Kubernetes manifests as `kubectl kustomize` renders them; it needs no cluster."""

import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import cluster

DEPLOY = Path(cluster.__file__).parent / "deploy"
KUBERAY = DEPLOY / "kuberay"
FOLDERS = ("base/cluster", "base/train", "base/serve", "overlays/kueue", "overlays/embedded-cpu")


@cache
def rendered(folder: str) -> list[dict[str, Any]]:
    """All resources of a folder below ``kuberay``."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl, which renders the manifests, is not installed")
    command = ["kubectl", "kustomize", str(KUBERAY / folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # of what is deprecated
    return list(yaml.safe_load_all(done.stdout))


def resource(folder: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """The only resource of this kind."""
    (found,) = [each for each in rendered(folder) if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


def cluster_spec(resource: dict[str, Any]) -> dict[str, Any]:
    """What the resource says of its Ray cluster."""
    spec = resource["spec"]
    return {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}[
        resource["kind"]
    ]


def ray_resources() -> list[Any]:
    """Parameters of a test: folder and kind of each resource of KubeRay's."""
    kinds = {
        "base/cluster": ["RayCluster"],
        "base/train": ["RayJob"],
        "base/serve": ["RayService"],
        "overlays/kueue": ["RayJob"],
        "overlays/embedded-cpu": ["RayJob", "RayService"],
    }
    return [pytest.param(folder, kind, id=f"{folder}-{kind}") for folder, each in kinds.items() for kind in each]
