"""A file that torch.save wrote for some program: its contents tell which program that was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2kit.checkpoints import huggingface, nanogpt, pickled
from gpt2kit.checkpoints.config_json import CONFIG_FILE, is_transformers, read_config
from gpt2kit.checkpoints.courses import FORMATS, MINGPT, OURS, mingpt_heads, recognize
from gpt2kit.checkpoints.layouts import Layout, checkpoint_of
from gpt2kit.checkpoints.names import BUFFERS, plain_names
from gpt2kit.checkpoints.pickled import TorchFile
from gpt2kit.checkpoints.stored import Checkpoint
from gpt2kit.checkpoints.unsaid import Unsaid
from gpt2kit.errors import CheckpointFormatError

# Under what training programs save the weights, if they save more than those.
_WRAPPERS = ("model_state_dict", "state_dict", "model")


def open_file(path: Path, unsaid: Unsaid) -> Checkpoint:
    """Open a file of torch.save; a config.json beside it counts if both are transformers'.

    Raises CheckpointFormatError for tensors that no known program names like this.
    """
    file = pickled.open_file(path)
    if nanogpt.is_checkpoint(file):
        unsaid.refuse(path)
        return nanogpt.checkpoint_of(file)
    wrapper = next((key for key in _WRAPPERS if isinstance(file.content.get(key), dict)), None)
    content = file.content if wrapper is None else file.content[wrapper]
    # Names should be texts; a number is shown as one in an error.
    named = {str(name): value for name, value in content.items()}
    plain = plain_names(named, path)
    layout = recognize(
        {ours: getattr(named[theirs], "shape", ()) for ours, theirs in plain.items()},
        has_masks=any(name.endswith(BUFFERS) for name in named),
    )
    config_file = path.parent / CONFIG_FILE
    if (layout is None or layout.names is OURS) and config_file.exists():
        if is_transformers(config_file):
            unsaid.refuse(path)
            return huggingface.open_file(path, read_config(config_file))
        if layout is MINGPT and unsaid.n_head is None:
            unsaid = replace(unsaid, n_head=mingpt_heads(config_file))
    if layout is None:
        raise CheckpointFormatError(path, _unknown(named))
    others = () if wrapper is None else (str(key) for key in file.content if key != wrapper)
    values = {ours: named[theirs] for ours, theirs in plain.items()}
    return _open_layout(file, layout, values, unsaid, (*others, *(named.keys() - plain.values())))


def _open_layout(
    file: TorchFile,
    layout: Layout,
    values: Mapping[str, Any],
    unsaid: Unsaid,
    skipped: tuple[str, ...],
) -> Checkpoint:
    """Return the checkpoint of tensors by their names without prefixes, masks included."""
    masks = [name for name in values if name.endswith(layout.buffers)]
    stored = {name: file.tensor(name, values[name]) for name in values if name not in masks}
    token, head = (layout.theirs(f"{ours}.weight") for ours in ("wte", "lm_head"))
    return checkpoint_of(
        file.path,
        layout,
        stored,
        unsaid=unsaid,
        is_tied=head in stored and file.is_same(values[token], values[head]),
        skipped=(*sorted(skipped), *masks),
    )


def _unknown(names: Mapping[str, Any]) -> str:
    """Say what a file holds whose weights are of no program that is known."""
    if blocks := [name for name in names if name.endswith("self_attn.in_proj_weight")]:
        what = "the activation, the order of norms and residuals, and the mask of such a block"
        return (
            f"{ascii(blocks[0][:80])[1:-1]} is of torch's nn.TransformerEncoderLayer; {what} are "
            "not in a file of weights, so that it cannot be read"
        )
    shown = ", ".join(ascii(name[:60])[1:-1] for name in list(names)[:4])
    found = f"{shown}{', …' if len(names) > 4 else ''}" if names else "nothing"
    expected = f"expected the weights of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    return f"{expected}; found {found}"
