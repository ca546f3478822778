# mypy: ignore-errors
"""Run by nnsight's Python: the logits after interventions, as a file of tensors.

python interleaved.py FOLDER IDS.pt OUT.pt
"""

import sys

import torch
from nnsight import NNsight
from transformers import GPT2LMHeadModel

folder, ids_path, out = sys.argv[1:]
ids, value = torch.load(ids_path)
model = NNsight(GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager").eval())
found = []
with torch.no_grad():
    with model.trace(ids):
        model.transformer.h[1].attn.c_proj.input[:, 3, :8] = 0  # z of head 0
        logits = model.lm_head.output.save()
    found.append(logits)
    with model.trace(ids):
        model.transformer.h[0].mlp.output[:, 2] = value
        logits = model.lm_head.output.save()
    found.append(logits)
torch.save([getattr(each, "value", each) for each in found], out)
