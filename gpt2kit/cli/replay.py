"""replay: writes the texts of a receipt again, and says what differs and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gpt2kit.cli import options, output, process
from gpt2kit.cli.fields import takes_given
from gpt2kit.cli.generation import Allow, Forbid, PromptsFile, load_draft
from gpt2kit.cli.options import OUTPUT_GROUP, Json, ModelOptions
from gpt2kit.cli.prompts import batches, read_bans, read_lines, read_prompts
from gpt2kit.cli.receipts import loaded_from, read_receipt
from gpt2kit.cli.steering import check_steer, steer_for
from gpt2kit.fields import build
from gpt2kit.generation.request import Request

if TYPE_CHECKING:
    from gpt2kit.generation.receipts.replaying import Replayed
    from gpt2kit.generation.text import Completion
    from gpt2kit.tokenizers import Tokenizer

_NOT_HERE = (
    *("first_sample", "num_samples", "logprobs", "prompt_logprobs", "top_logprobs"),
    *("allow", "forbid"),  # which are files here
    *("logit_bias", "logits_processors", "compile", "draft_tokens", "no_verify", "no_cache"),
)


def add_to(app: typer.Typer) -> None:
    """Register this command."""
    app.command("replay")(replay)


@takes_given(without=_NOT_HERE, changed=Request, source=ModelOptions)
def replay(
    receipt: Annotated[str, typer.Argument(metavar="FILE", help="What generate --receipt wrote.")],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT|-",
            help="The prompt, unless the receipt has it; - is standard input.",
            show_default=False,
        ),
    ] = None,
    prompts_file: PromptsFile = None,
    *,
    allow: Allow = None,
    forbid: Forbid = None,
    changed: dict[str, Any],
    source: dict[str, Any],
    no_prompt: Annotated[
        bool,
        typer.Option(
            "--no_prompt",
            help="Print the continuation without the prompt.",
            rich_help_panel=OUTPUT_GROUP,
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Write the texts of a receipt again, and say whether they are the same.

    Options replace those of the receipt, to see what they change. If a text is another one, stderr
    says where it first differs and what is different now, and the exit code is 1.
    """
    process.import_torch()
    from gpt2kit.generation.receipts.receipt import receipt as receipt_of
    from gpt2kit.generation.receipts.replaying import changes, prompts_of, request_of
    from gpt2kit.generation.text import complete
    from gpt2kit.tokenizers import require_tokenizer

    found = read_receipt(receipt)
    given = None
    if prompt is not None or prompts_file is not None:
        given = read_prompts(options.as_typed(prompt), prompts_file)
    prompts = prompts_of(found, given)
    for name, file in (("allow", allow), ("forbid", forbid)):
        if file is not None:
            changed[name] = read_lines(file)
    if "ban" in changed:
        changed["ban"] = read_bans(changed["ban"])
    request = request_of(found, **changed)
    how, draft, batch_size = _how(found["source"], source)
    check_steer(how.steer)
    model, tokenizer = how.load()
    steer_for(how.steer, model, tokenizer, prompts, request)
    tokenizer = require_tokenizer(tokenizer, how.model)
    loaded = load_draft(draft, how, tokenizer)
    completions: list[Completion] = []
    for some, part in batches(prompts, request, batch_size):
        completions += complete(model, tokenizer, some, part, draft=loaded)
    now = receipt_of(
        model,
        tokenizer,
        request,
        completions,
        draft=loaded,
        source=loaded_from(how, draft, batch_size),
    )
    results = _compared(found, completions, prompts, tokenizer)
    differences = changes(found, now)
    if json:
        texts = [dataclasses.asdict(each) for each in results]
        output.print_json({"texts": texts, "changes": differences})
    else:
        for each in completions:
            output.result(("" if no_prompt else each.prompt) + each.text)
        _say(results, differences)
    if not all(each.equal for each in results):
        raise typer.Exit(1)


def _how(
    recorded: Mapping[str, Any], typed: Mapping[str, Any]
) -> tuple[ModelOptions, str | None, int]:
    """Return how to load the model, its draft, and how many texts to write at once."""
    from gpt2kit.cli.generation import SpeedOptions

    values = {**recorded, **typed}
    speed = build(
        SpeedOptions,
        {name: values.pop(name) for name in ("draft", "batch_size") if name in values},
        what="the source of the receipt",
    )
    how = build(ModelOptions, values, what="the source of the receipt")
    return how, speed.draft, speed.batch_size


def _compared(
    found: Mapping[str, Any],
    completions: Sequence[Completion],
    prompts: Sequence[str],
    tokenizer: Tokenizer,
) -> list[Replayed]:
    """Compare each text of a receipt with the one that was written now."""
    from gpt2kit.errors import ConfigError
    from gpt2kit.generation.receipts.replaying import compare

    by_sample = {(prompts.index(each.prompt), each.sample): each for each in completions}
    results = []
    for entry in found["texts"]:
        completion = by_sample.get((entry["prompt"], entry["sample"]))
        if completion is None:
            raise ConfigError(
                f"the receipt has a sample {entry['sample']} of prompt {entry['prompt']}, but its "
                "options ask for none"
            )
        results.append(compare(entry, completion, tokenizer.decode))
    return results


def _say(results: Sequence[Replayed], differences: Sequence[str]) -> None:
    """Say on stderr which texts are the same, where the others differ, and why that can be."""
    n = len(results)
    equal = sum(each.equal for each in results)
    if equal == n:
        output.note("the text is the same" if n == 1 else f"all {n:,} texts are the same")
    else:
        output.note("the text is another one" if n == 1 else f"{equal:,} of {n:,} are the same")
    for each in results:
        if not each.equal:
            where = f"sample {each.sample} of prompt {each.prompt}: " if n > 1 else ""
            if each.token is None:
                output.note(f"{where}the tokens are the same, but not the text")
            else:
                output.note(
                    f"{where}first differs at token {each.token}, character {each.character} of "
                    "the continuation"
                )
    for difference in differences:
        output.note(f"different now: {difference}")
    if equal < n and not differences:
        output.note("nothing else is different: the receipt was changed, or the computation varies")
