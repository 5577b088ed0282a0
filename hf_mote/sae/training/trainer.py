"""`SAETrainer`: a transformers `Trainer` for sparse autoencoders.

It adds: the start of a new SAE, unit rows after each step with the gradient along them removed, weight decay on
matrices only, schedules, and steps with the same result as one batch, in micro-batches or in several processes
(`hf_mote.sae.step`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput
from transformers.utils import logging

from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.files import read_tensors, write_tensors
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.step import TrainingStep, summed
from hf_mote.sae.training.activations import ActivationStream, scales_for
from hf_mote.sae.training.arguments import SAETrainingArguments
from hf_mote.sae.training.end_to_end import EndToEnd
from hf_mote.sae.training.group import OF_THE_TEXT, SAEGroup, named, record_for
from hf_mote.sae.training.last_checkpoint import last_complete, state_in
from hf_mote.sae.training.start import fit_start, is_new
from hf_mote.sae.training.step_parts import drop_parallel, joined, step_of

__all__ = ["SAETrainer", "SAETrainingArguments"]

_logger = logging.get_logger(__name__)
_STREAM = "activation_stream"


class SAETrainer(Trainer):
    """Trains one SAE, or several on the same activations.

    A step is the same whether its tokens come in one batch, by accumulation or from several processes: losses divide
    by the whole step, dead latents, densities and thresholds are those of all processes, and architectures that choose
    across tokens choose among all of them. For these, accumulated micro-batches are held until the step is complete
    and run as one batch, of which only the chosen entries are kept.

    Args:
        model ([`SAEModel`] or `Mapping[str, SAEModel]`):
            The SAE; or several by name, each trained as it would be alone. With activations of several
            hookpoints, each SAE gets those of its `config.hookpoint`.
        args ([`SAETrainingArguments`]): How to train.
        train_dataset ([`ActivationStream`] or dataset):
            A stream from [`collect_activations`], or tokens: items with `"activations"`, for transcoders `"targets"`.
        eval_dataset (*optional*): The same, for evaluation.
        kwargs: Further arguments of `transformers.Trainer`.

    Raises:
        [`ConfigError`]: if an argument does not fit the SAE.
        [`UnsupportedError`]: with FSDP, DeepSpeed or DataParallel.

    Example:

    ```python
    import torch
    from hf_mote import SAETrainer, SAETrainingArguments, TopKSAEConfig, TopKSAEModel

    tokens = [{"activations": row} for row in torch.randn(512, 16) + 3]
    sae = TopKSAEModel(TopKSAEConfig(hidden_size=16, num_latents=64, k=4))
    args = SAETrainingArguments("sae", per_device_train_batch_size=64, use_cpu=True, disable_tqdm=True)
    SAETrainer(sae, args, train_dataset=tokens).train()
    sae.save_pretrained("my-sae")
    ```
    """

    args: SAETrainingArguments

    def __init__(
        self,
        model: SAEModel | Mapping[str, SAEModel] | None = None,
        args: SAETrainingArguments | None = None,
        **kwargs: Any,
    ) -> None:
        args = SAETrainingArguments() if args is None else args
        if not isinstance(args, SAETrainingArguments):
            raise ConfigError("args", "of another trainer", got=type(args).__name__, expected="SAETrainingArguments")
        module = SAEGroup(model) if isinstance(model, Mapping) else model
        stream = kwargs.get("train_dataset")
        if isinstance(stream, ActivationStream):
            args.per_device_train_batch_size = stream.batch_size
        end_to_end: EndToEnd | None = None
        if args.ce_coefficient or args.kl_coefficient:
            if not isinstance(stream, ActivationStream) or not stream.whole_sequences:
                raise ConfigError(
                    "SAETrainer.train_dataset",
                    "has not the token ids that end-to-end losses need",
                    got=type(stream).__name__,
                    expected="collect_activations(..., whole_sequences=True)",
                )
            end_to_end = EndToEnd(stream, args.ce_coefficient, args.kl_coefficient)
        super().__init__(module, args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise UnsupportedError(
                "SAETrainer",
                "sharded parameters: rows of unit length, thresholds and dead latents need whole tensors",
                got="FSDP" if self.is_fsdp_enabled else "DeepSpeed",
                fix="Launch it with accelerate's data parallelism (MULTI_GPU or MULTI_CPU).",
            )
        if self.args.n_gpu > 1:
            raise UnsupportedError(
                "SAETrainer",
                "DataParallel keeps what is counted and followed on copies that are thrown away",
                got=f"{self.args.n_gpu} devices in one process",
                fix="Launch it with accelerate, one process for each device, or show it one by CUDA_VISIBLE_DEVICES.",
            )
        if isinstance(stream, ActivationStream) and stream.normalization == "per_dimension":
            for name, sae in self.saes.items():
                if sae._measures_rows:
                    raise ConfigError(
                        f"{name or type(sae).__name__}: config.scale_latents_by_decoder_norm",
                        "does not go with activations normalised per dimension, whose scales are folded into the rows",
                        fix="Set it to False, or collect with normalize='mean_square'.",
                    )
        self._end_to_end = end_to_end
        self._predictions = 0
        # Losses are divided by the whole step already. Earlier transformers divide once more.
        self._divides_again = not hasattr(Trainer, "loss_is_scaled_for_ga")
        self.loss_is_scaled_for_ga = True
        self._steps: dict[str, TrainingStep] = {}
        self._last_k = {name: getattr(sae.config, "k", None) for name, sae in self.saes.items()}
        self._seen: dict[str, Tensor] = {}
        self._seen_steps = 0
        self._evaluated: dict[str, dict[str, Tensor]] = {}
        if args.k_start is not None:
            for name, last in self._last_k.items():
                if last is None:
                    raise ConfigError(f"k_start: {name or 'the SAE'}", "has no k", fix="Leave k_start out.")
        self.add_callback(_Dictionaries(self))

    @property
    def saes(self) -> dict[str, SAEModel]:
        """The SAEs by name; a single one under the empty name."""
        assert self.model is not None
        return named(self.model)

    # Data.

    def get_train_dataloader(self) -> Any:
        """Return an iterable of micro-batches."""
        if isinstance(self.train_dataset, ActivationStream):
            return self._stream_loader(self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return an iterable of batches for evaluation."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str) and isinstance(self.eval_dataset, Mapping):
            dataset = self.eval_dataset[dataset]
        if isinstance(dataset, ActivationStream):
            trained_on = self.train_dataset
            twin = dataset.scaled_as(trained_on) if isinstance(trained_on, ActivationStream) else dataset.from_start()
            return self._stream_loader(twin)
        return super().get_eval_dataloader(eval_dataset)

    def _stream_loader(self, stream: ActivationStream) -> Any:
        stream.take_share(self.args.process_index, self.args.world_size)
        return DataLoader(stream, batch_size=None)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: Any
    ) -> tuple[list[Any], None]:
        """Take the micro-batches of a step, and compute the divisors of its losses."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(self._prepare_inputs(next(epoch_iterator)))
            except StopIteration:
                break
        self._check_together(len(batches))
        if not batches:
            return [], None
        self._set_schedules()
        if len(batches) > 1 and any(sae._sparse_training for sae in self.saes.values()):
            batches = [joined(batches)]
        warm = self.args.sparsity_steps
        self._steps = {
            name: step_of(
                sae,
                name,
                batches,
                shared=self.args.world_size > 1,
                choose_globally=self.args.choice == "global",
                sparsity=min((self.state.global_step + 1) / warm, 1.0) if warm else 1.0,
            )
            for name, sae in self.saes.items()
        }
        if self._end_to_end is not None:
            count = torch.tensor(sum(map(self._end_to_end.num_predictions, batches)), device=self.args.device)
            self._predictions = int(summed(count) if self.args.world_size > 1 else count)
        # The Trainer counts micro-batches: those that were joined, or are missing at the end of a stream, are empty.
        return [{}] * (num_batches - len(batches)) + batches, None

    def _check_together(self, num_batches: int) -> None:
        if self.args.world_size > 1:
            counts = [torch.zeros(1, dtype=torch.long, device=self.args.device) for _ in range(self.args.world_size)]
            distributed.all_gather(counts, torch.tensor([num_batches], device=self.args.device))
            if len({int(count) for count in counts}) > 1:
                raise UnsupportedError(
                    "train_dataset",
                    "does not give every process as many micro-batches",
                    got=", ".join(str(int(count)) for count in counts),
                    fix="Set max_steps, or max_tokens of the stream, so that none runs out of text before the others.",
                )

    def _set_schedules(self) -> None:
        start, steps = self.args.k_start, self.args.k_steps
        if start is None:
            return
        for name, sae in self.saes.items():
            last = self._last_k[name]
            assert last is not None
            done = min(self.state.global_step / steps, 1.0)
            sae.config.k = round(start + (last - start) * done)
            sae.config.check()

    # Steps.

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Run one micro-batch, forward and backward."""
        if not inputs:
            return torch.zeros((), device=self.args.device)
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for sae in self.saes.values():
                drop_parallel(sae)
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the loss of a micro-batch: its part of the step's, in training."""
        for_saes = {key: value for key, value in inputs.items() if key not in OF_THE_TEXT}
        if not model.training:
            outputs = model(**for_saes)
            self._add_to_evaluation(inputs, outputs)
            loss = outputs["loss"]
            return (loss, outputs) if return_outputs else loss
        if isinstance(self.model, SAEGroup):
            outputs = model(**for_saes, steps=self._steps)
            found = outputs["outputs"]
        else:
            outputs = model(**for_saes, step=self._steps[""])
            found = {"": outputs}
        self._take_note(found)
        loss = outputs["loss"]
        if self._end_to_end is not None:
            for name, output in found.items():
                further = self._end_to_end(output["reconstruction"], inputs, self._predictions)
                loss = loss + further.loss.to(loss.device)
                self._add_to_log(name, {"ce": further.ce, "kl": further.kl})
        # Gradients and logged losses are averaged over processes, and the parts add up.
        loss = loss * self.args.world_size
        if self._divides_again:
            loss = loss * self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip the gradient, that of each SAE by itself."""
        if not isinstance(self.model, SAEGroup):
            return super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        limit = self.args.max_grad_norm
        norms = [self.accelerator.clip_grad_norm_(sae.parameters(), limit) for sae in self.saes.values()]
        return torch.stack([torch.as_tensor(norm) for norm in norms]).max()

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of the parameters with weight decay: matrices, not biases, scales and thresholds."""
        return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2]

    def _take_note(self, outputs: Mapping[str, Any]) -> None:
        fields = ("fvu", "mse", "l0", "sparsity_loss", "aux_loss")
        for name, output in outputs.items():
            self._add_to_log(name, {field: getattr(output, field) for field in fields})

    def _add_to_log(self, name: str, values: Mapping[str, Tensor | None]) -> None:
        for field, value in values.items():
            if value is not None:
                key = f"{name}/{field}" if name else field
                self._seen[key] = self._seen.get(key, 0) + value.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with FVU, L0 and the other parts of the loss beside it: means over the steps since the last time."""
        if "loss" in logs and self._seen:
            steps = max(self.state.global_step - self._seen_steps, 1)
            for key, value in self._seen.items():
                value = summed(value) if self.args.world_size > 1 else value
                logs[key] = float(value) / steps
            for name, sae in self.saes.items():
                dead = float(sae.dead_latents().float().mean())
                logs[f"{name}/dead_fraction" if name else "dead_fraction"] = dead
            self._seen, self._seen_steps = {}, self.state.global_step
        super().log(logs, start_time)

    # Evaluation.

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate: FVU, MSE and L0 of all tokens together, not means over batches."""
        self._evaluated = {}
        found: EvalLoopOutput = super().evaluation_loop(*args, **kwargs)
        prefix, metrics = kwargs.get("metric_key_prefix", "eval"), dict(found.metrics or {})
        saes = self.saes
        losses = []
        for name, sums in self._evaluated.items():
            if self.args.world_size > 1:
                sums = {key: summed(value) for key, value in sums.items()}
            count = float(sums["count"])
            variance = float(sums["squares"].sum() - sums["sum"].pow(2).sum() / max(count, 1))
            measured = {
                "fvu": float(sums["error"]) / variance if variance > 0 else float("nan"),
                "mse": float(sums["error"]) / max(count, 1) / sums["sum"].numel(),
                "l0": float(sums["active"]) / max(count, 1),
            }
            losses.append(measured[saes[name].config.reconstruction_loss])
            for key, value in measured.items():
                metrics[f"{prefix}_{name}/{key}" if name else f"{prefix}_{key}"] = value
        if losses:
            metrics[f"{prefix}_loss"] = sum(losses)
        return found._replace(metrics=metrics)

    @torch.no_grad()
    def _add_to_evaluation(self, inputs: Mapping[str, Any], outputs: Any) -> None:
        several = outputs["outputs"] if isinstance(self.model, SAEGroup) else {"": outputs}
        for name, output in several.items():
            sae = self.saes[name]
            record = record_for(sae, inputs, name)
            mask = record.get("attention_mask")
            tokens = sae._tokens(record["activations"], mask)
            target = sae._target(record.get("targets"), mask, tokens)
            if target is None:
                continue
            rebuilt = output["reconstruction"].reshape(target.shape)
            valid = slice(None) if tokens.valid is None else tokens.valid
            target, rebuilt = target[valid].double(), rebuilt[valid].double()
            sums = self._evaluated.setdefault(name, {})
            for key, value in (
                ("count", target.new_tensor(float(len(target)))),
                ("error", (target - rebuilt).pow(2).sum()),
                ("sum", target.sum(0)),
                ("squares", target.pow(2).sum(0)),
                ("active", output["l0"].double() * len(target)),
            ):
                sums[key] = sums[key] + value if key in sums else value

    # Files.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not isinstance(self.model, SAEGroup):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            for name, sae in self.saes.items():
                sae.save_pretrained(folder / name)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not isinstance(self.model, SAEGroup):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        for name, sae in self.saes.items():
            saved = type(sae).from_pretrained(Path(resume_from_checkpoint) / name)
            sae.load_state_dict(saved.state_dict())

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; see `transformers.Trainer.train`. `True` continues from the last complete checkpoint.

        Raises:
            [`FileFormatError`]: if there is none, or the state of the one that is given holds a key twice, or is no
                JSON.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete(Path(str(self.args.output_dir)))
        elif resume_from_checkpoint:
            with suppress(OSError):  # which the Trainer says
                state_in(Path(resume_from_checkpoint))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if isinstance(self.train_dataset, ActivationStream):
            os.makedirs(output_dir, exist_ok=True)
            state = self.train_dataset.state_dict()
            carried = state.pop("carried")
            write_tensors(self._stream_file(output_dir), carried, {"kind": _STREAM, "state": state})

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        epochs, steps = super()._init_training_state(max_steps, *args, **kwargs)
        # A stream is set to its position; no batch has to be skipped.
        return (epochs, 0) if isinstance(self.train_dataset, ActivationStream) else (epochs, steps)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        prepare: Any = super()._prepare_for_training
        prepared = prepare(max_steps, train_dataloader, resume_from_checkpoint)
        if isinstance(self.train_dataset, ActivationStream):
            if resume_from_checkpoint is None:
                self.train_dataset.rewind()
            else:
                carried, metadata = read_tensors(self._stream_file(resume_from_checkpoint), kind=_STREAM)
                state = metadata.get("state")
                stands = state if isinstance(state, dict) else {}
                self.train_dataset.load_state_dict({**stands, "carried": carried})
        return prepared

    def _stream_file(self, folder: str) -> Path:
        return Path(folder) / f"activations_{self.args.process_index}.safetensors"

    # The start.

    def _start(self) -> None:
        """Fit new SAEs to the first tokens, before the first step and the first evaluation."""
        if self.args.init == "none" or self.state.global_step:
            return
        new = {name: sae for name, sae in self.saes.items() if is_new(sae)}
        if not new:
            return
        count = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        first = self._prepare_inputs(self._first_tokens(count))
        for name, sae in new.items():
            fit_start(sae, **record_for(sae, first, name), init=self.args.init)  # type: ignore[arg-type]
            if self.args.world_size > 1:
                for tensor in sae.state_dict().values():
                    distributed.broadcast(tensor, 0)

    def _finish(self) -> None:
        """Fold the scale of a stream into the SAEs, which then take the model's own activations."""
        stream = self.train_dataset
        if isinstance(stream, ActivationStream) and stream.scales:
            for sae in self.saes.values():
                unit_rows = sae.config.normalize_decoder
                sae.fold_scale(*scales_for(stream, sae.config.hookpoint))
                if stream.normalization == "per_dimension" and unit_rows and not sae._compares_latents:
                    sae.fold_decoder_norm()
                    sae.config.normalize_decoder = True
            stream.leave_as_they_are()

    def _first_tokens(self, count: int) -> Any:
        dataset: Any = self.train_dataset
        if isinstance(dataset, ActivationStream):
            return joined(dataset.first(-(-count // dataset.batch_size)))
        if isinstance(dataset, IterableDataset):
            items = [item for item, _ in zip(dataset, range(count), strict=False)]
        else:
            step = max(len(dataset) // count, 1)
            items = [dataset[index] for index in range(0, len(dataset), step)[:count]]
        batch = self.data_collator(items)
        # A dataset may hold whole batches.
        return {name: value.flatten(0, -2) if value.ndim > 2 else value for name, value in batch.items()}


class _Dictionaries(TrainerCallback):
    """Changes of the SAEs around a step."""

    def __init__(self, trainer: SAETrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # Means are over the steps of this run, which a checkpoint may have begun.
        self.trainer._seen, self.trainer._seen_steps = {}, state.global_step
        self.trainer._start()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._finish()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        for sae in self.trainer.saes.values():
            if sae.config.normalize_decoder and sae.W_dec.requires_grad:
                sae.normalize_decoder()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.train_dataset, ActivationStream):
            # The Trainer counts from where it resumed.
            state.epoch = state.global_step / state.max_steps * args.num_train_epochs
