"""`evaluate_sae`: the error and sparsity of an SAE, and its effect on the model.

Every number is a sum over all tokens, divided once: none is a mean of ratios over batches. The model runs clean, with
the SAE spliced in, and with the reconstructed activations ablated to zero, to its mean, and to that of another token.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hf_mote.errors import ConfigError, DataError
from hf_mote.sae.hookpoints import AtHookpoint, Hookpoint
from hf_mote.sae.intervene import sites_of, unwrapped
from hf_mote.sae.kept import digest_of_sequences, kept, run_of
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.left_out import LeftOut
from hf_mote.sae.metric_sums import FIRST, NUMBERS, SECOND, Sums, form_of, report_of, scored_in
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.report import SAEReport
from hf_mote.sae.spliced import Replace, cross_entropies, divergences, in_evaluation_mode, logits_with
from hf_mote.sae.training.sequences import NoTokenizer, Sequences, batch_of

__all__ = ["evaluate_sae"]

_BLOCK = 1024


@torch.no_grad()
def evaluate_sae(
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any],
    tokenizer: Any = None,
    *,
    hookpoint: str | None = None,
    max_tokens: int | None = None,
    context_length: int = 256,
    sequences_per_forward: int = 8,
    text_column: str = "text",
    packed: bool = True,
    exclude_special_tokens: bool = True,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
    with_adapter: bool = False,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
) -> SAEReport:
    """Measure an SAE on a model and a text.

    Where a token is left out (padding, special tokens, excluded ones), the model's own activation stays in every
    run, and neither the SAE nor the prediction after it is measured. An SAE that was trained without attention sinks
    is measured without them: they would be most of the variance.

    Args:
        model (`nn.Module`): A causal language model. It stays as it is.
        sae ([`SAEModel`]): In evaluation mode.
        dataset (`Iterable`): Texts, or rows of columns, as in [`collect_activations`].
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed unless rows hold `"input_ids"`.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        max_tokens (`int`, *optional*): Tokens that are read, in whole forwards; by default all.
        context_length (`int`, *optional*, defaults to 256): Most tokens of a sequence.
        sequences_per_forward (`int`, *optional*, defaults to 8): Sequences that run together.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        packed (`bool`, *optional*, defaults to `True`): Whether texts follow each other in full contexts.
        exclude_special_tokens (`bool`, *optional*, defaults to `True`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence, as in [`collect_activations`].
        max_norm (`float`, *optional*):
            Leave out tokens whose input is longer than so many times the median of their forward.
        with_adapter (`bool`, *optional*, defaults to `False`):
            Whether the model's PEFT adapter belongs to the SAE, as [`adapt_to_sae`] makes it: on where the SAE is
            spliced in, and off in the clean run and under ablation. Otherwise the model is used unchanged.
        seed (`int`, *optional*, defaults to 0): Of the tokens that resample ablation draws.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the results of each forward are kept, so that a stopped run continues with exactly the same result. A
            folder of another model, SAE, text or other settings is refused.

    Returns:
        [`SAEReport`]

    Raises:
        [`DataError`]: if no token is left, or the model's activations are not finite.
        [`ConfigError`]: if the SAE does not say where it belongs.
        [`UnsupportedError`]: if its thresholds were never set, or with a run folder if something is attached to the
            model that cannot be compared with a later run's.
        [`ModelMismatchError`]: if the run folder is that of another run.
        [`FileFormatError`]: if a record of it is damaged.
    """
    if sae.training:
        raise ConfigError("evaluate_sae.sae", "is in training mode", fix="Call sae.eval() first.")
    sae._require_ready()
    switch: Any = getattr(model, "disable_adapter", None)
    if with_adapter and switch is None:
        fix = "Give what adapt_to_sae returned, or PeftModel.from_pretrained(model, adapter)."
        raise ConfigError("evaluate_sae.with_adapter", "the model has no adapter", got=type(model).__name__, fix=fix)
    without = switch if with_adapter else nullcontext
    model = unwrapped(model)
    reads, writes = sites_of(model, sae, hookpoint, "evaluate_sae")
    left_out = LeftOut.of(
        "evaluate_sae", tokenizer, special=exclude_special_tokens, positions=exclude_positions, max_norm=max_norm
    )
    tokenizer = NoTokenizer("evaluate_sae") if tokenizer is None else tokenizer
    sequences = Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=packed)
    batches = partial(sequences.forwards, sequences_per_forward, max_tokens)
    run = run_of(
        "evaluate_sae",
        run_folder,
        model,
        sae,
        text_sha256="" if run_folder is None else digest_of_sequences(line for taken in batches() for line in taken),
        hookpoints=[reads.name, writes.name],
        sequences_per_forward=sequences_per_forward,
        left_out=left_out.identity(),
        with_adapter=with_adapter,
        seed=seed,
    )
    state = Sums(sae)
    generator = torch.Generator().manual_seed(seed)
    with in_evaluation_mode(model):
        for number, (ids, mask) in enumerate(map(batch_of, batches())):
            # The same tokens are drawn whether the forward was kept or not.
            draws = torch.Generator()
            draws.set_state(generator.get_state())
            make = partial(_first_pass, model, sae, reads, writes, ids, mask, left_out, draws, without)
            part = kept(run, f"first-{number:06d}", make, form_of(sae, ids))
            if len(part["l0"]) != int(part["kept"].sum()) or len(part["loss_after"]) != len(part["l0"]):
                assert run is not None
                raise run.damaged(f"first-{number:06d}", "other numbers of tokens")
            torch.randperm(len(part["l0"]), generator=generator)
            state.add(part, mask)
        if not state.tokens or not state.scored:
            raise DataError(
                "evaluate_sae: dataset",
                "has no token left to measure",
                got=f"{state.tokens} tokens, {state.scored} predictions",
                fix="Give more text, or exclude less.",
            )
        mean = (state.sum / state.tokens).to(torch.float32)
        form = {"figures": (torch.float64, (len(SECOND),))}
        with without():
            again = zip(map(batch_of, batches()), state.kept, strict=True)
            for number, ((ids, mask), measured) in enumerate(again):
                make = partial(_second_pass, model, writes, ids, mask, measured, mean)
                state.second += kept(run, f"second-{number:06d}", make, form)["figures"]
    return report_of(state, sae, reads, writes, model)


class _Keep(AtHookpoint):
    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def apply(self, activations: Tensor) -> None:
        self.seen = activations


def _first_pass(
    model: nn.Module,
    sae: SAEModel,
    reads: Hookpoint,
    writes: Hookpoint,
    ids: Tensor,
    mask: Tensor,
    left_out: LeftOut,
    generator: torch.Generator,
    without: Callable[[], Any],
) -> dict[str, Tensor]:
    reader, writer = _Keep(), _Keep()
    same = reads.name == writes.name
    places: list[tuple[Hookpoint, AtHookpoint]] = [(reads, reader)] if same else [(reads, reader), (writes, writer)]
    clean = logits_with(model, ids, mask, places)
    if without is not nullcontext:
        # The SAE's input comes from the model with the adapter; the loss is measured against the plain model.
        with without():
            clean = logits_with(model, ids, mask, [])
    inputs = _seen(reader, reads, ids)
    outputs = inputs if same else _seen(writer, writes, ids)
    kept = left_out.kept(ids, mask, inputs)
    scored = scored_in(kept, mask)
    rows = kept.reshape(-1)
    device = sae.W_dec.device
    found = rows.nonzero().squeeze(1)
    x, y = inputs[found.to(inputs.device)].to(device), outputs[found.to(outputs.device)].to(device)
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise DataError(reads.name, "the model's activations hold NaN or infinite numbers")
    rebuilt, part, figures = _measure(sae, x, y)
    if len(y):
        wanted = y.double()
        apart = (wanted - wanted.mean(0)).pow(2).sum(1).clamp(min=1e-300)
        figures["legacy"] = float((1 - (wanted - rebuilt.double()).pow(2).sum(1) / apart).sum())
    losses = cross_entropies(clean, ids)
    here = scored.to(losses.device)
    figures["ce clean"] = float(losses[here].double().sum())
    after = torch.full(ids.shape, torch.nan)
    after[:, :-1][scored] = losses[here].cpu().float()
    other = outputs[found[torch.randperm(len(found), generator=generator)].to(outputs.device)]
    full = outputs.clone()
    for name, new in (("sae", rebuilt), ("zero", torch.zeros_like(rebuilt)), ("resample", other)):
        full[found.to(full.device)] = new.to(full.device, full.dtype)
        with nullcontext() if name == "sae" else without():
            logits = logits_with(model, ids, mask, [(writes, Replace(full, rows))])
        figures[f"ce {name}"] = float(cross_entropies(logits, ids)[here].double().sum())
        figures[f"kl {name}"] = float(divergences(clean, logits)[here].double().sum())
    return {
        **part,
        "kept": kept,
        "loss_after": after.reshape(-1)[rows],
        "figures": torch.tensor([figures[name] for name in FIRST], dtype=torch.float64),
    }


def _second_pass(
    model: nn.Module, writes: Hookpoint, ids: Tensor, mask: Tensor, kept: Tensor, mean: Tensor
) -> dict[str, Tensor]:
    clean = logits_with(model, ids, mask, [])
    full = mean.expand(ids.numel(), -1)
    logits = logits_with(model, ids, mask, [(writes, Replace(full, kept.reshape(-1)))])
    here = scored_in(kept, mask).to(clean.device)
    both = cross_entropies(logits, ids), divergences(clean, logits)
    return {"figures": torch.stack([values[here].double().sum().cpu() for values in both])}


def _seen(keeper: _Keep, point: Hookpoint, ids: Tensor) -> Tensor:
    seen = keeper.seen
    if seen is None or seen.shape[:-1].numel() != ids.numel():
        raise DataError(
            point.name,
            "has not one row for each token",
            got="nothing" if seen is None else tuple(seen.shape),
            expected=f"{tuple(ids.shape)} rows",
        )
    return seen.reshape(ids.numel(), -1)


def _measure(sae: SAEModel, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """The results of an SAE on tokens: reconstructions like `y`, sums and counts by tensor, and figures by name."""
    parts = []
    l0 = []
    fired = torch.zeros(sae.config.num_latents, dtype=torch.int32)
    total = torch.zeros(sae.config.decoder_size, dtype=torch.float64)
    figures = dict.fromkeys(NUMBERS, 0.0)
    for part, wanted in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        tokens = sae._tokens(part, None)
        latents = sae._encode(tokens).latents
        sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
        rebuilt = sae._decode(sparse, tokens.values).to(sae.W_dec.dtype)
        parts.append(rebuilt)
        l0.append(sparse.pattern.counts().cpu().long())
        fired += sparse.pattern.latent_counts().cpu()
        wanted, rebuilt = wanted.double(), rebuilt.double()
        total += wanted.sum(0).cpu()
        length, rebuilt_length = wanted.norm(dim=1), rebuilt.norm(dim=1)
        dot = (wanted * rebuilt).sum(1)
        for name, value in (
            ("error", (wanted - rebuilt).pow(2).sum()),
            ("cosine", (dot / (length * rebuilt_length).clamp(min=1e-300)).sum()),
            ("l2_in", length.sum()),
            ("l2_out", rebuilt_length.sum()),
            ("l2_ratio", (rebuilt_length / length.clamp(min=1e-300)).sum()),
            ("out", rebuilt_length.pow(2).sum()),
            ("dot", dot.sum()),
            ("l1", sparse.values.double().sum()),
            ("squares", wanted.pow(2).sum()),
        ):
            figures[name] += float(value)
    return torch.cat(parts) if parts else y, {"l0": torch.cat(l0), "fired": fired, "sum": total}, figures
