"""`link_latents`: which latents of an SAE drive which experts, by the router's weights or by intervention, or predict.

By weights: an SAE of a router's input contributes to the router's logits directly, its dictionary row times the
router's weight. By intervention: a latent is changed while the model runs, and the changes of the chosen experts are
counted in every later layer. By prediction nothing is changed: `prediction.py` compares latents
with the chosen experts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, UnsupportedError, one_of, whole
from hf_mote.hub import public_name
from hf_mote.links.latent_expert_map import METHODS, LatentExpertMap
from hf_mote.links.prediction import by_prediction, check_size
from hf_mote.routing.recording.record import record_routing
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.self_test import probe_args, self_test
from hf_mote.routing.sites.site import RouterSite
from hf_mote.runs.folder import RunFolder
from hf_mote.sae.edits import read_edits
from hf_mote.sae.hookpoints import Hookpoint, resolve_hookpoints
from hf_mote.sae.intervene import dictionary_rows, sites_of, steer_latents
from hf_mote.sae.kept import digest_of_sequences, kept, run_of
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.spliced import in_evaluation_mode
from hf_mote.sae.tapped import activations_of
from hf_mote.sae.training.sequences import NoTokenizer, Sequences, batch_of

__all__ = ["MOST_CHANGED", "link_latents"]

MOST_CHANGED = 32
"""Latents that are changed where none are named."""

_PROBES = 16  # tokens that show whether the SAE's hookpoint is a router's input
_BLOCK = 1024


@torch.no_grad()
def link_latents(
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any] | None = None,
    tokenizer: Any = None,
    *,
    method: Literal["weights", "intervention", "prediction"] = "weights",
    latents: Sequence[int] | None = None,
    edit: Any = "ablate",
    hookpoint: str | None = None,
    max_tokens: int = 10_000,
    context_length: int = 128,
    sequences_per_forward: int = 8,
    text_column: str = "text",
    run_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> LatentExpertMap:
    """Return which latents of an SAE drive which experts of a model, or predict which are chosen.

    A latent that predicts an expert need not drive it: it may stand for what goes along with that. By prediction all
    latents and experts are seen in one pass over a text; by weights or intervention is seen which of them cause it.

    Args:
        model (`nn.Module`): A mixture-of-experts model; left as it is.
        sae ([`SAEModel`]):
            In evaluation mode. For method `"weights"` of a router's input, as `"model.layers.3.mlp.gate.input"`, or
            another place that holds the same; for `"intervention"` of any place before a router; for `"prediction"`
            of any place.
        dataset (`Iterable`, *optional*):
            Texts, or rows of columns, as in [`collect_activations`]; for `"intervention"` and `"prediction"`.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed unless rows hold `"input_ids"`.
        method (`str`, *optional*, defaults to `"weights"`):
            `"weights"`: what a unit of a latent adds to each router logit, less the mean over the experts; exact,
            without a text, and of the SAE's own layer alone. `"intervention"`: how much more often an expert is chosen
            on a text when the latent is changed, for each token that it is changed on, in all layers. `"prediction"`:
            correlation of the latent's activation with whether the expert is chosen (point-biserial: Pearson's, of a
            number with a choice) over the tokens of a text, in all layers; `LatentExpertMap.prediction` also tells
            precision, recall and lift of "active, so chosen".
        latents (`Sequence[int]`, *optional*):
            Which; by default all, but for `"intervention"` the 32 that are active on most tokens. By prediction
            latents times experts may be 2^27 at most, since 16 bytes are kept for each.
        edit (`Any`, *optional*, defaults to `"ablate"`):
            For `"intervention"`: the edit of a latent, as in [`steer`]; `"ablate"` and `("multiply", x)` change
            tokens on which it is active, a number or `("clamp", x)` all tokens.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        max_tokens (`int`, *optional*, defaults to 10,000): Tokens that are read, in whole forwards.
        context_length (`int`, *optional*, defaults to 128): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 8): Sequences that run together.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the effect of each latent in each forward is kept, by weights that of 1,024 latents, by prediction
            the active latents and the experts of each token, so that a stopped run continues with exactly the same
            result. A folder of another model, SAE, text or other settings is refused; by prediction `latents` may be
            others.
        progress (`bool`, *optional*, defaults to `True`): Show a progress bar.

    Returns:
        [`LatentExpertMap`]

    Raises:
        [`ConfigError`]: if there is no such latent, an argument is out of range, or text is missing or too much.
        [`UnsupportedError`]: for `"weights"`, if the SAE's hookpoint is not the input of a router, or the router is
            not linear; for `"prediction"`, if a router runs several times in a pass; with a run folder, if something
            is attached to the model that cannot be compared with a later run's.
        [`DataError`]: if the text has no tokens.
        [`ModelMismatchError`]: if the run folder is that of another run.
        [`FileFormatError`]: if a record of it is damaged.

    Example:

    ```python
    from hf_mote import TopKSAEConfig, TopKSAEModel, link_latents, load_organism

    model = load_organism("refusal").model
    place = "model.layers.2.mlp.gate.input"
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=96, num_latents=64, k=4, hookpoint=place)).eval()
    links = link_latents(model, sae)
    assert links.layers == (2,) and len(links.top(5)) == 5
    ```

    Source: latents that predict an expert's selection explain it in RouterInterp (Lasy, Cai et al., "Superposed
        Specialisation in MoE Routing", openreview.net/forum?id=aCxUjb2jjF), which goes on to explanations in words;
        the statistics here are the textbook ones.
    """
    where = "link_latents"
    one_of(f"{where}.method", method, METHODS)
    for name, number in (
        ("max_tokens", max_tokens),
        ("context_length", context_length),
        ("sequences_per_forward", sequences_per_forward),
    ):
        whole(f"{where}.{name}", number, least=1)
    if sae.training:
        raise ConfigError(f"{where}.sae", "is in training mode", fix="Call sae.eval() first.")
    wanted = None if latents is None else _checked(latents, sae.config.num_latents)
    routed = RoutedModel(model)
    sites = routed.sites
    reads, writes = sites_of(model, sae, hookpoint, where)
    provenance = {
        "model": public_name(getattr(getattr(model, "config", None), "name_or_path", None)) or "not named",
        "hookpoint": writes.name,
    }
    if method == "weights":
        if dataset is not None:
            fix = "Leave the text out, or take method='intervention' or 'prediction'."
            raise ConfigError(f"{where}.dataset", "the method needs no text", fix=fix)
        chosen = list(range(sae.config.num_latents)) if wanted is None else wanted
        site = _router_at(model, sites, writes)
        run = run_of(where, run_folder, model, sae, method=method, hookpoint=writes.name, latents=chosen)
        values = _by_weights(sae, site, chosen, run)[:, None]
        none = torch.zeros(len(chosen), dtype=torch.int64)
        return LatentExpertMap(
            values, tuple(chosen), (site.layer,), method, none, dict(provenance), routed.fingerprint
        )
    if dataset is None:
        what = "an intervention needs a text" if method == "intervention" else "a prediction needs a text"
        raise ConfigError(f"{where}.dataset", what, fix="Give texts and the tokenizer.")
    told_edit = [list(one) for one in read_edits(f"{where}.edit", {0: edit})]
    if method == "prediction":
        check_size(f"{where}.latents", sae.config.num_latents if wanted is None else len(wanted), sites)
    reader = Sequences(
        NoTokenizer(where) if tokenizer is None else tokenizer,
        dataset,
        text_column=text_column,
        context_length=context_length,
        packed=False,
    )
    forwards = list(reader.forwards(sequences_per_forward, max_tokens))
    if not forwards:
        raise DataError("link_latents.dataset", "holds no tokens")
    batches = [batch_of(taken) for taken in forwards]
    layers = tuple(site.layer for site in sites)
    # What is kept of a prediction is of all latents.
    own = {} if method == "prediction" else {"latents": wanted, "edit": told_edit}
    run = run_of(
        where,
        run_folder,
        model,
        sae,
        method=method,
        hookpoints=[reads.name, writes.name],
        text_sha256=digest_of_sequences(line for taken in forwards for line in taken),
        sequences_per_forward=sequences_per_forward,
        **own,
    )
    if method == "prediction":
        chosen = list(range(sae.config.num_latents)) if wanted is None else wanted
        found = by_prediction(run, model, sae, reads, sites, batches, chosen, progress)
        provenance["hookpoint"] = reads.name
        return LatentExpertMap(
            latents=tuple(chosen),
            layers=layers,
            method=method,
            provenance=dict(provenance),
            fingerprint=routed.fingerprint,
            **found._asdict(),
        )
    active = [_active(run, number, model, sae, reads, ids, mask) for number, (ids, mask) in enumerate(batches)]
    if wanted is None:
        used = torch.cat([part.latents for part in active]).bincount(minlength=sae.config.num_latents)
        order = used.argsort(descending=True, stable=True)[:MOST_CHANGED].tolist()
        wanted = sorted(latent for latent in order if used[latent])
        if not wanted:
            raise DataError(f"{where}.dataset", "activates no latent", fix="Give more text, or name latents.")
    values, tokens = _by_intervention(run, model, sae, sites, batches, active, wanted, edit, hookpoint, progress)
    provenance["edit"] = str(edit)
    return LatentExpertMap(values, tuple(wanted), layers, method, tokens, dict(provenance), routed.fingerprint)


def _checked(latents: Sequence[int], count: int) -> list[int]:
    if isinstance(latents, str) or not isinstance(latents, Sequence) or not latents:
        raise ConfigError("link_latents.latents", "must be latents", got=repr(latents)[:60], expected="a list")
    for latent in latents:
        if isinstance(latent, bool) or not isinstance(latent, int) or not 0 <= latent < count:
            got, expected = repr(latent), f"0..{count - 1}"
            raise ConfigError("link_latents.latents", "the SAE has no such latent", got=got, expected=expected)
    return list(dict.fromkeys(latents))


def _router_at(model: nn.Module, sites: Sequence[RouterSite], writes: Hookpoint) -> RouterSite:
    """The router whose input is the SAE's hookpoint, found by running tokens through the model."""
    size = int(getattr(getattr(model, "config", None), "vocab_size", _PROBES) or _PROBES)
    ids = (torch.arange(_PROBES) * 7919 % size)[None]
    points = [point for site in sites for point in resolve_hookpoints(model, f"{site.path}.input")]
    found = activations_of(model, ids, torch.ones_like(ids), [writes, *points], whole=True)
    own = found[writes.name]
    for site, point in zip(sites, points, strict=True):
        if found[point.name].shape == own.shape and torch.equal(found[point.name], own):
            return site
    raise UnsupportedError(
        "link_latents.sae",
        "its hookpoint is not the input of a router, so its effect on experts is not in the router's weights",
        got=writes.name,
        expected=f"such as {points[0].name}",
        fix="Take method='intervention', which needs a text.",
    )


def _by_weights(sae: SAEModel, site: RouterSite, latents: Sequence[int], run: RunFolder | None) -> Tensor:
    """The effect of a unit of each latent on the router's logits, less their mean, `(latents, experts)`, float64."""
    if sae.config.input_normalization is not None:
        fix = "Take method='intervention'."
        raise UnsupportedError("link_latents.sae", "scales each token by its own factor", fix=fix)
    adapter = self_test(site)
    if adapter is None:
        fix = "Load the model whole, or take method='intervention'."
        raise UnsupportedError("link_latents.model", f"the router {site.path} cannot run by itself", fix=fix)
    weight = next(site.module.parameters())
    width = sae.config.decoder_size

    def logits(hidden: Tensor) -> Tensor:
        given = hidden.to(weight.device, weight.dtype)
        return adapter.read(site.module.forward(*probe_args(site, given)))[0].double()

    bases = torch.randn(2, width, generator=torch.Generator().manual_seed(0))
    bases = bases.to(weight.device)

    def added_by(block: Sequence[int]) -> dict[str, Tensor]:
        rows = dictionary_rows(sae, torch.tensor(block, device=sae.W_dec.device))
        rows = rows.float().to(weight.device)
        zero = logits(torch.zeros_like(rows))
        added = logits(rows) - zero
        for base in bases:
            shifted = logits(rows + base) - logits(base.expand_as(rows))
            allowed = (
                64 * torch.finfo(weight.dtype).eps * float(logits(base[None]).abs().max() + added.abs().max() + 1)
            )
            if float((shifted - added).abs().max()) > allowed:
                fix = "Take method='intervention'."
                raise UnsupportedError("link_latents.model", f"the router {site.path} is not linear", fix=fix)
        return {"added": (added - added.mean(1, keepdim=True)).cpu()}

    parts = []
    for start in range(0, len(latents), _BLOCK):
        block = latents[start : start + _BLOCK]
        form = {"added": (torch.float64, (len(block), site.num_experts))}
        parts.append(kept(run, f"latents-{start:08d}", partial(added_by, block), form)["added"])
    return torch.cat(parts)


class _Active(NamedTuple):
    """The tokens of a forward, counted over rows, and the latents that are active on them, one entry for each pair."""

    tokens: Tensor
    latents: Tensor
    shape: torch.Size

    def where(self, latent: int) -> Tensor:
        """Return on which tokens a latent is active, bool `(batch, length)`."""
        found = torch.zeros(self.shape.numel(), dtype=torch.bool)
        found[self.tokens[self.latents == latent]] = True
        return found.reshape(self.shape)


def _active(
    run: RunFolder | None, number: int, model: nn.Module, sae: SAEModel, reads: Hookpoint, ids: Tensor, mask: Tensor
) -> _Active:
    def make() -> dict[str, Tensor]:
        values = activations_of(model, ids, mask, [reads])[reads.name].to(sae.W_dec.device)
        latents = sae._encode(sae._tokens(values, mask.to(values.device))).latents
        sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
        active = sparse.values > 0
        return {"tokens": sparse.pattern.rows[active].cpu(), "latents": sparse.pattern.columns[active].cpu()}

    name = f"active-{number:06d}"
    found = kept(run, name, make, {"tokens": (torch.int64, (None,)), "latents": (torch.int64, (None,))})
    tokens, latents = found["tokens"], found["latents"]
    for places, size in ((tokens, mask.numel()), (latents, sae.config.num_latents)):
        if tokens.shape != latents.shape or bool(((places < 0) | (places >= size)).any()):
            assert run is not None
            raise run.damaged(name, "tokens or latents that are not there")
    return _Active(tokens, latents, mask.shape)


def _by_intervention(
    run: RunFolder | None,
    model: nn.Module,
    sae: SAEModel,
    sites: Sequence[RouterSite],
    batches: Sequence[tuple[Tensor, Tensor]],
    active: Sequence[_Active],
    latents: Sequence[int],
    edit: Any,
    hookpoint: str | None,
    progress: bool,
) -> tuple[Tensor, Tensor]:
    """How much more often each expert is chosen, for each token that a latent is changed on, and on how many it is."""
    device = next(model.parameters()).device
    width = max(site.num_experts for site in sites)
    change = torch.zeros(len(latents), len(sites), width, dtype=torch.float64)
    tokens = torch.zeros(len(latents), dtype=torch.int64)
    everywhere = not (edit == "ablate" or (isinstance(edit, Sequence) and edit[0] in ("ablate", "multiply")))
    form = {"change": (torch.float64, change.shape[1:])}
    with (
        in_evaluation_mode(model),
        record_routing(model, phase="prompt") as record,
        logging.tqdm(total=len(batches), desc="linking", disable=not progress, leave=False) as bar,
    ):

        def counted(ids: Tensor, mask: Tensor) -> Tensor:
            record.forget()
            model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            return record.stacked()[0]

        def changed(
            latent: int, rows: Tensor, ids: Tensor, mask: Tensor, plain: Callable[[], Tensor]
        ) -> dict[str, Tensor]:
            with steer_latents(
                model,
                sae,
                {latent: edit},
                hookpoint=hookpoint,
                scope="all",
                thinking_tokens=None,
                strength=1.0,
                keep_error=True,
            ):
                found = counted(ids[rows], mask[rows])
            return {"change": (found - untouched()[rows]).sum(0)}

        for number, ((ids, mask), part) in enumerate(zip(batches, active, strict=True)):
            untouched = cache(partial(counted, ids, mask))
            for place, latent in enumerate(latents):
                here = part.where(latent)
                rows = here.any(1).nonzero().squeeze(1)
                rows = torch.arange(len(ids)) if everywhere else rows
                if not len(rows):
                    continue
                make = partial(changed, latent, rows, ids, mask, untouched)
                change[place] += kept(run, f"change-{number:06d}-{latent:08d}", make, form)["change"]
                tokens[place] += int(mask[rows].sum() if everywhere else here.sum())
            bar.update()
    return change / tokens.clamp(min=1)[:, None, None], tokens
