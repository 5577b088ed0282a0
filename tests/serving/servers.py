"""A server for the tests marked `vllm`, started as a user starts it, and what transformers says in its place."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch

from hf_mote import MoTEConfig, Organism, apply_mote, load_organism
from hf_mote.generation.asking import Chat

__all__ = ["LENGTH", "Process", "Server", "prompts_of"]

LENGTH = 20


class Process:
    """`hf-mote serve` with a model and options, on a free port or a given one, until it says that it is ready."""

    def __init__(self, model: str, configs: dict[str, Path], *options: str, port: int | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1] if port is None else port
        command = [sys.executable, "-m", "hf_mote", "serve", model, "--port", str(self.port), *options]
        command += ["--kv-cache-memory-bytes", str(2**28), "--block-size", "32"]
        command += [word for name, folder in configs.items() for word in ("--mote", f"{name}={folder}")]
        self.said: list[str] = []
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()
        for _ in range(500):
            if any("curl" in line for line in self.said):
                return
            assert self.process.poll() is None, "".join(self.said[-60:])
            time.sleep(0.5)
        raise AssertionError("".join(self.said[-60:]))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        # Not SIGINT, which a process ignores that a script started in the background.
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)
        self.listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)

    def ask(self, method: str, route: str, body: Any = None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{route}",
            data=data,
            method=method,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


class Server(Process):
    """One of the organism, with the profiles "ban" and "refuse", room for one more, and recordings."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.organism: Organism = load_organism("refusal")
        planted = [list(pair) for pair in self.organism.planted]
        self.configs = {
            "ban": MoTEConfig.for_model(self.organism.model, suppress=planted),
            "refuse": MoTEConfig.for_model(self.organism.model, stimulate=planted),
        }
        folders = {name: folder / name for name in self.configs}
        for name, config in self.configs.items():
            config.save_pretrained(folders[name])
        super().__init__("organism:refusal", folders, "--record", "8", "--max-profiles", "3", port=port)

    def complete(self, prompt: list[int], **xargs: Any) -> tuple[int, Any]:
        body = {"model": "organism:refusal", "prompt": prompt, "max_tokens": LENGTH, "temperature": 0}
        status, found = self.ask("POST", "/v1/completions", {**body, "vllm_xargs": xargs, "return_token_ids": True})
        return status, found["choices"][0]["token_ids"] if status == 200 else found

    def wanted(self, prompt: list[int], name: str | None) -> list[int]:
        model = self.organism.model
        handle = apply_mote(model, self.configs[name]) if name is not None else None
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), max_new_tokens=LENGTH, do_sample=False)
        if handle is not None:
            handle.remove()
        return out[0, len(prompt) :].tolist()


def prompts_of(server: Server) -> list[list[int]]:
    held = server.organism.prompts["heldout"]
    return [list(ids) for ids in Chat(server.organism.tokenizer).encode(held["sensitive"][:3] + held["neutral"][:3])]
