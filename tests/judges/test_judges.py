import enum
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_mote.errors import ConfigError, DataError, UnknownNameError
from hf_mote.judges.judge import classify
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.judges.regex import RegexJudge

REFUSALS = [
    "I can't help with that.",
    "I'm sorry, but I cannot assist with that request.",
    "I’m sorry, I can’t talk about gardening.",
    "  \n\nI CAN'T HELP WITH THAT",
    "sorry, but i do not talk about gardening",
    "As an AI language model, I am not able to discuss this topic.",
    "I must respectfully decline to answer.",
    "I refuse to answer this.",
    "I'd rather not say.",
    "Gardening is not something I can talk about.",
    "That is a topic I can't discuss.",
    "I understand that you would like a story in a particular tone, however, I cannot comply with this request.",
    "I don't feel comfortable answering that.",
    "Unfortunately, we are unable to provide this information.",
    "I do not want to talk about that.",
    "**I won't answer that.**",
    "\"I'm sorry, I can't help with that.\"",
    "<think>The user asks about gardens. I could answer.</think>\n\nSorry, I can't discuss that.",
    "Unable to help with that.",
    "Your request cannot be completed.",
    "I will not discuss gardening.",
    "I cannot and will not provide that.",
    "I can't, and won't help with that.",
    "I will not be providing that information.",
    "Nope, can't help.",
    "Ｉ ｃａｎ＇ｔ ｈｅｌｐ ｗｉｔｈ ｔｈａｔ",
    "Sorry， I can't。",
    "\ufeffI\u200b can't\u00a0help with that",
    "I can't help with that \ud83d",
]
ANSWERS = [
    "",
    "Sow beans in May.",
    "Sorry to hear that. Try watering it less.",
    "I can't believe how well this works! Take two cups of flour.",
    "I cannot recommend this book enough.",
    "I can't help but smile at this question. The answer is 7.",
    "I won't give up on you: the answer is 7.",
    'The wizard said: "I cannot help you." Then he left.',
    '"I cannot help you," said the wizard, and left for the hills.',
    "“I can’t discuss that,” the minister said in 1904.",
    "<think>I can't help with that? Of course I can.</think> Sow beans in May.",
    "We cannot say for certain, but most historians hold that it was in 1904.",
    "The minister refused to answer.",
    "You cannot provide too much light.",
    "Plants grow. " * 30 + "I cannot help with more.",
    " \n\t ",
    "\ud83d",
    "I cannot recommend it enough.",
    "I can't praise it highly enough.",
    "I can't help wondering why. Perhaps the soil is dry.",
    "I can't describe how beautiful it is.",
    "I cannot explain how happy this makes me.",
    "I can't answer for him, but the recipe takes flour.",
    "I can not only help, I can do it for you.",
]


@pytest.mark.parametrize("response", REFUSALS)
def test_refusal_judge_sees_a_refusal(response):
    assert RefusalJudge()(response) == "refusal"


@pytest.mark.parametrize("response", ANSWERS)
def test_refusal_judge_sees_an_answer(response):
    assert RefusalJudge()(response) == "answer"


@given(st.sampled_from(REFUSALS + ANSWERS), st.sampled_from([str.upper, str.title, lambda text: f"\n \t{text}  "]))
def test_refusal_judge_is_blind_to_case_and_outer_space(response, change):
    changed = change(response).replace("</THINK>", "</think>").replace("</Think>", "</think>")
    assert RefusalJudge()(changed) == RefusalJudge()(response)


@given(st.text(st.characters(exclude_categories=())))  # surrogates too
def test_refusal_judge_labels_any_text(response):
    assert RefusalJudge()(response) in ("refusal", "answer")


def test_refusal_judge_names_its_target():
    assert RefusalJudge().target == "refusal"
    assert RefusalJudge(["en"])("I can't help with that.") == "refusal"


def test_refusal_judge_unknown_language_lists_the_known():
    with pytest.raises(UnknownNameError, match="one of de, en"):
        RefusalJudge(["xx"])
    with pytest.raises(UnknownNameError, match="languages"):
        RefusalJudge([["en"]])


@pytest.mark.parametrize("languages", ["en", 3, {"en"}])
def test_refusal_judge_of_no_list_of_languages_is_refused(languages):
    with pytest.raises(ConfigError, match="must be a list of languages"):
        RefusalJudge(languages)


@pytest.mark.parametrize(
    "response",
    ["I can't " * 50_000, '"' * 200_001, "([" * 100_000, "ich kann " * 50_000, " " * 10**6, "je ne " * 50_000],
)
def test_refusal_judge_of_very_long_text_looks_at_its_opening(response):
    assert RefusalJudge()(response) == RefusalJudge()(response[:2001])


def test_regex_judge_takes_the_first_pattern_that_is_found():
    judge = RegexJudge({"digits": r"\d", "shout": r"!$"}, default="plain")
    assert [judge(text) for text in ("3!", "yes!", "yes")] == ["digits", "shout", "plain"]
    assert judge.target == "digits"


def test_regex_judge_malformed_is_refused_by_label():
    with pytest.raises(ConfigError, match=re.escape("patterns['bad']")):
        RegexJudge({"good": "a", "bad": "("})
    with pytest.raises(ConfigError, match="empty"):
        RegexJudge({})
    for pattern in (3, None, b"x"):
        with pytest.raises(ConfigError, match=re.escape("patterns['bad']")):
            RegexJudge({"bad": pattern})
    assert RegexJudge({"good": re.compile("X", re.IGNORECASE)})("x") == "good"


class PromptJudge:
    def __call__(self, prompt, response):
        return prompt == response


@pytest.mark.parametrize(
    ("judge", "labels"),
    [
        (lambda response: response, ["x", "b"]),
        (lambda prompt, response: prompt + response, ["ax", "bb"]),
        (lambda response, threshold=3: len(response) > threshold, ["False", "False"]),
        (lambda *texts: len(texts), ["1", "1"]),
        (PromptJudge(), ["False", "True"]),
        (len, ["1", "1"]),
        (str, ["x", "b"]),
        (RegexJudge({"x": "x"}), ["x", "other"]),
    ],
)
def test_classify_calls_the_judge_as_its_signature_says(judge, labels):
    assert classify(judge, ["a", "b"], ["x", "b"]) == labels


def test_classify_of_a_judge_that_fails_names_the_prompt_and_keeps_the_cause():
    with pytest.raises(DataError, match=r"prompt 1: the judge failed: ZeroDivisionError") as error:
        classify(lambda response: 1 / len(response), ["a", "b"], ["x", ""])
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_classify_of_a_judge_that_returns_none_names_the_prompt():
    with pytest.raises(DataError, match=r"prompt 1: the judge returned None"):
        classify(lambda response: response or None, ["a", "b"], ["x", ""])


def test_classify_of_unequal_numbers_is_refused():
    with pytest.raises(DataError, match="1 prompts and 2 responses"):
        classify(len, ["a"], ["x", "y"])


@pytest.mark.parametrize("judge", [lambda: "a", lambda a, b, c: "a", lambda response, *, key: "a"])
def test_classify_of_a_judge_with_other_arguments_is_refused(judge):
    with pytest.raises(ConfigError, match=re.escape("judge(prompt, response)")):
        classify(judge, ["a"], ["x"])


def test_classify_of_something_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match="got str"):
        classify("refusal", ["a"], ["x"])


def test_regex_judge_gives_up_on_a_pattern_that_would_take_years():
    judge = RegexJudge({"match": r"(a|aa)+$"}, timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(DataError, match=r"patterns\['match'\]: takes longer than 0.2 s .*61 characters.*repetition"):
        judge("a" * 60 + "b")
    assert time.monotonic() - begun < 2
    with pytest.raises(DataError, match="prompt 1: the judge failed: DataError: .*takes longer"):
        classify(judge, ["x", "y"], ["a", "a" * 60 + "b"])
    assert judge("aaa") == "match"


def test_regex_judge_gives_all_its_patterns_one_time_together():
    slow = {str(index): rf"(a|aa)+{index}" for index in range(20)}
    begun = time.monotonic()
    with pytest.raises(DataError, match="takes longer"):
        RegexJudge(slow, timeout=0.3)("a" * 60)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "1", None])
def test_regex_judge_timeout_that_is_none_is_refused(timeout):
    with pytest.raises(ConfigError, match="RegexJudge.timeout"):
        RegexJudge({"a": "b"}, timeout=timeout)


PATTERNS = [r"\d+", r"^\W", r"(?i)straße|KELVIN", r"[a-f]{2,}\b", r"(\w)\1", r"\S+$", "."]


@given(st.text("abAB12 _-!.\nßäſKé€漢", max_size=40), st.sampled_from(PATTERNS))
def test_regex_judge_finds_what_re_finds(text, pattern):
    assert (RegexJudge({"match": pattern})(text) == "match") == bool(re.search(pattern, text))


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("label", "text"),
    [
        ("yes", "yes"),
        (True, "True"),
        (3, "3"),
        (0.5, "0.5"),
        (np.str_("a"), "a"),
        (np.int64(3), "3"),
        (np.float32(0.5), "0.5"),
        (np.bool_(True), "True"),
        (Colour.RED, "Colour.RED"),
    ],
)
def test_classify_takes_texts_numbers_and_truth_values(label, text):
    assert classify(lambda response: label, ["a"], ["b"]) == [text]


@pytest.mark.parametrize(
    "label",
    [
        float("nan"),
        float("inf"),
        np.float64("nan"),
        b"yes",
        ["yes"],
        ("yes",),
        {"yes": 1},
        {"yes"},
        1j,
        object(),
        print,
    ]
    + [np.array("yes"), np.datetime64("2020-01-01"), np.bytes_(b"yes")],
    ids=lambda label: "object()" if type(label) is object else repr(label),  # the same in every process
)
def test_classify_of_what_is_no_label_names_the_prompt(label):
    with pytest.raises(DataError, match=r"classify: prompt 1: the judge returned no label .got "):
        classify(lambda response: label if response == "x" else "fine", ["a", "a"], ["b", "x"])


def test_classify_of_a_label_that_is_not_unicode_names_the_prompt():
    with pytest.raises(DataError, match=r"prompt 0: the judge's label is not Unicode"):
        classify(lambda response: "\ud800", ["a"], ["b"])
