"""What can be said of the Dockerfile and its context without building; `tests/integration/test_image.py` builds it."""

import re
import tomllib

from tests.support.manifests import DEPLOY

ROOT = DEPLOY.parents[1]
LINES = (DEPLOY / "Dockerfile").read_text().splitlines()


def stages() -> dict[str, list[str]]:
    """Instructions by stage, behind what the stage starts from."""
    found: dict[str, list[str]] = {}
    for line in LINES:
        if start := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[start[2]] = [start[1]]
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_base_is_one_release():
    (base,) = [line for line in LINES if line.startswith("ARG BASE=")]
    assert re.fullmatch(r"ARG BASE=debian:bookworm-\d{8}-slim", base)


def test_targets_run_as_nobody_special_and_take_the_installed_files_alone():
    found = stages()
    assert [line for line in found["runtime"] if line.startswith("USER ")] == ["USER 1000"]
    assert found["runtime"][0] == "system"
    for target in ("cpu", "cuda"):
        assert found[target][0] == "runtime"
        copied = [line for line in found[target] if line.startswith("COPY")]
        assert copied == [f"COPY --from=build-{target} /opt/cacovid /opt/cacovid"]
        assert not [line for line in found[target] if line.startswith(("USER", "RUN"))]


def test_everything_that_is_installed_is_pinned():
    installs = re.findall(r"pip install [^&\n]*", "\n".join(LINES).replace("\\\n", ""))
    assert len(installs) == 4
    assert all("--constraint constraints.txt" in each for each in installs)


def test_context_holds_what_is_copied_and_nothing_else():
    copied = {name for line in stages()["source"] if line.startswith("COPY") for name in line.split()[1:-1]}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert {f"{name}*" for name in copied} >= set(settings["include"])
