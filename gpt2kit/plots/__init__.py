"""Pictures of runs, weights and activations (needs gpt2kit[plots]).

    trace = gpt2kit.inspection.trace(model, ids)  # (1, T) ids
    tokens = [tokenizer.token_bytes(token) for token in ids[0].tolist()]
    gpt2kit.plots.attention(trace, tokens, layer=0, head=3)

Every function returns a matplotlib Figure, which a notebook shows and `save` writes; none uses
pyplot or needs a screen. Of a trace of several rows, the first is drawn. Layers, heads and
positions count from 0.
"""

from gpt2kit.plots.backward import gradients, gradients_of_runs
from gpt2kit.plots.by_head import ablations, head_kinds
from gpt2kit.plots.canvas import check_picture, readable, save
from gpt2kit.plots.choices import temperature
from gpt2kit.plots.features import feature
from gpt2kit.plots.heads import attention, attention_bars, scores
from gpt2kit.plots.inputs import embeddings, norms, positions, tokens
from gpt2kit.plots.layers import lens, residual, stream, updates
from gpt2kit.plots.mlps import activation, mlp, mlp_in_out, neurons
from gpt2kit.plots.normalization import layernorm
from gpt2kit.plots.patches import patching, paths
from gpt2kit.plots.runs import Average, losses

__all__ = [
    "Average",
    "ablations",
    "activation",
    "attention",
    "attention_bars",
    "check_picture",
    "embeddings",
    "feature",
    "gradients",
    "gradients_of_runs",
    "head_kinds",
    "layernorm",
    "lens",
    "losses",
    "mlp",
    "mlp_in_out",
    "neurons",
    "norms",
    "patching",
    "paths",
    "positions",
    "readable",
    "residual",
    "save",
    "scores",
    "stream",
    "temperature",
    "tokens",
    "updates",
]
