"""Readers beyond files that are saved: formats of other libraries, caches, commands, servers, templates.

Part of the table of `readers.py`, and by the same rule: what is accepted is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
import yaml
from mutations import (
    Mutation,
    archive,
    arrow,
    json_document,
    json_lines,
    raw,
    safetensors_file,
    text,
    yaml_document,
)
from reader import Reader
from release_files import RELEASES, stored, weights
from safetensors.torch import save_file
from tiny_models import tiny_model, tiny_tokenizer
from tiny_saes import HIDDEN, LATENTS, TinySAE, activations
from torch_models import as_torch_files
from typer.main import get_command

from hf_mote import (
    ActivationMap,
    MoTEConfig,
    SAELayout,
    SAEModel,
    ServerJudge,
    collect_activations,
    export_sae,
    load_sae,
)
from hf_mote.cli import app
from hf_mote.commands.grid import _before, _values
from hf_mote.commands.model import Organisms, load_subject, served_subject
from hf_mote.commands.options import template_args
from hf_mote.commands.run_files import REPORT, finish, writing_to
from hf_mote.commands.sae.texts import read_texts
from hf_mote.commands.validate import MARKS, problems_in
from hf_mote.errors import ConfigError, HFMoTEError
from hf_mote.evaluation.preregistration import Preregistration, preregister
from hf_mote.files import read_tensors, write_tensors
from hf_mote.generation.chat import rendered
from hf_mote.judges.refusal import RefusalJudge
from hf_mote.sae.convert.registry import FORMATS
from hf_mote.sae.training.last_checkpoint import last_complete
from hf_mote.serving import client
from hf_mote.serving.client import ServerEngine
from hf_mote.serving.settings import ServingSettings
from hf_mote.sharing.privacy import check_nothing_private

__all__ = ["FURTHER", "use_sae"]

_BY_ENDING: dict[str, Mutation] = {
    ".json": json_document,
    ".yaml": yaml_document,
    ".safetensors": safetensors_file,
    ".npz": archive,
    ".pt": archive,
    ".pth": archive,
}


def use_sae(sae: SAEModel) -> None:
    """Do with an SAE that was read what anybody would."""
    assert not sae.training
    width = sae.config.hidden_size
    assert bool(torch.isfinite(sae.W_enc).all())
    if width <= 64 and getattr(sae, "is_calibrated", True):
        sae.encode(torch.zeros(2, width, dtype=sae.W_enc.dtype))


# SAEs of other libraries, as their releases have them.


@cache
def _places(name: str) -> tuple[str, dict[str, Any], dict[str, Mutation]]:
    """Return what `load_sae` is told of a release, and how its files are damaged."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        release = RELEASES[name](Path(folder))
        layout, subfolder, wanted = (
            FORMATS[release.format],
            release.place.get("subfolder", ""),
            release.place.get("file"),
        )
        place = Path(folder) / subfolder
        held = [wanted] if wanted is not None else layout.weights_in(place)
        # A repository holds other layers and statistics, too, which are not read.
        held += [*(other for one in held for other in layout.beside(one)), *([layout.config] if layout.config else [])]
        names = [(Path(subfolder) / one).as_posix() for one in held if (place / one).is_file()]
    return subfolder, {"file": wanted, **release.given}, {one: _BY_ENDING[Path(one).suffix] for one in names}


def _release(name: str) -> Reader:
    subfolder, told, files = _places(name)
    if name == "qwen_scope":
        told = {**told, "k": 5}

    def read(folder: Path) -> None:
        use_sae(load_sae(folder / subfolder, **told))

    return Reader(f"sae/{name}", lambda folder: RELEASES[name](folder), read, files, share=0.3)


def _make_clt(folder: Path) -> None:
    named = {f"{name}_1": tensor for name, tensor in weights().items() if name != "W_dec"}
    save_file({"W_dec_1": activations(LATENTS, 2, HIDDEN, seed=50)}, folder / "W_dec_1.safetensors")
    save_file(named, folder / "W_enc_1.safetensors")
    config = {"model_name": "Qwen/Qwen3-4B", "model_kind": "cross_layer_transcoder"}
    config |= {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def _make_openai(folder: Path) -> None:
    names = {"W_enc": "encoder.weight", "b_enc": "latent_bias", "W_dec": "decoder.weight.T", "b_dec": "pre_bias"}
    state = {
        **stored(weights(), names),
        "stats_last_nonzero": torch.zeros(LATENTS, dtype=torch.long),
        "activation": "TopK",
        "activation_state_dict": {"k": 5, "postact_fn": "ReLU"},
    }
    torch.save(state, folder / "8.pt")


def _make_opensae(folder: Path) -> None:
    tensors = stored(
        weights(), {"W_enc": "encoder.weight", "b_enc": "encoder.bias", "W_dec": "W_dec", "b_dec": "b_dec"}
    )
    first, second = dict(list(tensors.items())[:2]), dict(list(tensors.items())[2:])
    parts = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {key: name for name, part in parts.items() for key in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"hidden_size": HIDDEN, "feature_size": LATENTS, "activation": "topk", "k": 5, "input_normalize": True}
    config |= {"input_normalize_eps": 0.01, "normalize_shift_back": True, "model_name": "meta-llama/Llama-3.1-8B"}
    config |= dict.fromkeys(("input_hookpoint", "output_hookpoint"), "layers.7")
    (folder / "config.json").write_text(json.dumps(config))


def _make_gemma_layers(folder: Path) -> None:
    tensors = {
        "w_enc": activations(HIDDEN, LATENTS, seed=3),
        "w_dec": activations(LATENTS, 3, HIDDEN, seed=13),
        "b_enc": activations(LATENTS, seed=23),
        "b_dec": activations(HIDDEN, seed=33),
        "threshold": activations(LATENTS, seed=43).abs(),
    }
    save_file(tensors, folder / "params_layer_1.safetensors")
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b-pt", "affine_connection": False}
    config |= {"hf_hook_point_in": "model.layers.{7,13,17}.output"}
    config |= {"hf_hook_point_out": "model.layers.{7,13,17}.output"}
    (folder / "config.json").write_text(json.dumps(config))


def _transcoder(layer: int) -> SAEModel:
    return TinySAE("relu", "transcoder").model(
        base_model="Qwen/Qwen3-4B", hookpoint=f"model.layers.{layer}.mlp.input", output_size=HIDDEN,
        output_hookpoint=f"model.layers.{layer}.mlp",
    )  # fmt: skip


def _read_set(folder: Path) -> None:
    # One more layer of a set whose config lies there.
    export_sae(_transcoder(5), folder / "set", "circuit_tracer", force=True)
    use_sae(load_sae(folder / "set", file="layer_5.safetensors"))


def _make_temporal(folder: Path) -> None:
    save_file(weights(), folder / "latest_ckpt.safetensors")
    (folder / "conf.yaml").write_text(yaml.safe_dump({"sae": {"width": HIDDEN, "kinds": ["a", "b"]}}))


def _read_temporal(folder: Path) -> None:
    try:
        load_sae(folder)
    except HFMoTEError as error:
        # It is never read: what counts as accepted is that it is told for what it is.
        if "temporal SAE depend" not in str(error):
            raise


_SAE_LAYOUT = SAELayout("topk_sae", {"W_enc": "enc", "b_enc": "be", "W_dec": "dec"}, transpose=("W_enc",))


def _make_layout(folder: Path) -> None:
    w = weights()
    tensors = {"enc": w["W_enc"].T.contiguous(), "be": w["b_enc"], "dec": w["W_dec"]}
    save_file(tensors, folder / "weights.safetensors")
    torch.save(tensors, folder / "weights.pt")


def _read_layout(folder: Path) -> None:
    use_sae(load_sae(folder / "weights.safetensors", _SAE_LAYOUT, k=5))
    use_sae(load_sae(folder / "weights.pt", _SAE_LAYOUT, k=5))


def _foreign(
    name: str, make: Callable[[Path], None], files: Mapping[str, Mutation], file: str | None = None
) -> Reader:
    return Reader(f"sae/{name}", make, lambda folder: use_sae(load_sae(folder, file=file)), files, share=0.3)


# What runs of this package leave for later runs.

_WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away"]
_TEXTS = [" ".join(_WORDS[i % 7 :] + _WORDS[: i % 5]) + f" {i}." for i in range(8)]
_POINTS = ["model.layers.0.output", "model.layers.1.output"]


@cache
def _model() -> Any:
    return tiny_model("mixtral")


def _stream(cache_folder: Path | None) -> Any:
    return collect_activations(
        _model(), tiny_tokenizer(), _TEXTS, _POINTS, batch_size=32, context_length=16, sequences_per_forward=4,
        window_tokens=64, seed=1, cache=cache_folder,
    )  # fmt: skip


def _make_cache(folder: Path) -> None:
    list(_stream(folder))


def _read_cache(folder: Path) -> None:
    for batch in _stream(folder):
        assert len(batch) == len(_POINTS)
        for part in batch.values():
            assert part["activations"].shape == (32, 32)
            assert bool(part["activations"].isfinite().all())


def _make_stream_state(folder: Path) -> None:
    stream = _stream(None)
    next(iter(stream))
    state = stream.state_dict()
    carried = state.pop("carried")
    write_tensors(folder / "activations_0.safetensors", carried, {"kind": "activation_stream", "state": state})
    checkpoint = folder / "checkpoint-7"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 7}))


def _read_stream_state(folder: Path) -> None:
    last_complete(folder)
    stream = _stream(None)
    carried, metadata = read_tensors(folder / "activations_0.safetensors", kind="activation_stream")
    state = metadata.get("state")
    stream.load_state_dict({**(state if isinstance(state, dict) else {}), "carried": carried})
    for batch in stream:
        assert all(bool(part["activations"].isfinite().all()) for part in batch.values())


def _preregistration() -> Preregistration:
    plan: Any = {"model": {"a": 1}, "config": {"suppress": [[2, 5]]}, "target": "refusal", "judge": RefusalJudge()}
    return preregister(**plan, prompts=["a", "b"], num_controls=40, margin=0.1)


def _read_preregistration(folder: Path) -> None:
    found = Preregistration.read(folder / "plan.json")
    found.check(_preregistration())


def _make_earlier(folder: Path) -> None:
    with writing_to(folder / "run", force=False) as files:
        (files / "a.txt").write_text("earlier")
        (files / "sub").mkdir()
        (files / "sub" / "b.txt").write_text("earlier")
        finish(files, {"rate": 0.5}, {"model": "m"}, {"a.txt": "a text"})
    (folder / "mine.txt").write_text("beside")
    (folder / "run" / "mine.txt").write_text("inside")


def _read_earlier(folder: Path) -> None:
    with writing_to(folder / "run", force=True) as files:
        (files / "new.txt").write_text("new")
        finish(files, {"rate": 1.0}, {"model": "m"}, {"new.txt": "a text"})
    assert (folder / "mine.txt").read_text() == "beside"
    assert (folder / "run" / "new.txt").read_text() == "new"
    assert json.loads((folder / "run" / REPORT).read_text())["rate"] == 1.0


# Commands: folders to share, settings, texts, values, models.


def _make_shared(folder: Path) -> None:
    config = MoTEConfig(
        suppress=[[1, 2]],
        fingerprint={
            "layers": [0, 1, 2],
            "model_type": "mixtral",
            "num_experts": [4, 4, 4],
            "router_sha256": "ab",
            "top_k": [2, 2, 2],
        },
        base_model="org/model",
        unverified="it was not measured",
        provenance={"status": MARKS[1], "source": "a paper"},
    )
    counts = torch.ones(3, 4, dtype=torch.float64)
    shown = ActivationMap(counts, counts, (0, 1, 2), 9.0, {"class": "a"})
    config.save_pretrained(folder, maps={"a": shown}, license="mit", intended_use="tests")
    readme = folder / "README.md"
    readme.write_text(
        readme.read_text() + f"\n\n## How it was made\n\n{MARKS[1]}\n\n## Measured\n\n## Use and misuse\n"
    )
    recipe = {"architecture": "topk", "hookpoint": "model.layers.1.output", "k": 4, "tokens": 1000}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def _read_shared(folder: Path) -> None:
    # What is wrong is said by sentences, not raised; that there are none counts as accepted.
    found = problems_in(folder)
    for problem in found:
        problem.encode()
    check_nothing_private(folder)
    if found:
        raise ConfigError(str(folder), found[0])


def _make_settings(folder: Path) -> None:
    settings = {"architecture": "topk", "k": 4, "tokens": 1000, "learning-rate": 0.001, "seed": 3}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))


def _read_settings(folder: Path) -> None:
    train: Any = get_command(app)
    train = train.commands["sae"].commands["train"]
    given = ["MODEL", "TEXT", "--settings", str(folder / "settings.yaml"), "--output", "folder"]
    try:
        train.make_context("train", given)
    except Exception as error:
        if not hasattr(error, "format_message"):  # by which commands refuse options
            raise
        raise ConfigError("--settings", error.format_message()) from error


def _make_texts(folder: Path) -> None:
    (folder / "a.txt").write_text("One text.\nAnother line.\n" * 20)
    rows = [
        {"text": "some text"},
        {"text": "more", "other": 1},
        {"input_ids": [5, 6, 7]},
        {"messages": [{"role": "user", "content": "hi"}]},
    ]
    (folder / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read_texts(folder: Path) -> None:
    rows = read_texts(str(folder), "text", Organisms())
    list(collect_activations(_model(), tiny_tokenizer(), rows, _POINTS[0], batch_size=4, context_length=8))


def _read_values(folder: Path) -> None:
    for value in _values("place", f"@{folder / 'values.txt'}"):
        value.encode()
    _before(folder / "values.txt").encode()


def _make_model(folder: Path) -> None:
    model = _model()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder / "template.jinja").write_text("{{ messages[0]['content'] }}")


def _make_torch_model(folder: Path) -> None:
    _make_model(folder)
    as_torch_files(folder)


def _read_model(folder: Path) -> None:
    subject = load_subject(str(folder), Organisms(), device="cpu", chat_template=folder / "template.jinja")
    rendered(subject.tokenizer, "Hi", None, {}, "prompt 1")


def _read_served(folder: Path) -> None:
    try:
        load_sae(folder)
    except HFMoTEError:
        pass  # it is no SAE
    else:
        raise AssertionError("a language model was taken for an SAE")
    served_subject(str(folder), Organisms(), revision=None, chat_template=None)


# Templates, judges, servers.

_TEMPLATE = """\
{% for message in messages %}<user>{{ message['content'] | trim }}{% if loop.last and add_generation_prompt %}
<assistant>{% endif %}{% endfor %}{{ '' if enable_thinking is defined and enable_thinking else ' ' }}
"""
_TEMPLATES = (
    "{% for i in range(10**9) %}x{% endfor %}", "{{ messages.__class__.__mro__ }}", "{{ ''.__class__ }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}", "{% include 'a' %}", "{{ x.y.z }}", "{{ 'a' * 10**8 }}", "{{ range(10**12) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{",
    "{% set x = namespace(a=1) %}{{ x.a }}", "{{ messages | tojson }}", "{{ strftime_now('%Y') }}",
    "{{ messages[9] }}",
)  # fmt: skip


def _template(content: bytes, random: Random) -> tuple[bytes, str]:
    if random.random() < 0.2:
        added = random.choice(_TEMPLATES)
        return (content + added.encode() if random.random() < 0.5 else added.encode()), f"with {added[:40]!r}"
    if random.random() < 0.5:
        return raw(content, random)
    words = [
        "messages",
        "message",
        "content",
        "trim",
        "loop",
        "last",
        "{%",
        "%}",
        "{{",
        "}}",
        "if",
        "endif",
        "for",
        "in",
    ]
    old, new = random.choice(words), random.choice([*words, "", "x", "1", "'", "[0]", ".x", "|", "(", "{#"])
    return content.decode().replace(old, new, random.randrange(1, 3)).encode(), f"{old!r} becomes {new!r}"


def _read_template(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    try:
        tokenizer.chat_template = (folder / "template.jinja").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError("template", "must be a text") from error
    found = rendered(tokenizer, "What is it?", "Be short.", template_args(["enable_thinking=true"]), "prompt 1")
    found.encode()


def _make_reply(folder: Path) -> None:
    reply = {"choices": [{"message": {"role": "assistant", "content": "<think>well</think> Yes, it is."}}], "id": "x"}
    (folder / "reply.json").write_text(json.dumps(reply))


class _Replies(ServerJudge):
    """A judge whose server says what stands in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__("http://localhost:1/v1", "m", "Is it?")
        self._path = path

    def _reply(self, asked: bytes) -> bytes:
        return self._path.read_bytes()


def _read_reply(folder: Path) -> None:
    assert _Replies(folder / "reply.json")("prompt", "response") in ("yes", "no", "unclear")


_MODEL_SAYS = {"fingerprint": {
    "layers": [0, 1], "model_type": "mixtral", "num_experts": [4, 4], "router_sha256": "ab", "top_k": [2, 2],
}, "model": "org/model", "record": 4}  # fmt: skip


def _make_server(folder: Path) -> None:
    layer = [[[1, 1, 2, 0], [0, 1, 1, 0]], [[0.5, 0.5, 1.0, 0], [0, 0.5, 0.5, 0]]]
    replies = {
        "model": _MODEL_SAYS,
        "models": {"data": [{"id": "served"}]},
        "profiles": {"profiles": {"a": MoTEConfig(suppress=[[0, 1]], gain=[[1, 2, 1.5]]).to_dict()}},
        "recording": {"recorded": {"layers": {"0": layer, "1": layer}, "tokens": [2, 1]}},
        "completion": {
            "choices": [
                {
                    "token_ids": [5, 6, 7],
                    "logprobs": {"token_logprobs": [-0.5, -1.0, -9999.0]},
                    "prompt_logprobs": [None, {"2": {"logprob": -0.5}}, {"3": {"logprob": -1.5}}],
                    "message": {"role": "assistant", "content": "Hello."},
                }
            ]
        },
    }
    for name, reply in replies.items():
        (folder / f"{name}.json").write_text(json.dumps(reply))
    deltas = [{"role": "assistant", "content": ""}, {"reasoning": "Well,"}, {"content": "Hel"}, {"content": "lo."}]
    (folder / "events.jsonl").write_text("".join(f"{json.dumps({'choices': [{'delta': one}]})}\n" for one in deltas))


def _read_server(folder: Path) -> None:
    kinds = {"/v1/mote/model": "model", "/v1/models": "models", "/v1/mote/profiles": "profiles"}

    def answer(url: str, *_: object, **__: object) -> bytes:
        route = url.removeprefix("http://localhost:1")
        name = kinds.get(route, "recording" if "recordings" in route else "completion")
        return (folder / f"{name}.json").read_bytes()

    def parts(*_: object, **__: object) -> Iterator[bytes]:
        lines = (folder / "events.jsonl").read_bytes().splitlines()
        content = b"\n\n".join(b"data: " + line for line in [*lines, b"[DONE]"]) + b"\n\n"
        yield from (content[place : place + 50] for place in range(0, len(content), 50))

    pools: list[ThreadPoolExecutor] = []

    def pool(*given: int) -> ThreadPoolExecutor:
        pools.append(ThreadPoolExecutor(*given))
        return pools[-1]

    usual = client.ask, client.ask_in_parts, client.ThreadPoolExecutor
    client.ask, client.ask_in_parts, client.ThreadPoolExecutor = answer, parts, pool  # type: ignore[assignment,misc]
    try:
        engine = ServerEngine("http://localhost:1")
        for profile in engine.profiles.values():
            assert profile == MoTEConfig.from_dict(profile.to_dict())
        assert isinstance(engine.base_model, str)
        batch = engine.image([[1, 2], [3, 4]], phase="all")
        assert batch.counts.shape == batch.weights.shape
        assert bool((batch.counts >= 0).all())
        for answered in engine.answer([[1, 2]]):
            assert len(answered.tokens) > 0
        assert len(engine.predict([[1, 2, 3]])[0]) == 2
        engine.chat([{"role": "user", "content": "Hi"}]).encode()
        came: list[str] = []
        assert engine.chat([{"role": "user", "content": "Hi"}], on_text=came.append).encode() == "".join(came).encode()
        assert all(isinstance(token, int) and token >= 0 for tokens in batch.tokens for token in tokens)
    finally:
        for one in pools:  # the client does not wait for them once a request has failed, and the next reader must
            one.shutdown(wait=True)
        client.ask, client.ask_in_parts, client.ThreadPoolExecutor = usual  # type: ignore[misc]


def _make_serving(folder: Path) -> None:
    given = {
        "profiles": {"a": MoTEConfig(suppress=[[0, 1]], gain=[[1, 2, 1.5]]).to_dict()},
        "max_profiles": 4,
        "modes": ["drop"],
        "record": 2,
    }
    (folder / "additional.json").write_text(json.dumps(given))


def _read_serving(folder: Path) -> None:
    try:
        given = json.loads((folder / "additional.json").read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError("additional_config", "must be JSON") from error
    found = ServingSettings.read(given)
    assert ServingSettings.read(found.to_dict()).to_dict() == found.to_dict()
    assert found.fields is not None


FURTHER: tuple[Reader, ...] = (
    *(_release(name) for name in RELEASES),
    _foreign(
        "circuit_tracer_clt",
        _make_clt,
        {
            "config.yaml": yaml_document,
            "W_enc_1.safetensors": safetensors_file,
            "W_dec_1.safetensors": safetensors_file,
        },
        "W_enc_1.safetensors",
    ),
    _foreign("openai", _make_openai, {"8.pt": archive}),
    _foreign(
        "opensae",
        _make_opensae,
        {
            "config.json": json_document,
            "model.safetensors.index.json": json_document,
            "model-00001-of-00002.safetensors": safetensors_file,
        },
    ),
    _foreign(
        "gemma_scope_2_layers",
        _make_gemma_layers,
        {"config.json": json_document, "params_layer_1.safetensors": safetensors_file},
    ),
    Reader(
        "sae/circuit_tracer_set",
        lambda folder: export_sae(_transcoder(4), folder / "set", "circuit_tracer"),
        _read_set,
        {"set/config.yaml": yaml_document},
        share=0.3,
    ),
    Reader("sae/temporal", _make_temporal, _read_temporal, {"conf.yaml": yaml_document}, share=0.2),
    Reader(
        "sae/layout",
        _make_layout,
        _read_layout,
        {"weights.safetensors": safetensors_file, "weights.pt": archive},
        share=0.5,
    ),
    Reader(
        "activation_cache",
        _make_cache,
        _read_cache,
        {"cache.json": json_document, "window-000000-of-0-1.arrow": arrow, "window-000001-of-0-1.arrow": arrow},
        share=0.5,
    ),
    Reader(
        "stream_state",
        _make_stream_state,
        _read_stream_state,
        {"activations_0.safetensors": safetensors_file, "checkpoint-7/trainer_state.json": json_document},
        share=0.5,
    ),
    Reader(
        "preregistration",
        lambda folder: _preregistration().write(folder / "plan.json"),
        _read_preregistration,
        {"plan.json": json_document},
        share=0.5,
    ),
    Reader("earlier_report", _make_earlier, _read_earlier, {f"run/{REPORT}": json_document}, share=0.5),
    Reader(
        "shared_folder",
        _make_shared,
        _read_shared,
        {
            "mote_config.json": json_document,
            "recipe.yaml": yaml_document,
            "README.md": text,
            "maps/a/activation_map.safetensors": safetensors_file,
        },
        share=0.3,
    ),
    Reader("settings", _make_settings, _read_settings, {"settings.yaml": yaml_document}, share=0.3),
    Reader("texts", _make_texts, _read_texts, {"a.txt": raw, "b.jsonl": json_lines}, share=0.5),
    Reader(
        "values", lambda folder: (folder / "values.txt").write_text("in Rome\nin Bonn\n"), _read_values,
        {"values.txt": raw}, share=0.3,
    ),
    Reader(
        "model_folder",
        _make_model,
        _read_model,
        {
            "config.json": json_document,
            "generation_config.json": json_document,
            "tokenizer_config.json": json_document,
            "tokenizer.json": json_document,
            "model.safetensors": safetensors_file,
            "template.jinja": _template,
        },
        share=0.1,
    ),
    Reader("torch_model", _make_torch_model, _read_model, {"pytorch_model.bin": archive}, share=0.1),
    Reader(
        "served_model",
        _make_model,
        _read_served,
        {"config.json": json_document, "tokenizer_config.json": json_document, "tokenizer.json": json_document},
        share=0.1,
    ),
    Reader(
        "chat_template",
        lambda folder: (folder / "template.jinja").write_text(_TEMPLATE),
        _read_template,
        {"template.jinja": _template},
        share=0.5,
    ),
    Reader("judge_reply", _make_reply, _read_reply, {"reply.json": json_document}),
    Reader(
        "server_replies",
        _make_server,
        _read_server,
        dict.fromkeys(
            ("model.json", "models.json", "profiles.json", "recording.json", "completion.json"), json_document
        )
        | {"events.jsonl": json_lines},
        share=0.5,
    ),
    Reader("serving_settings", _make_serving, _read_serving, {"additional.json": json_document}, share=0.5),
)  # fmt: skip
