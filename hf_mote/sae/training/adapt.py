"""`adapt_to_sae`: trains a LoRA (a PEFT adapter) that compensates the loss of a model with its SAE spliced in.

Source: Chen, Engels and Tegmark, "Low-Rank Adapting Models for Sparse Autoencoders" (arXiv 2501.19406): the SAE and
the model stay frozen, and adapters in the layers after the SAE bring the predictions back to the plain model's.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments

from hf_mote.errors import ConfigError, DataError, UnsupportedError, real, whole
from hf_mote.hooks import Intervention
from hf_mote.runs.checkpoints import Checkpoints
from hf_mote.runs.folder import Record, RunFolder
from hf_mote.runs.identity import plain
from hf_mote.sae.hookpoints import Hookpoint
from hf_mote.sae.intervene import sites_of, splice_sae, unwrapped
from hf_mote.sae.kept import digest_of_sequences, run_of
from hf_mote.sae.left_out import LeftOut, norm_limit_of
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.spliced import divergences, frozen, in_evaluation_mode
from hf_mote.sae.training.sequences import NoTokenizer, Sequences, batch_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

__all__ = ["adapt_to_sae", "lora_after", "splice_arguments"]

_ADAPTER = "adapter"  # the record of what was trained
_IGNORED = -100  # as the labels of transformers have it
# The sequences by whose median long activations are recognised, and how many of them run together.
_MEASURED, _TOGETHER = 64, 8


def adapt_to_sae(
    model: PreTrainedModel,
    sae: SAEModel,
    dataset: Iterable[Any],
    peft_config: PeftConfig | None = None,
    *,
    tokenizer: Any = None,
    hookpoint: str | None = None,
    arguments: TrainingArguments | None = None,
    max_tokens: int = 200_000,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    context_length: int = 256,
    text_column: str = "text",
    packed: bool = True,
    exclude_special_tokens: bool = True,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
    seed: int = 0,
    run_folder: str | os.PathLike[str] | None = None,
) -> PeftModel:
    """Train a PEFT adapter of a model with an SAE spliced in, towards the predictions of the plain model.

    The loss is the KL divergence of the predictions with SAE and adapter from the plain model's. The weights of the
    model and the SAE do not change, bit for bit. The adapter belongs to the SAE: without it, switch it off.

    The model's own activation stays where a token is left out. Leave out what the SAE was trained without, and the
    same again in [`evaluate_sae`] and [`splice_sae`]: [`splice_arguments`] returns it as the latter takes it.

    Args:
        model (`PreTrainedModel`): A causal language model; the adapter is put into it, as `get_peft_model` does.
        sae ([`SAEModel`]): In evaluation mode.
        dataset (`Iterable`): Texts, or rows of columns, as in [`collect_activations`].
        peft_config (`PeftConfig`, *optional*):
            As `get_peft_model` takes it; by default [`lora_after`]. Adapters before the SAE change its input.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed unless rows hold `"input_ids"`.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        arguments (`TrainingArguments`, *optional*):
            Of the `Trainer`, instead of `max_tokens`, `batch_size`, `learning_rate` and `seed`.
        max_tokens (`int`, *optional*, defaults to 200,000): Tokens to train on; a shorter text is read again.
        batch_size (`int`, *optional*, defaults to 8): Sequences of a step.
        learning_rate (`float`, *optional*, defaults to 1e-3): Of AdamW, falling to 0.
        context_length (`int`, *optional*, defaults to 256): Most tokens of a sequence.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        packed (`bool`, *optional*, defaults to `True`): Whether texts follow each other in full contexts.
        exclude_special_tokens (`bool`, *optional*, defaults to `True`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence, as in [`collect_activations`].
        max_norm (`float`, *optional*):
            Leave out tokens whose input is longer than so many times the median of the first 64 sequences.
        seed (`int`, *optional*, defaults to 0): Of the adapter's start and the order of the text.
        run_folder (`str` or `os.PathLike`, *optional*):
            Where the Trainer's last checkpoint is kept, and at the end the adapter, so that a stopped run continues
            with exactly the same result; see [`Checkpoints`] for how often, and for Ctrl-C. A folder of another model,
            SAE, text or other settings is refused. Not with `arguments`, which name a folder of their own.

    Returns:
        `PeftModel`, in evaluation mode, the adapter on and the SAE no longer spliced in. `save_pretrained` and
        `push_to_hub` share the adapter alone; `evaluate_sae(..., with_adapter=True)` measures both together.

    Raises:
        [`ConfigError`]: if an argument is out of range, or no module comes after the SAE.
        [`DataError`]: if the text has no tokens.
        [`UnsupportedError`]: if the model has an adapter already; with a run folder, if something is attached to it
            that cannot be compared with a later run's.
        [`ModelMismatchError`]: if the run folder is that of another run.
        [`FileFormatError`]: if what was kept is damaged, or cannot be written.

    If it fails, the model is unchanged.

    Example:

    ```python
    from transformers import GPT2Config, GPT2LMHeadModel
    from hf_mote import TopKSAEConfig, TopKSAEModel, adapt_to_sae

    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)).eval()
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4, hookpoint="transformer.h.0")).eval()
    rows = [{"input_ids": list(range(i, i + 20))} for i in range(20)]
    adapted = adapt_to_sae(model, sae, rows, max_tokens=400, context_length=20)
    adapted.save_pretrained("adapter")
    ```

    Source: arXiv 2501.19406, section 3. What differs: the default rank and learning rate are ours.
    """
    from peft import get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    where = "adapt_to_sae"
    whole(f"{where}.max_tokens", max_tokens, least=1)
    whole(f"{where}.batch_size", batch_size, least=1)
    whole(f"{where}.context_length", context_length, least=2)
    # transformers seeds numpy, too, if the arguments are made here.
    whole(f"{where}.seed", seed, most=2**32 - 1 if arguments is None else 2**64 - 1)
    real(f"{where}.learning_rate", learning_rate, above=0)
    if hasattr(model, "peft_config") or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        fix = "Give the plain model, or merge its adapter first: model.merge_and_unload()."
        raise UnsupportedError(f"{where}.model", "has an adapter already", fix=fix)
    reads, writes = sites_of(model, sae, hookpoint, where)
    left_out = LeftOut.of(
        where, tokenizer, special=exclude_special_tokens, positions=exclude_positions, max_norm=max_norm
    )
    least = 0 if max_norm is None else _MEASURED
    rows, first = _rows(tokenizer, dataset, text_column, context_length, packed, max_tokens, least)
    peft_config = lora_after(model, writes) if peft_config is None else peft_config
    steps = max(1, round(max_tokens / sum(map(len, rows)) * len(rows) / batch_size))
    run: RunFolder | None = None
    if run_folder is not None:
        if arguments is not None:
            fix = "Leave one of the two out."
            raise ConfigError(f"{where}.run_folder", "does not go with arguments", got=str(run_folder), fix=fix)
        run = run_of(
            where,
            run_folder,
            model,
            sae,
            hookpoints=[reads.name, writes.name],
            text_sha256=digest_of_sequences(rows),
            peft_config=plain(f"{where}.peft_config", peft_config.to_dict()),
            left_out=left_out.identity(),
            measured_sha256=digest_of_sequences(first),
            steps=steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
    done = None if run is None else run.read(_ADAPTER)
    spliced = _splice_arguments(model, reads, first, left_out, exclude_positions) if done is None else {}
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    was_training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # Attributes that PEFT reads and newer transformers have renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
        # Patterns that PEFT adds itself for fused experts, and that match nothing where a family has none of them.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        try:
            adapted: Any = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ConfigError(f"{where}.peft_config", "does not fit the model", got=str(error)[:200]) from error
    try:
        if run is not None and done is not None:
            _load(adapted, run, done)
            Checkpoints(run).remove()
        else:
            with frozen(sae), splice_sae(model, sae, hookpoint=hookpoint, **spliced) as splice:
                chosen = arguments is None
                with nullcontext(str(run.path)) if run is not None else tempfile.TemporaryDirectory() as to:
                    if arguments is None:
                        arguments = TrainingArguments(
                            to,
                            max_steps=steps,
                            per_device_train_batch_size=batch_size,
                            learning_rate=learning_rate,
                            save_strategy="no",
                            report_to=[],
                            seed=seed,
                            logging_steps=20,
                            use_cpu=model.device.type == "cpu",
                            dataloader_pin_memory=False,
                            disable_tqdm=True,
                            remove_unused_columns=False,
                        )
                    trainer = _AdaptTrainer(adapted, arguments, rows, splice)
                    if chosen:  # no logging was requested
                        trainer.remove_callback(PrinterCallback)
                    _train(trainer, adapted, run)
    except BaseException:
        adapted.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad = required[name]
        for module in was_training:
            module.training = True
        if hasattr(model, "peft_config"):
            del model.peft_config
        raise
    modules = getattr(peft_config, "target_modules", None)
    if isinstance(modules, set):  # whose order, and so that of the file, would be another in each process
        peft_config.target_modules = sorted(modules)  # type: ignore[attr-defined]
    made: PeftModel = adapted.eval()
    return made


def splice_arguments(
    model: nn.Module,
    sae: SAEModel,
    dataset: Iterable[Any],
    *,
    tokenizer: Any = None,
    hookpoint: str | None = None,
    context_length: int = 256,
    text_column: str = "text",
    packed: bool = True,
    exclude_special_tokens: bool = True,
    exclude_positions: str | None = None,
    max_norm: float | None = None,
) -> dict[str, Any]:
    """Return what [`splice_sae`] leaves out where [`adapt_to_sae`] with the same arguments does.

    Args:
        model (`nn.Module`): The model, without its adapter or with it switched off.
        sae ([`SAEModel`]): The SAE.
        dataset (`Iterable`): As for [`adapt_to_sae`]; with `max_norm`, 64 of its sequences are read.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): As there, and so are the others.
        hookpoint (`str`, *optional*): Where the SAE belongs; by default its `config.hookpoint`.
        context_length (`int`, *optional*, defaults to 256): Most tokens of a sequence.
        text_column (`str`, *optional*, defaults to `"text"`): Where a row has its text.
        packed (`bool`, *optional*, defaults to `True`): Whether texts follow each other in full contexts.
        exclude_special_tokens (`bool`, *optional*, defaults to `True`): Leave out the tokenizer's special tokens.
        exclude_positions (`str`, *optional*): Leave out positions of each sequence.
        max_norm (`float`, *optional*): Leave out tokens whose input is longer than so many times the median.

    Returns:
        `dict`: `exclude_tokens`, `exclude_positions` and `norm_limit`.

    Raises:
        [`ConfigError`]: if an argument is out of range.
        [`DataError`]: if no token is left whose length could be measured.
    """
    where = "splice_arguments"
    whole(f"{where}.context_length", context_length, least=2)
    left_out = LeftOut.of(
        where, tokenizer, special=exclude_special_tokens, positions=exclude_positions, max_norm=max_norm
    )
    reads, _ = sites_of(unwrapped(model), sae, hookpoint, where)
    rows = [] if max_norm is None else _rows(tokenizer, dataset, text_column, context_length, packed, 1, _MEASURED)[1]
    return _splice_arguments(unwrapped(model), reads, rows, left_out, exclude_positions)


def _splice_arguments(
    model: nn.Module, reads: Hookpoint, rows: list[list[int]], left_out: LeftOut, exclude_positions: str | None
) -> dict[str, Any]:
    measured = (rows[start : start + _TOGETHER] for start in range(0, len(rows), _TOGETHER))
    return {
        "exclude_tokens": list(left_out.special),
        "exclude_positions": exclude_positions,
        "norm_limit": norm_limit_of(model, reads, measured, left_out),
    }


def _train(trainer: Trainer, adapted: Any, run: RunFolder | None) -> None:
    """Train from the last checkpoint of a run folder on, and keep the adapter there at the end."""
    from peft import get_peft_model_state_dict

    if run is None:
        trainer.train()
        return
    checkpoints = Checkpoints(run)
    with checkpoints.training():
        checkpoints.train(trainer)
        run.write(_ADAPTER, get_peft_model_state_dict(adapted))
    checkpoints.remove()


def _load(adapted: Any, run: RunFolder, record: Record) -> None:
    """Give a model the trained adapter of a record."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = {key: (tensor.shape, tensor.dtype) for key, tensor in get_peft_model_state_dict(adapted).items()}
    if own != {key: (tensor.shape, tensor.dtype) for key, tensor in record.tensors.items()}:
        raise run.damaged(_ADAPTER, "another adapter's tensors")
    set_peft_model_state_dict(adapted, record.tensors)


def lora_after(model: nn.Module, point: Hookpoint, *, rank: int = 16) -> PeftConfig:
    """Return a LoRA config for all linear modules of the layers after a hookpoint's own.

    Args:
        model (`nn.Module`): The model.
        point (`Hookpoint`): Where the SAE writes, in a layer of a list of layers.
        rank (`int`, *optional*, defaults to 16): Of the adapters; their scale is 2.

    Raises:
        [`ConfigError`]: if the hookpoint is in no list of layers, or none of them comes after it.
    """
    from peft import LoraConfig, TaskType

    whole("lora_after.rank", rank, least=1)
    parts = point.path.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdecimal()]
    found: list[str] = []
    turned: set[bool] = set()  # whether a module holds its weight as (in, out), as the Conv1D of transformers does
    if numbers:
        before, own = ".".join(parts[: numbers[0]]), int(parts[numbers[0]])
        for path, module in model.named_modules():
            rest = path.removeprefix(f"{before}.").split(".")
            later = path.startswith(f"{before}.") and rest[0].isdecimal() and int(rest[0]) > own
            if later and _is_linear(module):
                found.append(path)
                turned.add(not hasattr(module, "in_features"))
    if not found:
        fix = "Give a peft_config of your own."
        raise ConfigError("adapt_to_sae.peft_config", "no linear module comes after the SAE", got=point.name, fix=fix)
    return LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=2 * rank,
        target_modules=found,
        fan_in_fan_out=turned == {True},
    )


class _AdaptTrainer(Trainer):
    """Trains the adapter, which alone has gradients."""

    def __init__(self, model: Any, arguments: TrainingArguments, rows: list[list[int]], splice: Intervention) -> None:
        self._splice = splice
        super().__init__(
            model,
            arguments,
            data_collator=_collated,
            train_dataset=rows,
        )
        self.model_accepts_loss_kwargs = True  # the loss is divided by the tokens of a whole step

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the divergence from the plain model, summed over tokens and divided by those of the step."""
        scored = inputs["labels"][:, 1:] != _IGNORED
        given = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        own: Any = self.accelerator.unwrap_model(model)
        try:
            self._splice.active = False
            with in_evaluation_mode(model), torch.no_grad(), own.disable_adapter():
                plain = model(**given, use_cache=False).logits
        finally:
            self._splice.active = True
        output = model(**given, use_cache=False)
        lost = divergences(plain.float(), output.logits.float())[scored]
        count = scored.sum() if num_items_in_batch is None else num_items_in_batch
        loss = lost.sum() / count
        return (loss, output) if return_outputs else loss


def _collated(rows: list[list[int]]) -> dict[str, Tensor]:
    ids, mask = batch_of(rows)
    labels = ids.masked_fill(mask == 0, _IGNORED)
    labels[:, 0] = _IGNORED  # nothing predicts it
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _rows(
    tokenizer: Any,
    dataset: Iterable[Any],
    text_column: str,
    context_length: int,
    packed: bool,
    max_tokens: int,
    least: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """The sequences to train on, of two tokens or more, and the first `least`, of which there may be more."""
    tokenizer = NoTokenizer("adapt_to_sae") if tokenizer is None else tokenizer
    rows: list[list[int]] = []
    first: list[list[int]] = []
    read = 0
    reader = Sequences(tokenizer, dataset, text_column=text_column, context_length=context_length, packed=packed)
    for sequence in reader:
        if len(sequence) > 1:
            if len(first) < least:
                first.append(sequence)
            if read < max_tokens:
                rows.append(sequence)
                read += len(sequence)
        if read >= max_tokens and len(first) >= least:
            break
    if not rows:
        raise DataError("adapt_to_sae.dataset", "has no token to train on", fix="Give more text.")
    return rows, first


def _is_linear(module: nn.Module) -> bool:
    """Whether it is one of the two kinds of linear modules that LoRA supports."""
    weight = getattr(module, "weight", None)
    sized = hasattr(module, "in_features") or hasattr(module, "nf")
    return sized and isinstance(weight, Tensor) and weight.ndim == 2 and not list(module.children())
