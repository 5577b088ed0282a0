"""`hf-mote push`: a folder that is fit to be shared, uploaded to the Hub."""

from __future__ import annotations

import shutil
from typing import Annotated

import typer

from hf_mote.commands.session import reporting, say, tell
from hf_mote.commands.validate import REPORT, problems_in
from hf_mote.errors import ConfigError
from hf_mote.files import local_path
from hf_mote.folders import staging

__all__ = ["push_command"]

_TEXTS = "holds prompts and responses"


def push_command(
    folder: Annotated[str, typer.Argument(help="Folder of a config, a steering config or an SAE recipe.")],
    repo: Annotated[str, typer.Argument(help="Hub repository, namespace/name; made if it does not exist.")],
    revision: Annotated[str | None, typer.Option(help="Branch to commit to; made if it does not exist.")] = None,
    subfolder: Annotated[str | None, typer.Option(help="Folder in the repository.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request rather than commit.")] = False,
    with_texts: Annotated[
        bool, typer.Option("--with-texts", help="Upload the report's prompts and responses, too.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Commit message.")] = None,
) -> None:
    """Check a folder as `hf-mote validate` does, and upload it; prompts and responses stay here."""
    with reporting():
        source = local_path(folder)
        found = [problem for problem in problems_in(source) if _TEXTS not in problem]
        for problem in found:
            tell(f"- {problem}")
        if found:
            fix = "Mend them and run the command again; nothing was uploaded. What a command wrote to its --output is "
            fix += "shared from Python, with a card of its own: load it with from_pretrained and call push_to_hub."
            raise ConfigError(folder, "is not fit to be shared, as listed above", fix=fix)
        from hf_mote.sharing.transfer import upload

        texts: list[str] = []
        with staging("push") as temporary:
            copy = temporary / "folder"
            shutil.copytree(source, copy)
            if (copy / REPORT).is_file():
                from hf_mote.evaluation.report import EvaluationReport

                report = EvaluationReport.from_pretrained(copy / REPORT)
                report._public(with_texts=with_texts)._to_file(copy / REPORT)
                texts = [] if with_texts else report._texts()
            say(f"uploading {sum(path.is_file() for path in copy.rglob('*'))} files to {repo}")
            url = upload(
                copy,
                repo,
                private=True if private else None,
                commit_message=message or f"Upload {source.resolve().name}",
                revision=revision,
                create_pr=create_pr,
                subfolder=subfolder,
                texts=texts,
            )
        tell(url)
