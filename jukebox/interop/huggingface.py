"""The tensor names of the Hugging Face port (transformers' JukeboxModel) beside the published ones.

One file of the port holds all nets: `vqvae.*`, then `priors.0.*` the TOP prior, `priors.1.*` the level below, and so on.
Its configuration is not trusted (stored ones are wrong in places): a net is recognised by the shapes of its tensors.
"""

import re
from collections.abc import Iterable, Mapping

from jukebox.interop.published import Entry

_RESIDUAL = {"1": "conv1d_1", "3": "conv1d_2"}  # number in the published list of layers -> name in the port
_ENCODER = re.compile(r"(encoders\.\d+\.level_blocks\.\d+)\.model\.(.*)")
_DECODER = re.compile(r"(decoders\.\d+\.level_blocks\.\d+|conditioner_blocks\.upsampler)\.model\.(.*)")
_STACK = re.compile(r"(\d+)\.[01]\.(?:model|blocks)\.(\d+)\.model\.([13])\.(.*)")
_CONV = re.compile(r"(\d+)\.[01]\.(weight|bias)")

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^conditioner_blocks\.0\.cond\.", "conditioner_blocks.upsampler."),
        (r"^conditioner_blocks\.0\.ln\.", "conditioner_blocks.layer_norm."),
        (r"^conditioner_blocks\.0\.", "conditioner_blocks."),
        (r"^y_emb\.(bow_genre_emb|artist_emb)\.emb\.", r"metadata_embedding.\1."),
        (r"^y_emb\.", "metadata_embedding."),
        (r"^prime_prior\.", "encoder."),
        (r"^prime_state_proj\.", "encoder.proj_in."),
        (r"^prime_state_ln\.", "encoder.final_layer_norm."),
        (r"^prime_x_out\.", "encoder.lm_head."),
        (r"\bx_emb\.", "embed_tokens."),
        (r"^prior\.x_out\.", "prior.fc_proj_out."),
        (r"\.ln_([01])\.", r".layer_norm_\1."),
        (r"\.w$", ".weight"),
        (r"\.b$", ".bias"),
        (r"^(bottleneck\.level_blocks\.\d+)\.k$", r"\1.codebook"),
    )
)


def name_of(published: str) -> str:
    """The port's name of a published tensor, without the prefix of its net."""
    name = published
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    if match := _ENCODER.fullmatch(name):
        return f"{match[1]}.{_convolutions(match[2], 'downsample_block', 'proj_out', conv=0, stack=1)}"
    if match := _DECODER.fullmatch(name):
        return f"{match[1]}.{_convolutions(match[2], 'upsample_block', 'proj_in', conv=-1, stack=-2)}"
    return name


def _convolutions(rest: str, block: str, proj: str, *, conv: int, stack: int) -> str:
    """Step I of a level block: the port counts convolutions (2I + conv) and residual stacks (2I + stack) in one list."""
    if match := _STACK.fullmatch(rest):
        step, d, layer, end = match.groups()
        return f"{block}.{2 * int(step) + stack}.resnet_block.{d}.{_RESIDUAL[layer]}.{end}"
    if match := _CONV.fullmatch(rest):
        return f"{block}.{2 * int(match[1]) + conv}.{match[2]}"
    return f"{proj}.{rest.rpartition('.')[2]}"


def prefix_of(level: int | None, levels: int) -> str:
    """The prefix of the prior of a level, or of the VQ-VAE (None). The port counts priors from the top."""
    return "vqvae." if level is None else f"priors.{levels - 1 - level}."


def to_published(table: Iterable[Entry], prefix: str) -> dict[str, str]:
    """The port's full name -> the published name, for every tensor of a net."""
    return {prefix + name_of(entry.published): entry.published for entry in table}


def matches(table: Iterable[Entry], prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the tensors under `prefix` are this net: each there with its shape (a tied one may be missing), no other."""
    left = {name for name in shapes if name.startswith(prefix)}
    for entry in table:
        name = prefix + name_of(entry.published)
        if shapes.get(name, entry.shape if entry.tied_to else None) != entry.shape:
            return False
        left.discard(name)
    return not left
