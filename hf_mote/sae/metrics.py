"""`evaluate_sae`: what an SAE loses, how sparse it is, and what the model makes of it.

Every number is a sum over all tokens, divided once: none is a mean of ratios over batches. The model runs clean, with
the SAE spliced in, and with what the SAE stands for ablated to zero, to its mean, and to that of another token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_mote.errors import ConfigError, DataError
from hf_mote.hub import public_name
from hf_mote.sae.hookpoints import AtHookpoint, Hookpoint
from hf_mote.sae.intervene import sites_of
from hf_mote.sae.kernels.sparse import SparseLatents
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.report import SAEReport
from hf_mote.sae.spliced import Replace, cross_entropies, divergences, in_evaluation_mode, logits_with
from hf_mote.sae.training.sequences import Sequences, batch_of, excluded_positions
from hf_mote.sae.variants.bases.budgets import fit_zipf

__all__ = ["evaluate_sae"]

# What stands in the place of the activations, beside the SAE itself.
ABLATIONS = ("zero", "mean", "resample")
NUMBERS = ("error", "cosine", "l2_in", "l2_out", "l2_ratio", "out", "dot", "l1", "legacy")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Latents that fire on fewer tokens of an evaluation are dying; nothing is fitted to them.
_FEW = 10
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
    seed: int = 0,
) -> SAEReport:
    """Measure an SAE on a model and a text.

    Where a token is left out (padding, special tokens, what is asked for), the model's own activation stays in every
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
        seed (`int`, *optional*, defaults to 0): Of the tokens that resample ablation draws.

    Returns:
        [`SAEReport`]

    Raises:
        [`DataError`]: if no token is left, or the model's activations are not finite.
        [`ConfigError`]: if the SAE does not say where it belongs.
        [`UnsupportedError`]: if its thresholds were never set.
    """
    if sae.training:
        raise ConfigError("evaluate_sae.sae", "is in training mode", fix="Call sae.eval() first.")
    sae._require_ready()
    reads, writes = sites_of(model, sae, hookpoint, "evaluate_sae")
    if tokenizer is None:
        tokenizer, special = _NoTokenizer(), []
    else:
        special = sorted(tokenizer.all_special_ids) if exclude_special_tokens else []
    if max_norm is not None and not max_norm > 0:
        raise ConfigError("evaluate_sae.max_norm", "out of range", got=max_norm, expected="above 0")
    leave_out = _LeaveOut(special, excluded_positions(exclude_positions), max_norm)
    sequences = Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=packed)
    state = _Sums(sae)
    generator = torch.Generator().manual_seed(seed)
    with in_evaluation_mode(model):
        for ids, mask in _batches(sequences, sequences_per_forward, max_tokens):
            _first_pass(state, model, sae, reads, writes, ids, mask, leave_out, generator)
        if not state.tokens or not state.scored:
            raise DataError(
                "evaluate_sae: dataset",
                "has no token left to measure",
                got=f"{state.tokens} tokens, {state.scored} predictions",
                fix="Give more text, or exclude less.",
            )
        mean = (state.sum / state.tokens).to(torch.float32)
        again = _batches(sequences, sequences_per_forward, max_tokens)
        for (ids, mask), kept in zip(again, state.kept, strict=True):
            _second_pass(state, model, writes, ids, mask, kept, mean)
    return _report(state, sae, reads, writes, model)


class _LeaveOut(NamedTuple):
    """Which tokens are not measured."""

    special: list[int]
    positions: slice | None
    max_norm: float | None

    def kept(self, ids: Tensor, mask: Tensor, inputs: Tensor) -> Tensor:
        """Return which tokens are measured, bool `(batch, length)`; `inputs` is `(batch * length, width)`."""
        kept = mask.bool()
        if self.special:
            kept &= ~torch.isin(ids, torch.tensor(self.special))
        if self.positions is not None:
            kept[:, self.positions] = False
        if self.max_norm is not None and bool(kept.any()):
            lengths = torch.linalg.vector_norm(inputs, dim=1, dtype=torch.float32).cpu().reshape(kept.shape)
            kept &= lengths <= self.max_norm * lengths[kept].median()
        return kept


class _Sums:
    """Everything that is added up, in float64."""

    def __init__(self, sae: SAEModel) -> None:
        self.tokens = self.scored = self.sequences = 0
        width, latents = sae.config.decoder_size, sae.config.num_latents
        self.sum = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        self.numbers = dict.fromkeys(NUMBERS, 0.0)
        self.fired = torch.zeros(latents, dtype=torch.long)
        self.latent_sum = torch.zeros(latents, dtype=torch.float64)
        self.kept: list[Tensor] = []
        self.l0: list[Tensor] = []
        self.loss_after: list[Tensor] = []
        self.ce = dict.fromkeys(("clean", "sae", *ABLATIONS), 0.0)
        self.kl = dict.fromkeys(("sae", *ABLATIONS), 0.0)


class _Keep(AtHookpoint):
    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def apply(self, activations: Tensor) -> None:
        self.seen = activations


class _NoTokenizer:
    eos_token_id = None
    chat_template = None

    def __call__(self, text: str, **kwargs: Any) -> Any:
        raise DataError("evaluate_sae: dataset", "holds texts, and there is no tokenizer", fix="Give the tokenizer.")


def _batches(sequences: Sequences, size: int, max_tokens: int | None) -> Any:
    read, stream = 0, iter(sequences)
    while taken := list(islice(stream, size)):
        yield batch_of(taken)
        read += sum(map(len, taken))
        if max_tokens is not None and read >= max_tokens:
            return


def _first_pass(
    state: _Sums,
    model: nn.Module,
    sae: SAEModel,
    reads: Hookpoint,
    writes: Hookpoint,
    ids: Tensor,
    mask: Tensor,
    leave_out: _LeaveOut,
    generator: torch.Generator,
) -> None:
    reader, writer = _Keep(), _Keep()
    same = reads.name == writes.name
    clean = logits_with(model, ids, mask, [(reads, reader)] if same else [(reads, reader), (writes, writer)])
    inputs = _seen(reader, reads, ids)
    outputs = inputs if same else _seen(writer, writes, ids)
    kept = leave_out.kept(ids, mask, inputs)
    state.kept.append(kept)
    scored = kept[:, :-1] & mask[:, 1:].bool()
    rows = kept.reshape(-1)
    device = sae.W_dec.device
    found = rows.nonzero().squeeze(1)
    x, y = inputs[found.to(inputs.device)].to(device), outputs[found.to(outputs.device)].to(device)
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise DataError(reads.name, "the model's activations hold NaN or infinite numbers")
    rebuilt = _measure(state, sae, x, y)
    if len(y):
        wanted = y.double()
        apart = (wanted - wanted.mean(0)).pow(2).sum(1).clamp(min=1e-300)
        state.numbers["legacy"] += float((1 - (wanted - rebuilt.double()).pow(2).sum(1) / apart).sum())
    losses = cross_entropies(clean, ids)
    state.sequences += len(ids)
    state.scored += int(scored.sum())
    here = scored.to(losses.device)
    state.ce["clean"] += float(losses[here].double().sum())
    after = torch.full(ids.shape, torch.nan)
    after[:, :-1][scored] = losses[here].cpu().float()
    state.loss_after.append(after.reshape(-1)[rows])
    other = outputs[found[torch.randperm(len(found), generator=generator)].to(outputs.device)]
    full = outputs.clone()
    for name, new in (("sae", rebuilt), ("zero", torch.zeros_like(rebuilt)), ("resample", other)):
        full[found.to(full.device)] = new.to(full.device, full.dtype)
        logits = logits_with(model, ids, mask, [(writes, Replace(full, rows))])
        state.ce[name] += float(cross_entropies(logits, ids)[here].double().sum())
        state.kl[name] += float(divergences(clean, logits)[here].double().sum())


def _second_pass(
    state: _Sums, model: nn.Module, writes: Hookpoint, ids: Tensor, mask: Tensor, kept: Tensor, mean: Tensor
) -> None:
    scored = kept[:, :-1] & mask[:, 1:].bool()
    clean = logits_with(model, ids, mask, [])
    full = mean.expand(ids.numel(), -1)
    logits = logits_with(model, ids, mask, [(writes, Replace(full, kept.reshape(-1)))])
    here = scored.to(clean.device)
    state.ce["mean"] += float(cross_entropies(logits, ids)[here].double().sum())
    state.kl["mean"] += float(divergences(clean, logits)[here].double().sum())


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


def _measure(state: _Sums, sae: SAEModel, x: Tensor, y: Tensor) -> Tensor:
    """Add up what an SAE makes of tokens; returns its reconstructions, like `y`."""
    parts = []
    for part, wanted in zip(x.split(_BLOCK), y.split(_BLOCK), strict=True):
        tokens = sae._tokens(part, None)
        latents = sae._encode(tokens).latents
        sparse = latents if isinstance(latents, SparseLatents) else SparseLatents.from_dense(latents)
        rebuilt = sae._decode(sparse, tokens.values).to(sae.W_dec.dtype)
        parts.append(rebuilt)
        counts = sparse.pattern.counts()
        state.l0.append(counts.cpu())
        state.fired += sparse.pattern.latent_counts().cpu()
        state.latent_sum.index_add_(0, sparse.pattern.columns.cpu(), sparse.values.double().cpu())
        wanted, rebuilt = wanted.double(), rebuilt.double()
        state.tokens += len(wanted)
        state.sum += wanted.sum(0).cpu()
        state.squares += wanted.pow(2).sum().cpu()
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
        ):
            state.numbers[name] += float(value)
    return torch.cat(parts) if parts else y


def _report(state: _Sums, sae: SAEModel, reads: Hookpoint, writes: Hookpoint, model: nn.Module) -> SAEReport:
    n, numbers = state.tokens, state.numbers
    variance = float(state.squares - state.sum.pow(2).sum() / n)
    ce = {name: value / state.scored for name, value in state.ce.items()}
    kl = {name: value / state.scored for name, value in state.kl.items()}
    l0 = torch.cat(state.l0).double()
    density = state.fired.double() / n
    quantiles = torch.quantile(l0[:: max(len(l0) // 1_000_000, 1)], torch.tensor(QUANTILES, dtype=torch.float64))
    return SAEReport(
        model=public_name(getattr(getattr(model, "config", None), "name_or_path", None)),
        hookpoint=reads.name,
        output_hookpoint=None if reads.name == writes.name else writes.name,
        architecture=sae.config.model_type,
        num_latents=sae.config.num_latents,
        tokens=n,
        predictions=state.scored,
        ce={key: ce[key] for key in ("clean", "sae", *ABLATIONS)},
        kl=kl,
        ce_recovered={name: _share(ce[name] - ce["sae"], ce[name] - ce["clean"]) for name in ABLATIONS},
        kl_recovered={name: _share(kl[name] - kl["sae"], kl[name]) for name in ABLATIONS},
        fvu=_share(numbers["error"], variance),
        nmse=_share(numbers["error"], float(state.squares)),
        explained_variance_legacy=numbers["legacy"] / n,
        mse=numbers["error"] / n,
        cosine=numbers["cosine"] / n,
        l2_in=numbers["l2_in"] / n,
        l2_out=numbers["l2_out"] / n,
        l2_ratio=numbers["l2_ratio"] / n,
        relative_reconstruction_bias=_share(numbers["out"], numbers["dot"]),
        l0=float(l0.mean()),
        l0_quantiles={f"{quantile:g}": float(value) for quantile, value in zip(QUANTILES, quantiles, strict=True)},
        l1=numbers["l1"] / n,
        adaptive=_adaptive(l0, torch.cat(state.loss_after).double()),
        **_latents(state, density, n),
        **_geometry(sae),
        density=density.tolist(),
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _latents(state: _Sums, density: Tensor, tokens: int) -> dict[str, Any]:
    fired = state.fired
    total = float(density.sum())
    found: dict[str, Any] = {
        "dead_fraction": float((fired == 0).double().mean()),
        "dying_fraction": float(((fired > 0) & (fired < _FEW)).double().mean()),
        "freq_over_1_percent": float((density > 0.01).double().mean()),
        "freq_over_10_percent": float((density > 0.1).double().mean()),
        "normalized_freq_over_1_percent": float(density[density > 0.01].sum()) / total if total else 0.0,
        "normalized_freq_over_10_percent": float(density[density > 0.1].sum()) / total if total else 0.0,
        "zipf": None,
        "underused_fraction": None,
    }
    if int((fired >= _FEW).sum()) >= 3:
        fit = fit_zipf(density, least=(_FEW - 0.5) / tokens)
        ranks = torch.arange(1, len(density) + 1, dtype=torch.float64)
        law = fit.scale * (ranks + fit.offset) ** -fit.exponent
        found["zipf"] = {"exponent": fit.exponent, "offset": fit.offset, "scale": fit.scale, "r2": fit.r2}
        found["underused_fraction"] = float((density.sort(descending=True).values < 0.5 * law).double().mean())
    return found


def _geometry(sae: SAEModel) -> dict[str, Any]:
    """Cosines between encoder and decoder rows, and between each row and the nearest other one."""
    found: dict[str, Any] = {"encoder_decoder_cosine": None}
    encoder, decoder = (functional.normalize(matrix.float(), dim=1) for matrix in (sae.W_enc, sae.W_dec))
    if encoder.shape == decoder.shape and not sae.config.is_transcoder:
        found["encoder_decoder_cosine"] = float((encoder * decoder).sum(1).double().mean())
    for name, rows in (("average_max_encoder_cosine_sim", encoder), ("average_max_decoder_cosine_sim", decoder)):
        nearest = []
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK] @ rows.T
            block[torch.arange(len(block)), torch.arange(start, start + len(block))] = -math.inf
            nearest.append(block.max(1).values)
        found[name] = float(torch.cat(nearest).double().mean()) if len(rows) > 1 else None
    return found


def _adaptive(l0: Tensor, loss: Tensor) -> dict[str, Any]:
    """How L0 goes with how hard the next token is: correlations, and mean L0 by tenth of the loss."""
    known = loss.isfinite()
    l0, loss = l0[known], loss[known]

    def correlation(a: Tensor, b: Tensor) -> float | None:
        a, b = a - a.mean(), b - b.mean()
        scale = float(a.norm() * b.norm())
        return float((a * b).sum()) / scale if scale > 0 else None

    def ranks(values: Tensor) -> Tensor:
        _, group, count = values.unique(return_inverse=True, return_counts=True)
        last = count.cumsum(0).double()
        middle: Tensor = last - (count.double() - 1) / 2
        return middle[group]

    tenths = [part for part in l0[loss.argsort(stable=True)].tensor_split(10) if len(part)]
    return {
        "pearson": correlation(l0, loss),
        "spearman": correlation(ranks(l0), ranks(loss)),
        "l0_by_tenth_of_loss": [float(part.mean()) for part in tenths],
    }
