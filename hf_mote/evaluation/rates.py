"""How often a behaviour shows: in the untouched model, with each of some configs, and with their random controls.

All arguments are checked before the first response is generated, with one exception: whether a block of experts of
similar use has other experts is known after the untouched model has run.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_mote.errors import ConfigError, DataError, UnknownNameError, UnsupportedError, one_of, real, whole
from hf_mote.evaluation.changes import Change, Use, attached, check_change, controls_of, counting_use, units_of
from hf_mote.evaluation.coherence import NEITHER, Limits, incoherent
from hf_mote.evaluation.controls import CONTROL_KINDS
from hf_mote.evaluation.engine import AnsweringEngine, ServedModel
from hf_mote.evaluation.kept import KeptResponses, change_of, keep_use, kept_labels, kept_use, told_of_judge
from hf_mote.evaluation.overlap import chance_of_reach
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.certainty import Certainty, Signs
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import engine_sampling, pad_token_of
from hf_mote.generation.prompts import checked_prompts, prompt_text
from hf_mote.generation.responses import generate_responses
from hf_mote.judges.judge import Judge, check_judge, labels_of
from hf_mote.mote.config import MoTEConfig
from hf_mote.progress import progress_bar
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.runs.folder import RunFolder, digest_of
from hf_mote.runs.identity import model_settings, plain
from hf_mote.statistics.groups import checked_groups
from hf_mote.statistics.rates import Rate

__all__ = ["Measured", "RateMeasurement", "Rates"]

_logger = logging.get_logger(__name__)


class Measured(NamedTuple):
    """The results of a model on the prompts.

    Attributes:
        rate (`Rate`): Rate of the label.
        responses (`list[str]`): The responses, where they are kept.
        labels (`list[str]`): The judge's labels of them.
        signs (`list[Signs]`): How sure the model was of each.
    """

    rate: Rate
    responses: list[str]
    labels: list[str]
    signs: list[Signs]


class Rates(NamedTuple):
    """The measurements.

    Attributes:
        before (`Measured`): The untouched model's.
        after (`list[Measured]`): With each config.
        controls (`list[list[float]]`): For each config the rate with each of its controls.
        sharing (`list[list[bool]]`): For each config, whether each of its controls holds some of its own experts.
        chances (`list[list[float]]`): For each config, where some do, the result of [`chance_of_reach`] for the
            others.
        exhausted (`bool`): Whether no more controls exist.
        control_labels (`list[list[list[str]]]`): For each config the judge's labels with each of its controls.
        control_signs (`list[list[list[Signs]]]`): For each config and control how sure the model was of each response.
        off_target (`list[Measured]`): On other prompts: the untouched model, then the first config, then its controls;
            empty where there are none, or the judge cannot label them. Responses of the first two are kept.
    """

    before: Measured
    after: list[Measured]
    controls: list[list[float]]
    sharing: list[list[bool]]
    chances: list[list[float]]
    exhausted: bool
    control_labels: list[list[list[str]]]
    control_signs: list[list[list[Signs]]]
    off_target: list[Measured]


class RateMeasurement:
    """A model, prompts and a judge to measure the rate of one label by.

    Args:
        where (`str`): What an error names.
        model (`PreTrainedModel` or `AnsweringEngine`): The model, left as it is, or an engine that serves it.
        chat (`Chat`): How the prompts become tokens.
        prompts (`Sequence[Prompt]`): The prompts.
        judge (`Judge`): Labels the responses.
        decoding (`Decoding`): How the responses come; its seed is the same for every config.
        target (`object`): The label whose rate is measured; the judge's own by default.
        confidence (`float`): Confidence of the intervals.
        groups (`Sequence[Hashable]`, *optional*): One key for each prompt, by which the intervals are.

    Attributes:
        label (`str`): The label whose rate is measured.
        neither (`str`): The judge's label for a response that is not an answer at all: its attribute `neither`, or
            "neither".
        served (`ServedModel`, *optional*): The model, if it is behind an engine.
        unclear (`int`): Responses so far that the judge could not label, as a [`ServerJudge`] may.
        folder ([`RunFolder`], *optional*): Where measurements are kept; see `keep`.
    """

    def __init__(
        self,
        where: str,
        model: PreTrainedModel | AnsweringEngine,
        chat: Chat,
        prompts: Sequence[Prompt],
        judge: Judge,
        decoding: Decoding,
        *,
        target: object,
        confidence: float,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        self.where = where
        self.chat, self.decoding = chat, decoding
        self.judge, self.confidence = judge, confidence
        self.prompts = checked_prompts(f"{where}.prompts", prompts)
        self.texts = [prompt_text(prompt) for prompt in self.prompts]
        self.groups = checked_groups(f"{where}.groups", groups, len(self.prompts))
        if self.groups is not None and max(self.groups) == 0:
            what, fix = "all prompts are of one group", "Give prompts of two groups or more, or leave it out."
            raise DataError(f"{where}.groups", what, got=f"{len(self.groups)} prompts of one", fix=fix)
        self.label = _target_label(where, judge, target)
        check_judge(judge)
        real(f"{where}.confidence", confidence, above=0, below=1)
        self.seed = whole(f"{where}.seed", decoding.seed)
        self._special_tokens = bool(getattr(judge, "needs_special_tokens", False))
        self.check(self.prompts)
        self.served: ServedModel | None = None
        if isinstance(model, nn.Module):
            self.routed = RoutedModel(model)
        else:
            engine_sampling(decoding.settings(chat.tokenizer))  # refuses arguments that an engine does not support
            self.routed = self.served = ServedModel(model)
        self.unclear = 0
        self.neither = str(getattr(judge, "neither", NEITHER))
        # A label in the judge's `labels` need not occur in the responses.
        self._known = self.label == str(getattr(judge, "target", None)) or labels_of(judge) is not None
        self._seen: set[str] = set()
        self.folder: RunFolder | None = None
        self._runs: dict[str, Measured] = {}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise if the tokenizer cannot take prompts, such as chats without a template."""
        self.chat.encode(prompts, f"{self.where}.prompts")

    def keep(self, run_folder: str | os.PathLike[str] | None, **more: Any) -> None:
        """Keep measurements from here on, and use those that a run with the same settings has kept.

        Args:
            run_folder (`str` or `os.PathLike`, *optional*): The folder; without it nothing is kept.
            **more: Further values that the result depends on; JSON-native.

        Raises:
            [`ModelMismatchError`]: if the folder is that of a run with other settings.
            [`UnsupportedError`]: if something cannot be compared with a later run's.
        """
        if run_folder is None:
            return
        place = f"{self.where}.run_folder"
        model: Any = self.routed.model
        if self.served is not None:
            raise UnsupportedError(
                place, "answers of a model behind an engine are not kept", got=str(run_folder), fix="Leave it out."
            )
        settings = model_settings(place, model, self.decoding.settings(self.chat.tokenizer))
        described = [change_of(one) if isinstance(one, MoTEConfig) else one.identity() for one in self._configs]
        self.folder = RunFolder(
            run_folder,
            {
                "function": self.where,
                **settings,
                "configs_sha256": digest_of(described),
                "prompts_sha256": self._digest_of(self.prompts),
                "judge_sha256": digest_of(told_of_judge(self.judge)),
                "target": self.label,
                "special_tokens": self._special_tokens,
                "num_controls": self._num_controls,
                "control_kind": self.control_kind,
                "seed": self.seed,
                "batch_size": self.decoding.batch_size,
                **more,
            },
        )

    def respond(
        self, prompts: Sequence[Prompt], config: Change | None, *, anew: bool = False
    ) -> tuple[list[str], list[Signs]]:
        """Return the model's responses with a config, or without one, and how sure it was of each.

        Args:
            prompts (`Sequence[Prompt]`): The prompts.
            config (`MoTEConfig` or [`LatentChange`], *optional*): The config.
            anew (`bool`, *optional*, defaults to `False`): Whether to generate also what is kept.
        """
        if self.served is not None:
            return self.served.respond(self.chat, prompts, config, self.decoding, special_tokens=self._special_tokens)
        model: Any = self.routed.model
        responses, signs = [""] * len(prompts), [Signs(0.0, 0.0, True)] * len(prompts)
        given = self.decoding.generate_kwargs or {}
        certainty = Certainty(model, self.decoding.settings(self.chat.tokenizer))
        decoding = dataclasses.replace(self.decoding, generate_kwargs={**given, **certainty.processors})
        kept = KeptResponses(self.folder, self._name_of(prompts, config), anew=anew)
        with attached(self.routed, config):
            batches = generate_responses(
                model,
                self.chat,
                prompts,
                decoding,
                special_tokens=self._special_tokens,
                known=kept.known,
            )
            for number, (positions, answers) in enumerate(batches):
                seen = kept.put_signed(number, answers, partial(certainty.take, answers))
                for position, answer, one in zip(positions, answers, seen, strict=True):
                    responses[position], signs[position] = answer, one
        return responses, signs

    def label_all(self, prompts: Sequence[Prompt], config: Change | None, responses: Sequence[str]) -> list[str]:
        """Return the judge's labels of the responses with a config, or without one."""
        return kept_labels(self.folder, self._name_of(prompts, config), self.judge, prompts, responses)

    def fit(self, config: Change) -> None:
        """Raise unless a config fits the model, and the model's engine accepts it."""
        if self.served is None or isinstance(config, MoTEConfig):
            check_change(config, self.routed)
        if self.served is not None:
            self.served.check(config)

    def incoherent(self, measured: Measured, limits: Limits) -> list[bool]:
        """Return which responses are incoherent, by their signs or by the judge's label."""
        return incoherent(measured.signs, measured.labels, limits, self.neither)

    def measure(self, config: Change | None, *, keep: bool = False, anew: bool = False) -> Measured:
        """Return the results of the model with a config, or without one; a repeated config is not run again."""
        key = digest_of(change_of(config))
        if key not in self._runs:
            responses, signs = self.respond(self.prompts, config, anew=anew)
            labels = self.label_all(self.prompts, config, responses)
            self._seen.update(labels)
            unclear = getattr(self.judge, "unclear", None)
            self.unclear += labels.count(unclear) if isinstance(unclear, str) else 0
            rate = Rate.of_groups([label == self.label for label in labels], self.groups, self.confidence)
            self._runs[key] = Measured(rate, responses if keep else [], labels, signs)
        return self._runs[key]

    def plan(self, configs: Sequence[Change], *, num_controls: int, control_kind: str | None) -> None:
        """Take the configs to measure and draw their controls, which they share.

        Args:
            configs (`Sequence`): The configs, one or more: of experts, or of latents.
            num_controls (`int`): Controls of each.
            control_kind (`str`, *optional*): "layer" or "usage"; see [`evaluate_mote`].

        Raises:
            [`ConfigError`]: if a config has no targets, or there can be no controls.
            [`ModelMismatchError`]: if a config does not fit the model.
        """
        whole(f"{self.where}.num_controls", num_controls)
        if not configs:
            raise ConfigError(f"{self.where}.configs", "nothing to measure", got="no configs")
        of_experts = isinstance(configs[0], MoTEConfig)
        self.control_kind = control_kind if control_kind is not None else ("layer" if of_experts else "usage")
        one_of(f"{self.where}.control_kind", self.control_kind, CONTROL_KINDS)
        for config in configs:
            self.fit(config)
            if config.is_empty:
                raise ConfigError(f"{self.where}.config", "nothing to measure", got="no targets, or strength 0")
        self._configs, self._num_controls = list(configs), num_controls
        self._drawn = partial(controls_of, self._configs, self.routed, seed=self.seed)
        # Those of kind "usage" are drawn again once usage is known.
        self._controls = self._drawn(num_controls)
        self._by_usage = self.control_kind == "usage" and num_controls > 0

    def run(self, *, progress: bool, off_target: Sequence[Prompt] = ()) -> Rates:
        """Measure without a config, with each planned config, and with their controls.

        Args:
            progress (`bool`): Show a progress bar.
            off_target (`Sequence[Prompt]`, *optional*): Other prompts, on which the first config and its controls are
                measured as well.
        """
        total = 1 + len(self._configs) * (1 + len(self._controls))
        with progress_bar(total=total, desc="evaluating", disable=not progress) as bar:
            counted: Use | None = None
            if self._by_usage:
                before, counted = self._before_and_use()
                self._controls = self._drawn(self._num_controls, usage=counted)
                bar.total = 1 + len(self._configs) * (1 + len(self._controls))
            else:
                before = self.measure(None, keep=True)
            bar.update()
            after = []
            for config in self._configs:
                after.append(self.measure(config, keep=True))
                bar.update()
            self._check_target()
            controls: list[list[Measured]] = [[] for _ in self._configs]
            for control in self._controls:
                for measured, config in zip(controls, control, strict=True):
                    measured.append(self.measure(config))
                    bar.update()
        own = [units_of(config) for config in self._configs]
        sharing = [
            [not mine.isdisjoint(units_of(control[index])) for control in self._controls]
            for index, mine in enumerate(own)
        ]
        rates = [[one.rate.rate for one in measured] for measured in controls]
        labels = [[one.labels for one in measured] for measured in controls]
        signs = [[one.signs for one in measured] for measured in controls]
        # One more is drawn only where there is one.
        asked = self._num_controls
        exhausted = asked > 0 and len(self._drawn(asked + 1, usage=counted)) <= asked
        chances: list[list[float]] = []
        for index, shares in enumerate(sharing):
            others = [units_of(c[index]) for c, share in zip(self._controls, shares, strict=True) if not share]
            chances.append(chance_of_reach(own[index], others) if any(shares) else [])
        others_measured = self._off_target(off_target, progress)
        return Rates(before, after, rates, sharing, chances, exhausted, labels, signs, others_measured)

    def _before_and_use(self) -> tuple[Measured, Use]:
        """Measure the untouched model, and count how often it uses each expert or latent meanwhile."""
        if self.served is not None:
            counted = self.served.use(self.chat, self.prompts, self.decoding)
            return self.measure(None, keep=True), counted
        known = kept_use(self.folder)
        if known is not None:
            return self.measure(None, keep=True), known
        pad = pad_token_of(self.chat.tokenizer)
        with counting_use(self.routed, self._configs, stop=self.decoding.stop, pad=pad) as usage:
            before = self.measure(None, keep=True, anew=True)
            counted = usage()
        keep_use(self.folder, counted)
        return before, counted

    def _name_of(self, prompts: Sequence[Prompt], config: Change | None) -> str:
        """Return the name of responses to these prompts with a config in the run folder."""
        if self.folder is None:
            return ""
        return digest_of([change_of(config), self._digest_of(prompts)])[:16]

    def _digest_of(self, prompts: Sequence[Prompt]) -> str:
        """Return a digest of prompts, as the model and as the judge sees them."""
        return digest_of([self.chat.encode(prompts), plain(f"{self.where}.prompts", list(prompts))])

    def _off_target(self, prompts: Sequence[Prompt], progress: bool) -> list[Measured]:
        """Measure on other prompts, if there are any and the judge accepts them."""
        configs = [None, self._configs[0], *(control[0] for control in self._controls)] if prompts else []
        found: list[Measured] = []
        shown = progress_bar(configs, desc="off target", disable=not (progress and configs))
        for config in shown:
            responses, signs = self.respond(prompts, config)
            try:
                labels = self.label_all(prompts, config, responses)
            except DataError as error:
                if found:  # it accepted the same prompts before
                    raise
                _logger.info(
                    "selectivity is not measured, as the judge does not accept the unrelated prompts: %s", error
                )
                return []
            rate = Rate.of(labels.count(self.label), len(labels), self.confidence)
            found.append(Measured(rate, responses if len(found) < 2 else [], labels, signs))
        return found

    def _check_target(self) -> None:
        # A judge that answers yes or no can give the other answer.
        yes_or_no = {self.label, *self._seen} <= {"True", "False"}
        if not (self._known or yes_or_no or self.label in self._seen):
            raise UnknownNameError.of(
                f"{self.where}.target",
                self.label,
                self._seen,
                fix="No response got this label; the judge gave the listed ones. If it can give it, say so: set the "
                "judge's attribute `labels` to all that it can give.",
            )


def _target_label(where: str, judge: Judge, target: object) -> str:
    label = target if target is not None else getattr(judge, "target", None)
    if label is None:
        raise ConfigError(
            f"{where}.target",
            "the judge does not state which of its labels is the behaviour",
            expected="one of the labels that it returns",
            fix="Pass target=..., or give the judge an attribute `target`.",
        )
    labels = labels_of(judge)
    if labels is not None and str(label) not in labels:
        raise UnknownNameError.of(f"{where}.target", str(label), labels)
    return str(label)
