"""The page of `hf-mote sae evaluate`: the error and sparsity of an SAE, and its effect on the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hf_mote.drawing import ValueAxis, log_axis, value_axis
from hf_mote.reports.curves import Curve, bar_chart, curve_chart
from hf_mote.reports.formats import number, percent, share
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import table
from hf_mote.sae.pictures import by_rank, law_at
from hf_mote.sae.report import SAEReport

__all__ = ["sae_page"]

_RANKS = 160  # that a curve is drawn through


def sae_page(
    report: SAEReport,
    *,
    subject: str,
    provenance: Mapping[str, str],
    files_written: Mapping[str, str],
    note: str | None = None,
) -> Html:
    """Return the page.

    Args:
        report (`SAEReport`): What was measured.
        subject (`str`): Which SAE of which model, on what text.
        provenance (`Mapping[str, str]`): How it came about.
        files_written (`Mapping[str, str]`): What the other files of the folder hold.
        note (`str`, *optional*): What else to say of it.
    """
    recovered = report.ce_recovered["zero"]
    lost = "-" if report.fvu is None else number(report.fvu)
    verdict = (
        f"{lost} of the variance is not explained, with {number(report.l0)} latents active on a token; spliced in, "
        f"{percent(recovered)} of the cross entropy is recovered from zero ablation."
    )
    rows: list[Sequence[Child]] = [[name, value] for name, value in report.rows()]
    measured = table("On these tokens", ["what", "value"], rows, numeric=[1])
    said = None if note is None else tag("p", note, class_="note")
    losses = bar_chart(list(report.ce.items()), title="Cross entropy", unit="nats for each token")
    figures = tag("div", _densities(report), losses, _adaptivity(report), class_="figures")
    sections = [
        Section("picture", "Density, losses, adaptivity", figures),
        Section("measured", "Measured", join([measured, said])),
        Section("runs", "The model with and without it", _runs(report)),
        provenance_section(provenance, files_written),
    ]
    return make_page("Sparse autoencoder", subject=subject, verdict=verdict, found=True, sections=sections)


def _densities(report: SAEReport) -> Html | None:
    """Densities by rank, and the law fitted to them."""
    alive = by_rank(report.density)
    if not alive:
        return None
    # Ranks as far apart as the axis shows them.
    ranks = sorted({round(len(alive) ** (step / _RANKS)) for step in range(_RANKS + 1)})
    curves = [Curve("latents", [(rank, alive[rank - 1]) for rank in ranks])]
    up = log_axis(alive)
    if report.zipf is not None:
        law = [(rank, law_at(report.zipf, rank)) for rank in ranks]
        shown = [(rank, value) for rank, value in law if up.low <= value <= up.high]
        curves.append(Curve(f"Zipf's law fitted, exponent {report.zipf['exponent']:.2f}", shown, fitted=True))
    silent = len(report.density) - len(alive)
    title = f"Density ({silent:,} of {len(report.density):,} latents never active)"
    words = f"{title}. From {share(alive[0])} of the tokens to {share(alive[-1])}."
    names = ("rank of the latent", "share of tokens")
    return curve_chart(curves, log_axis(ranks), up, title=title, names=names, words=words, ticks=(number, _tick))


def _tick(value: float) -> str:
    return f"{100 * value:g}%"


def _adaptivity(report: SAEReport) -> Html | None:
    """Mean L0 by how hard the next token is."""
    means = report.adaptive["l0_by_tenth_of_loss"]
    if len(means) < 2:
        return None
    title = "Active latents by how hard the next token is"
    points = list(enumerate(means, 1))
    across = ValueAxis(1.0, len(means), [tenth for tenth, _ in points])
    names = ("tenth of the loss, easiest first", "mean L0")
    words = f"{title}. {', '.join(map(number, means))}."
    curve = Curve("mean over the tokens of each tenth", points)
    return curve_chart([curve], across, value_axis(means), title=title, names=names, words=words)


def _runs(report: SAEReport) -> Html:
    rows: list[Sequence[Child]] = []
    for name, value in report.ce.items():
        shares = [found.get(name) for found in (report.ce_recovered, report.kl_recovered)]
        kl = report.kl.get(name)
        cells = [percent(share) if share is not None else "-" for share in shares]
        rows.append([name, number(value), "-" if kl is None else number(kl), *cells])
    headings = ["in the place of activations", "cross entropy", "KL", "CE recovered from it", "KL recovered from it"]
    note = tag(
        "p", "Nats for each predicted token. Recovered: from the ablation of the row, by the SAE.", class_="key"
    )
    return join([table("Runs", headings, rows, numeric=range(1, 5)), note])
