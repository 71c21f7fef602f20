"""Images without a daemon and without a registry: buildah in a chroot, on a base made by debootstrap."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BASE = "localhost/debian:test"
WHEELS = Path("/opt/wheels")  # where a machine without the CPU index of PyTorch has its torch
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self._command = ["buildah", "--root", f"{folder}/root", "--runroot", f"{folder}/run", "--storage-driver=vfs"]
        # Without this, buildah starts a user namespace to look at its storage.
        self._environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "TMPDIR": str(folder)}

    def run(self, *arguments: str, timeout: float = 1200.0) -> str:
        done = subprocess.run(
            [*self._command, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.stdout.strip()

    def build(self, dockerfile: Path, target: str, context: Path) -> str:
        """The name of the image."""
        options = ["--pull=never", f"--build-arg=BASE={BASE}", f"--build-arg=CPU_INDEX={WHEELS.as_uri()}"]
        volumes = [f"--volume={WHEELS}:{WHEELS}:ro"] if WHEELS.is_dir() else []
        self.run(
            "build", *options, *volumes, f"--target={target}", f"--tag={target}", f"--file={dockerfile}", str(context)
        )
        return f"localhost/{target}"

    @contextmanager
    def container(self, image: str) -> Iterator[str]:
        name = self.run("from", "--pull-never", image)
        yield name
        self.run("rm", name)

    def config(self, image: str) -> dict[str, object]:
        """User, environment and the like, as OCI has them."""
        config: dict[str, object] = json.loads(self.run("inspect", "--type=image", image))["OCIv1"]["config"]
        return config


@contextmanager
def builder(folder: Path) -> Iterator[Builder]:
    """A builder that has the base; skips the test where Debian's buildah or debootstrap are missing."""
    missing = [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and Debian's buildah and debootstrap (missing: {missing})")
    root = folder / "debian"
    debootstrap = ["debootstrap", "--variant=minbase", "bookworm", str(root), "http://deb.debian.org/debian"]
    done = subprocess.run(debootstrap, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    # How this machine reaches PyPI, so that the Dockerfile needs to know nothing of it.
    (root / "etc" / "pip.conf").write_text(f"[global]\ncert = /etc/pip.crt\nfind-links = {WHEELS}\n")
    shutil.copy(CERTIFICATES, root / "etc" / "pip.crt")
    made = Builder(folder)
    try:
        scratch = made.run("from", "scratch")
        made.run("add", "--quiet", scratch, str(root), "/")
        made.run("commit", "--quiet", "--rm", scratch, BASE)
        shutil.rmtree(root)
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
