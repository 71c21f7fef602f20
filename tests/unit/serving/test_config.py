"""The configuration, its files, and what Ray Serve is told."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

import serving
from cacovid.errors import UserError
from serving.application import build, with_absolute_paths
from serving.config import ServiceConfig
from serving.config_file import load_service_config, parse_service_config, to_yaml
from serving.replicas.deployments import _engine_options
from serving.schema import deploy_schema, http_options, service_values
from tests.support.serving_server import POLICY, policy_folder, service_config, write_keys

SHIPPED = Path(serving.__file__).parent / "config.yaml"


def test_the_shipped_file_is_what_serve_deploy_takes():
    schema = ServeDeploySchema.model_validate(yaml.safe_load(SHIPPED.read_text()))
    (application,) = schema.applications
    module, _, name = application.import_path.partition(":")
    assert (module, name) == (build.__module__, build.__name__)
    assert [deployment.name for deployment in application.deployments] == ["engine"]


def test_the_shipped_file_is_a_configuration_of_the_embedded_model():
    config = load_service_config(SHIPPED)
    assert config.model.path == "embedded"
    assert config.media.https_hosts == ()
    assert config.base_id == "embedded"


def test_the_proxy_waits_longer_than_the_service_and_not_without_end():
    for options, config in [
        (yaml.safe_load(SHIPPED.read_text())["http_options"], load_service_config(SHIPPED)),
        (
            http_options(ServiceConfig(api={"request_timeout_s": 900}), "127.0.0.1", 1),
            ServiceConfig(api={"request_timeout_s": 900}),
        ),
    ]:
        own = config.api.body_timeout_s + config.api.request_timeout_s
        assert own < options["request_timeout_s"] < own + 60


def test_the_declarative_form_keeps_policies_apart_and_comes_back_whole():
    config = service_config(engine={"default_retention": 0.2})
    fields = deploy_schema(config)
    application = ServeDeploySchema.model_validate(fields).applications[0]
    assert application.args == {"engine": {"default_retention": 0.2}}
    assert application.deployments[0].user_config["policies"] == {POLICY: policy_folder()}
    assert parse_service_config(service_values(fields, "here")) == config


def test_a_policy_trained_anew_in_its_folder_is_another_configuration(tmp_path):
    for name in ("policy.json", "policy.safetensors"):
        (tmp_path / name).write_bytes((Path(policy_folder()) / name).read_bytes())
    config = service_config(policies={POLICY: str(tmp_path)})
    before = deploy_schema(config)
    (tmp_path / "policy.safetensors").write_bytes((Path(policy_folder(1)) / "policy.safetensors").read_bytes())
    after = deploy_schema(config)
    assert before["applications"][0]["args"] == after["applications"][0]["args"]
    assert before["applications"][0]["deployments"] != after["applications"][0]["deployments"]


def test_shown_configuration_can_be_read_again(tmp_path):
    config = service_config(media={"https_hosts": ["cdn.example.org"], "file_root": "/videos"}, api={"page": False})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_service_config(tmp_path / "config.yaml") == config
    assert "# largest video file" in to_yaml(config)


def test_toml_is_read_too(tmp_path):
    (tmp_path / "config.toml").write_text('[engine]\nmax_batch = 3\n[policies]\nmine = "runs/x/policy"\n')
    config = load_service_config(tmp_path / "config.toml")
    assert (config.engine.max_batch, config.policies) == (3, {"mine": "runs/x/policy"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine: {max_batches: 3}", "engine.max_batches"),
        ("engine: {default_retention: 1.5}", "engine.default_retention"),
        ("media: {https_hosts: ['https://cdn.example.org']}", "no lower-case host"),
        ("media: {private_networks: ['10.0.0.0/99']}", "media.private_networks"),
        ("media: {min_replicas: 3, max_replicas: 2}", "media.min_replicas exceeds"),
        ("media: {max_frames: 4}", "raise the latter"),
        ("media: {max_frames: 5000}", "less than or equal to 4096"),
        ("media: {chunk_frames: 0}", "media.chunk_frames"),
        ("engine: {default_max_tokens: 4096}", "exceeds engine.max_tokens"),
        ("api: {max_body_bytes: 400000000}", "raise the latter"),
        ("policies: {embedded: x}", "the model's own id"),
        ("policies: {'a b': x}", "use letters"),
        ("applications: []", "does not hold one application"),
        ("- a", "holds no fields"),
        ("a: [", "cannot be parsed"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        load_service_config(tmp_path / "config.yaml")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot read the config"):
        load_service_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"policies": {"a": "/nowhere"}}, r"policy\.json"),
        ({"api": {"keys_file": "/nowhere"}}, "key file"),
        ({"media": {"file_root": "/nowhere"}}, "no folder"),
    ],
)
def test_what_the_service_needs_is_looked_at_before_it_starts(sections, said):
    with pytest.raises(UserError, match=said):
        build(service_config(**sections))


def test_replicas_get_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_keys(tmp_path, "a-long-enough-key-000")
    config = ServiceConfig.model_validate(
        {"policies": {"p": "policy"}, "api": {"keys_file": "keys.txt"}, "media": {"file_root": "videos"}}
    )
    absolute = with_absolute_paths(config)
    assert absolute.policies == {"p": str(tmp_path / "policy")}
    assert (absolute.api.keys_file, absolute.media.file_root) == (
        str(tmp_path / "keys.txt"),
        str(tmp_path / "videos"),
    )


def test_a_replica_has_as_long_for_a_health_check_as_it_is_told() -> None:
    config = ServiceConfig.model_validate({"engine": {"health_s": 7}})
    assert _engine_options(config)["health_check_timeout_s"] == 7
