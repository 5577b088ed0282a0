"""Pushing an SAE: its files, its card and its report, by the same upload as all objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from hf_mote.errors import ConfigError
from hf_mote.files import read_json, write_json
from hf_mote.folders import staging
from hf_mote.sae.report import SAEReport
from hf_mote.sharing.cards import CARD, MADE_HERE, CardNotes, card_header, compose_card, evidence_of
from hf_mote.sharing.privacy import public_name, without_places
from hf_mote.sharing.transfer import upload

__all__ = ["push_sae"]

_CONFIG = "config.json"


def push_sae(
    sae: PreTrainedModel,
    repo_id: str,
    notes: CardNotes,
    report: SAEReport | None,
    tags: Sequence[str],
    max_shard_size: int | str | None,
    *,
    subfolder: str | None,
    **options: Any,
) -> str:
    """Upload an SAE, and return the commit's URL.

    Args:
        sae ([`SAEModel`]): The SAE.
        repo_id (`str`): The repository.
        notes ([`CardNotes`]): What its author says.
        report ([`SAEReport`], *optional*): What was measured.
        tags (`Sequence[str]`): Further tags.
        max_shard_size (`int` or `str`): As in transformers.
        subfolder (`str`, *optional*): Folder in the repository.
        **options (`Any`): As in [`~hf_mote.sharing.transfer.upload`].

    Raises:
        [`ConfigError`]: if `report` is of another kind.
    """
    if report is not None and not isinstance(report, SAEReport):
        raise ConfigError(
            "push_to_hub: report", "is another thing", got=type(report).__name__, expected="an SAEReport"
        )
    with staging("push_to_hub") as folder:
        sae.save_pretrained(folder, max_shard_size="50GB" if max_shard_size is None else max_shard_size)
        # Of the paths of the model and of the SAE's origin, only the names.
        config = without_places(read_json(folder / _CONFIG))
        if isinstance(config.get("base_model"), str):
            config["base_model"] = public_name(config["base_model"])
        write_json(folder / _CONFIG, config)
        if report is not None:
            report = report._public(with_texts=False)
            report._to_file(folder / report.file_name)
        text = _card(sae, config.get("base_model"), notes, report, tags)
        (folder / CARD).write_text(f"{text}\n{MADE_HERE}\n", encoding="utf-8")
        return upload(folder, repo_id, subfolder=subfolder, **options)


def _card(
    sae: PreTrainedModel, base_model: str | None, notes: CardNotes, report: SAEReport | None, tags: Sequence[str]
) -> str:
    config: Any = sae.config
    evidence = [] if report is None else evidence_of([("", report._evidence())])
    kind = "transcoder" if config.is_transcoder else "autoencoder"
    header = card_header(
        tags=[config.model_type, *tags],
        base_model=base_model,
        about="sparse-autoencoder",
        notes=notes,
        name=f"{config.model_type} at {config.hookpoint}",
        evidence=evidence,
    )
    return compose_card(
        header,
        f"Sparse {kind}",
        f"A `{config.model_type}` of {config.num_latents:,} latents for `{config.hookpoint}` of "
        f"`{base_model or 'a model that is not named'}`, of width {config.hidden_size:,}. Its files are a config and "
        "safetensors: loading it runs no code.",
        load="import hf_mote\nfrom transformers import AutoModel\n\n"
        'sae = AutoModel.from_pretrained("<this repository or folder>").eval()\n'
        "handle = hf_mote.steer(model, sae, {0: 5.0})",
        notes=notes,
        evidence=evidence,
        intended_use="Reading what the model represents at this place, and steering it by single latents.",
        misuse="A latent's meaning is what was checked of it, on the texts it was checked on; steering by one changes "
        "more than its name says.",
    )
