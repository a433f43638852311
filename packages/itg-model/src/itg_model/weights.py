"""Checkpoints in and out: safetensors only, tensor by tensor; the one place that knows old names.

Reading maps the published key names to ours, casts each tensor as it is read (memory holds the
result and one tensor more) and names every tensor that is missing, misshapen or unexpected.
Pickles are refused: loading one runs whatever code its author put there. Writing leaves either the
old checkpoint or the new one readable, also when the process dies half-way.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from itg_data.files import replacing, write_atomic
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from itg_model.config import FrameGroundingConfig
from itg_model.errors import CheckpointError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_SHARD_BYTES = 4 * 1024**3
MAX_NAMED = 20
"""Tensors that one message names before it counts the rest."""

_TOWER = "model.vision_tower.vision_tower.vision_model."
_PUBLISHED = (
    # the last blocks, the final norm and the pooling head of the tower have no part in a score
    (re.compile(rf"^{re.escape(_TOWER)}(embeddings|encoder)\."), r"tower.\1."),
    (re.compile(r"^model\.mm_projector\.out_projection\."), "projector."),
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"trunk.\1."),
    (re.compile(r"^out_proj\."), "head."),
)
_PUBLISHED_PARTS = (
    ("tower.", _TOWER),
    ("projector.", "model.mm_projector.out_projection."),
    ("trunk.", "model."),
    ("head.", "out_proj."),
)
_SIGLIP = ((re.compile(r"^(?:vision_model\.)?(embeddings|encoder)\."), r"tower.\1."),)
_NO_PART = re.compile(
    rf"^(lm_head\.|{re.escape(_TOWER)}(post_layernorm|head)\.|.*\.rotary_emb\.inv_freq$)"
)
_TOWER_BLOCK = re.compile(r"^tower\.encoder\.layers\.(\d+)\.")


def read_weights(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    device: torch.device,
    vision_checkpoint: Path | None = None,
    may_lack: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Reads the tensors of a checkpoint under our names.

    Args:
        directory: Holds `model.safetensors`, or shards and their index.
        shapes: Name and shape of every tensor that is wanted.
        dtype: What to cast to.
        device: Where to put them.
        vision_checkpoint: Directory of a SigLIP checkpoint; the tower is then read from it,
            whether or not `directory` holds one.
        may_lack: Beginnings of names that may be missing; they are then left out.

    Raises:
        CheckpointError: Files or tensors are missing, misshapen, unexpected or unreadable.
    """
    sources: dict[str, tuple[Path, str]] = {}
    problems: list[str] = []
    for path, key in _list_tensors(directory):
        name = _our_name(key, shapes, _PUBLISHED)
        if name is None or (vision_checkpoint is not None and name.startswith("tower.")):
            continue
        if name not in shapes:
            problems.append(f"unexpected {key}")
        elif name in sources:
            problems.append(f"{key} and {sources[name][1]} are the same tensor")
        sources[name] = (path, key)
    if vision_checkpoint is not None:
        for path, key in _list_tensors(vision_checkpoint):
            name = _our_name(key, shapes, _SIGLIP)
            if name is not None and name in shapes:
                sources[name] = (path, key)
    missing = [name for name in shapes if name not in sources]
    _require_tower(directory, shapes, missing, vision_checkpoint)
    problems += [f"missing {name}" for name in missing if not name.startswith(may_lack)]
    wanted = {name: source for name, source in sources.items() if name in shapes}
    problems += _find_misshapen(wanted, shapes)
    if problems:
        rest = len(problems) - MAX_NAMED
        listed = "; ".join(problems[:MAX_NAMED]) + (f"; and {rest} more" if rest > 0 else "")
        raise CheckpointError(f"{directory}: {listed}")
    return _read_all(wanted, dtype, device)


def published_name(name: str) -> str:
    """The published checkpoint's name of one of our tensors; of any other, the name itself."""
    for ours, published in _PUBLISHED_PARTS:
        if name.startswith(ours):
            return published + name.removeprefix(ours)
    return name


def write_checkpoint(
    directory: Path,
    config: FrameGroundingConfig,
    state: Mapping[str, Tensor],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    *,
    published: bool = False,
) -> None:
    """Writes a checkpoint over whatever checkpoint the directory holds.

    In our own form, or in the published one, which the reference's loader reads as well. New
    shards get names of their own and count only once the index names them; one file is renamed
    into place. Then files of the checkpoint before are removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    described = config.to_json()
    if published:
        described = config.to_published_json(next(iter(state.values())).dtype)
        state = {published_name(name): tensor for name, tensor in state.items()}
    write_atomic(directory / "config.json", json.dumps(described, indent=2) + "\n")
    shards = _split_into_shards(state, max_shard_bytes)
    stale = set(directory.glob("model*.safetensors")) | {directory / INDEX_NAME}
    if len(shards) == 1:
        _write_shard(directory / SINGLE_NAME, shards[0])
        written = {directory / SINGLE_NAME}
    else:
        run, weight_map = os.urandom(4).hex(), {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{run}-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(directory / name, shard)
            weight_map |= dict.fromkeys(shard, name)
        size = sum(x.numel() * x.element_size() for x in state.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        write_atomic(directory / INDEX_NAME, json.dumps(index, indent=2) + "\n")
        written = {directory / name for name in weight_map.values()} | {directory / INDEX_NAME}
    # the index first: while it stands, it decides what is read
    for path in sorted(stale - written, key=lambda path: path.name != INDEX_NAME):
        path.unlink(missing_ok=True)


def _write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    with replacing(path) as part:
        # contiguous: a parameter may be a view; safetensors refuses those
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, {"format": "pt"})


def _split_into_shards(state: Mapping[str, Tensor], max_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in state.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if shards[-1] and size + num_bytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += num_bytes
    return shards


def _list_tensors(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yields file and key of every tensor of a checkpoint directory."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory")
    for path in _find_files(directory):
        with _open(path) as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                yield path, key


def _find_files(directory: Path) -> list[Path]:
    index_path = directory / INDEX_NAME
    if index_path.exists():
        return _read_index(index_path)
    if (directory / SINGLE_NAME).exists():
        return [directory / SINGLE_NAME]
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise CheckpointError(
            f"{directory}: holds {pickles[0]} but no safetensors; pickles are not loaded, because "
            "they can run any code: have their author convert them to safetensors"
        )
    raise CheckpointError(f"{directory}: holds neither {SINGLE_NAME} nor {INDEX_NAME}")


def _read_index(path: Path) -> list[Path]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an index of safetensors: {error!r}") from None
    files: list[Path] = []
    for name in names:
        # a downloaded index must not make us open files anywhere else
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError(f"{path}: shard must be a plain *.safetensors name, got {name!r}")
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path}: shard {name} is missing")
        files.append(path.parent / name)
    return files


@contextmanager
def _open(path: Path) -> Iterator[safe_open]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors: {error}") from None


def _our_name(
    key: str,
    shapes: Mapping[str, tuple[int, ...]],
    renames: tuple[tuple[re.Pattern[str], str], ...],
) -> str | None:
    """Our name of a checkpoint's tensor; None where it has no part in a score."""
    if key in shapes:
        return key
    if _NO_PART.match(key):
        return None
    for pattern, replacement in renames:
        if pattern.match(key):
            key = pattern.sub(replacement, key)
            break
    block = _TOWER_BLOCK.match(key)
    if block and f"tower.encoder.layers.{block[1]}.layer_norm1.weight" not in shapes:
        return None
    return key


def _require_tower(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    missing: list[str],
    vision_checkpoint: Path | None,
) -> None:
    tower = [name for name in shapes if name.startswith("tower.")]
    if not set(tower) <= set(missing):
        return
    if vision_checkpoint is not None:
        raise CheckpointError(f"{vision_checkpoint}: holds no SigLIP vision tower")
    raise CheckpointError(
        f"{directory}: holds no vision tower; pass vision_checkpoint= with a directory of the "
        "SigLIP weights it was trained with (config.json's mm_vision_tower names them)"
    )


def _group_by_file(sources: Mapping[str, tuple[Path, str]]) -> dict[Path, list[tuple[str, str]]]:
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name, (path, key) in sources.items():
        by_file.setdefault(path, []).append((name, key))
    return by_file


def _find_misshapen(
    sources: Mapping[str, tuple[Path, str]], shapes: Mapping[str, tuple[int, ...]]
) -> list[str]:
    problems: list[str] = []
    for path, tensors in _group_by_file(sources).items():
        with _open(path) as file:
            for name, key in tensors:
                shape = tuple(file.get_slice(key).get_shape())
                if shape != shapes[name]:
                    problems.append(f"{key} must be {list(shapes[name])}, got {list(shape)}")
    return problems


def _read_all(
    sources: Mapping[str, tuple[Path, str]], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for path, tensors in _group_by_file(sources).items():
        with _open(path) as file:
            for name, key in tensors:
                # a copy: what safetensors gives may be a view of the mapped file
                state[name] = file.get_tensor(key).to(device=device, dtype=dtype, copy=True)
    return state
