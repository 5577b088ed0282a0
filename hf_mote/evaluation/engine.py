"""What evaluation needs of an inference engine, and the measurement of a model behind one.

Engines are not imported here. Every object that follows [`AnsweringEngine`] can be measured. Each config that is
measured, controls among them, is loaded under a name of its own just before, and unloaded just after, also if the run
fails or is stopped.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from hf_mote.errors import ConfigError, HFMoTEError, UnsupportedError
from hf_mote.evaluation.changes import Change, Use
from hf_mote.evaluation.conversations import Conversation, answered, at_turn, converse
from hf_mote.evaluation.side_effects import SideEffects, encoded_texts, on_plain_text, perplexity_of
from hf_mote.generation.asking import Chat, Decoding
from hf_mote.generation.certainty import Signs, signs_of
from hf_mote.generation.chat import Prompt
from hf_mote.generation.decoding import answer_text, engine_sampling
from hf_mote.generation.recording_engine import RecordingEngine
from hf_mote.mote.config import MoTEConfig
from hf_mote.routing.sites.routed_model import RoutedModel
from hf_mote.routing.sites.site import RouterSite

__all__ = ["AnsweringEngine", "EngineAnswer", "ServedModel"]

NO_DIVERGENCE = (
    "KL on plain texts: the engine returns the probabilities of a text's own tokens only, and not of all others, "
    "which a divergence needs"
)
OTHER_NUMBERS = (
    "the answers that transformers would sample: an engine draws random numbers of its own, the same for every config"
)

_logger = logging.get_logger(__name__)


class EngineAnswer(Protocol):
    """An answer of an engine."""

    @property
    def tokens(self) -> Sequence[int]:
        """Its tokens, the one that ends it included."""

    @property
    def log_probabilities(self) -> Sequence[float]:
        """Of each, in nats, before temperature and the like."""


@runtime_checkable
class AnsweringEngine(RecordingEngine, Protocol):
    """A [`RecordingEngine`] that also answers prompts under configs, which are loaded at run time.

    Attributes:
        most_recordings (`int`): Prompts whose routing it records together; 0 if it records none.
    """

    most_recordings: int

    def routers(self) -> tuple[nn.Module, Sequence[RouterSite]]:
        """Return its model without weights, and the routers of that."""

    def load(self, name: str, config: Any) -> None:
        """Load a config under a name."""

    def unload(self, name: str) -> None:
        """Unload a config; running answers end with it."""

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        profile: str | None,
        max_new_tokens: int,
        seed: int | None,
        sampling: Mapping[str, Any] | None,
        at_once: int,
    ) -> Sequence[EngineAnswer]:
        """Answer prompts, given as token ids, under a config or none."""

    def predict(
        self, texts: Sequence[Sequence[int]], *, profile: str | None, at_once: int
    ) -> Sequence[Sequence[float]]:
        """Return the log probability of every token of texts but the first."""


class ServedModel(RoutedModel):
    """A model behind an engine.

    Args:
        engine (`AnsweringEngine`): The engine.
    """

    def __init__(self, engine: AnsweringEngine) -> None:
        model, sites = engine.routers()
        super().__init__(model, sites, engine.fingerprint)
        self.engine = engine

    def check(self, change: Change) -> None:
        """Raise unless the engine accepts a config: it is loaded and unloaded.

        Args:
            change (`MoTEConfig`): What is to be measured.

        Raises:
            [`UnsupportedError`]: if it is of latents, or the engine refuses it.
        """
        with self.under(change):
            pass

    @contextmanager
    def under(self, change: Change | None) -> Iterator[str | None]:
        """Load a config in the engine within the block; yields its name there, `None` for the untouched model.

        Args:
            change (`MoTEConfig`, *optional*): The config.
        """
        if change is None:
            yield None
            return
        if not isinstance(change, MoTEConfig):
            fix = "Load the model in transformers."
            raise UnsupportedError("evaluate_mote.config", "an engine changes experts, and not latents", fix=fix)
        name = f"evaluate-{uuid.uuid4().hex}"
        try:
            self.engine.load(name, change)
            yield name
        except BaseException:
            try:
                self.engine.unload(name)
            except HFMoTEError as error:  # it was not loaded, or the engine is gone
                _logger.info("profile %s was not unloaded: %s", name, error)
            raise
        self.engine.unload(name)

    def respond(
        self,
        chat: Chat,
        prompts: Sequence[Prompt],
        change: Change | None,
        decoding: Decoding,
        *,
        special_tokens: bool = False,
    ) -> tuple[list[str], list[Signs]]:
        """Return responses under a config or none, and how sure the model was of each.

        Args:
            chat (`Chat`): How the prompts become tokens.
            prompts (`Sequence[Prompt]`): Texts or chats.
            change (`MoTEConfig`, *optional*): The config.
            decoding (`Decoding`): How the responses come; its batch size is the number that run at once.
            special_tokens (`bool`, *optional*, defaults to `False`): Keep special tokens in the responses.
        """
        with self.under(change) as profile:
            return self._respond(chat, prompts, profile, decoding, special_tokens)

    def converse(
        self, chat: Chat, change: Change, asked: Sequence[Conversation], decoding: Decoding
    ) -> list[Conversation]:
        """Return conversations with the answers before and after.

        Args:
            chat (`Chat`): How the conversations become tokens.
            change (`MoTEConfig`): What to measure.
            asked (`Sequence[Conversation]`): The conversations.
            decoding (`Decoding`): How the answers come.
        """

        def said(profile: str | None) -> list[list[str]]:
            def ask(prompts: list[Prompt], turn: int) -> list[str]:
                return self._respond(chat, prompts, profile, at_turn(decoding, turn), False)[0]

            return converse(asked, chat.system_prompt, ask)

        before = said(None)
        with self.under(change) as profile:
            return answered(asked, before, said(profile))

    def side_effects(
        self, tokenizer: PreTrainedTokenizerBase, change: Change, texts: Sequence[str], *, batch_size: int
    ) -> SideEffects:
        """Return what [`side_effects`] returns, without the divergence.

        Args:
            tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
            change (`MoTEConfig`): What to measure.
            texts (`Sequence[str]`): The texts.
            batch_size (`int`): Texts under way at once.
        """
        encoded = encoded_texts(tokenizer, texts)
        change = on_plain_text(change)
        before = self.engine.predict(encoded, profile=None, at_once=batch_size)
        with self.under(change) as profile:
            after = self.engine.predict(encoded, profile=profile, at_once=batch_size)
        tokens = sum(len(ids) - 1 for ids in encoded)
        losses = [-sum(map(sum, logs)) / tokens for logs in (before, after)]
        return SideEffects(None, perplexity_of(losses[0]), perplexity_of(losses[1]), tokens, change.scope)

    def use(self, chat: Chat, prompts: Sequence[Prompt], decoding: Decoding) -> Use:
        """Return how often the untouched model uses each expert on prompts and its responses, by layer.

        Args:
            chat (`Chat`): How the prompts become tokens.
            prompts (`Sequence[Prompt]`): The prompts.
            decoding (`Decoding`): How the responses come.

        Raises:
            [`ConfigError`]: if the engine records nothing.
        """
        self.check_use()
        at_once = min(self.engine.most_recordings, decoding.batch_size)
        encoded = chat.encode(prompts)
        settings = decoding.settings(chat.tokenizer)
        sampling = engine_sampling(settings)
        total: Tensor | None = None
        for start in range(0, len(encoded), at_once):
            counts = self.engine.image(
                encoded[start : start + at_once],
                phase="all",
                max_new_tokens=settings["max_new_tokens"],
                seed=None if sampling is None or decoding.seed is None else decoding.seed + start,
                sampling=sampling,
            ).counts.sum(dim=0)
            total = counts if total is None else total + counts
        if total is None:
            return {}
        return dict(zip(self.layers, total, strict=True))

    def check_use(self) -> None:
        """Raise [`ConfigError`] if the engine records nothing, so that the use of experts is unknown."""
        if not self.engine.most_recordings:
            raise ConfigError(
                "evaluate_mote.control_kind",
                "the engine records no routing, by which experts of similar use are found",
                got="usage",
                fix="Start it with recordings (hf-mote serve --record 64), or match controls by layer.",
            )

    def notes(self, decoding: Decoding, *, texts: bool) -> list[str]:
        """Return notes on what an engine cannot measure.

        Args:
            decoding (`Decoding`): How responses came.
            texts (`bool`): Whether plain texts were given.
        """
        sampled = bool((decoding.generate_kwargs or {}).get("do_sample"))
        return [note for note, there in ((NO_DIVERGENCE, texts), (OTHER_NUMBERS, sampled)) if there]

    def _respond(
        self, chat: Chat, prompts: Sequence[Prompt], profile: str | None, decoding: Decoding, special_tokens: bool
    ) -> tuple[list[str], list[Signs]]:
        settings = decoding.settings(chat.tokenizer)
        sampling = engine_sampling(settings)
        answers = self.engine.answer(
            chat.encode(prompts),
            profile=profile,
            max_new_tokens=settings["max_new_tokens"],
            seed=None if sampling is None else decoding.seed,
            sampling=sampling,
            at_once=decoding.batch_size,
        )
        texts = answer_text(chat.tokenizer, [list(one.tokens) for one in answers], special_tokens=special_tokens)
        signs = [signs_of(one.tokens, one.log_probabilities, text) for one, text in zip(answers, texts, strict=True)]
        return texts, signs
