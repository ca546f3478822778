"""GPT-2: its weights from wherever they are, proven right, and everything one does with them.

    model, tokenizer = gpt2kit.load("124M")
    print(gpt2kit.generate(model, tokenizer, "Every effort moves you", top_k=3, seed=1))

Names are imported when they are first used, so that `import gpt2kit` costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in typing, whose import would cost more than all of this module
if TYPE_CHECKING:
    from gpt2kit.cache import KVCache as KVCache
    from gpt2kit.checkpoints.load import load as load
    from gpt2kit.config import SIZES as SIZES
    from gpt2kit.config import GPT2Config as GPT2Config
    from gpt2kit.data.corpus import Corpus as Corpus
    from gpt2kit.data.corpus import load_corpus as load_corpus
    from gpt2kit.errors import BadRowError as BadRowError
    from gpt2kit.errors import CheckpointError as CheckpointError
    from gpt2kit.errors import CheckpointFormatError as CheckpointFormatError
    from gpt2kit.errors import CheckpointMismatchError as CheckpointMismatchError
    from gpt2kit.errors import CheckpointNotFoundError as CheckpointNotFoundError
    from gpt2kit.errors import ConfigError as ConfigError
    from gpt2kit.errors import ContextLengthError as ContextLengthError
    from gpt2kit.errors import CorpusError as CorpusError
    from gpt2kit.errors import DownloadError as DownloadError
    from gpt2kit.errors import FileError as FileError
    from gpt2kit.errors import GenerationError as GenerationError
    from gpt2kit.errors import Gpt2KitError as Gpt2KitError
    from gpt2kit.errors import Gpt2KitWarning as Gpt2KitWarning
    from gpt2kit.errors import MissingDependencyError as MissingDependencyError
    from gpt2kit.errors import OutOfMemoryError as OutOfMemoryError
    from gpt2kit.errors import TokenizerError as TokenizerError
    from gpt2kit.errors import TrainingError as TrainingError
    from gpt2kit.evaluation.perplexity import Evaluation as Evaluation
    from gpt2kit.evaluation.perplexity import evaluate as evaluate
    from gpt2kit.evaluation.word_options import WordOptions as WordOptions
    from gpt2kit.evaluation.words import Word as Word
    from gpt2kit.evaluation.words import words as words
    from gpt2kit.generation.request import Sampling as Sampling
    from gpt2kit.generation.text import Completion as Completion
    from gpt2kit.generation.text import Piece as Piece
    from gpt2kit.generation.text import complete as complete
    from gpt2kit.generation.text import generate as generate
    from gpt2kit.generation.text import generate_tokens as generate_tokens
    from gpt2kit.generation.text import stream as stream
    from gpt2kit.model import GPT2 as GPT2
    from gpt2kit.store.download import download as download
    from gpt2kit.training.config import TrainConfig as TrainConfig
    from gpt2kit.training.loop import train as train
    from gpt2kit.training.records import StepReport as StepReport
    from gpt2kit.training.setup import finetune as finetune

_EXPORTS = {
    "BadRowError": "gpt2kit.errors",
    "CheckpointError": "gpt2kit.errors",
    "CheckpointFormatError": "gpt2kit.errors",
    "CheckpointMismatchError": "gpt2kit.errors",
    "CheckpointNotFoundError": "gpt2kit.errors",
    "Completion": "gpt2kit.generation.text",
    "ConfigError": "gpt2kit.errors",
    "ContextLengthError": "gpt2kit.errors",
    "Corpus": "gpt2kit.data.corpus",
    "CorpusError": "gpt2kit.errors",
    "DownloadError": "gpt2kit.errors",
    "Evaluation": "gpt2kit.evaluation.perplexity",
    "FileError": "gpt2kit.errors",
    "GPT2": "gpt2kit.model",
    "GPT2Config": "gpt2kit.config",
    "GenerationError": "gpt2kit.errors",
    "Gpt2KitError": "gpt2kit.errors",
    "Gpt2KitWarning": "gpt2kit.errors",
    "KVCache": "gpt2kit.cache",
    "MissingDependencyError": "gpt2kit.errors",
    "OutOfMemoryError": "gpt2kit.errors",
    "Piece": "gpt2kit.generation.text",
    "SIZES": "gpt2kit.config",
    "Sampling": "gpt2kit.generation.request",
    "StepReport": "gpt2kit.training.records",
    "TokenizerError": "gpt2kit.errors",
    "TrainConfig": "gpt2kit.training.config",
    "TrainingError": "gpt2kit.errors",
    "Word": "gpt2kit.evaluation.words",
    "WordOptions": "gpt2kit.evaluation.word_options",
    "complete": "gpt2kit.generation.text",
    "download": "gpt2kit.store.download",
    "evaluate": "gpt2kit.evaluation.perplexity",
    "finetune": "gpt2kit.training.setup",
    "generate": "gpt2kit.generation.text",
    "generate_tokens": "gpt2kit.generation.text",
    "load": "gpt2kit.checkpoints.load",
    "load_corpus": "gpt2kit.data.corpus",
    "stream": "gpt2kit.generation.text",
    "train": "gpt2kit.training.loop",
    "words": "gpt2kit.evaluation.words",
}

__all__ = sorted(_EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
