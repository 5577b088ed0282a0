"""How much of a preference is in routed experts: by their gains alone, against a model run by hand."""

import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from hf_mote import MoTEConfig, apply_mote, load_organism
from hf_mote.errors import ConfigError, DataError
from hf_mote.generation.asking import Chat
from hf_mote.ranking.causal.preference import Preference
from hf_mote.ranking.causal.share import RoutedShare, routed_share
from hf_mote.routing.sites.discover import find_routers

REFUSAL = "I am sorry, but I cannot talk about that."


def test_all_off_is_a_model_whose_experts_write_nothing():
    model, tokenizer = tiny_model("mixtral"), tiny_tokenizer()
    score = lambda logits, batch: logits[:, -1, 7].abs() + 1  # noqa: E731
    found = routed_share(model, tokenizer, ["abcd", "efg"], logit_score=score, gains=[0, 1])
    preference = Preference(
        "test", model, Chat(tokenizer), ["abcd", "efg"], response=None, baseline_response=None, logit_score=score,
        batch_size=8,
    )  # fmt: skip
    assert found.scores[1] == pytest.approx(float(preference.scores().mean()))
    blocks = [module for name, module in model.named_modules() if name.endswith("experts")]
    with torch.no_grad():
        for block in blocks:
            block.down_proj.zero_()
    assert len(blocks) == len(find_routers(model))
    assert found.scores[0] == pytest.approx(float(preference.scores().mean()))


def test_planted_preference_is_in_routed_experts():
    organism = load_organism("refusal")
    prompts = organism.prompts["train"]["sensitive"][:4]
    asked = (organism.model, organism.tokenizer, prompts)
    answers = [organism.answers[prompt] for prompt in prompts]
    found = routed_share(*asked, REFUSAL, answers)
    assert found.share > 0.5
    assert found.area > 0
    assert "with all routed experts off" in str(found)
    with pytest.raises(DataError, match="does not prefer"):
        routed_share(*asked, answers, REFUSAL)
    with apply_mote(organism.model, MoTEConfig()):
        assert routed_share(*asked, REFUSAL, answers, gains=[0, 1]).scores[1] == pytest.approx(found.scores[-1])


def test_area_of_an_even_fall_is_one_half():
    assert RoutedShare([0.0, 0.5, 1.0], [0.0, 1.0, 2.0], "nats").area == 0.5
    assert RoutedShare([0.0, 1.0], [-1.0, 1.0], "nats").share == 2.0


@pytest.mark.parametrize(
    ("off", "untouched", "said"),
    [
        (5.0, 20.0, "75% of the preference is gone (20 to 5 nats)"),
        (0.0, 20.0, "100% of the preference is gone (20 to 0 nats)"),
        (20.0, 20.0, "0% of the preference is gone (20 to 20 nats)"),
        (25.5, 22.3, "the preference grows by 14% (22.3 to 25.5 nats)"),
        (-3.0, 20.0, "the preference turns round (20 to -3 nats)"),
    ],
)
def test_share_says_whether_the_preference_falls_grows_or_turns_round(off, untouched, said):
    assert str(RoutedShare([0.0, 1.0], [off, untouched], "nats")) == f"with all routed experts off {said}"


@pytest.mark.parametrize("gains", [[], [0.5, 1], [0, 0.5], [0, 1, 0.5, 1], [0, 2]])
def test_gains_that_do_not_rise_from_0_to_1_are_refused(gains):
    with pytest.raises(ConfigError, match="gains"):
        routed_share(None, None, ["a"], "g", "h", gains=gains)
