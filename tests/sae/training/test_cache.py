"""The cache of `collect_activations`: the same batches, the model run once, and nothing taken for what it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from torch import nn

from hf_mote import collect_activations
from hf_mote.errors import ConfigError, DataError, FileFormatError

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "runs", "away", "from", "it"]
TEXTS = [" ".join(WORDS[i % 7 :] + WORDS[: i % 5]) + f" number {i}." for i in range(40)]
LAYER = "model.layers.1.output"


def stream(folder: Path | None, *, model: nn.Module | None = None, **overrides: Any) -> Any:
    settings: dict[str, Any] = {
        "hookpoints": LAYER,
        "dataset": TEXTS,
        "batch_size": 32,
        "context_length": 16,
        "sequences_per_forward": 4,
        "window_tokens": 128,
        **overrides,
    }
    dataset, hookpoints = settings.pop("dataset"), settings.pop("hookpoints")
    return collect_activations(
        model or tiny_model("mixtral"), tiny_tokenizer(), dataset, hookpoints, cache=folder, **settings
    )


def rows(found: Any) -> torch.Tensor:
    return torch.cat([batch["activations"] for batch in found])


class Forwards:
    """Counts the forwards of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        model.register_forward_pre_hook(self)

    def __call__(self, *args: Any) -> None:
        self.count += 1


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_norm": 1.5, "normalize": True}, {"prefetch": True}, {"window_tokens": 0}, {"dtype": torch.bfloat16}],
)
def test_cached_passes_give_the_very_same_batches(settings: dict[str, Any], tmp_path: Path) -> None:
    plain, kept = stream(None, **settings), stream(tmp_path, **settings)
    for _ in range(2):
        assert torch.equal(rows(kept), rows(plain))
    again = stream(tmp_path, **settings)
    assert torch.equal(rows(again), rows(stream(None, **settings)))
    assert again.counts == stream_counts(settings)


def stream_counts(settings: dict[str, Any]) -> dict[str, int]:
    source = stream(None, **settings)
    list(source)
    counts: dict[str, int] = source.counts
    return counts


def test_the_model_runs_once_for_all_passes_and_runs(tmp_path: Path) -> None:
    model = tiny_model("mixtral")
    counted = Forwards(model)
    source = stream(tmp_path, model=model)
    list(source)
    whole = counted.count
    list(source)
    # One forward in which what was read is tried.
    assert counted.count == whole + 1
    other = stream(tmp_path, model=model, seed=3, batch_size=16, max_norm=2.0, normalize=True)
    list(other)
    list(other)
    assert counted.count == whole + 2


def test_several_hookpoints_and_targets_are_kept(tmp_path: Path) -> None:
    settings = {"hookpoints": "model.layers.1.mlp.input", "targets": "model.layers.1.mlp.output"}
    list(stream(tmp_path, **settings))
    for one, other in zip(stream(tmp_path, **settings), stream(None, **settings), strict=True):
        assert one.keys() == other.keys() == {"activations", "targets"}
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_windows_are_arrow_files_that_datasets_opens(tmp_path: Path) -> None:
    list(stream(tmp_path, window_tokens=0, batch_size=1))
    file = sorted(tmp_path.glob("*.arrow"))[0]
    found = datasets.Dataset.from_file(str(file)).with_format("torch")["model.layers.1"][:]
    assert torch.equal(found, rows(stream(None, window_tokens=0, batch_size=1))[: len(found)])


def test_a_run_that_was_stopped_goes_on_with_what_was_kept(tmp_path: Path) -> None:
    first = stream(tmp_path)
    found = [batch["activations"] for _, batch in zip(range(6), first, strict=False)]
    made = len(list(tmp_path.glob("*.arrow")))
    assert 0 < made < 6
    second = stream(tmp_path)
    second.load_state_dict(first.state_dict())
    found += [batch["activations"] for batch in second]
    assert torch.equal(torch.cat(found), rows(stream(None)))
    assert len(list(tmp_path.glob("*.arrow"))) > made


def test_each_process_has_windows_of_its_own(tmp_path: Path) -> None:
    for rank in range(2):
        for folder in (tmp_path, None):
            source = stream(folder)
            source.take_share(rank, 2)
            if folder:
                kept = rows(source)
            else:
                assert torch.equal(kept, rows(source))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hookpoints": "model.layers.0.output"}, "hookpoints"),
        ({"context_length": 8}, "context_length"),
        ({"window_tokens": 256}, "forwards_per_window"),
        ({"exclude_special_tokens": True}, "special_tokens"),
        ({"exclude_positions": "first:1"}, "positions"),
        ({"dtype": torch.float64}, "dtype"),
        ({"targets": "model.layers.2.output"}, "targets"),
    ],
)
def test_other_settings_are_refused_by_name(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    list(stream(tmp_path))
    with pytest.raises(ConfigError, match=rf"was made with another .*{named}"):
        stream(tmp_path, **changed)


def test_another_model_is_refused(tmp_path: Path) -> None:
    list(stream(tmp_path))
    model = tiny_model("mixtral")
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[:, :] *= 1.01
    with pytest.raises(ConfigError, match="another model"):
        stream(tmp_path, model=model)


def test_another_text_is_refused(tmp_path: Path) -> None:
    list(stream(tmp_path))
    with pytest.raises(ConfigError, match="of another text"):
        list(stream(tmp_path, dataset=[*TEXTS[:3], "quite another text", *TEXTS[3:]]))


def test_what_is_attached_to_the_model_is_noticed(tmp_path: Path) -> None:
    list(stream(tmp_path))
    model = tiny_model("mixtral")
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 1.1)
    with pytest.raises(ConfigError, match=r"does not hold what the model gives at model\.layers\.1"):
        list(stream(tmp_path, model=model))


def test_a_damaged_window_is_named_and_a_foreign_folder_refused(tmp_path: Path) -> None:
    list(stream(tmp_path / "one"))
    file = sorted((tmp_path / "one").glob("*.arrow"))[1]
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(FileFormatError, match=file.name):
        list(stream(tmp_path / "one"))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "window-000000-of-0-1.arrow").write_bytes(b"")
    with pytest.raises(FileFormatError, match="no word on what made them"):
        stream(tmp_path / "two")
    (tmp_path / "three").write_text("a file")
    with pytest.raises(FileFormatError, match="cannot be a cache"):
        stream(tmp_path / "three")


def test_a_full_disk_leaves_whole_windows_and_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa

    opened, real = [], pa.OSFile

    def full(path: str, mode: str) -> Any:
        opened.append(path)
        if len(opened) == 3:
            raise OSError(28, "No space left on device")
        return real(path, mode)

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(FileFormatError, match="No space left on device"):
        list(stream(tmp_path))
    assert len(list(tmp_path.glob("*.arrow"))) == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".arrow", ".json"}
    assert torch.equal(rows(stream(tmp_path)), rows(stream(None)))


def test_activations_too_large_for_the_dtype_are_refused() -> None:
    model = tiny_model("mixtral")
    model.model.layers[0].register_forward_hook(lambda module, args, output: output * 1e6)
    with pytest.raises(DataError, match=r"too large for torch\.float16"):
        list(stream(None, model=model, dtype=torch.float16))
