"""`splice_sae` and `steer`: identity where nothing changes, scopes, rows, caches, and MoTE on the same model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import tiny_model
from tiny_saes import SETTINGS, TinySAE
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3Config

from hf_mote import MoTEConfig, SAEModel, apply_mote, splice_sae, steer
from hf_mote.errors import ConfigError, DataError, LivenessError, UnknownNameError, UnsupportedError
from hf_mote.hooks import SharedHook
from hf_mote.sae.steering import digest_of

LAYER = "model.layers.1.output"
IDS = torch.tensor([[10, 11, 12, 13, 14, 15], [20, 21, 22, 23, 24, 25]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}


def num_hooks(model: torch.nn.Module) -> int:
    """Hooks of ours: transformers leaves some of its own where hidden states were asked for."""
    hooks = [
        hook
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    return sum(isinstance(getattr(hook, "__self__", None), SharedHook) for hook in hooks)


def sae_for(name: str = "topk", kind: str = "autoencoder", **overrides: Any) -> SAEModel:
    """A tiny SAE of the model's width, calibrated on its activations."""
    fields = {"hidden_size": 32, "num_latents": 64, "hookpoint": LAYER, **overrides}
    if kind != "autoencoder":
        fields |= {"hookpoint": "model.layers.1.mlp.input", "output_hookpoint": "model.layers.1.mlp.output"}
        fields |= {"output_size": 32}
    if name == "matryoshka":
        fields["group_sizes"] = [16, 48]
    torch.manual_seed(0)
    sae = type(TinySAE(name, "autoencoder").model())(TinySAE(name, kind).config(**fields))
    with torch.no_grad():
        sae.b_dec.normal_()
        if hasattr(sae, "calibrate_threshold") and hasattr(sae, "threshold_k"):
            sae.calibrate_threshold(4 * torch.randn(500, 32))
    return sae.eval()


def residual(model: Any, ids: Tensor, layer: int = 1) -> Tensor:
    with torch.no_grad():
        return model(ids, output_hidden_states=True).hidden_states[layer + 1]


def rest(model: Any, hidden: Tensor) -> Tensor:
    """Logits from the residual stream after layer 1: the model with that as its input."""
    seen = {}
    hook = model.model.layers[1].register_forward_hook(lambda *_: hidden)
    with torch.no_grad():
        seen["logits"] = model(IDS).logits
    hook.remove()
    return seen["logits"]


@pytest.fixture
def model() -> Any:
    return tiny_model("mixtral")


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_splice_puts_the_reconstruction_in_place_and_leaves_no_trace(name: str, model: Any) -> None:
    sae = sae_for(name)
    before = model(IDS).logits
    expected = rest(model, sae(residual(model, IDS)).reconstruction)
    with splice_sae(model, sae) as handle:
        found = model(IDS).logits
        handle.active = False
        assert torch.equal(model(IDS).logits, before)
    torch.testing.assert_close(found, expected)
    assert not torch.equal(found, before)
    assert num_hooks(model) == 0
    assert torch.equal(model(IDS).logits, before)


@torch.no_grad()
@pytest.mark.parametrize(
    ("left_out", "own"),
    [
        ({"exclude_positions": "first:2"}, lambda ids, _: torch.arange(ids.shape[1]).expand_as(ids) < 2),
        (
            {"exclude_positions": "1:3"},
            lambda ids, _: torch.isin(torch.arange(6), torch.tensor([1, 2])).expand_as(ids),
        ),
        ({"exclude_positions": "4:"}, lambda ids, _: torch.arange(ids.shape[1]).expand_as(ids) >= 4),
        ({"exclude_tokens": [12, 20]}, lambda ids, _: torch.isin(ids, torch.tensor([12, 20]))),
        ({"norm_limit": 1.0}, lambda _, hidden: hidden.norm(dim=-1) > 1.0),
        (
            {"exclude_positions": "first:1", "exclude_tokens": [12, 20], "norm_limit": 1.0},
            lambda ids, hidden: (
                (torch.arange(6).expand_as(ids) < 1)
                | torch.isin(ids, torch.tensor([12, 20]))
                | (hidden.norm(dim=-1) > 1.0)
            ),
        ),
    ],
    ids=["first", "slice", "from", "tokens", "length", "all"],
)
def test_tokens_that_are_left_out_keep_their_own_activations(left_out: Any, own: Any, model: Any) -> None:
    sae = sae_for("topk")
    hidden = residual(model, IDS)
    # Where the limit is: the median, so that it divides them.
    scale = float(hidden.norm(dim=-1).median())
    mask = own(IDS, hidden / scale)
    assert mask.any()
    assert not mask.all()
    if "norm_limit" in left_out:
        left_out = {**left_out, "norm_limit": scale}
    with splice_sae(model, sae, **left_out):
        found = model(IDS).logits
    rebuilt = sae(hidden, return_loss=False).reconstruction
    torch.testing.assert_close(found, rest(model, torch.where(mask[..., None], hidden, rebuilt)))


@torch.no_grad()
@pytest.mark.parametrize(
    "left_out", [{"exclude_positions": "first:2"}, {"exclude_positions": "5:8"}, {"exclude_tokens": [12, 20, 31]}]
)
def test_what_is_left_out_is_the_same_with_a_cache_and_with_padding(left_out: Any, model: Any) -> None:
    sae = sae_for("topk")
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], dim=1)
    with splice_sae(model, sae, **left_out):
        cached = model.generate(IDS, **GREEDY)
        uncached = model.generate(IDS, use_cache=False, **GREEDY)
        behind = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(cached, uncached)
    assert torch.equal(behind[:, 3:], cached)


@torch.no_grad()
def test_tokens_are_left_out_where_the_decoder_is_given_embeddings() -> None:
    text = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    }  # fmt: skip
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    tokens = {"image_token_index": 59, "boi_token_index": 58, "eoi_token_index": 57, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Gemma3Config(text_config=text, vision_config=vision, **tokens)).eval()
    sae = sae_for("topk", hookpoint="model.language_model.layers.0.output")
    plain = model(input_ids=IDS).logits
    with splice_sae(model, sae, exclude_tokens=sorted(set(IDS.flatten().tolist()))):
        assert torch.equal(model(input_ids=IDS).logits, plain)
    with splice_sae(model, sae, exclude_tokens=[IDS[0, 0].item()]):
        some = model(input_ids=IDS).logits
    assert torch.equal(some[0, 0], plain[0, 0])
    assert not torch.equal(some[1, 0], plain[1, 0])


@torch.no_grad()
def test_what_cannot_be_left_out_is_refused(model: Any) -> None:
    sae = sae_for("topk")
    with (
        splice_sae(model, sae, exclude_tokens=[3]),
        pytest.raises(UnsupportedError, match=r"exclude_tokens: the ids of the tokens of a pass are not known"),
    ):
        model(inputs_embeds=model.get_input_embeddings()(IDS))
    for wrong, message in (
        ({"exclude_positions": "last:2"}, "exclude_positions: must be a range"),
        ({"exclude_positions": "5:2"}, "exclude_positions: must be a range with a position in it"),
        ({"exclude_positions": "first:0"}, "exclude_positions: must be a range with a position in it"),
        ({"exclude_tokens": [-1]}, "exclude_tokens: must be a whole number"),
        ({"exclude_tokens": "abc"}, "exclude_tokens: must be a list"),
        ({"norm_limit": 0.0}, "norm_limit: must be a number"),
    ):
        with pytest.raises(ConfigError, match=message):
            splice_sae(model, sae, **wrong)
    assert num_hooks(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("name", SETTINGS)
def test_steer_adds_the_difference_of_two_decodings(name: str, model: Any) -> None:
    sae = sae_for(name)
    x = residual(model, IDS)
    latents = sae.encode(x)
    busiest = (latents > 0).sum((0, 1)).argsort(descending=True)[:4].tolist()
    edits = {busiest[0]: 2.5, busiest[1]: ("multiply", 3.0), busiest[2]: ("clamp", 4.0), busiest[3]: "ablate"}
    changed = latents.clone()
    changed[..., busiest[0]] += 2.5
    changed[..., busiest[1]] *= 3.0
    changed[..., busiest[2]] = 4.0
    changed[..., busiest[3]] = 0.0
    with steer(model, sae, edits):
        kept = model(IDS).logits
    torch.testing.assert_close(
        kept, rest(model, x + sae.decode(changed, x) - sae.decode(latents, x)), rtol=1e-4, atol=1e-4
    )
    with steer(model, sae, edits, keep_error=False):
        dropped = model(IDS).logits
    torch.testing.assert_close(dropped, rest(model, sae.decode(changed, x)), rtol=1e-4, atol=1e-4)
    with steer(model, sae, edits, strength=0.5):
        half = model(IDS).logits
    between = latents + 0.5 * (changed - latents)
    torch.testing.assert_close(
        half, rest(model, x + sae.decode(between, x) - sae.decode(latents, x)), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["center", "rms_norm", "standardize", "layer_norm"])
def test_an_sae_that_normalises_steers_and_splices_in_the_units_of_the_model(kind: str, model: Any) -> None:
    sae = sae_for("topk", input_normalization=kind)
    x = residual(model, IDS)
    latents = sae.encode(x)
    busiest = (latents > 0).sum((0, 1)).argsort(descending=True)[:2].tolist()
    changed = latents.clone()
    changed[..., busiest[0]] += 2.5
    changed[..., busiest[1]] *= 3.0
    edits = {busiest[0]: 2.5, busiest[1]: ("multiply", 3.0)}
    for keep_error, expected in (
        (True, x + sae.decode(changed, x) - sae.decode(latents, x)),
        (False, sae.decode(changed, x)),
    ):
        with steer(model, sae, edits, keep_error=keep_error):
            found = model(IDS).logits
        torch.testing.assert_close(found, rest(model, expected), rtol=1e-4, atol=1e-4)
    with splice_sae(model, sae):
        torch.testing.assert_close(model(IDS).logits, rest(model, sae(x).reconstruction), rtol=1e-4, atol=1e-4)
    assert digest_of(sae) != digest_of(sae_for("topk"))


@torch.no_grad()
@pytest.mark.parametrize("edits", [None, {}, {3: 0.0}, {3: ("multiply", 1.0)}, {3: "ablate"}])
def test_where_nothing_changes_outputs_are_the_plain_model_s_bit_for_bit(edits: Any, model: Any) -> None:
    sae = sae_for("topk")
    if edits == {3: "ablate"}:
        sae.b_enc[3] = -1e4  # a latent that is never active
    before = model(IDS).logits
    with steer(model, sae, edits):
        assert torch.equal(model(IDS).logits, before)
    with steer(model, sae, {1: 100.0}, strength=0.0):
        assert num_hooks(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3"])
def test_cached_generation_equals_the_full_forward_under_every_scope(scope: Any, family: str) -> None:
    model = tiny_model(family)
    sae = sae_for("topk")
    with steer(model, sae, {5: 30.0, 9: ("multiply", 2.0)}, scope=scope):
        cached = model.generate(IDS, use_cache=True, **GREEDY)
        whole = model.generate(IDS, use_cache=False, **GREEDY)
    plain = model.generate(IDS, **GREEDY)
    assert torch.equal(cached, whole)
    assert not torch.equal(cached, plain)
    if scope == "generation":  # the first token is the prompt's
        assert torch.equal(cached[:, :7], plain[:, :7])


@torch.no_grad()
def test_scope_prompt_and_generation_together_are_all(model: Any) -> None:
    sae = sae_for("relu")
    edits = {5: 20.0, 6: -10.0}
    with steer(model, sae, edits):
        everywhere = model.generate(IDS, **GREEDY)
    with steer(model, sae, edits, scope="prompt"), steer(model, sae, edits, scope="generation"):
        in_turn = model.generate(IDS, **GREEDY)
    assert torch.equal(everywhere, in_turn)


@torch.no_grad()
def test_thinking_and_answer_are_told_by_their_tokens(model: Any) -> None:
    sae, marks = sae_for("relu"), (11, 13)
    x = residual(model, IDS)
    for scope, columns in (("thinking", slice(1, 3)), ("answer", slice(3, 6))):
        with steer(model, sae, {5: 7.0}, scope=scope, thinking_tokens=marks):  # type: ignore[arg-type]
            found = model(IDS).logits
        moved = x.clone()
        moved[0, columns] += 7.0 * sae.W_dec[5]
        torch.testing.assert_close(found, rest(model, moved), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_edits_by_row_are_those_of_each_row_alone(model: Any) -> None:
    sae = sae_for("batch_topk")
    rows = [{5: 30.0, 7: "ablate"}, None]
    with steer(model, sae, rows):
        together = model.generate(IDS, **GREEDY)
    with steer(model, sae, rows[0]):
        alone = model.generate(IDS[:1], **GREEDY)
    assert torch.equal(together[:1], alone)
    assert torch.equal(together[1:], model.generate(IDS[1:], **GREEDY))
    with steer(model, sae, rows), pytest.raises(ConfigError, match=r"another size \(got 3, expected 2\)"):
        model(IDS[:1].expand(3, -1))
    with steer(model, sae, rows), pytest.raises(UnsupportedError, match="came there from a row with other edits"):
        model.generate(IDS[:1], num_beams=2, **GREEDY)


@torch.no_grad()
def test_beams_and_return_sequences_work_with_edits_for_all_rows(model: Any) -> None:
    sae = sae_for("topk")
    with steer(model, sae, {5: 30.0}, scope="generation"):
        cached = model.generate(IDS, num_beams=3, num_return_sequences=2, **GREEDY)
        whole = model.generate(IDS, num_beams=3, num_return_sequences=2, use_cache=False, **GREEDY)
    assert torch.equal(cached, whole)
    assert cached.shape[0] == 4


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
def test_left_padding_changes_nothing(scope: Any, model: Any) -> None:
    sae = sae_for("topk")
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 6] * 2)
    with steer(model, sae, {5: 30.0}, scope=scope):
        plain = model.generate(IDS, **GREEDY)
        shifted = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(shifted[:, 3:], plain)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["transcoder", "skip_transcoder"])
def test_transcoders_read_in_one_place_and_write_in_another(kind: str, model: Any) -> None:
    sae = sae_for("relu", kind)
    mlp, seen = model.model.layers[1].mlp, {}
    handles = [
        mlp.register_forward_pre_hook(lambda _, args: seen.update(x=args[0])),
        mlp.register_forward_hook(lambda _, __, output: seen.update(y=output)),
    ]
    model(IDS)
    for handle in handles:
        handle.remove()

    def with_output(new: Tensor) -> Tensor:
        hook = mlp.register_forward_hook(lambda *_: new)
        logits = model(IDS).logits
        hook.remove()
        return logits

    with splice_sae(model, sae):
        found = model(IDS).logits
    torch.testing.assert_close(found, with_output(sae(seen["x"]).reconstruction))
    with steer(model, sae, {4: 5.0}):
        found = model(IDS).logits
    torch.testing.assert_close(found, with_output(seen["y"] + 5.0 * sae.W_dec[4]), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_several_saes_at_once_and_in_any_order_of_removal(model: Any) -> None:
    first, second = sae_for("topk"), sae_for("relu", hookpoint="model.layers.0.output")
    before = model(IDS).logits
    with splice_sae(model, [first, second]):
        both = model(IDS).logits
    one, other = splice_sae(model, first), splice_sae(model, second)
    assert torch.equal(model(IDS).logits, both)
    one.remove()
    with splice_sae(model, second):
        pass
    other.remove()
    assert torch.equal(model(IDS).logits, before)
    assert num_hooks(model) == 0


@torch.no_grad()
@pytest.mark.parametrize("scope", ["all", "generation"])
def test_mote_and_an_sae_compose_on_one_model(scope: Any, model: Any) -> None:
    sae = sae_for("topk")
    suppressed = MoTEConfig.for_model(model, suppress=[[0, 1], [2, 3], [2, 5]], scope=scope)

    def logits() -> Tensor:
        output = model.generate(IDS, output_logits=True, return_dict_in_generate=True, **GREEDY)
        return torch.stack(output.logits)

    with apply_mote(model, suppressed), steer(model, sae, {5: 10.0}, scope=scope):
        one = logits()
    with steer(model, sae, {5: 10.0}, scope=scope), apply_mote(model, suppressed):
        other = logits()
    assert torch.equal(one, other)
    with steer(model, sae, {5: 10.0}, scope=scope):
        assert not torch.equal(one, logits())
    with apply_mote(model, suppressed):
        assert not torch.equal(one, logits())
    assert num_hooks(model) == 0


def test_gradients_flow_through_a_spliced_sae(model: Any) -> None:
    sae = sae_for("topk")
    with splice_sae(model, sae):
        model(IDS, labels=IDS).loss.backward()
    assert sae.W_dec.grad is not None
    assert float(sae.W_dec.grad.abs().sum()) > 0
    assert float(model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum()) > 0


@torch.no_grad()
def test_a_model_in_bfloat16_keeps_its_dtype(model: Any) -> None:
    model.to(torch.bfloat16)
    with steer(model, sae_for("topk"), {5: 3.0}):
        assert model(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"edits": {64: 1.0}},
            ConfigError,
            r"steer.edits\[64\]: the SAE has no such latent \(got 64, expected 0..63\)",
        ),
        ({"edits": {-1: 1.0}}, ConfigError, "must be a latent"),
        ({"edits": {3: "erase"}}, ConfigError, r"steer.edits\[3\]: must be an edit"),
        ({"edits": {3: float("nan")}}, ConfigError, "is not finite"),
        ({"edits": {3: ("power", 2.0)}}, ConfigError, "must be an edit"),
        ({"edits": []}, ConfigError, "an empty list"),
        ({"edits": [{3: 1.0}, {99: 1.0}]}, ConfigError, r"steer.edits\[1\]\[99\]"),
        ({"edits": {3: 1.0}, "scope": "everywhere"}, ConfigError, "scope: unknown name"),
        ({"edits": {3: 1.0}, "scope": "thinking"}, ConfigError, "thinking_tokens: belong to the scopes"),
        ({"edits": {3: 1.0}, "strength": float("inf")}, ConfigError, "strength: must be a finite number"),
        ({"edits": {3: 1.0}, "hookpoint": "model.layers.*.output"}, ConfigError, "stands for several modules"),
        ({"edits": {3: 1.0}, "hookpoint": "model.layers.7.output"}, UnknownNameError, "unknown name"),
    ],
)
def test_steer_refuses_what_cannot_be(
    arguments: dict[str, Any], error: type[Exception], message: str, model: Any
) -> None:
    with pytest.raises(error, match=message):
        steer(model, sae_for("relu"), **arguments)
    assert num_hooks(model) == 0


@torch.no_grad()
def test_what_goes_wrong_in_a_pass_is_said(model: Any) -> None:
    with pytest.raises(UnsupportedError, match="the SAE is in training mode"):
        splice_sae(model, sae_for("relu").train())
    with pytest.raises(ConfigError, match="does not say where it belongs"):
        splice_sae(model, sae_for("relu", hookpoint=None))
    with splice_sae(model, sae_for("relu", hookpoint="lm_head")), pytest.raises(DataError, match="wrong width"):
        model(IDS)
    model.never = torch.nn.Linear(32, 32)
    with splice_sae(model, sae_for("relu", hookpoint="never")), pytest.raises(LivenessError, match="did not run"):
        model(IDS)
    assert num_hooks(model) == 0
