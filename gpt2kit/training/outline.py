"""A model to train, without its weights: its shape, its trained parameters, what it predicts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpt2kit import lora
from gpt2kit.checkpoints.classifiers import ClassHead, class_head
from gpt2kit.config import GPT2Config
from gpt2kit.model import GPT2


@dataclass(frozen=True)
class Outline:
    """All that decides what a training step needs, except how large the batch is."""

    config: GPT2Config
    lora_rank: int  # 0 without adapters
    trained: frozenset[str]  # names of the parameters that are trained
    n_labels: int = 0  # of the head for labels; 0 without such a head
    predicted: int | None = None  # in a row of examples; None if windows of a text are read

    @classmethod
    def of(cls, model: GPT2, predicted: int | None = None) -> Outline:
        """Return the outline of a model, which may be on the meta device."""
        adapters, head = lora.settings(model), class_head(model)
        trained = frozenset(name for name, each in model.named_parameters() if each.requires_grad)
        rank, n_labels = adapters["rank"] if adapters else 0, len(head.labels) if head else 0
        return cls(model.config, rank, trained, n_labels, predicted)

    def build(self) -> GPT2:
        """Return a new model with this outline, with random weights unless on the meta device."""
        model = GPT2(self.config)
        if self.lora_rank:
            lora.add_adapters(model, self.lora_rank)
        if self.n_labels:
            model.score = ClassHead(self.config.n_embd, [""] * self.n_labels)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        return model

    def with_blocks(self, n_layer: int, *, n_vocab: int | None = None) -> Outline:
        """Return the outline with another number of blocks, and perhaps of tokens."""
        n_vocab = self.config.n_vocab if n_vocab is None else n_vocab
        return replace(self, config=replace(self.config, n_layer=n_layer, n_vocab=n_vocab))
