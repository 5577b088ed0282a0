"""`hf-mote sae steer`: responses with latents changed, next to the model's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, Subject, loaded_sae
from hf_mote.commands.sae.dead_latents import silent_note
from hf_mote.commands.sae.evaluate import SAE, sae_facts
from hf_mote.commands.sae.places import OwnHookpoint
from hf_mote.commands.session import reporting, tell
from hf_mote.errors import ConfigError, FileFormatError, one_of, real

__all__ = ["read_edit", "steer_command"]

_SCOPES = ("all", "prompt", "generation")
_FORMS = "LATENT=+5 (added), LATENT=x2 (multiplied), LATENT=clamp:5, LATENT=ablate"


@bundled
def steer_command(
    *,
    model: o.Model,
    sae: SAE,
    prompt: Annotated[list[str], typer.Option(help="A prompt; may be given several times.")],
    edit: Annotated[list[str], typer.Option(help=f"{_FORMS}; may be given several times.")],
    scope: Annotated[str, typer.Option(help="all, prompt or generation.")] = "all",
    strength: Annotated[float, typer.Option(help="Factor on every change.")] = 1.0,
    hookpoint: OwnHookpoint = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the steering config, for sharing; by default none is written.")
    ] = None,
    max_new_tokens: o.MaxNewTokens = 40,
    loading: Loading,
    dry_run: o.DryRun = False,
) -> None:
    """Change latents of an SAE while the model answers, and print the answers with and without the change."""
    with reporting():
        edits = _edits(edit)
        one_of("--scope", scope, _SCOPES)
        real("--strength", strength)
        if output is not None and output.exists() and not output.is_dir():
            raise FileFormatError(f"--output {output}", "is a file", expected="a folder")
        loading.check(model)
        import torch  # imported here, because it is slow

        from hf_mote.sae.intervene import sites_of
        from hf_mote.sae.steer import steer
        from hf_mote.sae.steering import SteeringConfig

        loaded = loaded_sae(sae)
        if hookpoint is not None:
            loaded.config.hookpoint = hookpoint
        config = SteeringConfig.for_sae(loaded, edits, path=sae, scope=scope, strength=strength)
        if (note := silent_note(sae, loaded.config, edits)) is not None:
            warnings.warn(note, stacklevel=2)
        at = partial(sites_of, sae=loaded, hookpoint=None, where="steer")
        subject = loading.subject(model, Organisms(), any_model=True, prompts=prompt, fits=at)
        torch.nn.Module.to(loaded, subject.model.device)

        def answers(prompts: list[str], longest: int) -> tuple[list[str], list[str]]:
            plain = _answers(subject, prompts, longest)
            with steer(subject.model, loaded, config):
                return plain, _answers(subject, prompts, longest)

        if dry_run:
            _plan(subject, prompt, max_new_tokens, answers, sae_facts(loaded, None))
            return
        plain, steered = answers(prompt, max_new_tokens)
        for asked, before, after in zip(prompt, plain, steered, strict=True):
            tell(f"{asked}\n  plain:   {before}\n  steered: {after}")
        changed = sum(before != after for before, after in zip(plain, steered, strict=True))
        tell(f"{changed} of {len(prompt)} answers changed.")
        if output is not None:
            config.save_pretrained(output)
            tell(f"Steering config: {output}")


def _plan(
    subject: Subject,
    prompts: list[str],
    longest: int,
    answers: Callable[[list[str], int], Any],
    facts: dict[str, str],
) -> None:
    """Print what would be done, after answering the longest prompt."""
    from hf_mote.commands.plan import Timed, Work, plan
    from hf_mote.generation.asking import Chat

    lengths = [len(one) for one in Chat(subject.tokenizer).encode(prompts)]
    one = [prompts[lengths.index(max(lengths))]]
    timed = Timed.of(
        "one prompt answered twice", lambda: answers(one, longest), warm_up=lambda: answers(one, min(2, longest))
    )
    number = len(prompts)
    facts = {
        "prompts": f"{number:,}, {sum(lengths):,} tokens, the longest {max(lengths):,}",
        "runs": "2 over all prompts: 1 untouched, 1 steered",
        "responses": f"{2 * number:,}, at most {2 * number * longest:,} tokens",
        **facts,
    }
    plan(facts, [Work(timed, number)], left_out=())


def _edits(given: list[str]) -> dict[int, Any]:
    """Return the edits by latent; a latent has at most one."""
    edits: dict[int, Any] = {}
    for entry in given:
        latent, change = read_edit(entry)
        if latent in edits:
            raise ConfigError("--edit", "gives a latent twice", got=repr(entry), expected="each once")
        edits[latent] = change
    return edits


def read_edit(text: str, option: str = "--edit") -> tuple[int, Any]:
    """Return latent and edit of an option.

    Args:
        text (`str`): The value, such as "12=+5", "12=x2", "12=clamp:5" or "12=ablate".
        option (`str`, *optional*, defaults to `"--edit"`): The option's name, for the error.

    Raises:
        [`ConfigError`]: if it is not one of these.
    """
    latent, equals, change = text.partition("=")
    wrong = ConfigError(option, "must be an edit", got=repr(text), expected=_FORMS)
    if not equals or not latent.strip().isdecimal():
        raise wrong
    if change == "ablate":
        return int(latent), "ablate"
    kind, number = "add", change
    if change.startswith("clamp:"):
        kind, number = "clamp", change.removeprefix("clamp:")
    elif change.startswith("x"):
        kind, number = "multiply", change[1:]
    try:
        return int(latent), (kind, float(number))
    except ValueError:
        raise wrong from None


def _answers(subject: Subject, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Return the greedy answer to each prompt, with the chat template if there is one."""
    from hf_mote.generation.asking import Chat, Decoding
    from hf_mote.generation.responses import generate_responses

    found: dict[int, str] = {}
    asked = generate_responses(subject.model, Chat(subject.tokenizer), prompts, Decoding(max_new_tokens, batch_size=1))
    for positions, answers in asked:
        found |= zip(positions, answers, strict=True)
    return [found[index] for index in range(len(prompts))]
