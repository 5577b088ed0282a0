"""`hf-mote chat`: chat with a model under profiles that can be switched and scaled between the turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import Sampling, Templating
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading, Serving
from hf_mote.commands.model import Organisms
from hf_mote.commands.served import connect, refuse_loading
from hf_mote.commands.session import TerminalChat, reporting, tell
from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.reports.markup import visible

if TYPE_CHECKING:
    from hf_mote.commands.model import Subject
    from hf_mote.commands.served_chat import ServedChat
    from hf_mote.hooks import Intervention

__all__ = ["chat_command"]

HELP = (
    "/off, /on: without and with the profiles; /strength 0.5: a factor on their strength; /compare TEXT: answer a "
    "prompt without and with them, by default the last one; /clear: a new conversation; /quit, or the end of the "
    "input."
)


@bundled
def chat_command(
    *,
    model: Annotated[
        str | None, typer.Argument(help="Folder or Hub id of a model, or organism:NAME; none with --server.")
    ] = None,
    mote: Annotated[list[str] | None, typer.Option(help="Profile: a folder, a file or a Hub id; may repeat.")] = None,
    steer: Annotated[list[str] | None, typer.Option(help="Steering config: a folder or a Hub id; may repeat.")] = None,
    templating: Templating,
    max_new_tokens: o.MaxNewTokens = 256,
    sampling: Sampling,
    loading: Loading,
    allow_other_weights: o.AllowOtherWeights = False,
    serving: Serving,
) -> None:
    """Chat with a model under profiles, which commands switch off, on, up and down between the turns."""
    with reporting(), ExitStack() as stack:
        sampled, template_kwargs = sampling.arguments(), templating.settings()["chat_template_kwargs"]
        system_prompt = templating.system_prompt
        if serving.server is not None:
            here = {"--chat-template": templating.chat_template, **loading.options()}
            refuse_loading({"MODEL": model, "--steer": steer, **here})
            settings = {
                "max_new_tokens": max_new_tokens,
                "sampling": _as_vllm(sampled),
                "template_kwargs": template_kwargs,
            }
            served = _served(
                serving.server,
                mote or (),
                serving.profile,
                system_prompt,
                settings,
                allow_other_weights=allow_other_weights,
            )
            _run(stack.enter_context(served))
            return
        serving.check("--mote CONFIG")
        if model is None:
            raise ConfigError("MODEL", "is missing", expected="a folder, a Hub id, organism:NAME, or --server URL")
        loading.check(model)
        from hf_mote.mote.config import MoTEConfig
        from hf_mote.mote.patch import load_config
        from hf_mote.sae.steering import SteeringConfig

        # Loaded before the model, which takes longer.
        configs: list[Any] = [load_config(entry) for entry in mote or ()]
        configs += [SteeringConfig.from_pretrained(entry) for entry in steer or ()]
        subject = loading.subject(model, Organisms(), any_model=not mote, templating=templating, prompts=["A prompt."])
        if allow_other_weights:
            configs = [one.for_other_weights(subject.model) if isinstance(one, MoTEConfig) else one for one in configs]
        profiles = stack.enter_context(_Profiles(subject, configs))
        chat = _Chat(subject, profiles, system_prompt, template_kwargs, {"max_new_tokens": max_new_tokens, **sampled})
        tell(f"{chat.profiles_named or 'No profile is'} on. {HELP}")
        for one in configs:
            if isinstance(one, MoTEConfig) and one.on_other_weights is not None:
                tell(f"A profile is {one.on_other_weights}.")
        _run(chat)


def _run(chat: _Chat | ServedChat) -> None:
    """Process lines until the user quits."""
    while (line := _read()) is not None:
        try:
            if not chat.take(line):
                break
        except HFMoTEError as error:
            Console(stderr=True).print(visible(str(error)), style="red", markup=False, highlight=False)


def _served(
    url: str,
    mote: Sequence[str],
    profile: str | None,
    system_prompt: str | None,
    settings: dict[str, Any],
    *,
    allow_other_weights: bool,
) -> ServedChat:
    """Return a conversation with a server, under one of its profiles, a config, or neither."""
    from hf_mote.commands.served_chat import SERVED_HELP, ServedChat
    from hf_mote.mote.patch import load_config
    from hf_mote.routing.sites.routed_model import RoutedModel

    if len(mote) + (profile is not None) > 1:
        got = ", ".join([*mote, *([] if profile is None else [profile])])
        what = "a request to a server follows one profile"
        raise ConfigError("--mote, --profile", what, got=got, expected="one of either", fix="Leave all others out.")
    config = load_config(mote[0]) if mote else None
    engine = connect(url)
    if config is not None and allow_other_weights:
        config = config.for_other_weights_of(RoutedModel(*engine.routers(), engine.fingerprint))
    state = "No profile is on." if config is None and profile is None else "The profile is on."
    tell(f"{engine.served_name} at {url}. {state} {SERVED_HELP}")
    if config is not None and config.on_other_weights is not None:
        tell(f"The profile is {config.on_other_weights}.")
    return ServedChat(engine, config, profile, system_prompt, settings)


def _as_vllm(sampled: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of `generate` with vLLM's names; vLLM samples if there is a temperature."""
    more = {name: value for name, value in sampled.items() if name != "do_sample"}
    return {"temperature": 1.0, **more} if sampled.get("do_sample") else more


class _Profiles:
    """The profiles that are attached to the model."""

    def __init__(self, subject: Subject, configs: list[Any]) -> None:
        self.subject = subject
        self.configs = configs
        self.handles: list[Intervention] = []
        self.on = True

    def __enter__(self) -> _Profiles:
        self.attach(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def attach(self, dose: float) -> None:
        """Attach all profiles at `dose` times their own strength; if one does not fit, the earlier ones stay."""
        from hf_mote.mote.config import MoTEConfig
        from hf_mote.mote.patch import apply_mote
        from hf_mote.sae.steer import steer

        model = self.subject.model
        doses = [dataclasses.replace(config, strength=config.strength * dose) for config in self.configs]
        before, self.handles = self.handles, []
        for handle in before:
            handle.active = False
        try:
            for config in doses:
                attached = apply_mote(model, config) if isinstance(config, MoTEConfig) else steer(model, config)
                self.handles.append(attached)
        except BaseException:
            for handle in self.handles:
                handle.remove()
            self.handles = before
            self.switch(self.on)
            raise
        for handle in before:
            handle.remove()
        self.switch(self.on)

    def switch(self, on: bool) -> None:
        """Switch the profiles on or off."""
        self.on = on
        for handle in self.handles:
            handle.active = on


class _Chat(TerminalChat):
    """A chat with a model that is loaded here."""

    no_profile = "Start the chat with --mote CONFIG or --steer CONFIG."

    def __init__(
        self,
        subject: Subject,
        profiles: _Profiles,
        system_prompt: str | None,
        template_kwargs: dict[str, Any],
        settings: dict[str, Any],
    ) -> None:
        self.subject = subject
        self.profiles = profiles
        self.system_prompt = system_prompt
        self.template_kwargs = template_kwargs
        self.settings = settings
        self.turns = []

    @property
    def on(self) -> bool:
        """Whether the profiles take effect."""
        return self.profiles.on

    @property
    def profiles_named(self) -> str:
        """The profiles in words."""
        number = len(self.profiles.configs)
        return "" if not number else "The profile is" if number == 1 else f"The {number} profiles are"

    @property
    def commands(self) -> dict[str, Callable[[str], None]]:
        """Commands that take a text, by their name; each is called with the text."""
        return {"/strength": self.set_strength, "/compare": self.compare}

    @property
    def words(self) -> dict[str, Callable[[], None]]:
        """Commands without a text, by their name."""
        return {
            "/off": lambda: self.turn(False),
            "/on": lambda: self.turn(True),
            "/clear": self.clear,
            "/help": lambda: tell(HELP),
        }

    def switch(self, on: bool) -> None:
        """Switch the profiles on or off."""
        self.profiles.switch(on)

    def take_dose(self, dose: float) -> None:
        """Attach the profiles at `dose` times their own strength."""
        self.profiles.attach(dose)

    def answer(self, turns: list[dict[str, str]]) -> str:
        """Print the answer to the last turn as it comes, and return it."""
        import torch
        from transformers import TextStreamer

        from hf_mote.generation.asking import Chat, Decoding
        from hf_mote.generation.decoding import answer_text, answer_tokens
        from hf_mote.generation.prompts import padded

        model, tokenizer = self.subject.model, self.subject.tokenizer
        # Without a template a conversation has no format, so that only the last prompt is read.
        templated = tokenizer.chat_template is not None
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        prompt: Any = [*system, *turns] if templated else turns[-1]["content"]
        encoded = Chat(tokenizer, template_kwargs=self.template_kwargs).encode([prompt], "chat")
        more = dict(self.settings)
        settings = Decoding(more.pop("max_new_tokens"), more).settings(tokenizer)

        class Shown(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                typer.echo(visible(text), nl=stream_end)

        shown = Shown(tokenizer, skip_prompt=True, skip_special_tokens=True)
        batch = padded(encoded, settings["pad_token_id"], side="left", device=model.device)
        with torch.no_grad():
            tokens = answer_tokens(model, batch, {**settings, "streamer": shown})
        return answer_text(tokenizer, tokens)[0]


def _read() -> str | None:
    """Return the next line of the user, `None` at the end of the input."""
    try:
        return input("> ")
    except EOFError:
        return None
