"""Any Vision Transformer of the `transformers` library as our encoder (the optional extra ``polyhead[transformers]``).

Tested with ViT, CLIP, SigLIP (and with it SigLIP 2 of fixed resolution), DINOv2, DINOv3 and RADIO. The model's own
forward runs; hooks on its blocks keep the tokens asked for and end the pass after the last of them. Code that comes
with a checkpoint is never run. CLIP norms its CLS token alone; here the patches get the same norm.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.checkpoints import digest_of, read_standardisation, weight_files
from encoders.features import EncoderFeatures, EncoderSpec
from encoders.key_map import CheckpointError
from encoders.pixels import Standardisation, standardise

_FINAL_NORMS = ("layernorm", "post_layernorm", "norm")
"""What models call the LayerNorm after their last block; RADIO has none."""
_NOT_RUN = ("head", "pooler")
"""Parts of a model behind its tokens, whose weights may be absent."""


class _Pass:
    """What one forward keeps: block index to [B, P + N, C]."""

    def __init__(self, wanted: frozenset[int]) -> None:
        self.wanted = wanted
        self.tokens: dict[int, Tensor] = {}


class _EnoughError(Exception):
    """Raised in a block's hook when the last block asked for has run."""


_running: ContextVar[_Pass | None] = ContextVar("_running", default=None)
"""The pass of this thread, so that concurrent ones don't mix."""


class TransformersEncoder(nn.Module):
    """A `transformers` vision model behind the contract of `encoders.base.Encoder`.

    Args:
        model: with a `config`, one `ModuleList` of blocks and a forward that needs `pixel_values` alone.
        name, revision: of the `EncoderSpec`.
        standardisation: (mean, standard deviation) of RGB in [0, 1]; None: what the model does by itself (RADIO).

    Raises:
        ValueError: the model is not of that kind.
    """

    def __init__(self, model: nn.Module, name: str, revision: str, standardisation: Standardisation | None) -> None:
        super().__init__()
        config: Any = model.config
        kind = type(model).__name__
        patch, depth = getattr(config, "patch_size", None), getattr(config, "num_hidden_layers", None)
        parameters = inspect.signature(model.forward).parameters
        needed = {
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        }
        if "pixel_values" not in parameters or needed - {"pixel_values"}:
            raise ValueError(f"{kind} needs more than pictures: {', '.join(sorted(needed))}")
        lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        rows = [blocks for blocks in lists if len(blocks) == depth]
        if len(rows) != 1 or not isinstance(patch, int):
            raise ValueError(f"{kind} is no ViT: it has patches of {patch}, and {len(rows)} rows of {depth} blocks")
        standardisation = _take_standardisation(model) or standardisation
        if standardisation is None:
            raise ValueError(f"{kind} needs the mean and standard deviation of its pictures")
        self.pixel_mean, self.pixel_std = standardisation
        self.model = model
        self._arguments = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in parameters else {}
        self._norm = next((getattr(model, norm) for norm in _FINAL_NORMS if hasattr(model, norm)), nn.Identity())
        for index, block in enumerate(rows[0]):
            block.register_forward_hook(partial(_after_block, index))
        self.eval().requires_grad_(False)
        try:
            first = self._run(torch.zeros(1, 3, 2 * patch, 2 * patch), frozenset({0}))[0]
        except RuntimeError as error:
            raise ValueError(f"{kind} can't encode 2 x 2 patches ({error})") from None
        if first.shape[1] < 4 or first.shape[2] != config.hidden_size:
            raise ValueError(f"{kind} makes {list(first.shape)} of 4 patches, not a token of {config.hidden_size} each")
        self.spec = EncoderSpec(
            name=name,
            revision=revision,
            embed_dim=config.hidden_size,
            depth=len(rows[0]),
            num_heads=config.num_attention_heads,
            patch_size=patch,
            num_prefix_tokens=first.shape[1] - 4,
        )

    def forward(
        self, images: Tensor, out_indices: Iterable[int], hidden_indices: Iterable[int] = ()
    ) -> EncoderFeatures:
        """As in `encoders.base.Encoder`; without a final LayerNorm `lateral_features` equal `hidden_states`."""
        normed, bare = frozenset(out_indices), frozenset(hidden_indices)
        self.spec.check_out_indices(normed | bare)
        patch = self.spec.patch_size
        tokens = self._run(standardise(images, patch, (self.pixel_mean, self.pixel_std)), normed | bare)
        return EncoderFeatures(
            self.spec,
            (images.shape[2] // patch, images.shape[3] // patch),
            {index: self._norm(tokens[index]) for index in sorted(normed)},
            {index: tokens[index] for index in sorted(bare)},
        )

    def _run(self, pixels: Tensor, wanted: frozenset[int]) -> dict[int, Tensor]:
        running = _Pass(wanted)
        token = _running.set(running)
        try:
            with suppress(_EnoughError):
                self.model(pixel_values=pixels.to(next(self.model.parameters()).dtype), **self._arguments)
        finally:
            _running.reset(token)
        return running.tokens


def _after_block(index: int, _block: nn.Module, _args: Any, output: Any) -> None:
    """Forward hook of every block: keep its tokens if they are wanted, and end the pass after the last."""
    running = _running.get()
    if running is None or index not in running.wanted:
        return
    running.tokens[index] = output[0] if isinstance(output, tuple) else output
    if index == max(running.wanted):
        raise _EnoughError


def _take_standardisation(model: Any) -> Standardisation | None:
    """What RADIO does to its input, taken out of the model, so that it is done once and in float32."""
    if not hasattr(model, "make_preprocessor_external"):
        return None
    conditioner = model.make_preprocessor_external()
    (r, g, b), (r_std, g_std, b_std) = (
        values.flatten().tolist() for values in (conditioner.norm_mean, conditioner.norm_std)
    )
    return (r, g, b), (r_std, g_std, b_std)


def load_transformers_encoder(
    directory: str | Path, *, standardisation: Standardisation | None = None
) -> TransformersEncoder:
    """Load the vision part of a `transformers` model.

    Args:
        directory: as `save_pretrained` writes it, with ``config.json`` and safetensors.
        standardisation: (mean, standard deviation) of RGB in [0, 1], instead of those in its
            ``preprocessor_config.json``.

    Returns:
        The encoder in eval mode, float32, on the CPU; `spec.revision` is the start of the SHA-256 of its weights.

    Raises:
        ImportError: `transformers` is not installed.
        FileNotFoundError: there are no weights.
        CheckpointError: weights are missing or of another shape, or the model is of a kind that does not fit.
    """
    try:
        import transformers
    except ImportError:
        raise ImportError("transformers is not installed; pip install 'polyhead[transformers]'") from None
    files = weight_files(directory)
    if not files or not Path(directory).is_dir():
        raise FileNotFoundError(f"no transformers model at {directory}")
    try:
        whole, report = transformers.AutoModel.from_pretrained(
            directory,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"transformers can't read {directory}: {error}") from None
    model = getattr(whole, "vision_model", whole)
    stem = "vision_model." if model is not whole else ""
    used = {stem + name for name in model.state_dict() if not name.startswith(_NOT_RUN)}
    lacking = sorted(used & {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:
        raise CheckpointError(f"{directory} lacks weights of {type(model).__name__}: {', '.join(lacking[:8])}")
    config = model.config
    name = f"{config.model_type}_{config.hidden_size}x{config.num_hidden_layers}_patch{config.patch_size}"
    try:
        return TransformersEncoder(
            model, name, digest_of(files)[:12], standardisation or read_standardisation(directory)
        )
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}") from None
