"""Selection methods by name."""

from collections.abc import Mapping, Sequence

from cacovid.config import RunConfig, SelectionConfig, TrainConfig
from cacovid.errors import UserError
from cacovid.methods.baselines.divprune import DivPrune
from cacovid.methods.baselines.evs import EVS
from cacovid.methods.baselines.fastv import FastV, FastVBehind
from cacovid.methods.baselines.fewer_frames import FewerFrames
from cacovid.methods.baselines.flashvid import FlashVID
from cacovid.methods.baselines.framefusion import FrameFusion, FrameFusionBehind
from cacovid.methods.baselines.holitom import HoliTom
from cacovid.methods.baselines.lower_resolution import LowerResolution
from cacovid.methods.baselines.oracle import OracleEvidence
from cacovid.methods.baselines.prunevid import PruneVID
from cacovid.methods.baselines.random_tokens import RandomTokens
from cacovid.methods.baselines.text_cosine import TextCosine
from cacovid.methods.baselines.uniform import UniformTokens
from cacovid.methods.baselines.vidcom2 import VidCom2
from cacovid.methods.baselines.visionzip import VisionZip
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import Baseline, Method, ReducingBaseline, check_evidence
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import VideoQuestion

BASELINES: dict[str, type[Baseline] | type[ReducingBaseline]] = {
    method.name: method
    for method in (
        DivPrune,
        VidCom2,
        EVS,
        VisionZip,
        FlashVID,
        HoliTom,
        PruneVID,
        FrameFusion,
        FrameFusionBehind,
        FastV,
        FastVBehind,
        TextCosine,
        FewerFrames,
        LowerResolution,
        UniformTokens,
        RandomTokens,
        OracleEvidence,
    )
}
POLICY, UNTRAINED = "policy", "untrained"
KNOWN: tuple[str, ...] = (POLICY, UNTRAINED, *BASELINES)


def build_methods(
    names: Sequence[str],
    policies: Mapping[str, CompressionPolicy],
    video_llm: VideoLLM,
    *,
    seed: int,
    selection: SelectionConfig | None = None,
) -> list[Method]:
    """The methods of ``names``, in their order.

    Args:
        names: of :data:`KNOWN`; 'policy' stands for every one of ``policies``, 'untrained' for a
            fresh policy of the first one's kind and size.
        policies: trained policies by the label that tables show.
        video_llm: the model that all methods compress for.
        seed: of the untrained policy.
        selection: rule for all policies; None takes what each was saved with.

    Raises:
        UserError: an unknown or repeated name, or a policy that is missing or of another model.
    """
    check_names(names)
    check_needs(names, with_policy=bool(policies))
    labels = method_labels(names, list(policies))
    for policy in policies.values():
        policy.check_model(video_llm.fingerprint, video_llm.hidden_size)
        policy.to(video_llm.device).eval()
    methods: list[Method] = []
    for name in names:
        if name in BASELINES:
            methods.append(BASELINES[name].for_model(video_llm))
        elif name == POLICY:
            methods += [
                PolicyMethod(label, policy, selection or policy.metadata.selection)
                for label, policy in policies.items()
            ]
        else:
            methods.append(_untrained(next(iter(policies.values())), video_llm, seed, selection))
    assert [method.name for method in methods] == labels
    return methods


def method_labels(names: Sequence[str], policies: Sequence[str]) -> list[str]:
    """What the methods of ``names`` are called in tables, where trained policies are called ``policies``.

    Raises:
        UserError: two are called alike.
    """
    labels = [label for name in names for label in (policies if name == POLICY else [name])]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"two methods are called {label!r}: label policies as LABEL=DIR with different labels")
    return labels


def check_names(names: Sequence[str]) -> None:
    """Raises UserError for an unknown or repeated method name."""
    if not names:
        raise UserError(f"no method given: choose of {', '.join(KNOWN)}")
    for name in names:
        if name not in KNOWN:
            raise UserError(f"unknown method {name!r}: choose of {', '.join(KNOWN)}")
        if names.count(name) > 1:
            raise UserError(f"method {name!r} is given twice: name each once")


def check_needs(names: Sequence[str], *, with_policy: bool, items: Sequence[VideoQuestion] = ()) -> None:
    """Raises UserError for a method that lacks a trained policy, or evidence of any of ``items``."""
    for name in names:
        if name in (POLICY, UNTRAINED) and not with_policy:
            raise UserError(f"method {name!r} needs a trained policy: give --policy DIR")
        if name in BASELINES and BASELINES[name].needs_evidence:
            for item in items:
                check_evidence(name, item)


def _untrained(
    trained: CompressionPolicy, video_llm: VideoLLM, seed: int, selection: SelectionConfig | None
) -> PolicyMethod:
    config = TrainConfig(policy=trained.config, run=RunConfig(seed=seed))
    policy = policy_for(video_llm, config).to(trained.device).eval()
    return PolicyMethod(UNTRAINED, policy, selection or trained.metadata.selection)
