"""The table of routing rules: one declarative row per rule, and the router classes that follow it.

A router turns a token's logits into its experts and their weights. The rules differ in a few declared properties
(scoring, selection bias, group limit, normalisation, scale), so a family is a row here and not code. Supporting
another family means adding its router class to a row, or a row to the table, and a tiny config to
`tests/tiny_families.py`.

This file is long because it is a table. The rows follow the routers of transformers 5.24 (`modeling_<family>.py`,
class `<Family>TopkRouter`).
"""

from __future__ import annotations

from typing import NamedTuple

from hf_mote.routing.rules.rule import RoutingRule

__all__ = ["REFUSED", "RULES", "Refusal"]

BIAS = "e_score_correction_bias"
SCALE = "routed_scaling_factor"
NORM = "norm_topk_prob"
RULES: tuple[RoutingRule, ...] = (
    RoutingRule(
        id="softmax_topk_renorm",
        name="softmax, top-k, renormalised",
        routers={
            "MixtralTopKRouter": "mixtral",
            "MiniMaxTopKRouter": "minimax",
            "Qwen3_5MoeTopKRouter": "qwen3_5_moe",
            "Qwen3VLMoeTextTopKRouter": "qwen3_vl_moe",
            "Qwen3OmniMoeTextTopKRouter": "qwen3_omni_moe",
            "HunYuanMoEV1Gate": "hunyuan_v1_moe",
        },
        scoring="softmax",
        renormalize=True,
    ),
    RoutingRule(
        id="softmax_topk_renorm_flag",
        name="softmax, top-k, renormalised if the config says so",
        routers={
            "FlexOlmoTopKRouter": "flex_olmo",
            "LaraMiniTopKRouter": "lara_mini",
            "MellumTopKRouter": "mellum",
            "OlmoeTopKRouter": "olmoe",
            "Qwen2MoeTopKRouter": "qwen2_moe",
            "Qwen3MoeTopKRouter": "qwen3_moe",
            "Qwen3NextTopKRouter": "qwen3_next",
            "Qwen3OmniMoeThinkerTextTopKRouter": "qwen3_omni_moe",
            "Qwen3OmniMoeTalkerTextTopKRouter": "qwen3_omni_moe",
            "Qwen4ExpTextTopKRouter": "qwen4_exp",
        },
        scoring="softmax",
        renormalize=NORM,
    ),
    RoutingRule(
        id="softmax_topk",
        name="softmax, top-k",
        routers={"JambaTopKRouter": "jamba"},
        scoring="softmax",
    ),
    RoutingRule(
        id="softmax_bias_topk",
        name="softmax, selection bias, top-k",
        routers={"LongcatFlashTopkRouter": "longcat_flash"},
        scoring="softmax",
        selection_bias=BIAS,
        scale=SCALE,
        sorted=False,
        num_experts="n_routed_experts",
    ),
    RoutingRule(
        id="softmax_bias_topk_renorm_min",
        name="softmax, selection bias, top-k, renormalised from a least sum on",
        routers={"Ernie4_5_MoeTopKRouter": "ernie4_5_moe"},
        scoring="softmax",
        selection_bias="moe_statics.e_score_correction_bias",
        renormalize=True,
        least_sum="norm_min",
    ),
    RoutingRule(
        id="softmax_bias_topk_renorm_min_text",
        name="softmax, selection bias, top-k, renormalised from a least sum on; text tokens",
        routers={"Ernie4_5_VLMoeMoeTopKRouter": "ernie4_5_vl_moe"},
        scoring="softmax",
        selection_bias="moe_statics.e_score_correction_bias",
        renormalize=True,
        least_sum="norm_min",
        within="text_moe",
    ),
    RoutingRule(
        id="softmax_topk_scaled",
        name="softmax, top-k, scaled",
        routers={
            "DeepseekV2TopkRouter": "deepseek_v2",
            "DeepseekOcr2TextTopkRouter": "deepseek_ocr2",
            "UnlimitedOcrTextTopkRouter": "unlimited_ocr",
        },
        scoring="softmax",
        scale=SCALE,
        sorted=False,
        when=("topk_method", "greedy"),
    ),
    RoutingRule(
        id="softmax_group_topk",
        name="softmax, group-limited top-k",
        routers={
            "DeepseekV2TopkRouter": "deepseek_v2",
            "DeepseekOcr2TextTopkRouter": "deepseek_ocr2",
            "UnlimitedOcrTextTopkRouter": "unlimited_ocr",
        },
        scoring="softmax",
        group_score="max",
        weights_from="choice",
        scale=SCALE,
        sorted=False,
        when=("topk_method", "group_limited_greedy"),
    ),
    RoutingRule(
        id="softmax_group_topk_renorm_flag",
        name="softmax, group-limited top-k, renormalised if the config says so",
        routers={"Mistral4TopkRouter": "mistral4"},
        scoring="softmax",
        native_dtype=True,
        group_score="top2_sum",
        renormalize=NORM,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="softmax_group_topk_renorm",
        name="softmax, group-limited top-k, renormalised",
        routers={"MistralLarge4TextTopkRouter": "mistral_large4"},
        scoring="softmax",
        native_dtype=True,
        group_score="top2_sum",
        renormalize=True,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="probabilities_topk_renorm_scaled",
        name="probabilities, top-k, renormalised, scaled by expert",
        routers={"Gemma4TextRouter": "gemma4"},
        scoring="probabilities",
        renormalize=True,
        expert_scale="per_expert_scale",
        num_experts="config.num_experts",
        top_k="config.top_k_experts",
    ),
    RoutingRule(
        id="topk_softmax",
        name="top-k, softmax of the chosen",
        routers={
            "GptOssTopKRouter": "gpt_oss",
            "AriaTextTopKRouter": "aria",
            "GraniteMoeTopKRouter": "granitemoe",
            "GraniteMoeSWATopKRouter": "granitemoe_swa",
            "GraniteMoeHybridTopKRouter": "granitemoehybrid",
            "GraniteMoeSharedTopKRouter": "granitemoeshared",
        },
        scoring="logits",
        native_dtype=True,
        weights_from="softmax",
    ),
    RoutingRule(
        id="topk_softmax_divided",
        name="top-k, softmax of the chosen, divided by k",
        routers={"OpenAIPrivacyFilterTopKRouter": "openai_privacy_filter"},
        scoring="logits",
        native_dtype=True,
        weights_from="softmax",
        divide_by_top_k=True,
    ),
    RoutingRule(
        id="topk_softmax_float32",
        name="top-k, softmax of the chosen in float32",
        routers={"Cohere2MoeTopKRouter": "cohere2_moe"},
        scoring="logits",
        native_dtype=True,
        weights_from="softmax",
        weights_float32=True,
        when=("expert_selection_fn", "softmax"),
    ),
    RoutingRule(
        id="topk_sigmoid",
        name="top-k, sigmoid of the chosen",
        routers={"Cohere2MoeTopKRouter": "cohere2_moe"},
        scoring="logits",
        native_dtype=True,
        weights_from="sigmoid",
        renormalize=NORM,
        when=("expert_selection_fn", "sigmoid"),
    ),
    RoutingRule(
        id="bias_topk_sigmoid",
        name="selection bias, top-k, sigmoid of the chosen",
        routers={"Kolibri1TopKRouter": "kolibri1"},
        scoring="logits",
        selection_bias=BIAS,
        weights_from="sigmoid",
        renormalize=NORM,
    ),
    RoutingRule(
        id="sigmoid_topk",
        name="sigmoid, top-k",
        routers={"FlintTopKRouter": "flint"},
        scoring="sigmoid",
        renormalize=NORM,
    ),
    RoutingRule(
        id="sigmoid_bias_group_topk",
        name="sigmoid, selection bias, group-limited top-k",
        routers={
            "AXK1TopkRouter": "axk1",
            "BailingHybridTopkRouter": "bailing_hybrid",
            "DeepseekV3TopkRouter": "deepseek_v3",
            "DeepseekV32TopkRouter": "deepseek_v32",
            "Dots1TopkRouter": "dots1",
            "Dots3NoteTextTopkRouter": "dots3_note",
            "ExaoneMoeTopkRouter": "exaone_moe",
            "Glm4MoeTopkRouter": "glm4_moe",
            "Glm4MoeLiteTopkRouter": "glm4_moe_lite",
            "Glm4vMoeTextTopkRouter": "glm4v_moe",
            "Glm5NextTextTopkRouter": "glm5_next",
            "GlmMoeDsaTopkRouter": "glm_moe_dsa",
            "HYV4TopkRouter": "hy_v4",
            "HYV4VLTopkRouter": "hy_v4_vl",
            "KimiLinearTopkRouter": "kimi_linear",
            "MiMoV2FlashTopkRouter": "mimo_v2_flash",
            "NemotronHTopkRouter": "nemotron_h",
            "SolarOpenTopkRouter": "solar_open",
        },
        lent_to=("sarvam_mla", "sarvam_moe"),
        scoring="sigmoid",
        selection_bias=BIAS,
        group_score="top2_sum",
        group_fill=float("-inf"),
        renormalize=NORM,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="sigmoid_bias_group_topk_block_scaled",
        name="sigmoid, selection bias, group-limited top-k, scaled in the block",
        routers={"BeamTopKRouter": "beam"},
        scoring="sigmoid",
        selection_bias=BIAS,
        group_score="top2_sum",
        group_fill=float("-inf"),
        renormalize=NORM,
        epsilon=1e-20,
    ),
    RoutingRule(
        id="sigmoid_bias_group_topk_others_zero",
        name="sigmoid, selection bias, group-limited top-k, others at 0",
        routers={"AXK2TopkRouter": "axk2"},
        scoring="sigmoid",
        selection_bias=BIAS,
        group_score="top2_sum",
        renormalize=NORM,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="sigmoid_block_bias_topk_router_scaling",
        name="sigmoid, selection bias of the block, top-k, scaled by router_scaling_factor",
        routers={"HYV3TopKRouter": "hy_v3"},
        scoring="sigmoid",
        selection_bias=f"block.{BIAS}",
        renormalize=True,
        epsilon=1e-20,
        scale="router_scaling_factor",
        sorted=False,
    ),
    RoutingRule(
        id="sigmoid_block_bias_topk_route_scale",
        name="sigmoid, selection bias of the block, top-k, scaled by route_scale",
        routers={"AfmoeTokenChoiceRouter": "afmoe"},
        scoring="sigmoid",
        selection_bias="block.expert_bias",
        renormalize=True,
        epsilon=1e-20,
        scale="route_scale",
        probe="batched",
    ),
    RoutingRule(
        id="sigmoid_block_bias_topk_renorm",
        name="sigmoid, selection bias of the block, top-k, renormalised",
        routers={"MiniMaxM2TopKRouter": "minimax_m2"},
        scoring="sigmoid",
        selection_bias=f"block.{BIAS}",
        renormalize=True,
        sorted=False,
    ),
    RoutingRule(
        id="sigmoid_optional_bias_topk",
        name="sigmoid, selection bias of the block if there is one, top-k",
        routers={"Lfm2MoeTopKRouter": "lfm2_moe"},
        scoring="sigmoid",
        native_dtype=True,
        selection_bias="block.expert_bias",
        renormalize=NORM,
        epsilon=1e-6,
        scale=SCALE,
    ),
    RoutingRule(
        id="sigmoid_bias_topk_renorm",
        name="sigmoid, selection bias, top-k, renormalised",
        routers={"MiniMaxM3VLTopKRouter": "minimax_m3_vl", "Step3p7TopKRouter": "step3p7"},
        scoring="sigmoid",
        selection_bias=BIAS,
        renormalize=True,
        sorted=False,
    ),
    RoutingRule(
        id="sigmoid_bias_sorted_topk_renorm",
        name="sigmoid, selection bias, sorted top-k, renormalised",
        routers={"LagunaTopKRouter": "laguna"},
        scoring="sigmoid",
        selection_bias=BIAS,
        renormalize=True,
    ),
    RoutingRule(
        id="sigmoid_bias_topk_renorm_scaled",
        name="sigmoid, selection bias, top-k, renormalised, scaled",
        routers={"MuseSparkTopkRouter": "muse_spark"},
        scoring="sigmoid",
        selection_bias=BIAS,
        renormalize=True,
        epsilon=1e-15,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="activation_bias_topk_renorm_scaled",
        name="own activation, selection bias, top-k, renormalised, scaled",
        routers={
            "DeepseekV4TopKRouter": "deepseek_v4",
            "Inkling2TopKRouter": "inkling2",
            "Inkling2LoopTopKRouter": "inkling2_loop",
        },
        scoring="score_fn",
        native_dtype=True,
        selection_bias=BIAS,
        renormalize=True,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
    ),
    RoutingRule(
        id="topk_dense_sigmoid",
        name="top-k, dense sigmoid scores that scale the expert input",
        routers={"Llama4Router": "llama4"},
        scoring="logits",
        native_dtype=True,
        weights_from="sigmoid",
        weights_float32=True,
        adapter="dense_scores",
    ),
    RoutingRule(
        id="topk_softmax_sorted",
        name="top-k, softmax of the chosen, sorted dispatch",
        routers={"JetMoeTopKGating": "jetmoe"},
        scoring="logits",
        weights_from="softmax",
        within="mlp",
        adapter="sorted_dispatch",
    ),
    RoutingRule(
        id="softmax_topk_pnorm",
        name="softmax, top-k and p-norm in the block",
        routers={"DbrxRouter": "dbrx"},
        scoring="softmax",
        native_dtype=True,
        num_experts="layer.out_features",
        top_k="block.top_k",
        adapter="logits_only",
    ),
    RoutingRule(
        id="sparsemixer",
        name="sparsemixer",
        routers={"PhimoeTopKRouter": "phimoe"},
        scoring="logits",
        native_dtype=True,
        adapter="sparsemixer",
    ),
    RoutingRule(
        id="hash_activation_renorm_scaled",
        name="own activation of hash-chosen experts, renormalised, scaled",
        routers={"DeepseekV4HashRouter": "deepseek_v4"},
        scoring="score_fn",
        native_dtype=True,
        renormalize=True,
        epsilon=1e-20,
        scale=SCALE,
        sorted=False,
        probe="with_ids",
        adapter="hash_table",
    ),
    RoutingRule(
        id="sigmoid_bias_topk_shared_renorm",
        name="sigmoid, selection bias, top-k, normalised with the shared experts",
        routers={"InklingTopkRouter": "inkling"},
        scoring="sigmoid",
        native_dtype=True,
        selection_bias=BIAS,
        scale="route_scale",
        sorted=False,
        adapter="joint_shared",
    ),
    RoutingRule(
        id="softmax_skip_topk",
        name="softmax with a skip class, balancing bias, top-k",
        routers={"ZayaRouter": "zaya"},
        scoring="softmax",
        native_dtype=True,
        selection_bias="balancing_biases",
        num_experts="num_router_classes",
        probe="batched",
        adapter="skip_class",
    ),
)


class Refusal(NamedTuple):
    """A family that cannot work.

    Attributes:
        family (`str`): Its `model_type`.
        reason (`str`): Why it cannot work.
        remedy (`str`): What can be done instead.
        before (`str`, *optional*): The first release of transformers that the reason does not hold for.
    """

    family: str
    reason: str
    remedy: str
    before: str | None = None

    @property
    def full_reason(self) -> str:
        """The reason, and the releases that it holds for."""
        return self.reason if self.before is None else f"before transformers {self.before}, {self.reason}"


_BARE = "its router is a bare linear layer, and the block around it chooses the experts"

REFUSED: dict[str, Refusal] = {
    "AriaTextMoELayer": Refusal("aria", _BARE, "Upgrade to transformers 5.18 or newer.", before="5.18"),
    "DiffusionGemmaTextRouter": Refusal(
        "diffusion_gemma",
        "its encoder and its decoder have a router each in every layer, so that a layer does not name a router",
        "Use gemma4.",
    ),
    "DogeCDMoE": Refusal(
        "doge",
        "its experts are chosen by product keys inside the block's forward, with no router that a hook could reach",
        "Use a model whose router is a module of its own.",
    ),
    "JambaSparseMoeBlock": Refusal("jamba", _BARE, "Upgrade to transformers 5.21 or newer.", before="5.21"),
    "LongcatFlashTopkRouter": Refusal(
        "longcat_flash", "its router returns no logits", "Upgrade to transformers 5.19 or newer.", before="5.19"
    ),
    "NllbMoeTop2Router": Refusal(
        "nllb_moe",
        "up to transformers 5.24 only experts 0 and 1 of each layer ever run, whatever its router decides",
        "Wait for the fix in transformers.",
    ),
    "SwitchTransformersTop1Router": Refusal(
        "switch_transformers",
        "its router returns a dispatch mask limited by capacity, in which tokens depend on each other",
        "Use a decoder-only model, such as olmoe or mixtral.",
    ),
}
"""By the class of the router, or of the block that routes without one."""
