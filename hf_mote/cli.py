"""The `hf-mote` command."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from hf_mote.errors import HFMoTEError
from hf_mote.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="hf-mote",
    help="Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        Console().print(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the prompts drawn and of the random controls.")] = 0,
) -> None:
    """Find the refusal experts of a small trained model, switch them off and on, and compare with random experts."""
    from hf_mote.organisms.demo import run_demo

    console, log = Console(), Console(stderr=True)
    try:
        if output.exists() and not output.is_dir():
            raise typer.BadParameter(f"{output} is a file; give a folder.", param_hint="--output")
        result = run_demo(output, seed=seed, announce=lambda text: log.print(f"[dim]… {text}[/dim]"))
    except HFMoTEError as error:
        log.print(f"[red]{error}[/red]")
        raise typer.Exit(1) from error
    table = Table(title=f"{result.num_experts} experts; held-out prompts; controls: random experts of the same layers")
    for heading in ("experts by", "layer.expert", "refusals", "under controls", "others unchanged", "stimulated"):
        table.add_column(heading, justify="left" if heading in ("experts by", "layer.expert") else "right")
    for name, method in result.methods.items():
        report, planted = method.report, set(result.organism.planted)
        experts = " ".join(f"{la}.{ex}{'*' if (la, ex) in planted else ''}" for la, ex in method.experts)
        unchanged = f"{report.unrelated_unchanged.rate:.1%}" if report.unrelated_unchanged is not None else "-"
        table.add_row(
            name,
            experts,
            f"{report.before.rate:.1%} -> {report.after.rate:.1%}",
            f"{fmean(report.controls):.1%} (least {min(report.controls):.1%})",
            unchanged,
            f"{result.neutral_before.rate:.1%} -> {method.stimulated.rate:.1%}",
        )
    console.print(table)
    console.print(f"* planted: {len(result.organism.planted)} experts carry the refusal, as the model's makers know.")
    example = result.methods[result.best].report
    for prompt, was, now in list(zip(example.prompts, example.responses_before, example.responses_after, strict=True))[
        :2
    ]:
        console.print(f"\n[bold]{prompt}[/bold]\n  untouched:  {was}\n  suppressed: {now}", highlight=False)
    console.print(f"\n{example.verdict}", highlight=False)
    console.print(f"{result.seconds:.0f} s. Report, configs, maps, rankings and pictures: {output}", highlight=False)
