"""How a model is loaded, or which server has it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_mote.commands import options as o
from hf_mote.commands.bundles.asking import AS_SHIPPED, Templating, say_if_plain
from hf_mote.commands.model import Organisms, Subject, check_loading, load_subject, served_subject
from hf_mote.errors import ConfigError

if TYPE_CHECKING:
    from hf_mote.generation.chat import Prompt

__all__ = ["Loading", "Serving"]


@dataclasses.dataclass(frozen=True)
class Loading:
    """How a model is loaded.

    Attributes:
        revision (`str`, *optional*): `--revision`; so are the others, as [`load_subject`] has them.
        dtype (`str`, *optional*, defaults to `"auto"`): See there.
        device (`str`, *optional*): See there.
        quantization (`str`, *optional*): See there.
        attn_implementation (`str`, *optional*): See there.
        trust_remote_code (`bool`, *optional*, defaults to `False`): See there.
    """

    revision: o.Revision = None
    dtype: o.Dtype = "auto"
    device: o.Device = None
    quantization: o.Quantization = None
    attn_implementation: o.AttnImplementation = None
    trust_remote_code: o.TrustRemoteCode = False

    def check(self, model: str) -> None:
        """Refuse what no model can be loaded by, before torch is imported; see [`check_loading`].

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
    ) -> Subject:
        """Return the model.

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
            organisms (`Organisms`): Where organisms come from.
            any_model (`bool`, *optional*, defaults to `False`): Take a model without routers, too.
            templating ([`Templating`], *optional*): How prompts become its tokens.
            prompts (`Sequence[Prompt]`, *optional*): Prompts that are to become tokens before weights are loaded, so
                that what is wrong with them or with the template costs no wait.
        """
        ready = (lambda tokenizer: templating.chat(tokenizer).encode(prompts)) if prompts else None
        template = templating.chat_template
        subject = load_subject(
            model, organisms, any_model=any_model, chat_template=template, ready=ready, **dataclasses.asdict(self)
        )
        if prompts:
            say_if_plain(subject.tokenizer)
        return subject

    def served(self, model: str, organisms: Organisms, *, templating: Templating) -> Subject:
        """Return what there is here of a model that a server runs; see [`served_subject`].

        Args:
            model (`str`): A folder, a Hub id, or "organism:NAME".
            organisms (`Organisms`): Where organisms come from.
            templating ([`Templating`]): How prompts become its tokens.
        """
        subject = served_subject(model, organisms, revision=self.revision, chat_template=templating.chat_template)
        say_if_plain(subject.tokenizer)
        return subject

    def options(self) -> dict[str, object]:
        """Return the values by the names of the options, as typed; see `refuse_loading`."""
        return {f"--{name.replace('_', '-')}": value for name, value in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Serving:
    """A server that has the model.

    Attributes:
        server (`str`, *optional*): `--server`.
        profile (`str`, *optional*): `--profile`, one of the server's.
    """

    server: o.Server = None
    profile: o.Profile = None

    def check(self, instead: str) -> None:
        """Refuse a profile without a server.

        Args:
            instead (`str`): What names a profile here, as "a CONFIG".

        Raises:
            [`ConfigError`]: if there is a profile and no server.
        """
        if self.profile is not None and self.server is None:
            fix = f"Give --server URL, or {instead}."
            raise ConfigError("--profile", "names a profile of a server", got=self.profile, fix=fix)
