"""The page of `hf-mote sae evaluate`: the error and sparsity of an SAE, and its effect on the model."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence

from hf_mote.reports.formats import number, percent
from hf_mote.reports.markup import Child, Html, join, tag
from hf_mote.reports.page import Section, make_page, provenance_section
from hf_mote.reports.tables import table
from hf_mote.sae.report import SAEReport

__all__ = ["sae_page"]


def sae_page(
    report: SAEReport, picture: bytes, *, subject: str, provenance: Mapping[str, str], files_written: Mapping[str, str]
) -> Html:
    """Return the page.

    Args:
        report (`SAEReport`): What was measured.
        picture (`bytes`): Its picture, as PNG.
        subject (`str`): Which SAE of which model, on what text.
        provenance (`Mapping[str, str]`): How it came about.
        files_written (`Mapping[str, str]`): What the other files of the folder hold.
    """
    recovered = report.ce_recovered["zero"]
    lost = "-" if report.fvu is None else number(report.fvu)
    verdict = (
        f"{lost} of the variance is not explained, with {number(report.l0)} latents active on a token; spliced in, "
        f"{percent(recovered)} of the cross entropy is recovered from zero ablation."
    )
    drawn = tag(
        "img", src=f"data:image/png;base64,{b64encode(picture).decode()}", alt="Density, cross entropy and L0."
    )
    rows: list[Sequence[Child]] = [[name, value] for name, value in report.rows()]
    sections = [
        Section("picture", "Density, losses, adaptivity", tag("figure", drawn)),
        Section("measured", "Measured", table("On these tokens", ["what", "value"], rows, numeric=[1])),
        Section("runs", "The model with and without it", _runs(report)),
        provenance_section(provenance, files_written),
    ]
    return make_page("Sparse autoencoder", subject=subject, verdict=verdict, found=True, sections=sections)


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
