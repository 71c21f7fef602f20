"""The Dockerfile, built on this machine: what is in the image, and that it trains."""

import re

import pytest

from tests.support.images import builder
from tests.support.manifests import DEPLOY

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(1800)]

ROOT = DEPLOY.parents[1]
COMPILERS = ("cc", "gcc", "g++", "clang", "ld", "make", "nvcc")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The builder, and a container of the image for CPUs."""
    with builder(tmp_path_factory.mktemp("images")) as made:
        image = made.build(DEPLOY / "Dockerfile", "cpu", ROOT)
        with made.container(image) as container:
            yield made, image, container


def test_image_trains_and_serves_as_nobody_special_and_holds_no_compiler(built):
    made, image, container = built
    assert made.config(image)["User"] == "1000"

    def run(command: str) -> str:
        return made.run("run", "--isolation=chroot", "--user=1000", container, "--", "/bin/bash", "-lc", command)

    assert run("id -u") == "1000"
    assert run(f"command -v {' '.join(COMPILERS)} || true") == ""
    assert run("cacovid --version").startswith("cacovid ")
    assert run("ray --version && serve --help > /dev/null && command -v pkill")
    pinned = {line.lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()}
    listed = run("/opt/cacovid/bin/pip freeze --exclude cacovid --exclude pip").lower().replace("_", "-")
    installed = {re.sub(r"\+cpu$|(?<=^torch) @ .*$", "", line) for line in listed.splitlines()}
    assert installed - pinned == set()
    tiny = "run.steps=1 run.items_per_step=4 data.train_clips=4 sampling.group=8 objective.replay_batch=4"
    settings = " ".join(f"--set {each}" for each in f"{tiny} actors.count=0 learners.count=0".split())
    assert "policy " in run(f"cacovid train --out /tmp/run {settings}")
    assert run("touch /opt/cacovid/x 2>/dev/null || echo no") == "no"
