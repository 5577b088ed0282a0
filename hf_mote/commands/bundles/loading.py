"""How a model is loaded, or which server runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import AS_SHIPPED, Templating, say_if_plain
from hf_mote.commands.model import Organisms, Subject, check_loading, load_subject, served_subject
from hf_mote.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_mote.generation.chat import Prompt

__all__ = ["Loading", "Serving"]


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        revision (`str`, *optional*): `--revision`; see [`load_subject`].
        dtype (`str`, *optional*, defaults to `"auto"`): `--dtype`.
        device (`str`, *optional*): `--device`.
        quantization (`str`, *optional*): `--quantization`.
        attn_implementation (`str`, *optional*): `--attn-implementation`.
        trust_remote_code (`bool`, *optional*, defaults to `False`): `--trust-remote-code`.
    """

    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    device: o.Device = None
    quantization: o.Quantization = None
    attn_implementation: o.AttnImplementation = None
    trust_remote_code: o.TrustRemoteCode = False

    def check(self, model: str) -> None:
        """Refuse invalid options before torch is imported; see [`check_loading`].

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
        """
        check_loading(
            model,
            dtype=self.dtype,
            quantization=self.quantization,
            attn_implementation=self.attn_implementation,
        )

    def subject(
        self,
        model: str,
        organisms: Organisms,
        *,
        any_model: bool = False,
        templating: Templating = AS_SHIPPED,
        prompts: Sequence[Prompt] = (),
        ready: Callable[[list[list[int]], PreTrainedTokenizerBase], object] | None = None,
        fits: Callable[[PreTrainedModel], object] | None = None,
    ) -> Subject:
        """Return the model.

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
            organisms (`Organisms`): Where organisms come from.
            any_model (`bool`, *optional*, defaults to `False`): Accept a model without routers, too.
            templating ([`Templating`], *optional*): How prompts become its tokens.
            prompts (`Sequence[Prompt]`, *optional*): Prompts that are tokenized before weights are loaded, so that an
                error in them or in the template comes early.
            ready (`Callable`, *optional*): Called with the tokens of the prompts and the tokenizer before weights are
                loaded.
            fits (`Callable`, *optional*): Called with the model without weights; see [`load_subject`].
        """

        def tokenized(tokenizer: PreTrainedTokenizerBase) -> None:
            tokens = templating.chat(tokenizer).encode(prompts) if prompts else []
            if ready is not None:
                ready(tokens, tokenizer)

        subject = load_subject(
            model,
            organisms,
            any_model=any_model,
            chat_template=templating.chat_template,
            ready=tokenized,
            fits=fits,
            **dataclasses.asdict(self),
        )
        if prompts:
            say_if_plain(subject.tokenizer)
        return subject

    def served(self, model: str, organisms: Organisms, *, templating: Templating) -> Subject:
        """Return the local part of a model that a server runs; see [`served_subject`].

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
            organisms (`Organisms`): Where organisms come from.
            templating ([`Templating`]): How prompts become its tokens.
        """
        subject = served_subject(model, organisms, revision=self.revision, chat_template=templating.chat_template)
        say_if_plain(subject.tokenizer)
        return subject

    def options(self) -> dict[str, object]:
        """Return the values by the names of the options; see `refuse_loading`."""
        return {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Serving:
    """A server that runs the model.

    Attributes:
        server (`str`, *optional*): `--server`.
        profile (`str`, *optional*): `--profile`, a profile of the server.
    """

    server: o.Server = None
    profile: o.Profile = None

    def check(self, instead: str) -> None:
        """Refuse a profile without a server.

        Args:
            instead (`str`): The argument that gives a profile without a server, such as "a CONFIG".

        Raises:
            [`ConfigError`]: if there is a profile and no server.
        """
        if self.profile is not None and self.server is None:
            fix = f"Give --server URL, or {instead}."
            raise ConfigError("--profile", "names a profile of a server", got=self.profile, fix=fix)
