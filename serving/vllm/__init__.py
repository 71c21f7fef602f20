"""vLLM as what answers: a plugin for vLLM's processes (plugin, model, processor, draws), and the engine's side of it.

The plugin's modules run in vLLM's core process, which knows nothing of Ray: they import neither it nor serving.engine,
except the draws.
"""
