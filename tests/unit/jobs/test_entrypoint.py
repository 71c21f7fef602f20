"""Which command lines are submitted."""

import pytest
import typer

from cacovid.errors import UserError
from cluster.commands.main import app
from cluster.jobs.entrypoint import check_paths, parse_entrypoint

COMMANDS = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("line", "shell"),
    [
        ("train --config a.toml --out /x", "cacovid train --config a.toml --out /x"),
        ("cacovid train --out /x", "cacovid train --out /x"),
        ("embedded clips --out /x", "cacovid embedded clips --out /x"),
    ],
)
def test_commands_are_taken_as_they_are(line: str, shell: str) -> None:
    assert parse_entrypoint(COMMANDS, line.split()).shell == shell


def test_arguments_reach_the_shell_of_the_cluster_whole() -> None:
    shell = parse_entrypoint(COMMANDS, ["train", "--out", "/x", "--set", "model.path=/a b; rm -r /"]).shell
    assert shell == "cacovid train --out /x --set 'model.path=/a b; rm -r /'"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("python train.py", r"`cacovid python` is no command to submit: give one of train, "),
        ("embedded", r"`cacovid embedded ` is no command to submit: give one of build, clips"),
        ("embedded cilps --out /x", r"`cacovid embedded cilps` is no command"),
        ("train --stpes 3", r"cacovid train: No such option: --stpes"),
        ("embedded clips", r"cacovid embedded clips: Missing option '--out'"),
        ("embedded clips --out /x --count none", r"cacovid embedded clips: Invalid value for '--count'"),
    ],
)
def test_other_command_lines_are_refused_in_one_line(line: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        parse_entrypoint(COMMANDS, line.split())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("out", ["runs/x", "./x", "x"])
@pytest.mark.parametrize("option", ["--out", "--resume"])
def test_a_folder_that_would_go_with_the_job_is_refused(option: str, out: str) -> None:
    with pytest.raises(UserError, match=rf"{option} .*x would lie in the job's copy"):
        check_paths(parse_entrypoint(COMMANDS, ["train", option, out]), [])


@pytest.mark.parametrize("out", ["/shared/x", "s3://bucket/x"])
def test_places_that_all_machines_see_are_taken(out: str) -> None:
    check_paths(parse_entrypoint(COMMANDS, ["train", "--out", out]), [])


def test_a_configuration_that_stays_behind_is_told() -> None:
    entrypoint = parse_entrypoint(COMMANDS, ["train", "--config", "./configs/a.toml", "--out", "/x"])
    check_paths(entrypoint, ["configs/a.toml"])
    with pytest.raises(UserError, match=r"--config configs/a\.toml is not among the files"):
        check_paths(entrypoint, ["a.toml"])
    check_paths(parse_entrypoint(COMMANDS, ["train", "--config", "/shared/a.toml", "--out", "/x"]), [])
