"""Tensors of foreign weight files: read without running code, and checked by name, shape and value.

A layout has the name of each of our tensors in a format, and whether the transpose is stored.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hf_mote.errors import DataError, FileFormatError, HFMoTEError, first_line
from hf_mote.files import check_memory, check_name, read_safetensors
from hf_mote.sae.convert.archives import AT_ONCE, check_sums, check_torch_archive, entries_of, no_tensors
from hf_mote.sae.modeling import SAEModel
from hf_mote.sae.variants.bases.selective import SelectiveSAEModel

__all__ = [
    "Layout",
    "Sizes",
    "factors_in",
    "give",
    "matrix_sizes",
    "narrowed",
    "read_npz",
    "read_safetensors",
    "read_torch",
    "shapes_in",
    "take",
    "write_safetensors",
]

Layout = Mapping[str, tuple[str, bool]]

_DAMAGED = "The file is missing, truncated or of another format; save or download it again."


class Sizes(NamedTuple):
    """Sizes of an SAE: latents, width of what is encoded, width of what is reconstructed."""

    latents: int
    inputs: int
    outputs: int

    @classmethod
    def of(cls, sae: SAEModel) -> Sizes:
        """Return those of a model."""
        return cls(sae.config.num_latents, sae.config.hidden_size, sae.config.decoder_size)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors to a safetensors file."""
    # Not `save_file`, which makes the file readable by its owner alone.
    path.write_bytes(safetensors.torch.save(dict(tensors)))


def read_torch(path: Path, *, others: Container[str] = ()) -> dict[str, Any]:
    """Return the tensors of a file that `torch.save` wrote, refusing one that holds anything but tensors.

    Sizes are known before values are read, and calls before any call is made: the pickle inside may
    only name the functions that make a tensor.

    Args:
        path (`Path`): The file.
        others (`Container[str]`, *optional*): Keys whose values may be numbers, texts and dictionaries of these.

    Raises:
        [`FileFormatError`]: if it is damaged, of torch before 1.6, holds anything else, or would take too much memory.
    """
    found = _loaded(path, mmap=False)
    for name, value in found.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        if not isinstance(name, str) or not (plain or (name in others and _is_plain(value))):
            raise FileFormatError(
                f"{path}: {name if str(name).isprintable() else ascii(name)}",
                "must be a plain tensor",
                got=type(value).__name__,
                expected="the state_dict of one dictionary, as its trainer saves it at the end",
            )
        check_name(path, name)
    # A tensor can say that it is larger than what is stored of it.
    tensors = [value for value in found.values() if isinstance(value, Tensor)]
    check_memory(path, sum(value.numel() * value.itemsize for value in tensors), path.stat().st_size)
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in found.items()}


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors in a safetensors or torch file, and `()` for other values of a torch file.

    The values are not read.

    Raises:
        [`FileFormatError`]: if the file is damaged or would run code.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, "safetensors", error) from error
    found = _loaded(path, mmap=True)
    return {str(name): tuple(value.shape) if isinstance(value, Tensor) else () for name, value in found.items()}


def _is_plain(value: Any, depth: int = 4) -> bool:
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(key, str) and _is_plain(item, depth - 1) for key, item in value.items())
    return isinstance(value, str | int | float | bool)


def _loaded(path: Path, *, mmap: bool) -> Mapping[Any, Any]:
    """Return the dictionary in a file that `torch.save` wrote, without running code."""
    try:
        check_torch_archive(path)
        if not mmap:
            check_sums(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except HFMoTEError:
        raise
    # Any error of a damaged or hostile file: the loader's own errors have no common base.
    except Exception as error:
        raise no_tensors(path, first_line(error)) from error
    if not isinstance(found, Mapping):
        raise FileFormatError(str(path), "holds no dictionary of tensors", got=type(found).__name__)
    return found


def read_npz(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a numpy archive, refusing pickled ones; sizes are known before values are read.

    Raises:
        [`FileFormatError`]: if it is damaged or encrypted, holds anything but numbers, or would take too much memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = entries_of(path, archive)
            check_memory(path, sum(entry.file_size for entry in entries), path.stat().st_size)
            arrays: dict[str, _Array] = {}
            for entry in entries:
                name = check_name(path, entry.filename.removesuffix(".npy"))
                if name in arrays:
                    raise FileFormatError(f"{path}: {name}", "is there twice")
                arrays[name] = _array_header(path, archive, entry)
            return {name: _read_array(archive, array) for name, array in arrays.items()}
    except HFMoTEError:
        raise
    # zipfile, zlib and numpy's parser of headers have no common base either.
    except Exception as error:
        raise _unreadable(path, "plain numpy arrays", error) from error


class _Array(NamedTuple):
    """An array in an archive: where its values start, their shape, dtype and order."""

    entry: zipfile.ZipInfo
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    by_columns: bool


def _array_header(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Array:
    """Return the header of an array, whose shape and dtype must match the entry's size."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"array format {version}")
        shape, by_columns, dtype = readers[version](file)
        offset = file.tell()
    if dtype.kind not in "iuf" or not dtype.isnative or dtype.itemsize > 8:
        raise FileFormatError(f"{path}: {entry.filename}", "wrong dtype", got=dtype, expected="plain numbers")
    if math.prod(shape) * dtype.itemsize != entry.file_size - offset:
        got = f"{entry.file_size - offset} bytes of values"
        raise FileFormatError(f"{path}: {entry.filename}", "is not of its size", got=got, expected=f"{dtype} {shape}")
    return _Array(entry, offset, shape, dtype, by_columns)


def _read_array(archive: zipfile.ZipFile, array: _Array) -> Tensor:
    content = bytearray()
    with archive.open(array.entry) as file:
        while part := file.read(AT_ONCE):
            content += part
    # In memory that may be written to. No more is read than the entry says, which was checked; less is refused here.
    order: Literal["C", "F"] = "F" if array.by_columns else "C"
    values = np.ndarray(array.shape, array.dtype, content, array.offset, order=order)
    return torch.from_numpy(np.ascontiguousarray(values) if array.by_columns else values)


def factors_in(path: Path, tensors: dict[str, Tensor], latents: int) -> Tensor | None:
    """Take the factors of latents, `scaling_factor`, out of the tensors of a file, `None` where it holds none.

    Raises:
        [`FileFormatError`]: if they are neither one for each latent nor one for all.
    """
    factor = tensors.pop("scaling_factor", None)
    if factor is not None and (tuple(factor.shape) not in ((latents,), (1,), ()) or not factor.is_floating_point()):
        got, expected = f"{factor.dtype} {tuple(factor.shape)}", f"floats of shape ({latents},)"
        raise FileFormatError(f"{path}: scaling_factor", "wrong shape or dtype", got=got, expected=expected)
    return factor


def matrix_sizes(path: Path, tensors: Mapping[str, Tensor], layout: Layout) -> Sizes:
    """Return the sizes that the encoder and decoder matrices of a file have."""
    shapes = []
    for ours in ("W_enc", "W_dec"):
        name, transposed = layout[ours]
        if name not in tensors:
            raise _missing(path, name, tensors)
        shape = tuple(tensors[name].shape)
        if len(shape) != 2 or 0 in shape:
            raise FileFormatError(f"{path}: {name}", "must be a matrix", got=shape)
        shapes.append(shape[::-1] if transposed else shape)
    return Sizes(shapes[0][0], shapes[0][1], shapes[1][1])


def take(
    path: Path, tensors: Mapping[str, Tensor], layout: Layout, sizes: Sizes, *, besides: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Return tensors under our names and in our orientation; thresholds in float32 or wider.

    Args:
        path (`Path`): The file an error names.
        tensors (`Mapping[str, torch.Tensor]`): As they were read.
        layout (`Layout`): Which of them there are to be.
        sizes (`Sizes`): What their shapes follow from.
        besides (`Iterable[str]`, *optional*): Names that the layout does not hold and that may be there.

    Raises:
        [`FileFormatError`]: if a tensor is missing, unknown, of another shape or dtype, or not finite throughout.
    """
    known = {name for name, _ in layout.values()} | set(besides)
    for name in tensors:
        if name not in known:
            raise FileFormatError(f"{path}: {name}", "unknown tensor", expected=f"only {', '.join(sorted(known))}")
    taken: dict[str, Tensor] = {}
    for ours, (name, transposed) in layout.items():
        if name not in tensors:
            raise _missing(path, name, tensors)
        tensor = tensors[name]
        shape = _shape(ours, sizes)
        expected = shape[::-1] if transposed else shape
        if tuple(tensor.shape) != expected:
            raise FileFormatError(f"{path}: {name}", "wrong shape", got=tuple(tensor.shape), expected=expected)
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2:
            raise FileFormatError(f"{path}: {name}", "wrong dtype", got=tensor.dtype, expected="16 to 64 bit floats")
        if not bool(tensor.isfinite().all()):
            raise FileFormatError(f"{path}: {name}", "holds NaN or infinite numbers")
        if ours == "threshold":
            tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        elif "W_enc" in taken and tensor.dtype != taken["W_enc"].dtype:
            raise FileFormatError(
                f"{path}: {name}", "not the dtype of the encoder", got=tensor.dtype, expected=taken["W_enc"].dtype
            )
        taken[ours] = (tensor.T if transposed else tensor).contiguous()
    return taken


def give(sae: SAEModel, layout: Layout, *, fold: bool = False) -> dict[str, Tensor]:
    """Return tensors of a model under the names and in the orientation of a format: contiguous copies on the CPU.

    Args:
        sae ([`SAEModel`]): The model.
        layout (`Layout`): Which tensors, `"threshold"` left out.
        fold (`bool`, *optional*, defaults to `False`):
            Whether to fold `config.scale_latents_by_decoder_norm`, if set, into encoder and decoder: for formats
            without it. Latents and reconstructions stay the same up to rounding.

    Raises:
        [`DataError`]: if a tensor is not finite throughout.
    """
    state = {name: tensor.detach().to("cpu") for name, tensor in sae.named_parameters() if name in layout}
    if fold and isinstance(sae, SelectiveSAEModel) and sae.config.scale_latents_by_decoder_norm:
        state |= _folded(state)
    given = {}
    for ours, (name, transposed) in layout.items():
        if not bool(state[ours].isfinite().all()):
            raise DataError(
                f"{type(sae).__name__}.{ours}", "holds NaN or infinite numbers", fix="Nothing was written."
            )
        tensor = state[ours].T if transposed else state[ours]
        given[name] = tensor.clone(memory_format=torch.contiguous_format)
    return given


def narrowed(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """Return thresholds in another dtype, on the CPU, rounded down: latents of that dtype exceed both or neither."""
    exact = threshold.detach().to("cpu")
    rounded = exact.to(dtype)
    below = torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
    return torch.where(rounded.to(exact.dtype) > exact, below, rounded)


def _shape(name: str, sizes: Sizes) -> tuple[int, ...]:
    """Shape of one of our tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "W_enc": (sizes.latents, sizes.inputs),
        "W_dec": (sizes.latents, sizes.outputs),
        "b_dec": (sizes.outputs,),
        "W_skip": (sizes.outputs, sizes.inputs),
    }
    return shapes.get(name, (sizes.latents,))


def _folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder, its bias and decoder with the lengths of the dictionary rows moved from the decoder to the encoder."""
    dtype = state["W_dec"].dtype
    exact = {name: state[name].double() for name in ("W_enc", "b_enc", "W_dec")}
    lengths = torch.linalg.vector_norm(exact["W_dec"], dim=1)
    exact["W_enc"] *= lengths[:, None]
    exact["b_enc"] *= lengths
    exact["W_dec"] /= torch.where(lengths > 0, lengths, 1.0)[:, None]
    return {name: tensor.to(dtype) for name, tensor in exact.items()}


def _missing(path: Path, name: str, tensors: Mapping[str, Tensor]) -> FileFormatError:
    return FileFormatError(f"{path}: {name}", "missing tensor", got=", ".join(sorted(tensors)) or "none")


def _unreadable(path: Path, kind: str, error: Exception) -> FileFormatError:
    return FileFormatError(str(path), f"cannot be read as {kind}", got=first_line(error), fix=_DAMAGED)
