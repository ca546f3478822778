"""Errors: what users import, print, copy and send between processes."""

from __future__ import annotations

import copy
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import gpt2kit
from gpt2kit import errors
from gpt2kit.errors import Gpt2KitError

PATH = Path("weights/124M/config.json")
EVERY = [
    errors.Gpt2KitError("a failure"),
    errors.ConfigError("n_head is 0"),
    errors.FileError(PATH, "no such file"),
    errors.CheckpointError("unusable"),
    errors.CheckpointNotFoundError("nothing there", path=PATH, missing=["config.json"]),
    errors.CheckpointFormatError(PATH, "not valid JSON"),
    errors.CheckpointMismatchError(
        PATH, missing=["wte.weight"], unexpected=list("abcdef"), misshapen={"b": ((2,), (3, 4))}
    ),
    errors.TokenizerError("unknown"),
    errors.ContextLengthError("too long", requested=2000, limit=1024),
    errors.CorpusError("not UTF-8", path=PATH, offset=7),
    errors.BadRowError("row 2: 'text' is null"),
    errors.GenerationError("NaN"),
    errors.TrainingError("the loss is NaN", step=3),
    errors.DownloadError("no connection", url="https://host/file", path=PATH),
    errors.MissingDependencyError("matplotlib", extra="plots"),
    errors.OutOfMemoryError("not enough memory"),
]


def raise_error(error: Gpt2KitError) -> None:
    """Raise an error in another process."""
    raise error


def subclasses(cls: type[Gpt2KitError]) -> set[type[Gpt2KitError]]:
    return {cls}.union(*(subclasses(below) for below in cls.__subclasses__()))


def test_the_examples_here_cover_every_class_of_error() -> None:
    assert {type(error) for error in EVERY} == subclasses(Gpt2KitError)


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: Gpt2KitError) -> None:
    # Three classes could not be unpickled ("missing 1 required argument"), and a fourth came back
    # with another message.
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def test_an_error_raised_in_a_process_pool_arrives_as_it_was() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for error in EVERY:
            with pytest.raises(type(error), match=re.escape(str(error))) as caught:
                pool.submit(raise_error, error).result(30)
            assert vars(caught.value).keys() >= vars(error).keys()


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_prints_under_the_name_that_users_import(error: Gpt2KitError) -> None:
    name = type(error).__name__
    assert type(error).__module__ == "gpt2kit"
    assert getattr(gpt2kit, name) is type(error)


def test_the_tree_in_the_documentation_is_the_tree_of_the_classes() -> None:
    drawn = re.findall(r"^ +([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    parents: dict[int, str] = {}
    for indent, name in drawn:
        parents[len(indent)] = name
        above = [parents[depth] for depth in sorted(parents) if depth < len(indent)]
        if above:
            assert getattr(errors, above[-1]) in getattr(errors, name).__bases__
    assert {name for _, name in drawn} == {cls.__name__ for cls in subclasses(Gpt2KitError)}


@pytest.mark.parametrize(
    ("cls", "missing", "expected"),
    [
        (errors.FileError, True, errors.FileError),
        (errors.CheckpointError, True, errors.CheckpointNotFoundError),
        (errors.CheckpointError, False, errors.CheckpointFormatError),
        (errors.TokenizerError, False, errors.TokenizerError),
        (errors.CorpusError, True, errors.CorpusError),
    ],
)
def test_the_class_that_a_caller_names_makes_the_error_about_a_file(
    cls: type[Gpt2KitError], missing: bool, expected: type[Gpt2KitError]
) -> None:
    error = cls.for_file(PATH, "no such file", missing=missing)
    assert type(error) is expected
    assert str(error) == f"{PATH}: no such file"
    assert getattr(error, "path", PATH) == PATH


def allocate_too_much() -> None:
    torch.empty(2**60)


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        torch.OutOfMemoryError("CUDA"),
        RuntimeError("can't start new thread"),  # it ended the program in a traceback
    ],
    ids=repr,
)
def test_every_kind_of_memory_failure_is_one_error_with_advice(failure: BaseException) -> None:
    with (
        pytest.raises(errors.OutOfMemoryError, match="^not enough memory; take less$") as found,
        errors.advice_on_memory("take less"),
    ):
        raise failure
    assert found.value.__cause__ is failure


def test_the_allocator_of_torch_on_a_cpu_is_recognized() -> None:
    # What it raises is a RuntimeError of no class of its own.
    with (
        pytest.raises(errors.OutOfMemoryError, match="take less"),
        errors.advice_on_memory(lambda: "take less"),
    ):
        allocate_too_much()


@pytest.mark.parametrize(
    "failure",
    [RuntimeError("the memory of an elephant"), OSError(28, "No space left"), ValueError("memory")],
    ids=repr,
)
def test_other_failures_pass_unchanged(failure: BaseException) -> None:
    # Any RuntimeError with "memory" in its text was taken for a lack of it.
    with pytest.raises(type(failure)) as found, errors.advice_on_memory("take less"):
        raise failure
    assert found.value is failure


def test_the_advice_nearest_to_the_cause_is_kept() -> None:
    with (
        pytest.raises(errors.OutOfMemoryError, match="inner"),
        errors.advice_on_memory("outer"),
        errors.advice_on_memory("inner"),
    ):
        raise MemoryError
