"""Outputs, configs, continuous batching, training and the libraries around: what this package holds on to."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_model
from torch import nn

TOKENS = torch.arange(10, 26).view(2, 8)


def test_model_outputs_have_their_fields(mixtral: transformers.PreTrainedModel) -> None:
    """Outputs are ModelOutput mappings: logits of a causal model, last_hidden_state of a decoder, hidden_states."""
    output = mixtral(TOKENS, output_hidden_states=True)
    assert isinstance(output, transformers.utils.ModelOutput)
    assert output.logits.shape[:2] == TOKENS.shape
    assert len(output.hidden_states) == mixtral.config.num_hidden_layers + 1
    decoded = mixtral.get_decoder()(TOKENS)
    assert torch.equal(decoded[0], decoded.last_hidden_state)
    assert torch.equal(mixtral.lm_head(decoded.last_hidden_state), output.logits)


def test_decoder_layers_can_be_reached_and_hooked(mixtral: transformers.PreTrainedModel) -> None:
    """Decoder layers stand in .layers, and what a layer's hook returns is what the next one gets."""
    layers = mixtral.get_decoder().layers
    assert len(layers) == mixtral.config.num_hidden_layers
    native = mixtral(TOKENS).logits
    handle = layers[0].register_forward_hook(lambda module, args, output: _halved(output))
    assert not torch.equal(mixtral(TOKENS).logits, native)
    handle.remove()
    assert torch.equal(mixtral(TOKENS).logits, native)


def _halved(output: Any) -> Any:
    return output * 0.5 if isinstance(output, torch.Tensor) else (output[0] * 0.5, *output[1:])


def test_configs_know_their_text_part(mixtral: transformers.PreTrainedModel) -> None:
    """A config has model_type, get_text_config() and sub_configs, and to_dict() is of plain values."""
    config = mixtral.config
    assert config.get_text_config() is config
    assert config.model_type == "mixtral"
    assert isinstance(config.sub_configs, dict)
    assert config.to_dict()["num_local_experts"] == 8


def test_generation_config_names_the_end(mixtral: transformers.PreTrainedModel) -> None:
    """Tokens that end a generation are generation_config.eos_token_id."""
    assert mixtral.generation_config.eos_token_id == mixtral.config.eos_token_id == 1


def test_continuous_batching_is_entered_by_known_methods() -> None:
    """Continuous batching starts at init_continuous_batching, its context manager or generate_batch."""
    names = {name for name in dir(transformers.GenerationMixin) if "batch" in name and not name.startswith("_")}
    assert names - {"destroy_cached_continuous_batching_manager"} == {
        "init_continuous_batching",
        "continuous_batching_context_manager",
        "generate_batch",
    }


def test_continuous_batching_manager_is_known_by_its_methods() -> None:
    """A manager of continuous batching has add_requests and is_running."""
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    assert callable(ContinuousBatchingManager.add_requests)
    assert callable(ContinuousBatchingManager.is_running)


def test_generate_batch_calls_generate_batch_of_the_model_itself() -> None:
    """generate_batch goes through init_continuous_batching or the context manager, methods of the model."""
    source = inspect.getsource(transformers.GenerationMixin.generate_batch)
    assert "self.continuous_batching_context_manager(" in source or "self.init_continuous_batching(" in source


def test_checkpointing_runs_layers_again_in_the_backward_pass() -> None:
    """Gradient checkpointing calls routers twice, the second time inside a backward pass, as torch tells."""
    from torch._C import _current_graph_task_id

    model = tiny_model("mixtral")
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    tasks: list[int] = []
    model.get_decoder().layers[0].mlp.gate.register_forward_hook(lambda *_: tasks.append(_current_graph_task_id()))
    with torch.enable_grad():
        model(TOKENS, use_cache=False).logits.sum().backward()
    assert len(tasks) == 2
    assert tasks[0] == -1 != tasks[1]


def test_loading_keeps_selection_biases_in_float32(tmp_path: Any) -> None:
    """from_pretrained with another dtype leaves e_score_correction_bias in float32, and the router's class as is."""
    model = tiny_model("deepseek_v3")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    gate = loaded.get_decoder().layers[1].mlp.gate
    assert type(gate) is type(model.get_decoder().layers[1].mlp.gate)
    assert gate.e_score_correction_bias.dtype == torch.float32
    assert loaded.lm_head.weight.dtype == torch.bfloat16


def test_saved_weights_keep_the_names_of_modules(tmp_path: Any) -> None:
    """A model that was saved and loaded has its weights under the same names, bit for bit."""
    model = tiny_model("mixtral")
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert again.keys() == model.state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


def test_auto_classes_take_registrations() -> None:
    """AutoConfig.register and AutoModel.register take a model type of ours, and from_config finds it."""

    class CanaryConfig(transformers.PreTrainedConfig):
        model_type = "hf_mote_canary"

    class CanaryModel(transformers.PreTrainedModel):
        config_class = CanaryConfig

        def __init__(self, config: transformers.PreTrainedConfig) -> None:
            super().__init__(config)
            self.linear = nn.Linear(2, 2)
            self.post_init()

    transformers.AutoConfig.register("hf_mote_canary", CanaryConfig, exist_ok=True)
    transformers.AutoModel.register(CanaryConfig, CanaryModel, exist_ok=True)
    assert isinstance(transformers.AutoModel.from_config(CanaryConfig()), CanaryModel)


def test_trainer_calls_compute_loss_and_the_optimizer_by_name() -> None:
    """Trainer has compute_loss(model, inputs, return_outputs, num_items_in_batch), training_step and save_model."""
    names = inspect.signature(transformers.Trainer.compute_loss).parameters
    assert list(names)[:4] == ["self", "model", "inputs", "return_outputs"]
    assert callable(transformers.Trainer.training_step)
    assert callable(transformers.Trainer.save_model)


def test_chat_templates_return_ids_and_mask(mixtral: transformers.PreTrainedModel) -> None:
    """apply_chat_template(return_dict=True) gives input_ids and attention_mask, padded on the left if asked."""
    from tiny_models import tiny_tokenizer

    chats = [[{"role": "user", "content": text}] for text in ("What happened?", "Hi")]
    batch = tiny_tokenizer().apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    assert set(batch) >= {"input_ids", "attention_mask"}
    assert batch["attention_mask"][1, 0] == 0


def test_transformers_logs_below_one_logger() -> None:
    """transformers logs below the logger "transformers", and its verbosity can be read and set."""
    from transformers.utils import logging as its_logging

    assert its_logging.get_logger("transformers.canary").name.startswith("transformers")
    before = its_logging.get_verbosity()
    its_logging.set_verbosity_error()
    assert logging.getLogger("transformers").level == logging.ERROR
    its_logging.set_verbosity(before)


@pytest.mark.parametrize("name", ["ParamWrapper", "BaseTunerLayer"])
def test_peft_wraps_below_base_layer(name: str) -> None:
    """PEFT's wrapped modules are tuner layers with the original in base_layer."""
    import peft.tuners.lora.layer as layer
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = getattr(layer, name, BaseTunerLayer if name == "BaseTunerLayer" else None)
    assert found is not None
    assert issubclass(found, BaseTunerLayer)


def test_accelerate_marks_offloaded_modules() -> None:
    """accelerate puts an offloaded module's hook in _hf_hook, and align_module_device brings its weights back."""
    from accelerate import cpu_offload
    from accelerate.utils import align_module_device

    linear = nn.Linear(2, 2)
    holder = nn.Sequential(linear)
    cpu_offload(holder)
    assert hasattr(linear, "_hf_hook")
    assert linear.weight.is_meta
    with align_module_device(linear):
        assert not linear.weight.is_meta


def test_peft_takes_no_method_that_is_not_in_its_enum() -> None:
    """Why tunable_mote is no method of PEFT; where this fails, it can become one."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import register_peft_method

    with pytest.raises(ValueError, match="please add an entry to peft.utils.peft_types.PeftType"):
        register_peft_method(name="tunable", config_cls=PeftConfig, model_cls=BaseTuner)
