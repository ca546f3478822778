"""GPT-2: its weights from wherever they are, proven right, and everything one does with them.

    model, tokenizer = gpt2kit.load("124M")
    print(gpt2kit.generate(model, tokenizer, "Every effort moves you", max_tokens=30, top_k=3, seed=1))

Names are imported when they are first used, so that `import gpt2kit` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2kit.cache import KVCache as KVCache
    from gpt2kit.checkpoints import load as load
    from gpt2kit.config import SIZES as SIZES
    from gpt2kit.config import GPT2Config as GPT2Config
    from gpt2kit.corpus import Corpus as Corpus
    from gpt2kit.corpus import load_corpus as load_corpus
    from gpt2kit.download import download as download
    from gpt2kit.errors import CheckpointError as CheckpointError
    from gpt2kit.errors import CheckpointFormatError as CheckpointFormatError
    from gpt2kit.errors import CheckpointMismatchError as CheckpointMismatchError
    from gpt2kit.errors import CheckpointNotFoundError as CheckpointNotFoundError
    from gpt2kit.errors import ConfigError as ConfigError
    from gpt2kit.errors import ContextLengthError as ContextLengthError
    from gpt2kit.errors import CorpusError as CorpusError
    from gpt2kit.errors import DownloadError as DownloadError
    from gpt2kit.errors import GenerationError as GenerationError
    from gpt2kit.errors import Gpt2KitError as Gpt2KitError
    from gpt2kit.errors import Gpt2KitWarning as Gpt2KitWarning
    from gpt2kit.errors import MissingDependencyError as MissingDependencyError
    from gpt2kit.errors import TokenizerError as TokenizerError
    from gpt2kit.errors import TrainingError as TrainingError
    from gpt2kit.evaluate import Evaluation as Evaluation
    from gpt2kit.evaluate import evaluate as evaluate
    from gpt2kit.generate import Completion as Completion
    from gpt2kit.generate import Piece as Piece
    from gpt2kit.generate import complete as complete
    from gpt2kit.generate import generate as generate
    from gpt2kit.generate import generate_tokens as generate_tokens
    from gpt2kit.generate import stream as stream
    from gpt2kit.model import GPT2 as GPT2
    from gpt2kit.sampling import Sampling as Sampling
    from gpt2kit.train import StepReport as StepReport
    from gpt2kit.train import TrainConfig as TrainConfig
    from gpt2kit.train import train as train
    from gpt2kit.training_setup import finetune as finetune

_EXPORTS = {
    "CheckpointError": "gpt2kit.errors",
    "CheckpointFormatError": "gpt2kit.errors",
    "CheckpointMismatchError": "gpt2kit.errors",
    "CheckpointNotFoundError": "gpt2kit.errors",
    "Completion": "gpt2kit.generate",
    "ConfigError": "gpt2kit.errors",
    "ContextLengthError": "gpt2kit.errors",
    "Corpus": "gpt2kit.corpus",
    "CorpusError": "gpt2kit.errors",
    "DownloadError": "gpt2kit.errors",
    "Evaluation": "gpt2kit.evaluate",
    "GPT2": "gpt2kit.model",
    "GPT2Config": "gpt2kit.config",
    "GenerationError": "gpt2kit.errors",
    "Gpt2KitError": "gpt2kit.errors",
    "Gpt2KitWarning": "gpt2kit.errors",
    "KVCache": "gpt2kit.cache",
    "MissingDependencyError": "gpt2kit.errors",
    "Piece": "gpt2kit.generate",
    "SIZES": "gpt2kit.config",
    "Sampling": "gpt2kit.sampling",
    "StepReport": "gpt2kit.train",
    "TokenizerError": "gpt2kit.errors",
    "TrainConfig": "gpt2kit.train",
    "TrainingError": "gpt2kit.errors",
    "complete": "gpt2kit.generate",
    "download": "gpt2kit.download",
    "evaluate": "gpt2kit.evaluate",
    "finetune": "gpt2kit.training_setup",
    "generate": "gpt2kit.generate",
    "generate_tokens": "gpt2kit.generate",
    "load": "gpt2kit.checkpoints",
    "load_corpus": "gpt2kit.corpus",
    "stream": "gpt2kit.generate",
    "train": "gpt2kit.train",
}

__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """A package whose exported names stay what they are when a submodule of the same name is imported.

    Importing gpt2kit.generate, the module, would otherwise put it in the place of gpt2kit.generate, the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
