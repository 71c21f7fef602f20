"""Policy 'paper': one decoder layer from the frozen LLM, then an MLP for tokens and one for frames.

Source: Ma et al., AAAI 2026 (arXiv 2602.01649), policy network. Their third head ("mode selection")
enters no loss and is left out. So is the frame head with ``config.frame_scores = 'tokens'``: it learns from frame
samples alone.

Shape legend: B batch, N video tokens, T frames, L prompt columns, D width.
"""

from torch import Tensor, nn

from cacovid.config import PolicyConfig
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy, PolicyOutput, pool_frames
from cacovid.policy.batch import PolicyBatch
from cacovid.policy.decoder_layer import FirstLayer

SHRINK = (1, 2, 4, 8, 16)  # widths D, D/2, ... of a head before its 2 logits


class PaperPolicy(CompressionPolicy):
    """The paper's policy network, with the LLM's own position ids.

    The text has every token attend to the whole prompt. Its public code asks for that too, but flash attention there
    goes by the layer's own ``is_causal``, which stays True: the released weights never saw a question that follows the
    video. ``config.attention = 'causal'`` computes what they were trained to compute.
    """

    kind = "paper"
    layer: FirstLayer

    def __init__(self, config: PolicyConfig, hidden_size: int, layer: FirstLayer | None = None) -> None:
        super().__init__(config, hidden_size, layer)
        if layer is None:
            raise UserError(
                "policy.kind='paper' needs the language model's first decoder layer: load the Video-LLM first"
            )
        if hidden_size < SHRINK[-1]:
            raise UserError(f"policy 'paper' needs embeddings of width {SHRINK[-1]} or more, found {hidden_size}")
        layer.causal = config.attention == "causal"
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.token_head = _head(hidden_size)
        self.frame_head = _head(hidden_size) if config.frame_scores == "head" else None

    def forward(self, batch: PolicyBatch) -> PolicyOutput:
        """Logits of every token and frame; the layer runs in its parameters' type."""
        prompt = batch.prompt().to(self.norm.weight.dtype)
        hidden = self.layer(prompt, batch.position_ids, batch.prompt_mask)
        columns = batch.video_columns[..., None].expand(-1, -1, hidden.shape[-1])
        video: Tensor = hidden.gather(1, columns)  # (B, N, D)
        token_logits = self.token_head(self.norm(video)).float()
        if self.frame_head is None:
            return PolicyOutput(token_logits, pool_frames(token_logits, batch.grid.frames))
        frames = video.unflatten(1, (batch.grid.frames, batch.grid.per_frame)).mean(dim=2)
        return PolicyOutput(token_logits, self.frame_head(self.norm(frames)).float())

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Heads and norm learn at the full rate, the pretrained layer at a share of it."""
        parts = [part for part in (self.norm, self.token_head, self.frame_head) if part is not None]
        return [parameter for part in parts for parameter in part.parameters()], list(self.layer.parameters())


def _head(width: int) -> nn.Sequential:
    """Linear layers D -> D/2 -> D/4 -> D/8 -> D/16 -> 2 with SiLU between them."""
    widths = [width // share for share in SHRINK] + [2]
    layers: list[nn.Module] = []
    for narrow, wide in zip(widths[1:], widths[:-1], strict=True):
        layers += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*layers[:-1])
