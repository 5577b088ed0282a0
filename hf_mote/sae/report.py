"""`SAEReport`: the result of `evaluate_sae`; it can be saved, loaded and exported under SAEBench's names."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hf_mote.errors import ConfigError, FileFormatError, first_line, real, whole
from hf_mote.files import read_json, write_json
from hf_mote.hub import Shareable, public_name
from hf_mote.sae.fields import check_types
from hf_mote.sae.pictures import draw_report, law_at
from hf_mote.sharing.cards import CardNotes, Evidence, card_header, compose_card
from hf_mote.version import __version__

if TYPE_CHECKING:
    from typing import Self

    from matplotlib.figure import Figure

__all__ = ["FEW", "SAEReport"]

SCHEMA_VERSION = 1
_ROUNDING = 1e-6  # by which a mean may leave its range
_LONGEST = 1e150  # whose square is a number, too
_KL_ROUNDING = 1e-4  # by which a divergence of float32 logits may fall below 0
_TENTHS = 10
_ILL = 1e-3  # of a divisor, below which a number that follows from others is not known
FEW = 10
"""A latent that is active on fewer tokens of an evaluation is dying; nothing is fitted to it."""


@dataclass(frozen=True)
class SAEReport(Shareable):
    """Measurements of an SAE on a number of tokens. Undefined values (a division by 0) are `None`.

    Attributes:
        model (`str`, *optional*): What the model is called.
        hookpoint (`str`): Where the SAE reads.
        output_hookpoint (`str`, *optional*): Where a transcoder writes.
        architecture (`str`): The SAE's `model_type`.
        num_latents (`int`): Its latents.
        tokens (`int`): Tokens that were measured.
        predictions (`int`): Predictions that were scored.
        ce (`dict[str, float]`):
            Cross entropy of the next token, in nats: `"clean"`, with the `"sae"` spliced in, and with what it
            reconstructs ablated to `"zero"`, to its `"mean"`, or to that of another token of the batch (`"resample"`).
        kl (`dict[str, float]`): Divergence of the predictions from the clean ones, in nats; the same keys.
        ce_recovered (`dict[str, float]`): (ablated - sae) / (ablated - clean), by ablation; 1 is perfect.
        kl_recovered (`dict[str, float]`): (ablated - sae) / ablated, by ablation.
        fvu (`float`): Squared error over squared distance from the mean: the centred convention.
        nmse (`float`): Squared error over squared length: the uncentred convention (Gao et al.).
        explained_variance_legacy (`float`, *optional*):
            Mean over tokens of 1 - squared error / squared distance from the mean of the forward: an earlier
            convention of SAELens and SAEBench, which tokens near the mean decide. For comparison with old numbers.
        mse (`float`): Squared error of a token, summed over dimensions, mean over tokens.
        cosine (`float`): Between activation and reconstruction, mean over tokens.
        l2_in (`float`), l2_out (`float`): Length of activations and of reconstructions, means.
        l2_ratio (`float`): The one over the other, mean over tokens of their ratio.
        relative_reconstruction_bias (`float`): E‖x̂‖² / E[x · x̂]; 1 is unbiased (Rajamanoharan et al., 2404.16014).
        l0 (`float`): Active latents of a token, mean.
        l0_quantiles (`dict[str, float]`): By quantile.
        l1 (`float`): Summed latents of a token, mean.
        adaptive (`dict`): `"pearson"` and `"spearman"` correlation of a token's L0 with the loss of the prediction
            after it, and mean L0 by tenth of that loss, from the easiest on.
        density (`list[float]`): Share of tokens on which each latent is active.
        dead_fraction (`float`): Share of latents that were never active.
        dying_fraction (`float`): Share that were active on fewer than 10 tokens, but some.
        underused_fraction (`float`, *optional*): Share below half of the fitted law at their rank.
        zipf (`dict`, *optional*): Zipf-Mandelbrot law fitted to the densities; see `fit_zipf`.
        freq_over_1_percent (`float`), freq_over_10_percent (`float`): Share of latents denser than that.
        normalized_freq_over_1_percent (`float`), normalized_freq_over_10_percent (`float`): Their share of activity.
        encoder_decoder_cosine (`float`, *optional*): Between the rows of a latent, mean; of autoencoders.
        average_max_encoder_cosine_sim (`float`, *optional*): Between a row and the nearest other one, mean.
        average_max_decoder_cosine_sim (`float`, *optional*): The same, of the decoder.
    """

    file_name: ClassVar[str] = "sae_report.json"

    model: str | None
    hookpoint: str
    output_hookpoint: str | None
    architecture: str
    num_latents: int
    tokens: int
    predictions: int
    ce: dict[str, float]
    kl: dict[str, float]
    ce_recovered: dict[str, float | None]
    kl_recovered: dict[str, float | None]
    fvu: float | None
    nmse: float | None
    explained_variance_legacy: float | None
    mse: float
    cosine: float
    l2_in: float
    l2_out: float
    l2_ratio: float
    relative_reconstruction_bias: float | None
    l0: float
    l0_quantiles: dict[str, float]
    l1: float
    adaptive: dict[str, Any]
    density: list[float]
    dead_fraction: float
    dying_fraction: float
    underused_fraction: float | None
    zipf: dict[str, float] | None
    freq_over_1_percent: float
    freq_over_10_percent: float
    normalized_freq_over_1_percent: float
    normalized_freq_over_10_percent: float
    encoder_decoder_cosine: float | None
    average_max_encoder_cosine_sim: float | None
    average_max_decoder_cosine_sim: float | None

    @property
    def explained_variance(self) -> float | None:
        """1 - `fvu`: of all tokens together, around their common mean."""
        return None if self.fvu is None else 1 - self.fvu

    def to_saebench(self) -> dict[str, dict[str, float | None]]:
        """Return the rows of SAEBench's `core` evaluation under its names; ablation there is to zero.

        SAEBench 0.6.0 reads them as `CoreMetricCategories`. Sums over all tokens stand where it averages over batches,
        and tokens that are left out keep their activation under ablation, too, so that most values are near its own
        but not the same. Two are others: its `mse` divides by the number of tokens twice, and its `explained_variance`
        takes the squared mean square from the second moment, which is not a variance.
        """
        ev, legacy = self.explained_variance, self.explained_variance_legacy
        return {
            "model_behavior_preservation": {
                "kl_div_score": self.kl_recovered["zero"],
                "kl_div_with_ablation": self.kl["zero"],
                "kl_div_with_sae": self.kl["sae"],
            },
            "model_performance_preservation": {
                "ce_loss_score": self.ce_recovered["zero"],
                "ce_loss_with_ablation": self.ce["zero"],
                "ce_loss_with_sae": self.ce["sae"],
                "ce_loss_without_sae": self.ce["clean"],
            },
            "reconstruction_quality": {
                "explained_variance": ev,
                "explained_variance_legacy": legacy,
                "mse": self.mse,
                "cossim": self.cosine,
            },
            "shrinkage": {
                "l2_norm_in": self.l2_in,
                "l2_norm_out": self.l2_out,
                "l2_ratio": self.l2_ratio,
                "relative_reconstruction_bias": self.relative_reconstruction_bias,
            },
            "sparsity": {"l0": self.l0, "l1": self.l1},
            "token_stats": {
                "total_tokens_eval_reconstruction": self.predictions,
                "total_tokens_eval_sparsity_variance": self.tokens,
            },
            "misc_metrics": {
                "freq_over_1_percent": self.freq_over_1_percent,
                "freq_over_10_percent": self.freq_over_10_percent,
                "normalized_freq_over_1_percent": self.normalized_freq_over_1_percent,
                "normalized_freq_over_10_percent": self.normalized_freq_over_10_percent,
                "average_max_encoder_cosine_sim": self.average_max_encoder_cosine_sim,
                "average_max_decoder_cosine_sim": self.average_max_decoder_cosine_sim,
                "frac_alive": 1 - self.dead_fraction,
            },
        }

    def plot(self, path: str | os.PathLike[str] | None = None) -> Figure:
        """Return a picture: densities with the fitted law, cross entropies, and L0 along the loss.

        Args:
            path (`str` or `os.PathLike`, *optional*): Where to write it, as PNG, SVG or PDF by its ending.

        Returns:
            `matplotlib.figure.Figure`
        """
        title = f"{self.architecture}, {self.num_latents:,} latents, at {self.hookpoint}"
        tenths = self.adaptive["l0_by_tenth_of_loss"]
        return draw_report(self.density, self.zipf, self.ce, tenths, title=title, path=path)

    def rows(self) -> list[tuple[str, str]]:
        """Return the rows of a table: names and values, as text."""

        def text(value: float | None, form: str = ".4g") -> str:
            return "-" if value is None else format(value, form)

        recovered = self.ce_recovered
        return [
            ("tokens", f"{self.tokens:,}"),
            ("FVU (centred)", text(self.fvu)),
            ("NMSE (uncentred)", text(self.nmse)),
            ("cosine", text(self.cosine)),
            ("L2 ratio", text(self.l2_ratio)),
            ("L0 (mean; 5 %, median, 95 %)", self._l0_text()),
            ("cross entropy: clean, with the SAE", f"{text(self.ce['clean'])}, {text(self.ce['sae'])}"),
            *((f"cross entropy recovered ({name} ablation)", text(recovered[name], ".1%")) for name in recovered),
            ("KL with the SAE", text(self.kl["sae"])),
            ("dead, dying latents", f"{self.dead_fraction:.1%}, {self.dying_fraction:.1%}"),
            ("correlation of L0 and loss (Spearman)", text(self.adaptive["spearman"])),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-native values, with the version that writes them."""
        return {"schema_version": SCHEMA_VERSION, "hf_mote_version": __version__, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the report from the result of [`to_dict`].

        Raises:
            [`FileFormatError`]: if a field is missing or unknown, or the version is newer.
        """
        values = {"explained_variance_legacy": None, **data}  # which reports of 0.1.0 lack
        version = values.pop("schema_version", None)
        values.pop("hf_mote_version", None)
        if type(version) is not int or version != SCHEMA_VERSION:
            raise FileFormatError("SAEReport.schema_version", "this version cannot be read", got=repr(version))
        known = {field.name for field in dataclasses.fields(cls)}
        if wrong := sorted(known.symmetric_difference(values)):
            raise FileFormatError(f"SAEReport.{wrong[0]}", "is missing, or no field of a report")
        made = cls(**values)
        try:
            check_types(made, known)
            made._check_values()
            made.rows()
            made.to_saebench()
        except ConfigError as error:
            raise FileFormatError("SAEReport", "holds no report", got=str(error).rstrip(".")) from error
        except KeyError as error:
            raise FileFormatError("SAEReport", "lacks an entry", expected=error.args[0]) from error
        except (TypeError, ValueError) as error:
            raise FileFormatError("SAEReport", "holds another kind of value", got=first_line(error)) from error
        return made

    def _check_values(self) -> None:
        """Refuse impossible numbers."""
        for name in ("num_latents", "tokens", "predictions"):
            whole(f"SAEReport.{name}", getattr(self, name), least=1)
        shares = ["dead_fraction", "dying_fraction", "underused_fraction"]
        shares += [f"{kind}freq_over_{most}_percent" for kind in ("", "normalized_") for most in (1, 10)]
        cosines = ["cosine", "encoder_decoder_cosine", "average_max_encoder_cosine_sim"]
        cosines += ["average_max_decoder_cosine_sim"]
        errors, lengths = ["fvu", "nmse", "mse", "l2_ratio", "l0", "l1"], ["l2_in", "l2_out"]
        ranges = ((shares, 0.0, 1.0), (cosines, -1.0, 1.0), (errors, 0.0, math.inf), (lengths, 0.0, _LONGEST))
        for names, least, most in ranges:
            for name in names:
                if (value := getattr(self, name)) is not None:
                    real(f"SAEReport.{name}", value, least=least - _ROUNDING, most=most + _ROUNDING)
        for value in self.density:
            real("SAEReport.density", value, least=0, most=1)
        if len(self.density) != self.num_latents:
            got, expected = f"{len(self.density)} shares", f"{self.num_latents}, one for each latent"
            raise ConfigError("SAEReport.density", "is of other latents", got=got, expected=expected)
        for name in ("pearson", "spearman"):
            if (value := self.adaptive[name]) is not None:
                real(f"SAEReport.adaptive.{name}", value, least=-1 - _ROUNDING, most=1 + _ROUNDING)
        ablations = {*self.ce} - {"clean", "sae"}
        diverging = {*self.kl} - {"clean", "sae"}  # which the clean predictions do not
        if not ablations == diverging == {*self.ce_recovered} == {*self.kl_recovered}:
            raise ConfigError("SAEReport.ce", "is of other ablations than what is recovered", got=sorted(self.ce))
        for name, value in self.ce.items():
            real(f"SAEReport.ce.{name}", value, least=0)
        for name, value in self.kl.items():
            real(
                f"SAEReport.kl.{name}", value, least=-_KL_ROUNDING, most=_KL_ROUNDING if name == "clean" else math.inf
            )
        self._check_drawn()
        self._check_errors()
        self._check_derived()
        self._check_active()

    def _check_drawn(self) -> None:
        """Refuse a law and tenths of the loss without the numbers that [`plot`] draws."""
        tenths = self.adaptive.get("l0_by_tenth_of_loss")
        if not isinstance(tenths, list) or not 0 < len(tenths) <= _TENTHS:
            where, expected = "SAEReport.adaptive.l0_by_tenth_of_loss", f"a list of up to {_TENTHS} numbers"
            raise ConfigError(where, "must be the mean L0 of each tenth", got=repr(tenths)[:80], expected=expected)
        for value in tenths:
            real("SAEReport.adaptive.l0_by_tenth_of_loss", value, least=0, most=self.num_latents)
        if (self.zipf is None) != (self.underused_fraction is None):
            got = "zipf" if self.underused_fraction is None else "underused_fraction"
            raise ConfigError("SAEReport", "lacks one of zipf and underused_fraction", got=f"{got} alone")
        if self.zipf is None:
            return
        for name in ("exponent", "offset", "scale", "r2"):
            if name not in self.zipf:
                what, expected = "lacks a number of the law", "exponent, offset, scale and r2"
                raise ConfigError(f"SAEReport.zipf.{name}", what, got=", ".join(self.zipf), expected=expected)
        for name in ("exponent", "offset"):
            real(f"SAEReport.zipf.{name}", self.zipf[name], least=0)
        real("SAEReport.zipf.scale", self.zipf["scale"], above=0)
        real("SAEReport.zipf.r2", self.zipf["r2"], least=-_ROUNDING, most=1 + _ROUNDING)
        halves = [law_at(self.zipf, rank) / 2 for rank in range(1, len(self.density) + 1)]
        by_density = sorted(self.density, reverse=True)
        # A density at half of the law may be either.
        least, most = (
            sum(value < half * (1 + slack) for value, half in zip(by_density, halves, strict=True))
            for slack in (-_ROUNDING, _ROUNDING)
        )
        share = (self.underused_fraction or 0.0) * self.num_latents
        right = least - _ROUNDING * self.num_latents <= share <= most + _ROUNDING * self.num_latents
        expected = f"{least / self.num_latents:.9g}, by zipf and the densities"
        _require(right, "underused_fraction", self.underused_fraction, expected)

    def _check_errors(self) -> None:
        """Refuse errors and lengths that no activations and reconstructions have together."""
        if self.explained_variance_legacy is not None:
            real("SAEReport.explained_variance_legacy", self.explained_variance_legacy, most=1 + _ROUNDING)
        square = (self.l2_in - self.l2_out) ** 2
        if self.nmse is None:
            # Squared lengths add up to nothing.
            _require(self.l2_in == 0 and self.fvu is None, "nmse", None, "a number, by l2_in and fvu")
        else:
            _require(self.l2_in > 0, "nmse", self.nmse, "none, by l2_in")
            _require(
                (self.nmse == 0) == (self.mse == 0), "nmse", self.nmse, f"what goes with an mse of {self.mse:.9g}"
            )
            square = max(square, self.nmse * self.l2_in**2)
            # Squares of lengths add up to the square of their sum at most.
            most = self.nmse * self.l2_in**2 * self.tokens
            _require(self.mse <= most * (1 + _ROUNDING), "mse", self.mse, f"{most:.9g} or less, by nmse and l2_in")
        _require(self.mse >= square * (1 - _ROUNDING), "mse", self.mse, f"{square:.9g} or more, by nmse and lengths")
        if self.fvu is not None and self.nmse is not None:
            least = self.nmse * (1 - _ROUNDING)
            _require(self.fvu >= least, "fvu", self.fvu, f"{self.nmse:.9g} or more, which is nmse")
            _require((self.fvu == 0) == (self.mse == 0), "fvu", self.fvu, f"what goes with an mse of {self.mse:.9g}")
        self._check_bias()
        _require((self.l2_out == 0) == (self.l2_ratio == 0), "l2_ratio", self.l2_ratio, f"by l2_out {self.l2_out:.9g}")

    def _check_active(self) -> None:
        """Refuse latents of the tenths of the loss, and summed latents, that L0 excludes."""
        _require((self.l0 > 0) == (self.l1 > 0), "l1", self.l1, f"what goes with an l0 of {self.l0:.9g}")
        name, tenths = "adaptive.l0_by_tenth_of_loss", self.adaptive["l0_by_tenth_of_loss"]
        # As `torch.tensor_split` has it: the first are longer by one prediction where they cannot be equal.
        each, over = divmod(self.predictions, len(tenths))
        active = [value * (each + (place < over)) for place, value in enumerate(tenths)]
        for value in active:
            _check_equal(name, value, round(value), f"a whole number of latents on {each} or {each + 1} tokens")
        # A token without a prediction has between no latent and all.
        rest = self.l0 * self.tokens - math.fsum(active)
        most = (self.tokens - self.predictions) * self.num_latents
        slack = _ROUNDING * max(1.0, self.l0 * self.tokens)
        _require(-slack <= rest <= most + slack, name, tenths[0], f"tenths that go with an l0 of {self.l0:.9g}")

    def _check_bias(self) -> None:
        """Refuse a bias of the reconstruction that its error excludes.

        The squared length of the reconstruction follows from both, and is that of its mean length or more.
        """
        bias = self.relative_reconstruction_bias
        # Of a reconstruction without a length it is not known.
        _require(bias != 0, "relative_reconstruction_bias", bias, "another number than 0, or none")
        if bias is None or not self.nmse or abs(1 - 2 / bias) < _ILL:
            return
        whole_square = self.mse / self.nmse
        square = whole_square * (self.nmse - 1) / (1 - 2 / bias)
        right = square >= self.l2_out**2 * (1 - _ROUNDING) - _ROUNDING * whole_square
        _require(right, "relative_reconstruction_bias", bias, "one that goes with nmse and l2_out")

    def _check_derived(self) -> None:
        """Refuse values that do not follow from the others."""
        whole("SAEReport.predictions", self.predictions, most=self.tokens)
        tenths = self.adaptive["l0_by_tenth_of_loss"]
        if len(tenths) != (parts := min(_TENTHS, self.predictions)):
            got, expected = f"{len(tenths)} means", f"{parts}, of {self.predictions} predictions"
            raise ConfigError("SAEReport.adaptive.l0_by_tenth_of_loss", "is not whole", got=got, expected=expected)
        fired = [round(value * self.tokens) for value in self.density]
        for value, count in zip(self.density, fired, strict=True):
            _check_equal("density", value * self.tokens, count, f"a share of {self.tokens} tokens")
        total, number = math.fsum(self.density), self.num_latents
        _check_equal("l0", self.l0, total, "the sum of the densities")
        _check_equal("dead_fraction", self.dead_fraction, fired.count(0) / number, "by the densities")
        dying = sum(0 < count < FEW for count in fired) / number
        _check_equal("dying_fraction", self.dying_fraction, dying, "by the densities")
        for percent in (1, 10):
            denser = [value for value in self.density if value > percent / 100]
            of_activity = math.fsum(denser) / total if total else 0.0
            for kind, share in (("", len(denser) / number), ("normalized_", of_activity)):
                name = f"{kind}freq_over_{percent}_percent"
                _check_equal(name, getattr(self, name), share, "by the densities")
        for kind, found, recovered, clean in (
            ("ce", self.ce, self.ce_recovered, self.ce["clean"]),
            ("kl", self.kl, self.kl_recovered, 0.0),
        ):
            for name, given in recovered.items():
                most = found[name] - clean
                wanted = (found[name] - found["sae"]) / most if most else None
                _check_equal(f"{kind}_recovered.{name}", given, wanted, f"by {kind}")
        quantiles = [value for _, value in sorted(self.l0_quantiles.items(), key=lambda item: float(item[0]))]
        if quantiles != sorted(quantiles) or not all(0 <= value <= number for value in quantiles):
            expected = f"numbers that rise, from 0 to {number}"
            raise ConfigError("SAEReport.l0_quantiles", "cannot be", got=quantiles, expected=expected)

    def _l0_text(self) -> str:
        low, middle, high = (self.l0_quantiles[quantile] for quantile in ("0.05", "0.5", "0.95"))
        return f"{self.l0:.4g}; {low:g}, {middle:g}, {high:g}"

    def _to_file(self, path: Path) -> None:
        write_json(path, self.to_dict(), limit=None)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        return cls.from_dict(read_json(path, limit=2**30))

    def _evidence(self) -> Evidence:
        rows = "\n".join(f"| {name} | {value} |" for name, value in self.rows())
        numbers = {"FVU": self.fvu, "L0": self.l0, "dead latents": self.dead_fraction}
        recovered = {f"cross entropy recovered, {name}": value for name, value in self.ce_recovered.items()}
        return Evidence(
            sections={"On held-out text": f"| | |\n| --- | --: |\n{rows}"},
            results=[(name, value) for name, value in {**numbers, **recovered}.items() if value is not None],
            measured_on=f"{self.tokens:,} tokens",
        )

    def _card(self, notes: CardNotes, evidence: Sequence[Evidence]) -> str:
        shown = evidence or [self._evidence()]
        return compose_card(
            card_header(base_model=self.model, about="sparse-autoencoder", notes=notes, evidence=shown, name="SAE"),
            "Evaluation of an SAE",
            f"`{self.architecture}`, {self.num_latents:,} latents, at `{self.hookpoint}` of `{self.model}`.",
            load='import hf_mote\n\nhf_mote.SAEReport.from_pretrained("<this repository or folder>")',
            notes=notes,
            evidence=shown,
            intended_use="Reading how well an SAE reconstructs what it was trained on.",
            misuse="The numbers are those of one model on one text.",
        )

    def _public(self, *, with_texts: bool) -> Self:
        return dataclasses.replace(self, model=public_name(self.model))


def _require(fact: bool, name: str, got: float | None, expected: str) -> None:
    """Refuse a value that others exclude."""
    if not fact:
        raise ConfigError(f"SAEReport.{name}", "contradicts other values", got=repr(got), expected=expected)


def _check_equal(name: str, given: float | None, wanted: float | None, how: str) -> None:
    """Refuse a value that others contradict by more than rounding."""
    one_missing = (given is None) != (wanted is None)
    far = given is not None and wanted is not None and abs(given - wanted) > _ROUNDING * max(1.0, abs(wanted))
    if one_missing or far:
        expected = f"{'none' if wanted is None else f'{wanted:.9g}'}, {how}"
        raise ConfigError(f"SAEReport.{name}", "contradicts other values", got=repr(given), expected=expected)
