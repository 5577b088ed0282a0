"""`BakedModel`: the result of `bake_mote`, and how it is saved: a plain checkpoint, a card, a record."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import ModelCardData
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_mote.errors import FileFormatError
from hf_mote.files import write_json
from hf_mote.folders import check_folder, replacing_folder
from hf_mote.mote.bake_proof import BakeProof
from hf_mote.mote.config import MoTEConfig
from hf_mote.version import __version__

__all__ = ["BakedChange", "BakedModel"]

RECORD = "baked_mote.json"


class BakedChange(NamedTuple):
    """One changed tensor.

    Attributes:
        tensor (`str`): Its name in the model.
        layer (`int`): Its absolute decoder layer.
        experts (`tuple[int, ...]`): Experts, as the unbaked model numbers them.
        how (`str`): What was done.
        gguf (`str`, *optional*): Its name in a GGUF file, where that format has the tensor.
    """

    tensor: str
    layer: int
    experts: tuple[int, ...]
    how: str
    gguf: str | None


@dataclass(frozen=True, eq=False)
class BakedModel:
    """A plain model that does what a config did.

    Attributes:
        model (`PreTrainedModel`): In evaluation mode; it shares unchanged tensors with the model it was made from.
        config (`MoTEConfig`): What it does.
        base_model (`str`, *optional*): What it was made from.
        changes (`tuple[BakedChange, ...]`): Every changed tensor.
        proof (`BakeProof`): How far it is from the live profile on the inputs that were tried.
    """

    model: PreTrainedModel
    config: MoTEConfig
    base_model: str | None
    changes: tuple[BakedChange, ...]
    proof: BakeProof

    def save_pretrained(
        self, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Write the checkpoint, the tokenizer, a card that describes it, and a record of the changes.

        Args:
            folder (`str` or `os.PathLike`): Made if it does not exist.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Written beside it.

        Raises:
            [`FileFormatError`]: if the folder is not empty.
        """
        folder = Path(folder)
        check_folder(folder, str(folder))
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileFormatError(
                str(folder), "is not empty, and a folder holds one checkpoint", fix="Give a new folder."
            )
        with replacing_folder(folder, str(folder), lambda _: (), keep=True) as draft:
            self.model.save_pretrained(draft)
            if tokenizer is not None:
                tokenizer.save_pretrained(draft)
            write_json(draft / RECORD, self.to_dict())
            (draft / "README.md").write_text(self.card(), encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return the changes and their check, JSON-native; the config in it is a record, not to be applied again."""
        return {
            "base_model": self.base_model,
            "hf_mote_version": __version__,
            "config": self.config.to_dict(),
            "changes": [{**change._asdict(), "experts": list(change.experts)} for change in self.changes],
            "proof": dict(self.proof._asdict()),
        }

    def card(self) -> str:
        """Return the text of the card, with its front matter."""
        named = self.base_model if self.base_model and "/" in self.base_model else None
        data = ModelCardData(
            library_name="transformers", tags=["hf_mote", "mixture-of-experts", "baked"], base_model=named
        )
        edit = ", ".join(
            part
            for part in (
                f"{len(self.config.suppress)} suppressed ({self.config.suppress_mode})"
                if self.config.suppress
                else "",
                f"{len(self.config.bias)} biased (on {self.config.bias_on})" if self.config.bias else "",
                f"{len(self.config.gain)} multiplied by a gain" if self.config.gain else "",
            )
            if part
        )
        rows = "\n".join(
            f"| `{change.tensor}` | {', '.join(map(str, change.experts))} | {change.how} | "
            f"{f'`{change.gguf}`' if change.gguf else '-'} |"
            for change in self.changes
        )
        shown = (
            "bit for bit" if self.proof.exact else f"within {self.proof.block_difference:.1e} of the largest output"
        )
        made = (
            "\n".join(f"- {key}: {value}" for key, value in sorted(self.config.provenance.items())) or "- not stated"
        )
        cut = any(change.how == "removed" for change in self.changes)
        renumbered = (
            "\nExperts were removed, so the remaining ones are numbered anew in their order; the numbers here are "
            "those of the unbaked model.\n"
            if cut
            else ""
        )
        return (
            f"---\n{data.to_yaml().strip()}\n---\n# Tuned experts, baked into the weights\n\n"
            f"`{self.base_model or 'A model that is not named'}` with a mixture of tunable experts (hf_mote "
            f"{__version__}) folded into its weights: {edit}, strength {self.config.strength:g}. It loads as any "
            "other checkpoint of its kind, without hf_mote. It is not the model it was made from: its behaviour was "
            "changed on purpose.\n\n"
            f"Every changed block was run on inputs that reach these experts and gave what the live profile gives, "
            f"{shown}; the logits of the whole model differed by {self.proof.logit_difference:.1e} at most on random "
            "tokens.\n\n"
            f"## What was changed\n\n| tensor | experts | how | in GGUF |\n| --- | --- | --- | --- |\n{rows}\n"
            f"{renumbered}\n`{RECORD}` holds the config and the changes for programs.\n\n"
            f"## How the experts were found\n\n{made}\n"
        )
