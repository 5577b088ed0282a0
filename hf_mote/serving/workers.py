"""The worker process: connects its routers to the profile tables, and says what each row of a pass is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.utils import logging

from hf_mote.errors import HFMoTEError
from hf_mote.mote.checks import check_against_model
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.sites.fingerprint import fingerprint_of
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.serving.profiles import ProfileTables, Span
from hf_mote.serving.requests import DIGEST, SLOT
from hf_mote.serving.routers import attach, layers_of, materialise, meta_sites, routers_with_a_seam
from hf_mote.serving.settings import KEY, Profile, ServingSettings

__all__ = ["WithProfiles"]

logger = logging.get_logger(__name__)


class WithProfiles:
    """What is added to a worker of vLLM."""

    vllm_config: Any
    model_runner: Any
    device: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model with routers that ask, check them and every profile, and let them ask from then on."""
        self._mote_model, self._mote_sites = meta_sites(self.vllm_config.model_config.hf_text_config)
        found_weights = []
        with routers_with_a_seam(lambda model: found_weights.append(materialise(self._mote_sites, model))):
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        settings = ServingSettings.read(self.vllm_config.additional_config[KEY])
        self._mote_allow_other_weights = settings.allow_other_weights
        model = self.model_runner.get_model()
        if found_weights != [True]:
            logger.warning(
                "The router weights were not found in vLLM's model, so that profiles are checked by layers and "
                "experts, and not by the weights' hash."
            )
        # Created outside of inference mode, so that profiles can be loaded later.
        with torch.inference_mode(False), torch.no_grad():
            found = layers_of(model, self._mote_sites)
            for profile in settings.profiles.values():
                self._mote_check(profile.config)
            eager = self.vllm_config.model_config.enforce_eager
            touched = {layer for profile in settings.profiles.values() for layer in _layers_of(profile.config)}
            self._mote_tables = ProfileTables(
                {number: layer for number, (_, layer) in found.items()},
                self.model_runner.device,
                # Graphs are replayed for a number of tokens that a batch is filled up to.
                max_tokens=max(
                    self.vllm_config.scheduler_config.max_num_batched_tokens,
                    self.vllm_config.compilation_config.max_cudagraph_capture_size or 0,
                ),
                max_profiles=settings.max_profiles,
                record=settings.record,
                fields=None if eager else settings.fields,
                touched=None if settings.modes else touched,
            )
            for profile in settings.profiles.values():
                self._mote_tables.load(profile)
        attach(found, self._mote_tables)
        self._mote_seen: dict[str, int] = {}
        runner_forward = self.model_runner._model_forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._mote_tables.begin(self._mote_spans())
            try:
                return runner_forward(*args, **kwargs)
            finally:
                self._mote_tables.end()

        self.model_runner._model_forward = forward

    def mote_load(self, profile: Mapping[str, Any]) -> dict[str, Any]:
        """Take in a profile, given as its name and the dict of its config."""
        try:
            one = Profile(profile["name"], MoTEConfig.from_dict(profile["config"]))
            self._mote_check(one.config)
            self._mote_tables.load(one)
        except HFMoTEError as error:  # returned to the caller; an exception here could end the engine
            return {"error": str(error)}
        return {"error": None, "digests": list(self._mote_tables.digests)}

    def mote_unload(self, digest: str) -> dict[str, Any]:
        """Forget a profile that no request follows, as the core has made sure of."""
        self._mote_tables.unload(digest)
        return {"error": None, "digests": list(self._mote_tables.digests)}

    def mote_take(self, slot: int) -> dict[str, Any]:
        """Return what was recorded in a slot, and empty it."""
        return {"error": None, "recorded": self._mote_tables.take(slot)}

    def mote_describe(self) -> dict[str, Any]:
        """Return the routers and the model's fingerprint."""
        return {"error": None, "fingerprint": fingerprint_of(self._mote_model, self._mote_sites)}

    def _mote_check(self, config: MoTEConfig) -> None:
        routed = RoutedModel(self._mote_model, self._mote_sites)
        if self._mote_allow_other_weights:
            config = config.for_other_weights_of(routed)
            if config.on_other_weights is not None:
                logger.warning("A profile is served %s.", config.on_other_weights)
        check_against_model(config, routed)

    def _mote_spans(self) -> list[Span]:
        """What the rows of the pass that begins are."""
        runner = self.model_runner
        batch = runner.input_batch
        lengths = runner.num_scheduled_tokens.np[: batch.num_reqs].tolist()
        computed = batch.num_computed_tokens_cpu[: batch.num_reqs].tolist()
        prompts = batch.num_prompt_tokens[: batch.num_reqs].tolist()
        spans = []
        for name, length, start, prompt in zip(batch.req_ids, lengths, computed, prompts, strict=True):
            extra = _extra(runner.requests[name])
            slot = extra.get(SLOT)
            seen = 0
            if slot is not None:
                # A request that was put off is run anew from its first token, and counted once.
                seen = min(max(self._mote_seen.get(name, 0) - start, 0), length)
                self._mote_seen[name] = max(self._mote_seen.get(name, 0), start + length)
            spans.append(Span(length, min(max(prompt - start, 0), length), extra.get(DIGEST), slot, seen))
        if len(self._mote_seen) > 2 * len(runner.requests) + 16:
            self._mote_seen = {name: seen for name, seen in self._mote_seen.items() if name in runner.requests}
        return spans


def _extra(state: Any) -> Mapping[str, Any]:
    params = state.sampling_params
    return (params.extra_args if params is not None else None) or {}


def _layers_of(config: MoTEConfig) -> set[int]:
    return {layer for layer, _ in config.targets}
