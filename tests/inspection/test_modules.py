"""The tree of modules, against the model that it describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builders import hub_state, write_hub
from conftest import make_model

from gpt2kit.checkpoints.load import open_checkpoint
from gpt2kit.config import GPT2Config
from gpt2kit.inspection.modules import every_module, folded, module_tree
from gpt2kit.model import GPT2


def test_the_tree_names_every_parameter_with_its_shape_in_forward_order(
    tmp_path: Path, tiny_model: GPT2
) -> None:
    tree = module_tree(open_checkpoint(write_hub(tmp_path, tiny_model)))
    found = {
        f"{name}.{parameter.name}": parameter.shape
        for name, module in every_module(tree)
        for parameter in module.parameters
    }
    assert list(found.items()) == list(tiny_model.config.shapes().items())
    assert tree.n_params == tiny_model.config.n_params
    modules = dict(every_module(tree))
    assert modules["h.1.attn.c_attn"].kind == "Linear"
    assert modules["h.1.attn.c_attn"].n_params == 3 * 16 * 16 + 3 * 16
    assert modules["h.0"].n_params == modules["h.1"].n_params


def test_equal_blocks_are_one_and_a_block_of_another_dtype_is_none_of_them(tmp_path: Path) -> None:
    model = make_model(GPT2Config(n_vocab=512, n_ctx=8, n_embd=8, n_head=2, n_layer=5))
    state = hub_state(model)
    name = "transformer.h.3.mlp.c_fc.weight"
    state[name] = state[name].to(torch.bfloat16)
    tree = folded(module_tree(open_checkpoint(write_hub(tmp_path, model, state=state))))
    (blocks,) = (child for child in tree.children if child.name == "h")
    assert [(each.name, each.count) for each in blocks.children] == [("0-2", 3), ("3", 1), ("4", 1)]
    assert sum(each.count * each.n_params for each in blocks.children) == blocks.n_params


@pytest.mark.parametrize("n_layer", [0, 1])
def test_a_model_of_no_block_or_one_has_nothing_to_fold(tmp_path: Path, n_layer: int) -> None:
    config = GPT2Config(n_vocab=512, n_ctx=8, n_embd=8, n_head=2, n_layer=n_layer)
    tree = module_tree(open_checkpoint(write_hub(tmp_path, make_model(config))))
    assert folded(tree) == tree
