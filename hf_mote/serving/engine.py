"""Profiles and recordings of an engine in this process: `VLLMEngine(llm)`.

The engine is vLLM's own `LLM`, with the plugin and nothing else. Functions that need an engine which answers prompts
and returns routing, such as `ftri` and `evaluate_mote`, take this object; it follows the protocol of
`evaluation/engine.py`.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from hf_mote.errors import UnsupportedError
from hf_mote.maps.activation_map import ActivationMap
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.sites.site import RouterSite
from hf_mote.serving.plugin import front_of
from hf_mote.serving.recorded import Answered, RecordedBatch, check_raw, maps_of, numbers_of, of_phase
from hf_mote.serving.requests import NAME, RECORD
from hf_mote.serving.routers import meta_sites
from hf_mote.serving.settings import config_from

__all__ = ["VLLMEngine"]

Phase = Literal["prompt", "generation", "all"]


class VLLMEngine:
    """An engine of vLLM in this process, with its profiles and recordings.

    Args:
        llm (`vllm.LLM`): Started with `additional_config={"hf_mote": {...}}`.

    Raises:
        [`UnsupportedError`]: if it was started without.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._front = front_of(llm.llm_engine.input_processor)
        if self._front.settings is None:
            fix = 'Start it with additional_config={"hf_mote": {"profiles": {NAME: CONFIG}}}.'
            raise UnsupportedError("VLLMEngine.llm", "the engine serves no profiles", fix=fix)
        self.fingerprint: dict[str, Any] = self._rpc("mote_describe")["fingerprint"]

        ends = (llm.llm_engine.input_processor.generation_config_fields or {}).get("eos_token_id")
        ends = llm.llm_engine.model_config.hf_text_config.eos_token_id if ends is None else ends
        self._ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    @property
    def profiles(self) -> dict[str, MoTEConfig]:
        """The profiles by name."""
        return {name: profile.config for name, profile in self._front.profiles.items()}

    @property
    def layers(self) -> tuple[int, ...]:
        """Absolute decoder layers that have routers."""
        return tuple(self.fingerprint["layers"])

    @property
    def base_model(self) -> str:
        """The source of the model."""
        return str(self.llm.llm_engine.model_config.model)

    def load(self, name: str, config: MoTEConfig | str | os.PathLike[str]) -> None:
        """Load a profile, also while requests run; running ones keep the earlier profile of that name.

        Args:
            name (`str`): Its name in requests.
            config (`MoTEConfig`, `str` or `os.PathLike`): A config, a folder, a file or a Hub id.

        Raises:
            [`UnsupportedError`]: if the config does not fit the model or the engine; nothing has changed then.
        """
        profile = self._front.check_load(name, config_from(config))
        self._drop_stale()
        self._rpc("mote_load", {"name": name, "config": profile.config.to_dict()})
        self._front.loaded(profile)
        self._drop_stale()

    def unload(self, name: str) -> None:
        """Unload a profile; running requests end with it."""
        self._front.forget(name)
        self._drop_stale()

    @property
    def most_recordings(self) -> int:
        """Prompts whose routing can be recorded together now."""
        return (self._front.settings.record if self._front.settings is not None else 0) - len(self._front.slots)

    def routers(self) -> tuple[nn.Module, list[RouterSite]]:
        """Return the engine's model as transformers has it, without weights, and its routers."""
        return meta_sites(self.llm.llm_engine.model_config.hf_text_config)

    def take(self, key: str) -> dict[str, ActivationMap]:
        """Return what was recorded of the requests that named a key, by phase, and make room for others.

        Args:
            key (`str`): What the requests gave as `extra_args["mote_record"]`; all of them have ended.
        """
        found = self._rpc("mote_take", self._front.slot_of(key))["recorded"]
        del self._front.slots[key]
        return maps_of(found, self.fingerprint, self.base_model)

    def image(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        phase: Phase = "prompt",
        max_new_tokens: int = 64,
        profile: str | None = None,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> RecordedBatch:
        """Answer prompts and return the routing that each took.

        Args:
            prompts (`Sequence[Sequence[int]]`): Token ids; at most as many as the engine's `record` says.
            phase (`str`, *optional*, defaults to `"prompt"`): Tokens to count: `"prompt"`, `"generation"` or `"all"`.
            max_new_tokens (`int`, *optional*, defaults to 64): Longest answer.
            profile (`str`, *optional*): Profile to answer under.
            seed (`int`, *optional*): Of sampled answers.
            sampling (`Mapping`, *optional*): Further arguments of `vllm.SamplingParams`; greedy by default.
        """
        from vllm import SamplingParams

        room = self.most_recordings
        if len(prompts) > room:
            fix = 'Give fewer at a time (batch_size), or start the engine with a larger "record".'
            what = "more prompts than recordings"
            raise UnsupportedError("VLLMEngine.image", what, got=len(prompts), expected=room, fix=fix)
        keys = [uuid.uuid4().hex for _ in prompts]
        params = [
            SamplingParams(
                **{"temperature": 0.0, **(sampling or {})},
                max_tokens=max_new_tokens,
                stop_token_ids=self._ends,
                ignore_eos=True,
                detokenize=False,
                seed=seed,
                extra_args={RECORD: key} | ({} if profile is None else {NAME: profile}),
            )
            for key in keys
        ]
        answers = self._generate(prompts, params)
        tokens = [list(answer.outputs[0].token_ids) for answer in answers]
        return RecordedBatch.of(tokens, [of_phase(self.take(key), phase) for key in keys])

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        profile: str | None = None,
        max_new_tokens: int = 64,
        seed: int | None = None,
        sampling: Mapping[str, Any] | None = None,
        at_once: int | None = None,
    ) -> list[Answered]:
        """Answer prompts and return how likely each token of the answers was.

        Args:
            prompts (`Sequence[Sequence[int]]`): Token ids.
            profile (`str`, *optional*): Profile to answer under.
            max_new_tokens (`int`, *optional*, defaults to 64): Longest answer.
            seed (`int`, *optional*): Of sampled answers; each prompt has the next one.
            sampling (`Mapping`, *optional*): Further arguments of `vllm.SamplingParams`; greedy by default.
            at_once (`int`, *optional*): Ignored: the engine itself decides how many run at once.
        """
        from vllm import SamplingParams

        check_raw("VLLMEngine", str(self.llm.llm_engine.model_config.logprobs_mode))
        params = [
            SamplingParams(
                **{"temperature": 0.0, **(sampling or {})},
                max_tokens=max_new_tokens,
                stop_token_ids=self._ends,
                ignore_eos=True,
                detokenize=False,
                seed=None if seed is None else seed + place,
                logprobs=0,
                extra_args=None if profile is None else {NAME: profile},
            )
            for place in range(len(prompts))
        ]
        found = []
        for answer in self._generate(prompts, params):
            tokens = list(answer.outputs[0].token_ids)
            steps = zip(tokens, answer.outputs[0].logprobs, strict=True)
            found.append(Answered(tokens, numbers_of([step[token].logprob for token, step in steps])))
        return found

    def predict(
        self, texts: Sequence[Sequence[int]], *, profile: str | None = None, at_once: int | None = None
    ) -> list[list[float]]:
        """Return the log probability of every token of texts but the first, in nats.

        Args:
            texts (`Sequence[Sequence[int]]`): Token ids.
            profile (`str`, *optional*): Profile to predict under.
            at_once (`int`, *optional*): Ignored: the engine itself decides how many run at once.
        """
        from vllm import SamplingParams

        extra = None if profile is None else {NAME: profile}
        params = [
            SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, prompt_logprobs=0, extra_args=extra)
            for _ in texts
        ]
        found = []
        for text, answer in zip(texts, self._generate(texts, params), strict=True):
            steps = zip(text[1:], answer.prompt_logprobs[1:], strict=True)
            found.append(numbers_of([step[token].logprob for token, step in steps]))
        return found

    def _generate(self, prompts: Sequence[Sequence[int]], params: Sequence[Any]) -> list[Any]:
        texts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return list(self.llm.generate(texts, list(params), use_tqdm=False))

    def _drop_stale(self) -> None:
        for digest in sorted(self._front.stale):
            answers = self.llm.collective_rpc("mote_unload", args=(digest,))
            if all(answer["error"] is None for answer in answers):
                self._front.stale.discard(digest)

    def _rpc(self, method: str, *args: Any) -> dict[str, Any]:
        answers = self.llm.collective_rpc(method, args=args)
        for answer in answers:
            if answer["error"] is not None:
                raise UnsupportedError("VLLMEngine", answer["error"].rstrip("."))
        found: dict[str, Any] = answers[0]
        return found
