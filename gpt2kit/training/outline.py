"""A model to train, without its weights: its shape, adapters, and which parameters are trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2kit import lora
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class Outline:
    """All about a model that decides what a training step needs, except the batch."""

    config: GPT2Config
    lora_rank: int  # 0 without adapters
    trained: frozenset[str]  # names of the parameters that are trained

    @classmethod
    def of(cls, model: GPT2) -> Outline:
        """Return the outline of a model, which may be on the meta device."""
        adapters = lora.settings(model)
        trained = frozenset(name for name, each in model.named_parameters() if each.requires_grad)
        return cls(model.config, adapters["rank"] if adapters else 0, trained)

    def build(self) -> GPT2:
        """Return a new model with this outline, with random weights unless on the meta device."""
        model = GPT2(self.config)
        if self.lora_rank:
            lora.add_adapters(model, self.lora_rank)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        return model

    def with_blocks(self, n_layer: int, *, n_vocab: int | None = None) -> Outline:
        """Return the outline with another number of blocks, and perhaps of tokens."""
        n_vocab = self.config.n_vocab if n_vocab is None else n_vocab
        return replace(self, config=replace(self.config, n_layer=n_layer, n_vocab=n_vocab))
