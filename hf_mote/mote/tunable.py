"""`tunable_mote`: gains on routing weights and biases on router logits as trainable parameters of a frozen model.

What a [`MoTEConfig`] states as numbers is learnt here by gradient. The edits are the same, made by the same code, so
that the exported config does what the trained parameters do.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, ModelMismatchError, UnsupportedError, mapping
from hf_mote.hooks import LOCK, Intervention, stack_on
from hf_mote.hub import public_name
from hf_mote.mote.checks import check_together
from hf_mote.mote.config import MoTEConfig
from hf_mote.mote.tuned_sites import TunedEditor, check_trainable, sites_in
from hf_mote.mote.tuned_values import TunedValues
from hf_mote.passes.forward import DecoderParticipant
from hf_mote.routing.router_hook import RouterHook, attach_to_routers
from hf_mote.routing.sites.fingerprint import SAMPLED, check_fingerprint
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite
from hf_mote.sharing.cards import CardNotes

if TYPE_CHECKING:
    from typing import Self

__all__ = ["TunableMoTE", "tunable_mote"]

_EXTRA = "_extra_state"  # torch's key for what get_extra_state returns


def tunable_mote(
    model: nn.Module,
    *,
    gain: bool = True,
    bias: bool = False,
    layers: Sequence[int] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TunableMoTE:
    """Attach trainable gains and biases of experts to a model, which is frozen, and return them as a module.

    The weight of each chosen expert is multiplied by `exp(log_gain)`, as a gain of [`MoTEConfig`] is, and `bias` is
    added to the router logits, as its bias is. Both begin at 0, where the model's outputs are what they were, bit for
    bit. `Trainer(model=tunable_mote(model), ...)` trains nothing else.

    The choice of the experts has no derivative. A gain has a gradient wherever its expert is chosen; a bias has one
    through the weights of the chosen experts, and moves the choice as it grows. A bias on the selection scores alone
    (`bias_on="selection"`), as the balancing bias of DeepSeek-V3, moves the choice and no weight: its gradient is 0
    everywhere, so that it is not offered.

    Args:
        model (`nn.Module`):
            A mixture-of-experts model of transformers, in any dtype, on one device or several, with an adapter of PEFT
            or without. All its parameters are frozen until the parameters are removed.
        gain (`bool`, *optional*, defaults to `True`): Train gains.
        bias (`bool`, *optional*, defaults to `False`): Train biases.
        layers (`Sequence[int]`, *optional*): Absolute decoder layers to train; by default all that have experts.
        provenance (`Mapping[str, Any]`, *optional*): For file and card: what it is trained on; JSON-native.

    Returns:
        [`TunableMoTE`]: an [`Intervention`] and an `nn.Module`, whose forward is the model's.

    Raises:
        [`ConfigError`]: if an argument is malformed, or neither gains nor biases are to be trained.
        [`ModelMismatchError`]: if a layer has no experts, or a config that is attached suppresses or stimulates
            an expert whose gain is to be trained.
        [`UnsupportedError`]: if no gradient can reach a router's weights, something trainable is attached already, or
            inside `torch.inference_mode`.
        [`RouterContractError`]: if a router fails its self-test. Nothing is attached or frozen then.

    Source: gains are those of RICE, arXiv 2505.14681, biases those of [`MoTEConfig`]; scaling activations by learnt
    vectors, Liu et al. (2022), "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning" (IA3, arXiv 2205.05638), which scales keys, values and hidden units and not experts.

    Example:

    ```python
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM
    from hf_mote import tunable_mote

    config = MixtralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )
    model = MixtralForCausalLM(config).eval()
    tokens = torch.tensor([[1, 2, 3, 4]])
    with tunable_mote(model, bias=True) as tunable:
        optimizer = torch.optim.Adam(tunable.parameters(), lr=0.05)
        tunable(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        config = tunable.to_config()
    assert config.gain and config.bias
    ```
    """
    where = "tunable_mote"
    for name, value in (("gain", gain), ("bias", bias)):
        if not isinstance(value, bool):
            raise ConfigError(f"{where}.{name}", "must be True or False", got=repr(value)[:40])
    if not gain and not bias:
        raise ConfigError(where, "must train gains, biases or both", got="neither", fix="Give gain=True or bias=True.")
    routed = RoutedModel(model)
    chosen = sites_in(where, routed.sites, layers)
    shape = (len(chosen), max(site.num_experts for site in chosen))
    base_model = public_name(getattr(getattr(model, "config", None), "name_or_path", None))
    fields: dict[str, Any] = {} if provenance is None else {"provenance": provenance}
    values = TunedValues(
        layers=tuple(site.layer for site in chosen),
        origin=MoTEConfig(fingerprint=routed.fingerprint, base_model=base_model, **fields),
        log_gain=torch.zeros(shape) if gain else None,
        bias=torch.zeros(shape) if bias else None,
    )
    return _attach(where, routed, values)


def _of_model(name: str) -> Any:
    return property(lambda self: getattr(self.model, name), doc=f"The model's own `{name}`.")


def _cast(name: str) -> Any:
    def method(self: Any) -> Any:
        getattr(self.model, name)()
        return self

    method.__name__, method.__doc__ = name, f"`{name}()` of the model; the parameters here stay float32."
    return method


class _CastsModel(nn.Module):
    """A class of their own: in `TunableMoTE` the method `float` would hide the type in annotations."""

    bfloat16 = _cast("bfloat16")
    double = _cast("double")
    float = _cast("float")
    half = _cast("half")


class TunableMoTE(_CastsModel, Intervention):
    """Trainable gains and biases of a model's experts, as [`tunable_mote`] attaches them.

    It is an `nn.Module` whose parameters are the two tables alone: its forward calls the model, and `to` and `train`
    act on the model too, but the model is no part of it. So an optimizer, a checkpoint of `Trainer` and gradients sent
    between processes hold nothing of the model. It is an [`Intervention`] as well: `active`, `remove()` and the `with`
    block are those of [`apply_mote`]; after removal the model's parameters require gradients as before.

    `load_state_dict` refuses a checkpoint of another model or of other layers ([`ModelMismatchError`]), or of another
    dtype ([`ConfigError`]), also where this is a part of the module whose checkpoint is loaded.

    The model itself is tuned while this is attached: generate and evaluate with the model.

    Attributes:
        log_gain (`nn.Parameter` of shape `(layers, experts)`, float32, *optional*): Natural logarithm of each gain.
        bias (`nn.Parameter` of shape `(layers, experts)`, float32, *optional*): Added to the router logits.
        layers (`tuple[int, ...]`): Absolute decoder layer of each row.
        model (`nn.Module`): The model.

    The rows of layers with fewer experts than the layer with most end in parameters without effect, which stay 0.

    Example:

    ```python
    from hf_mote import TunableMoTE, apply_mote, load_organism, tunable_mote

    model = load_organism("refusal").model
    with tunable_mote(model, provenance={"texts": "none yet"}) as tunable:
        tunable.save_pretrained("tuned")  # tunable_mote.safetensors, mote_config.json and a card
    with TunableMoTE.from_pretrained("tuned", model) as again:
        assert again.gains.eq(1).all()
    apply_mote(model, "tuned").remove()  # the same as a config
    ```
    """

    log_gain: nn.Parameter | None
    bias: nn.Parameter | None

    # What Trainer and accelerate ask a model for.
    accepts_loss_kwargs = _of_model("accepts_loss_kwargs")
    config = _of_model("config")
    device = _of_model("device")
    generation_config = _of_model("generation_config")
    hf_device_map = _of_model("hf_device_map")
    loss_type = _of_model("loss_type")
    main_input_name = _of_model("main_input_name")
    quantization_method = _of_model("quantization_method")

    def __init__(self, routed: RoutedModel, values: TunedValues) -> None:
        nn.Module.__init__(self)
        Intervention.__init__(self)
        self.layers = values.layers
        self._origin = values.origin
        self._held = (routed.model,)  # in a tuple, so that torch does not take it for a part
        self._frozen: list[nn.Parameter] = []
        home = _device_of(routed, self.layers)
        for name in ("log_gain", "bias"):
            table = getattr(values, name)
            own = None if table is None else nn.Parameter(table.detach().clone().to(home))
            self.register_parameter(name, own)
        self.training = routed.model.training

    @property
    def model(self) -> nn.Module:
        """The model that it is attached to."""
        return self._held[0]

    @property
    def gains(self) -> Tensor:
        """The gains as they are now, `(layers, experts)`, float32, on the CPU; 1 where nothing changes."""
        if self.log_gain is None:
            return torch.ones_like(next(self.parameters()), device="cpu", requires_grad=False)
        return self.log_gain.detach().exp().cpu()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model, with its own arguments and output.

        Raises:
            [`UnsupportedError`]: if this was removed from it.
        """
        if self.removed:
            fix = "Attach it again: save it before, and load it with TunableMoTE.from_pretrained."
            raise UnsupportedError("TunableMoTE", "was removed from the model, so that nothing is tuned", fix=fix)
        return self.model(*args, **kwargs)

    def to_config(self, *, threshold: float = 0.0) -> MoTEConfig:
        """Return a config with the same gains and biases, stamped with the model's fingerprint.

        With no expert left out the model has the same logits under the config as here, bit for bit. In half precision
        they may differ in the last bit on layers whose biases were trained and are all exactly 0.

        Args:
            threshold (`float`, *optional*, defaults to 0.0):
                An expert is left out if both its `|log_gain|` and its `|bias|` are at most this. At 0.05 a gain from
                0.951 to 1.051 counts as 1. The provenance says how many experts that changed were left out, and the
                largest such change.

        Raises:
            [`ConfigError`]: if the threshold is out of range, or a gain is too large for float32.
            [`DataError`]: if a parameter is not finite.
        """
        return self._values().to_config(threshold)

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> None:
        """Write the parameters, the same as a config, and a card.

        Args:
            folder (`str` or `os.PathLike`):
                Made if it does not exist. `tunable_mote.safetensors` is for `from_pretrained`, `mote_config.json` for
                [`apply_mote`] and every command that takes a config. A card that was not made here is kept.
            datasets (`Sequence[str]`, *optional*): For the card: Hub ids of the data sets it was trained on.
            license (`str`, *optional*): For the card: its license, as the Hub names it.
            intended_use (`str`, *optional*): For the card: what it is for.
            misuse (`str`, *optional*): For the card: what it is not for.

        Raises:
            [`FileFormatError`]: if `folder` cannot be a folder.
            [`DataError`]: if a parameter is not finite.
        """
        values = self._values()
        notes = CardNotes(datasets, license, intended_use, misuse)
        values._write(Path(folder), notes, [("", values.to_config())], [])

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        subfolder: str | None = None,
        datasets: Sequence[str] = (),
        license: str | None = None,
        intended_use: str | None = None,
        misuse: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes, and return the commit's URL.

        Args:
            repo_id (`str`): `namespace/name`; made if it does not exist.
            private (`bool`, *optional*): Whether a repository that is made here is private.
            token (`str` or `bool`, *optional*): As in `huggingface_hub.HfApi`.
            commit_message (`str`, *optional*): By default "Upload TunableMoTE".
            revision (`str`, *optional*): Branch to commit to, made if it does not exist.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request, and return its URL.
            subfolder (`str`, *optional*): Folder in the repository.
            datasets (`Sequence[str]`, *optional*): For the card, as in `save_pretrained`; so are the others.
            license (`str`, *optional*): See there.
            intended_use (`str`, *optional*): See there.
            misuse (`str`, *optional*): See there.

        Raises:
            [`UnknownNameError`]: if there is no such repository, or the token is refused.
            [`UnsupportedError`]: if the Hub refuses, with its reason, or something private would be uploaded.
            [`DataError`]: if a parameter is not finite.
        """
        values = self._values()
        return values._push(
            repo_id,
            CardNotes(datasets, license, intended_use, misuse),
            [("", values.to_config())],
            private=private,
            token=token,
            commit_message=commit_message or "Upload TunableMoTE",
            revision=revision,
            create_pr=create_pr,
            subfolder=subfolder,
            with_texts=False,
        )

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        model: nn.Module,
        *,
        allow_other_weights: bool = False,
        subfolder: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Attach saved parameters to a model, which is frozen, to train on or to use.

        Args:
            path_or_repo (`str` or `os.PathLike`): The file, folder or Hub repository that it was saved in.
            model (`nn.Module`): The model that it was trained for.
            allow_other_weights (`bool`, *optional*, defaults to `False`):
                Attach it to a model of the same type, layers, experts and top-k with other weights, as a fine-tune of
                the one it was made for; what is exported then says so.
            subfolder (`str`, *optional*): Folder below the folder or repository.
            revision (`str`, *optional*): Branch, tag or commit of the Hub repository.
            token (`str` or `bool`, *optional*): As in `huggingface_hub.hf_hub_download`; so are the next two.
            cache_dir (`str` or `os.PathLike`, *optional*): Where downloads are kept.
            local_files_only (`bool`, *optional*, defaults to `False`): Look in the cache only.

        Raises:
            [`UnknownNameError`]: if there is no such file, folder or reachable repository.
            [`FileFormatError`]: if the file is not what it should be.
            [`ModelMismatchError`]: if it was made for another model.
            [`UnsupportedError`]: as [`tunable_mote`].
        """
        where = "TunableMoTE.from_pretrained"
        values = TunedValues.from_pretrained(
            path_or_repo,
            subfolder=subfolder,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
        routed = RoutedModel(model)
        made = dict(values.origin.fingerprint or {})  # TunedValues refuses a config without
        if allow_other_weights:
            made |= {"router_sha256": None, SAMPLED: None}
        anew = "train anew with tunable_mote"
        check_fingerprint(made, routed.fingerprint, routed.sites, where="TunableMoTE.fingerprint", anew=anew)
        origin = values.origin.for_other_weights_of(routed) if allow_other_weights else values.origin
        tunable: Self = _attach(where, routed, TunedValues(values.layers, origin, **values.tables))  # type: ignore[assignment]
        return tunable

    def remove(self) -> None:
        """Detach from the model, whose parameters then require gradients as before; a second call does nothing."""
        with LOCK:
            try:
                super().remove()
            finally:
                while self._frozen:
                    self._frozen[-1].requires_grad_(True)
                    self._frozen.pop()

    def train(self, mode: bool = True) -> Self:
        """Switch the model, and this with it, to training or evaluation."""
        self.model.train(mode)
        return super().train(mode)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model, or change its dtype; the parameters here follow to its device and stay float32."""
        self.model.to(*args, **kwargs)
        place = torch.empty(0, device=next(self.parameters()).device).to(*args, **kwargs)
        return super().to(place.device)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Enable activation checkpointing of the model, as its own method does.

        Args:
            activation_checkpointing_kwargs (`Mapping[str, Any]`, *optional*): For `torch.utils.checkpoint.checkpoint`.
            **kwargs: Passed on.

        Raises:
            [`UnsupportedError`]: for `use_reentrant=True`, under which no gradient leaves a frozen model's layers.
        """
        given = _not_reentrant(activation_checkpointing_kwargs)
        own: Any = self.model
        own.activation_checkpointing_enable(activation_checkpointing_kwargs=given, **kwargs)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As `activation_checkpointing_enable`, which replaces it in transformers from 5.24 on.

        Args:
            gradient_checkpointing_kwargs (`Mapping[str, Any]`, *optional*): See there.
            **kwargs: Passed on.

        Raises:
            [`UnsupportedError`]: See there.
        """
        given = _not_reentrant(gradient_checkpointing_kwargs)
        own: Any = self.model
        own.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given, **kwargs)

    def get_extra_state(self) -> Tensor:
        """Return a digest of the model and the layers that it belongs to, which checkpoints hold: uint8, `(32,)`."""
        belongs = json.dumps([self._origin.fingerprint, list(self.layers)], sort_keys=True)
        return torch.frombuffer(bytearray(hashlib.sha256(belongs.encode()).digest()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """Do nothing: the digest is compared before the parameters are loaded."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        made = state_dict.get(prefix + _EXTRA)
        mine = self.get_extra_state()
        if made is not None and not (isinstance(made, Tensor) and torch.equal(made.cpu(), mine)):
            what = "the checkpoint was made for another model or for other layers"
            got = made.cpu().numpy().tobytes().hex()[:12] if isinstance(made, Tensor) else type(made).__name__
            expected = mine.numpy().tobytes().hex()[:12]
            raise ModelMismatchError("TunableMoTE.load_state_dict", what, got=got, expected=expected)
        for name, own in self.named_parameters():
            given = state_dict.get(prefix + name)
            # `assign=True` takes a tensor as it is.
            if isinstance(given, Tensor) and given.dtype != own.dtype:
                where = f"TunableMoTE.load_state_dict: {prefix}{name}"
                raise ConfigError(where, "must be float32", got=str(given.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise _uncopied()

    def __reduce__(self) -> NoReturn:
        raise _uncopied()

    def __repr__(self) -> str:
        state = "removed" if self.removed else "active" if self.active else "inactive"
        parts = " and ".join(name for name, _ in self.named_parameters())
        note = f", {self.note}" if self.note else ""
        return f"TunableMoTE({parts} of {len(self.layers)} layers, {state}{note})"

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        return self.log_gain, self.bias

    def _values(self) -> TunedValues:
        tables = {name: table.detach() for name, table in self.named_parameters()}
        return TunedValues(self.layers, self._origin, **tables)


def _attach(where: str, routed: RoutedModel, values: TunedValues) -> TunableMoTE:
    """Attach values to the routers of their layers, and freeze the model; all or nothing."""
    if torch.is_inference_mode_enabled():
        what = "cannot make trainable parameters inside torch.inference_mode"
        raise UnsupportedError(where, what, fix="Call it outside.")
    chosen = [site for site in routed.sites if site.layer in values.layers]
    for site in chosen:
        check_trainable(site, values)
    tunable = _class_for(routed.model)(routed, values)
    tunable.note = values.origin.on_other_weights or ""
    paths = {site.path for site in chosen}

    def editor_for(site: RouterSite) -> TunedEditor | None:
        if site.path not in paths:
            return None
        stack = stack_on(site.module, RouterHook)
        if stack is not None and any(isinstance(one, TunedEditor) for one in stack.participants):
            what = "has trainable gains or biases already"
            fix = "Remove them first; apply_mote(model, tunable.to_config()) keeps what they do."
            raise UnsupportedError(f"layer {site.layer} ({site.path})", what, fix=fix)
        editor = TunedEditor(site, tunable.layers.index(site.layer), tunable._tables)
        check_together(site, editor.parts)
        return editor

    watcher = DecoderParticipant()
    watcher.needs_passes = False
    try:
        for parameter in routed.model.parameters():
            if parameter.requires_grad:
                tunable._frozen.append(parameter)
                parameter.requires_grad_(False)
        attach_to_routers(routed, watcher, editor_for, handle=tunable)
    except BaseException:
        tunable.remove()
        raise
    return tunable


def _class_for(model: nn.Module) -> type[TunableMoTE]:
    """Return the class with a forward of the model's signature, by which Trainer knows columns and labels."""
    inside: Any = getattr(model, "get_base_model", lambda: model)()

    @functools.wraps(type(inside).forward)
    def forward(self: TunableMoTE, *args: Any, **kwargs: Any) -> Any:
        return TunableMoTE.forward(self, *args, **kwargs)

    members = {"forward": forward, "__doc__": TunableMoTE.__doc__, "__module__": __name__}
    return type(TunableMoTE.__name__, (TunableMoTE,), members)


def _device_of(routed: RoutedModel, layers: Sequence[int]) -> torch.device:
    """Return where the first of some routers is; the CPU if its weights are elsewhere until it runs."""
    site = next(site for site in routed.sites if site.layer == layers[0])
    tensor = next(iter([*site.module.parameters(), *site.module.buffers()]), None)
    return torch.device("cpu") if tensor is None or tensor.is_meta else tensor.device


def _not_reentrant(given: Mapping[str, Any] | None) -> dict[str, Any]:
    chosen = {"use_reentrant": False, **mapping("TunableMoTE: checkpointing arguments", given or {})}
    if chosen["use_reentrant"]:
        raise UnsupportedError(
            "TunableMoTE",
            "under reentrant checkpointing no gradient leaves the layers of a frozen model",
            got="use_reentrant=True",
            fix="Leave it out.",
        )
    return chosen


def _uncopied() -> UnsupportedError:
    fix = "Save it with save_pretrained, and load it for the other model with TunableMoTE.from_pretrained."
    return UnsupportedError("TunableMoTE", "belongs to the model it is attached to and cannot be copied", fix=fix)
