"""Everything that computes, each as a target: engines, samplers, constraints, losses."""

from __future__ import annotations

from campaigns import sampling_cases, text_cases, training_cases
from campaigns.cases import Campaign
from campaigns.drawn_models import DTYPES
from campaigns.engine_cases import ENGINES, logits
from campaigns.number_cases import Check, NumberTarget

OTHERS: dict[str, Check] = {
    "sampling: distribution": sampling_cases.distribution,
    "sampling: penalties": sampling_cases.penalties,
    "sampling: logprobs": sampling_cases.logprobs,
    "stop texts": sampling_cases.stops,
    "limits": text_cases.limits,
    "constraints": text_cases.constraints,
    "texts: in company": text_cases.company,
    "training: loss": training_cases.loss,
    "training: dropout": training_cases.own_dropout,
    "training: int8": training_cases.int8,
}


def _targets() -> list[NumberTarget]:
    found: list[NumberTarget] = []
    for dtype in DTYPES:
        found.append(NumberTarget(f"other shapes: {dtype}", logits(dtype, varied=True)))
        for name, check in ENGINES.items():
            found.append(NumberTarget(f"{name}: {dtype}", check(dtype)))
    found += [NumberTarget(name, check) for name, check in OTHERS.items()]
    found.append(NumberTarget("texts: served", begin=text_cases.served))
    return [*found, NumberTarget("texts: over HTTP", begin=text_cases.over_http)]


CAMPAIGN = Campaign(_targets(), full=500, chunk=500)
