"""Judges by name, as the command line gives them.

| judge | labels | of interest |
| --- | --- | --- |
| `refusal`, `refusal:en,de` | refusal, answer | refusal |
| `regex:PATTERN` | match, other | match |
| `language:en,de`, with `:thinking` or `:answer` for a part | en, de, unknown | the first |
| `choice:ABCD` | A, B, C, D, none | that of `--target` |
| `field`, `field:NAME` | the prompt's own class in the file, for any response | that of `--target` |
| `lm:QUESTION` with `--judge-model` | yes, no, neither | yes |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hf_mote.commands.model import ORGANISM, Organisms, load_subject
from hf_mote.commands.prompts import PromptSet
from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.generation.chat import Prompt
from hf_mote.judges.choice import ChoiceJudge
from hf_mote.judges.judge import Judge, labels_of
from hf_mote.judges.language import LanguageJudge
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge

__all__ = ["FieldJudge", "make_judge", "response_judge", "target_of"]

LABELS = ("yes", "no", "neither")  # neither: the response is not an answer at all
KINDS = ("choice", "field", "language", "lm", "refusal", "regex")


class FieldJudge:
    """Labels a response by the class that its prompt has in the prompt file: a contrast of prompts, not of responses.

    Args:
        prompts (`PromptSet`): The prompts.
        classes (`list[str]`): The class of each.

    Attributes:
        labels (`tuple[str, ...]`): The different classes.

    Raises:
        [`DataError`]: if one prompt, or one chat with all its messages, has two classes.
    """

    takes_chats = True

    def __init__(self, prompts: PromptSet, classes: list[str]) -> None:
        self._classes: dict[str, str] = {}
        for prompt, name, record in zip(prompts.prompts, classes, prompts.records, strict=True):
            known = self._classes.setdefault(_key(prompt), name)
            if known != name:
                got = f"{known!r} and {name!r}"
                raise DataError(record.where, "the same prompt has two classes", got=got, fix="Keep one of them.")
        self.labels = (*sorted(set(classes)),)

    def __call__(self, prompt: Prompt, response: str) -> str:
        """Return the class of the prompt."""
        return self._classes[_key(prompt)]


def make_judge(
    spec: str | None,
    prompts: PromptSet,
    organisms: Organisms,
    *,
    model: str = "",
    judge_model: str | None = None,
    judge_url: str | None = None,
    allow_http: bool = False,
) -> Judge:
    """Return the judge that a specification names.

    Args:
        spec (`str`, *optional*): See the head of this module.
        prompts (`PromptSet`): The prompts, for `field`.
        organisms (`Organisms`): Where organisms come from.
        model (`str`, *optional*): The model that is judged; an organism has a judge of its own, which is the default.
        judge_model (`str`, *optional*): The model of `lm`: a folder, a Hub id, or a name on the server.
        judge_url (`str`, *optional*): An OpenAI-compatible server to ask.
        allow_http (`bool`, *optional*, defaults to `False`): Whether a server on another machine may be asked by
            http://.

    Raises:
        [`UnknownNameError`]: if there is no such judge.
        [`ConfigError`]: if a value that it needs is missing, or a value is given that it does not use.
    """
    if spec is None:
        if model.startswith(ORGANISM):
            return organisms.get(model.removeprefix(ORGANISM)).judge
        raise ConfigError(
            "--judge",
            "is missing; it labels the responses",
            expected=f"one of {', '.join(KINDS)}",
            fix="For example --judge refusal. Only organisms have a judge of their own.",
        )
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise UnknownNameError.of("--judge", kind, KINDS)
    if kind != "lm" and (judge_model or judge_url):
        raise ConfigError("--judge-model", "is for the judge lm", got=spec, fix='Give --judge "lm:YOUR QUESTION".')
    if allow_http and not judge_url:
        raise ConfigError("--judge-allow-http", "is for a server", got="no --judge-url", fix="Leave it out.")
    makers: dict[str, Callable[[], Any]] = {
        "refusal": lambda: RefusalJudge(_listed(rest) or None),
        "regex": lambda: RegexJudge({"match": _needed(spec, rest, "regex:PATTERN")}),
        "choice": lambda: ChoiceJudge(_needed(spec, rest, "choice:ABCD")),
        "language": lambda: _language(spec, rest),
        "field": lambda: FieldJudge(prompts, _classes(prompts, rest)),
        "lm": lambda: _model_judge(_needed(spec, rest, "lm:QUESTION"), judge_model, judge_url, allow_http, organisms),
    }
    judge: Judge = makers[kind]()
    return judge


def target_of(judge: Judge, target: str | None, prompts: PromptSet) -> str:
    """Return the label of interest.

    Args:
        judge (`Callable`): The judge.
        target (`str`, *optional*): The label that was given; by default the judge's own.
        prompts (`PromptSet`): The prompts.

    Raises:
        [`ConfigError`]: if neither is known.
        [`UnknownNameError`]: if the judge lists its labels, and the label is not one of them.
    """
    label = target if target is not None else getattr(judge, "target", None)
    known = labels_of(judge)
    if label is None:
        expected = f"one of {', '.join(known)}" if known else "one of the judge's labels"
        raise ConfigError("--target", "is missing: this judge has no label of interest of its own", expected=expected)
    if known is not None and label not in known:
        where = f"--target, {prompts.source}" if isinstance(judge, FieldJudge) else "--target"
        raise UnknownNameError.of(where, label, known)
    return str(label)


def response_judge(judge: Judge) -> Judge:
    """Return a judge whose labels depend on the response.

    Raises:
        [`ConfigError`]: if they depend on the prompt only, so that no config could change them.
    """
    if isinstance(judge, FieldJudge):
        raise ConfigError(
            "--judge",
            "labels prompts and not responses, so that no rate can change",
            got="field",
            fix="Give a judge that reads the response, such as refusal or regex:PATTERN.",
        )
    return judge


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt if isinstance(prompt, str) else [dict(message) for message in prompt], sort_keys=True)


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _needed(spec: str, rest: str, form: str) -> str:
    if not rest.strip():
        raise ConfigError("--judge", "needs a value after the colon", got=repr(spec), expected=form)
    return rest


def _language(spec: str, rest: str) -> LanguageJudge:
    languages, _, part = _needed(spec, rest, "language:en,de").partition(":")
    return LanguageJudge(_listed(languages), part=part or "all")  # type: ignore[arg-type]


def _classes(prompts: PromptSet, field: str) -> list[str]:
    if field:
        return prompts.column(field)
    if prompts.classes is None and prompts.unclassed is not None:
        fix = "Give every record a class, or name another field: --judge field:NAME."
        raise DataError(prompts.unclassed, "must have a class, as other records do", expected="text", fix=fix)
    if prompts.classes is None:
        raise DataError(
            prompts.source,
            "names no classes",
            got="records without a field class or label",
            fix="Add it, or name the field that holds it: --judge field:NAME.",
        )
    return prompts.classes


def _model_judge(question: str, model: str | None, url: str | None, allow_http: bool, organisms: Organisms) -> Judge:
    if model is None:
        raise ConfigError(
            "--judge-model", "is needed by the judge lm", expected="a folder, a Hub id, or a server's model"
        )
    # Imported here, because they load torch.
    from hf_mote.judges.language_model import LMJudge
    from hf_mote.judges.server import ServerJudge

    if url is not None:
        return ServerJudge(url, model, question, LABELS, allow_http=allow_http)
    subject = load_subject(model, organisms, any_model=True)
    return LMJudge(subject.model, subject.tokenizer, question, LABELS)
