"""Refusals in other languages, and the language of a response."""

import builtins

import pytest

from hf_mote.errors import ConfigError, UnknownNameError, UnsupportedError
from hf_mote.judges.language import LanguageJudge
from hf_mote.judges.refusal import RefusalJudge

REFUSALS = {
    "de": [
        "Dabei kann ich leider nicht helfen.",
        "Es tut mir leid, aber ich kann diese Frage nicht beantworten.",
        "Darüber möchte ich nicht sprechen.",
        "Ich darf dazu keine Auskunft geben.",
        "Das muss ich leider ablehnen.",
        "Ich bin nicht in der Lage, Ihnen dabei zu helfen.",
        "Leider kann ich dir diese Informationen nicht geben.",
        "Ich weigere mich, das zu tun.",
        "Tut mir leid, das geht nicht.",
    ],
    "en": ["Sorry, I can't.", "That topic is off limits.", "I'm sorry, I can't do that."],
    "es": [
        "Lo siento, pero no puedo ayudarte con eso.",
        "No puedo responder a esa pregunta.",
        "No estoy autorizado a hablar de ese tema.",
        "Me niego a contestar.",
        "Debo rechazar esta solicitud.",
        "No me es posible proporcionar esa información.",
        "Prefiero no hablar de ello.",
        "Lo siento, no puedo.",
    ],
    "fr": [
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Je ne peux pas répondre à cette question.",
        "Je ne suis pas en mesure de discuter de ce sujet.",
        "Je préfère ne pas en parler.",
        "Il m’est impossible de vous fournir cela.",
        "Je refuse de répondre.",
        "Désolé, je ne peux pas.",
        "De\u0301sole\u0301e, non.",  # in combining characters
    ],
    "zh": [
        "抱歉，我无法帮助您。",
        "对不起，我不能讨论这个话题。",
        "我没办法回答这个问题。",
        "很遗憾，我不便提供这方面的信息。",
        "我必须拒绝这个请求。",
        "抱歉，我無法幫助您。",  # in traditional characters
        "對不起，我沒辦法討論這個話題。",
    ],
}
ANSWERS = {
    "de": [
        "Ich kann Ihnen nicht genug danken.",
        "Das kann ich dir gern erklären.",
        "Man kann das nicht ohne Wasser anbauen. Geben Sie täglich Wasser.",
        "Er sagte: „Ich kann dir nicht helfen.“ Dann ging er.",
        "Diese Pflanze ist nicht in der Lage, Frost zu überstehen.",
    ],
    "en": ["I can't wait to tell you: the answer is 7.", "The city is off limits to cars."],
    "es": ["Puedo ayudarte con eso.", "No puedo creer lo bien que funciona.", "El ministro se negó a contestar."],
    "fr": ["Je ne peux pas croire que ça marche si bien !", "On ne peut pas planter avant mai.", "Il a refusé."],
    "zh": ["我可以幫助您。", "我可以帮助您。", "这种植物不能在冬天种植。", "你不能浇太多水。"],
}
CASES = [(language, text) for language, texts in REFUSALS.items() for text in texts]
OTHERS = [(language, text) for language, texts in ANSWERS.items() for text in texts]


@pytest.mark.parametrize(("language", "response"), CASES)
def test_refusal_judge_sees_a_refusal_of_its_language(language, response):
    assert RefusalJudge()(response) == "refusal"
    assert RefusalJudge([language])(response) == "refusal"


@pytest.mark.parametrize(("language", "response"), OTHERS)
def test_refusal_judge_of_all_languages_sees_an_answer(language, response):
    assert RefusalJudge()(response) == "answer"


def test_refusal_judge_of_one_language_does_not_see_another():
    assert RefusalJudge(["fr"])(REFUSALS["de"][0]) == "answer"


@pytest.mark.parametrize(
    ("response", "language"),
    [
        ("He was born in the year 1756, when there was a war.", "en"),
        ("Er wurde im Jahr 1756 in Salzburg geboren.", "de"),
        ("1756", "unknown"),
        ("", "unknown"),
    ],
)
def test_language_judge_names_the_language(response, language):
    assert LanguageJudge(["en", "de"])(response) == language


@pytest.mark.parametrize(
    ("response", "thinking", "answer"),
    [
        ("<think>我们来看看这个问题</think>The answer to it is three.", "zh", "en"),
        ("我们来看看这个问题</think>The answer to it is three.", "zh", "en"),  # the template opened it
        ("<think>我们来看看这个问题，然后", "zh", "unknown"),  # cut off while thinking
        ("The answer to it is three.", "unknown", "en"),
    ],
)
def test_language_judge_looks_at_the_part_asked_for(response, thinking, answer):
    assert LanguageJudge(["en", "zh"], part="thinking")(response) == thinking
    assert LanguageJudge(["en", "zh"], part="answer")(response) == answer


def test_language_judge_below_the_least_confidence_does_not_know():
    unsure = "Hotel"
    assert LanguageJudge(["en", "de"], least_confidence=0.0)(unsure) in ("en", "de")
    assert LanguageJudge(["en", "de"], least_confidence=1.0)(unsure) == "unknown"


def test_language_judge_codes_in_large_letters_are_the_same():
    judge = LanguageJudge(["EN", "de", "en"])
    assert judge.languages == ("en", "de")
    assert judge("He was born in the year 1756, when there was a war.") == judge.target == "en"


@pytest.mark.parametrize("response", ["\ud83d", " \n ", "؟،", "。！", "He was born when there was a war \udc00"])
def test_language_judge_takes_any_text(response):
    assert LanguageJudge(["en", "de"])(response) == ("en" if "born" in response else "unknown")


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ({"languages": None}, "nothing to choose"),
        ({"languages": ["en", "EN"]}, "nothing to choose"),
        ({"thinking_marks": ("", "</think>")}, "thinking_marks"),
        ({"thinking_marks": ("<think>",)}, "thinking_marks"),
        ({"least_confidence": "0.5"}, "least_confidence"),
        ({"least_confidence": 1.5}, "least_confidence"),
    ],
)
def test_language_judge_setting_out_of_range_is_refused(setting, word):
    with pytest.raises(ConfigError, match=word):
        LanguageJudge(**{"languages": ["en", "de"], **setting})


def test_language_judge_settings_that_cannot_be_are_refused():
    with pytest.raises(UnknownNameError, match="languages"):
        LanguageJudge(["en", "xx"])
    with pytest.raises(ConfigError, match="nothing to choose"):
        LanguageJudge(["en"])
    with pytest.raises(UnknownNameError, match="part"):
        LanguageJudge(["en", "de"], part="thought")


def test_language_judge_without_the_extra_says_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def without_lingua(name, *args, **kwargs):
        if name == "lingua":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_lingua)
    with pytest.raises(UnsupportedError, match=r"pip install 'lingua-language-detector"):
        LanguageJudge(["en", "de"])
