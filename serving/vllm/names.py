"""What both sides of the plugin call things."""

REPLICA = "cacovid-replica"  # name of a process whose vLLM is ours: its children hear it
ARCHITECTURE = "CacovidCompressedVideoLLM"  # in hf_overrides: vLLM then takes the plugin's class
MODALITY = "video"  # one item a prompt, whatever it holds
ROWS, POSITIONS, NEXT = "rows", "positions", "next_position"  # of that item
DRAWS = "cacovid"  # key of SamplingParams.extra_args
# vLLM's own language model for each type of text configuration.
LANGUAGE_MODELS = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",  # with deepstack: see serving.vllm.model
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
