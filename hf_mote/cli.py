"""The `hf-mote` command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from transformers.utils.logging import disable_progress_bar

from hf_mote.commands import add_commands
from hf_mote.commands.bake import bake_command
from hf_mote.commands.running import reporting, say, tell
from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.organisms.demo import DemoResult, MethodResult, run_demo
from hf_mote.organisms.organism import list_organisms, summarize_organism
from hf_mote.pages.markup import visible
from hf_mote.routing.support import REFUSED, support_markdown, support_table
from hf_mote.sae.convert import export_sae, load_sae
from hf_mote.sae.convert.registry import FORMATS, check_target, format_named
from hf_mote.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="hf-mote",
    help="Find the experts behind a behaviour in a mixture-of-experts model, and tune them at inference.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
sae_app = typer.Typer(help="Sparse autoencoders.", no_args_is_help=True)
app.add_typer(sae_app, name="sae")


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
def families(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of the README.")] = False,
) -> None:
    """List the supported model families by routing rule, and those that are refused with the reason."""
    console = Console()
    if markdown:
        typer.echo(support_markdown())
        return
    table = Table(title="Supported families", show_lines=True)
    for heading in ("routing rule", "families", "cannot"):
        table.add_column(heading)
    for row in support_table():
        table.add_row(row.rule, ", ".join(row.families), ", ".join(row.cannot).replace("_", " ") or "-")
    console.print(table)
    for refusal in REFUSED.values():
        console.print(f"[bold]{refusal.family}[/bold] is refused: {refusal.reason}.", highlight=False)


@app.command()
def organisms() -> None:
    """List the model organisms in the package: small trained models of which it is known what they do, and where."""
    table = Table(title="Model organisms", show_lines=True)
    for heading in ("name", "family", "parameters", "planted", "size"):
        table.add_column(heading, no_wrap=True, justify="left" if heading in ("name", "family") else "right")
    table.add_column("what it does")
    for name in list_organisms():
        row = summarize_organism(name)
        size = f"{row.size / 1e6:.1f} MB"
        table.add_row(name, row.family, f"{row.parameters:,}", str(row.planted), size, row.behaviour)
    Console().print(table)


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("hf-mote-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts drawn and of the random controls.")] = 0,
    organism: Annotated[
        str, typer.Option(help="Which trained model: a name from `hf-mote organisms`, or the folder of one you built.")
    ] = "refusal",
) -> None:
    """Find the experts behind what a small trained model does, switch them off and on, against random experts."""
    # Matrices as small as the organism's gain nothing from more threads, and lose much on a busy machine.
    torch.set_num_threads(1)
    with reporting():
        if output.exists() and not output.is_dir():
            raise ConfigError("--output", "is a file", got=str(output), expected="a folder, new or not")
        result = run_demo(output, seed=seed, organism=organism, announce=say)
    console = Console()
    console.print(_demo_table(result))
    example = result.methods[result.best].report
    answers = zip(example.prompts, example.responses_before, example.responses_after, strict=True)
    for prompt, was, now in list(answers)[:2]:
        console.print(f"\n{visible(prompt)}", style="bold", markup=False, highlight=False)
        tell(f"  untouched:  {was}\n  suppressed: {now}")
    tell(f"\n{result.verdict}")
    tell(f"{result.seconds:.0f} s. Report, configs, maps, rankings and pictures: {output}")


@sae_app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder, or id of a Hub repository.")],
    target: Annotated[Path, typer.Argument(help="Folder to write to.")],
    to: Annotated[
        str, typer.Option(help=f"Format to write: {', '.join(name for name in FORMATS if FORMATS[name].write)}.")
    ],
    from_: Annotated[
        str, typer.Option("--from", help=f"Format of the source: {', '.join(FORMATS)}; by default found out.")
    ] = "auto",
    subfolder: Annotated[str | None, typer.Option(help="Where the files are in the source.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the repository.")] = None,
) -> None:
    """Write a sparse autoencoder of one library as another writes it, and say what that format cannot hold."""
    console, log = Console(), Console(stderr=True)
    disable_progress_bar()
    try:
        # First, so that a slip of the pen does not cost a download.
        check_target(target, format_named(to, where="--to"))
        sae = load_sae(source, from_, subfolder=subfolder, revision=revision)
        lost = export_sae(sae, target, to)
    except HFMoTEError as error:
        log.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error
    config = sae.config
    console.print(
        f"{type(sae).__name__} of {config.num_latents} latents for activations of width {config.hidden_size}, "
        f"written for {to}: {target}",
        markup=False,
        highlight=False,
    )
    if lost:
        console.print(f"Not held, of training: {'; '.join(lost)}", markup=False, highlight=False)


def _demo_table(result: DemoResult) -> Table:
    """One column for each method, one row for each thing measured."""
    planted = set(result.organism.planted)
    said = result.recipe.said
    controls = len(result.methods[result.best].report.controls)
    truth = f"{len(planted)} of them planted (*)" if planted else "none of them planted"
    table = Table(title=f"{result.num_experts} experts, {truth}; held-out prompts")
    table.add_column("", no_wrap=True)
    for name in result.methods:
        table.add_column(f"found by {name}", justify="right")

    def row(heading: str, value: Callable[[MethodResult], str]) -> None:
        table.add_row(heading, *(value(method) for method in result.methods.values()))

    row("experts, layer.expert", lambda m: " ".join(f"{a}.{b}{'*' * ((a, b) in planted)}" for a, b in m.experts))
    row(f"sensitive prompts {said}", lambda m: f"{m.report.before.rate:.1%}")
    row("…these experts suppressed", lambda m: f"{m.report.after.rate:.1%}")
    row(f"…{controls} x random ones, mean", lambda m: f"{fmean(m.report.controls):.1%}")
    row(f"…{controls} x random ones, least", lambda m: f"{min(m.report.controls):.1%}")
    row(f"neutral prompts {said}", lambda _: f"{result.neutral_before.rate:.1%}")
    row("…these experts stimulated", lambda m: f"{m.stimulated.rate:.1%}")
    row("other answers unchanged", lambda m: str(m.report.unrelated_unchanged).partition(" ")[0])
    return table


add_commands(app)
app.command("bake")(bake_command)
