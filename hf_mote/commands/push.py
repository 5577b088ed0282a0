"""`hf-mote push`: uploads a folder to the Hub, after the checks of `hf-mote validate`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated

import typer

from hf_mote.commands.plan import amount, tell_plan
from hf_mote.commands.session import reporting, say, tell
from hf_mote.commands.validate import REPORT, problems_in
from hf_mote.errors import ConfigError
from hf_mote.files import local_path
from hf_mote.folders import staging

__all__ = ["push_command"]

_TEXTS = "holds prompts and responses"
_PUBLIC = "public, or by your account's default,"
_EXISTING = "the visibility of an existing one does not change"
_CARD = "README.md"
_SHOWN = 6  # lines of the card that a dry run shows


def push_command(
    folder: Annotated[str, typer.Argument(help="Folder of a config, a steering config or an SAE recipe.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, namespace/name; made if it does not exist.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to, made if it does not exist; main by default.")
    ] = None,
    subfolder: Annotated[
        str | None, typer.Option(help="Folder in the repository; by default the files lie at its top.")
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private", help="Make a new repository private; public by default, or by your organization's default."
        ),
    ] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request rather than commit.")] = False,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="Upload the report's prompts and responses, too.")
    ] = False,
    message: Annotated[
        str | None, typer.Option(help="Commit message; by default it says which folder was uploaded.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would be uploaded, and what stays here, without asking a server."),
    ] = False,
) -> None:
    """Check a folder as `hf-mote validate` does, and upload it; prompts and responses stay here."""
    with reporting():
        source = local_path(folder)
        found = [problem for problem in problems_in(source) if _TEXTS not in problem]
        for problem in found:
            tell(f"- {problem}")
        if found:
            fix = "Fix them and run the command again; nothing was uploaded. The --output of a command is shared from "
            fix += "Python, with a card of its own: load it with from_pretrained and call push_to_hub."
            raise ConfigError(folder, "has the problems listed above", fix=fix)
        from hf_mote.sharing.transfer import check_upload, upload

        texts: list[str] = []
        kept = "nothing"
        message = message or f"Upload {source.resolve().name}"
        with staging("push") as temporary:
            copy = temporary / "folder"
            shutil.copytree(source, copy)
            if (copy / REPORT).is_file():
                from hf_mote.evaluation.report import EvaluationReport

                report = EvaluationReport.from_pretrained(copy / REPORT)
                report._public(with_texts=with_texts)._to_file(copy / REPORT)
                texts = [] if with_texts else report._texts()
                held = f"the texts of {len(report.prompts):,} prompts and of the responses to them"
                if report.prompts:
                    kept = f"nothing: {held} are uploaded (--with-texts)" if with_texts else f"{held}, in {REPORT}"
            if dry_run:
                check_upload(copy, repo, revision=revision, subfolder=subfolder, texts=texts)
                facts = {
                    "repository": f"{repo}, {'private' if private else _PUBLIC} if it is made; {_EXISTING}",
                    "commit": f"{message!r} to {revision or 'main'}{', as a pull request' if create_pr else ''}",
                    **_contents(copy, subfolder),
                    "stays here": kept,
                }
                tell_plan(facts)
                tell("Nothing was uploaded. The same command without --dry-run does it.")
                return
            say(f"uploading {sum(path.is_file() for path in copy.rglob('*'))} files to {repo}")
            url = upload(
                copy,
                repo,
                private=True if private else None,
                commit_message=message,
                revision=revision,
                create_pr=create_pr,
                subfolder=subfolder,
                texts=texts,
            )
        tell(url)


def _contents(folder: Path, subfolder: str | None) -> dict[str, str]:
    """Return the files that would be uploaded, with their sizes, and the first lines of the card."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    place = "" if subfolder is None else f"{subfolder.strip('/')}/"
    wide = max(len(name) for name in sizes)
    lines = [f"{len(sizes)}, {amount(sum(sizes.values()))} together"]
    lines += [f"{place}{name:<{wide}}  {amount(size)}" for name, size in sizes.items()]
    facts = {"files": "\n".join(lines)}
    if _CARD in sizes:
        card = (folder / _CARD).read_text(encoding="utf-8", errors="replace")
        text = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
        facts["card"] = "\n".join([line for line in text.splitlines() if line.strip()][:_SHOWN])
        facts["existing card"] = "a card that somebody wrote in the repository is kept instead of this one"
    return facts
