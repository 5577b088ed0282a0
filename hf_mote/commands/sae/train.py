"""`hf-mote sae train`: from a model and a text to a sparse autoencoder, in a folder that is ready to be shared."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.bundles.bundled import bundled
from hf_mote.commands.bundles.loading import Loading
from hf_mote.commands.model import Organisms, Subject
from hf_mote.commands.names import ARCHITECTURES
from hf_mote.commands.plan import Timed, amount, plan_training, tokens_of
from hf_mote.commands.plan import Work as Part
from hf_mote.commands.run_files import Work, check_output, writing_to
from hf_mote.commands.sae.dead_latents import dead_note
from hf_mote.commands.sae.excluding import Excluding, splice_call
from hf_mote.commands.sae.places import NewHookpoint
from hf_mote.commands.sae.settings import Settings, wrong_architecture
from hf_mote.commands.sae.texts import Text, TextColumn, how_cut, read_texts, texts_fact
from hf_mote.commands.session import provenance_of, reporting, say, tell
from hf_mote.errors import ConfigError, DataError, HFMoTEError, first_line, whole
from hf_mote.hub import card_header, public_name
from hf_mote.sae.report import SAEReport

if TYPE_CHECKING:
    from torch import nn

    from hf_mote.runs.checkpoints import Checkpoints
    from hf_mote.runs.folder import Record, RunFolder
    from hf_mote.sae.hookpoints import Hookpoint
    from hf_mote.sae.modeling import SAEModel
    from hf_mote.sae.training.activations import ActivationStream

__all__ = ["default_hookpoint", "field_of", "fitting", "held_out_of", "train_command"]

_HELD_OUT = 10  # one of this many texts is held out for the report
_CALIBRATION_TOKENS = 65_536
_TIMED = 4  # steps that a dry run times
_TRAINED = "trained"  # the record of an SAE at the end of training


@bundled
def train_command(
    context: typer.Context,
    *,
    model: o.Model,
    text: Text,
    output: Annotated[Path, typer.Option(help="Folder for the SAE.")],
    architecture: Annotated[str, typer.Option(help=f"One of {', '.join(ARCHITECTURES)}.")] = "topk",
    hookpoint: NewHookpoint = None,
    latents: Annotated[int | None, typer.Option(min=1, help="Latents; by default 8 for each dimension.")] = None,
    k: Annotated[
        int | None, typer.Option(min=1, help="Active latents of a token; by default a 16th of the width, 4 to 32.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on; a shorter text is read again.")] = 300_000,
    batch: Annotated[int, typer.Option(min=1, help="Tokens in a step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(min=0.0, help="Learning rate of Adam.")] = 1e-3,
    context_length: Annotated[int, typer.Option(min=1, help="Maximum length of a sequence, in tokens.")] = 256,
    evaluation_tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens for the report.")] = 20_000,
    option: Annotated[
        list[str] | None,
        typer.Option(help="A field of the architecture, such as l1_coefficient=0.01; may be given several times."),
    ] = None,
    text_column: TextColumn = "text",
    excluding: Excluding,
    seed: o.Seed = 0,
    run_folder: o.RunFolder = None,
    loading: Loading,
    dry_run: o.DryRun = False,
    force: o.Force = False,
    settings: Settings = None,
) -> None:
    """Train a sparse autoencoder on a model's activations, measure it on held-out text, and write it with a card."""
    work = Work(output, run_folder)
    with reporting(kept=work.word):
        check_output(output, force=force)
        work.check()
        excluding.check()
        whole("--seed", seed, most=2**32 - 1)  # with which transformers seeds numpy
        chosen = dict(field_of(entry) for entry in option or [])
        for error in wrong_architecture(architecture, k, list(chosen)):
            raise error
        kind = f"{architecture}_sae"
        loading.check(model)
        organisms = Organisms()
        texts = read_texts(text, text_column, organisms)
        kept, held_out = held_out_of(text, texts)
        import torch  # imported here, because it is slow

        from hf_mote.sae.kept import digest_of_sequences, run_of
        from hf_mote.sae.metrics import evaluate_sae
        from hf_mote.sae.training.activations import collect_activations
        from hf_mote.sae.training.adapt import splice_arguments
        from hf_mote.sae.training.sequences import Sequences

        at = partial(_point, hookpoint=hookpoint)
        subject = loading.subject(model, organisms, any_model=True, fits=at)
        where = hookpoint or default_hookpoint(subject.model)
        context_length = fitting(subject.model, context_length)
        if dry_run:
            sae = _new(subject, kind, where, latents, k, chosen)
            stream = collect_activations(
                subject.model,
                subject.tokenizer,
                kept,
                where,
                batch_size=batch,
                context_length=context_length,
                window_tokens=_TIMED * batch,
                text_column=text_column,
                **excluding.arguments(),
                normalize=True,
                seed=seed,
            )
            size = sum(parameter.numel() * parameter.element_size() for parameter in sae.parameters())
            reading: dict[str, Any] = {"context_length": context_length, "text_column": text_column}
            measured = tokens_of(subject.tokenizer, held_out, evaluation_tokens, **reading)
            some = min(8 * context_length, measured)
            measure = partial(
                evaluate_sae,
                subject.model,
                sae.train(False),
                held_out,
                subject.tokenizer,
                **reading,
                **excluding.arguments(),
            )
            timed = Timed.of(
                f"{some:,} held-out tokens",
                partial(measure, max_tokens=some),
                warm_up=partial(measure, max_tokens=1),
            )
            plan_training(
                partial(_some_steps, sae, stream),
                _TIMED,
                steps=max(tokens // batch, 1),
                what={
                    "texts": texts_fact(text, len(kept), len(held_out)),
                    "tokens": f"{tokens:,} to train on, {measured:,} to measure on, {batch:,} a step",
                    "SAE": f"{type(sae).__name__}, {sae.config.num_latents:,} latents, at {where}",
                    "result": f"{amount(size)} on disk; four times as much in memory while it trains",
                    "kept": f"{amount(3 * size)} on disk while it trains, twice that while a checkpoint is written",
                },
                more=[Part(timed, measured / max(some, 1))],
            )
            return
        with work.of(subject.model) as part_of, writing_to(output, force=force) as folder:
            torch.manual_seed(seed)
            sae = _new(subject, kind, where, latents, k, chosen)
            say(f"{type(sae).__name__} of {sae.config.num_latents} latents at {where}, on {tokens:,} tokens")
            stream = collect_activations(
                subject.model,
                subject.tokenizer,
                kept,
                where,
                batch_size=batch,
                context_length=context_length,
                window_tokens=min(65_536, max(tokens // 4, batch)),
                text_column=text_column,
                **excluding.arguments(),
                normalize=True,
                seed=seed,
            )
            training: dict[str, Any] = {"steps": max(tokens // batch, 1), "learning_rate": learning_rate, "seed": seed}
            run = None
            if (kept_in := part_of("training")) is not None:
                reader = Sequences(
                    subject.tokenizer, kept, text_column=text_column, context_length=context_length, packed=True
                )
                run = run_of(
                    "sae train",
                    kept_in,
                    subject.model,
                    sae,
                    text_sha256=_digest_of_rows(kept),
                    tokens_sha256=digest_of_sequences(line for some in reader.forwards(8, tokens) for line in some),
                    stream=stream.state_dict()["settings"],
                    **training,
                )
            sae = _trained(sae, stream, run, **training)
            say("measuring the SAE on held-out text")
            report = evaluate_sae(
                subject.model,
                sae,
                held_out,
                subject.tokenizer,
                max_tokens=evaluation_tokens,
                context_length=context_length,
                text_column=text_column,
                **excluding.arguments(),
                run_folder=part_of("evaluation"),
            )
            sae.save_pretrained(folder)
            report.save_pretrained(folder)
            note = dead_note(report, sae.config, training["steps"] * batch)
            made = provenance_of(context, subject, seed, text=text, **{"tokens trained on": f"{tokens:,}"})
            spliced = splice_arguments(
                subject.model,
                sae,
                kept,
                tokenizer=subject.tokenizer,
                context_length=max(context_length, 2),
                text_column=text_column,
                **excluding.arguments(),
            )
            (folder / "README.md").write_text(_card(sae, report, made, spliced), encoding="utf-8")
        for name, value in report.rows():
            tell(f"{name}: {value}")
        if note is not None:
            tell(note)
        tell(f"SAE, report and card: {output}")


def held_out_of(source: str, texts: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return the texts to train on, and a tenth that is held out.

    Args:
        source (`str`): Where they come from, for the error.
        texts (`list`): The texts, shuffled.

    Raises:
        [`DataError`]: if there are fewer than ten.
    """
    held_out = texts[_HELD_OUT - 1 :: _HELD_OUT]
    if not held_out:
        cut = how_cut(source)
        fix = "Give more texts." if cut is None else f"Give more text, or JSON lines, a text each: {cut}."
        raise DataError(source, "is too short to hold some out", got=f"{len(texts)} texts", expected="10", fix=fix)
    return [entry for place, entry in enumerate(texts) if (place + 1) % _HELD_OUT], held_out


def default_hookpoint(model: nn.Module) -> str:
    """Return the output of a decoder's middle layer.

    Raises:
        [`ConfigError`]: if no list of layers is found.
    """
    from torch import nn

    lists = {path: len(part) for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part)}
    outer = {path: n for path, n in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if not outer:
        fix = "Give --hookpoint, such as model.layers.10.output."
        raise ConfigError("--hookpoint", "this model has no list of layers", fix=fix)
    path = max(outer, key=lambda name: outer[name])
    return f"{path}.{outer[path] // 2}.output"


def fitting(model: nn.Module, context_length: int) -> int:
    """Return the context length, or the model's own if that is shorter."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(context_length, longest) if isinstance(longest, int) and longest > 0 else context_length


def _point(model: nn.Module, hookpoint: str | None) -> Hookpoint:
    """Return the one place that a hookpoint stands for, by default [`default_hookpoint`]."""
    from hf_mote.sae.hookpoints import resolve_hookpoints

    where = hookpoint or default_hookpoint(model)
    points = resolve_hookpoints(model, where, where="--hookpoint")
    if len(points) != 1:
        raise ConfigError("--hookpoint", "stands for several modules", got=repr(where), expected="one")
    return points[0]


def _new(
    subject: Subject, kind: str, where: str, latents: int | None, k: int | None, chosen: dict[str, Any]
) -> SAEModel:
    """Return a new SAE for the output of a module."""
    import torch

    from hf_mote.sae.register import sae_class
    from hf_mote.sae.tapped import activations_of

    point = _point(subject.model, where)
    one = torch.zeros(1, 1, dtype=torch.long)
    width = activations_of(subject.model, one, torch.ones_like(one), [point])[point.name].shape[-1]
    config_class = sae_class(kind).config_class
    fields: dict[str, Any] = {
        "hidden_size": width,
        "num_latents": latents or 8 * width,
        "hookpoint": point.name if "." not in where else where,
        "base_model": public_name(subject.model.config.name_or_path or subject.name),
    }
    if hasattr(config_class, "k"):
        fields["k"] = k or min(max(width // 16, 4), 32)
        if fields["k"] > fields["num_latents"]:
            fix = "Give a smaller --k, or more --latents."
            raise ConfigError(
                "--k", "must be at most --latents", got=f"{fields['k']} of {fields['num_latents']}", fix=fix
            )
    return sae_class(kind)(config_class(**fields, **chosen))


def field_of(entry: str) -> tuple[str, Any]:
    """Return the field and the value of one `--option`.

    Args:
        entry (`str`): The value of the option, such as "l1_coefficient=0.01".

    Raises:
        [`ConfigError`]: if it is not a name and a value.
    """
    name, equals, value = entry.partition("=")
    if not equals or not name.isidentifier():
        raise ConfigError("--option", "must be a name and a value", got=repr(entry), expected="l1_coefficient=0.01")
    words = {"true": True, "false": False, "none": None}
    if value in words:
        return name, words[value]
    try:
        return name, int(value) if re.fullmatch(r"-?\d+", value) else float(value)
    except ValueError:
        return name, value


def _some_steps(sae: SAEModel, stream: ActivationStream) -> None:
    """Train for some steps."""
    import torch

    sae.train()
    adam = torch.optim.Adam(sae.parameters())
    for record in islice(stream, _TIMED):
        loss = sae(**{name: record[name] for name in ("activations", "targets") if name in record}).loss
        if loss is not None:
            loss.backward()
            adam.step()
            adam.zero_grad()


def _trained(sae: SAEModel, stream: ActivationStream, run: RunFolder | None, **training: Any) -> SAEModel:
    """Return the trained SAE, from the run folder if it is kept there."""
    if run is None:
        with tempfile.TemporaryDirectory() as scratch:
            _train(sae, stream, scratch, None, **training)
        return sae
    from hf_mote.runs.checkpoints import Checkpoints

    checkpoints = Checkpoints(run)
    record = run.read(_TRAINED)
    if record is None:
        with checkpoints.training():
            _train(sae, stream, str(run.path), checkpoints, **training)
            run.write(_TRAINED, sae.state_dict(), {"config": json.loads(sae.config.to_json_string())})
        record = run.read(_TRAINED)
    checkpoints.remove()
    # Always from the record, because `Trainer` leaves its own settings in the config of a model that it has trained.
    return _of_record(sae, run, record)


def _of_record(sae: SAEModel, run: RunFolder, record: Record | None) -> SAEModel:
    """Return the SAE of a record, in the class of `sae`."""
    from torch import nn

    if record is None:
        raise run.damaged(_TRAINED, "no such file")
    try:
        # Training folds scales into the weights and removes them from the config.
        made = type(sae)(type(sae.config).from_dict(record.notes["config"]))
        nn.Module.to(made, device=sae.W_dec.device, dtype=sae.W_dec.dtype)
        made.load_state_dict(record.tensors)
    except (HFMoTEError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise run.damaged(_TRAINED, first_line(error)) from error
    made.train(False)
    return made


def _train(
    sae: SAEModel,
    stream: ActivationStream,
    folder: str,
    checkpoints: Checkpoints | None,
    *,
    steps: int,
    learning_rate: float,
    seed: int,
) -> None:
    from hf_mote.sae.training.progress import TrainingProgress
    from hf_mote.sae.training.trainer import SAETrainer, SAETrainingArguments
    from hf_mote.sae.variants.bases.thresholded import ThresholdedSAEModel

    arguments = SAETrainingArguments(
        folder,
        max_steps=steps,
        learning_rate=learning_rate,
        warmup_steps=min(steps // 10, 1000),
        save_strategy="no",
        logging_steps=-(-steps // 10),
        report_to=[],
        seed=seed,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    trainer = SAETrainer(sae, arguments, train_dataset=stream)
    with TrainingProgress(say).of(trainer):
        if checkpoints is None:
            trainer.train()
        else:
            checkpoints.train(trainer)
    sae.train(False)
    if isinstance(sae, ThresholdedSAEModel):
        batches = -(-_CALIBRATION_TOKENS // stream.batch_size)
        sae.calibrate_threshold(islice(stream.from_start(), batches))


def _digest_of_rows(rows: list[Any]) -> str:
    """Return a SHA-256 of texts, or of rows of columns."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return digest.hexdigest()


def _card(sae: SAEModel, report: SAEReport, made: Mapping[str, str], spliced: Mapping[str, Any]) -> str:
    config = sae.config
    rows = "\n".join(f"| {name} | {value} |" for name, value in report.rows())
    how = "\n".join(f"- {name}: {value}" for name, value in made.items())
    return (
        f"{card_header(base_model=config.base_model, about='sparse-autoencoder')}\n# Sparse autoencoder\n\n"
        f"A `{config.model_type}` of {config.num_latents:,} latents for `{config.hookpoint}` of "
        f"`{config.base_model}`. To load it:\n\n```python\nimport hf_mote\nfrom transformers import AutoModel\n\n"
        'sae = AutoModel.from_pretrained("<this repository or folder>").eval()\n'
        f"handle = hf_mote.steer(model, sae, {{0: 5.0}})\n```\n\n"
        "Or, with reconstructions in the place of activations but where it was trained without them:\n\n"
        f"```python\nhandle = {splice_call(spliced)}\n```\n\n"
        f"## On held-out text\n\n| | |\n| --- | --: |\n{rows}\n\n## How it was made\n\n{how}\n"
    )
