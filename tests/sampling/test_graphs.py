"""The step that a GPU records, on tensors that have a device but no values (meta): nothing of it is made on the CPU, nothing
goes between devices, nothing is asked back."""

from collections.abc import Iterator

import pytest
import torch
from small_priors import SHAPES, B
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jukebox.nn.transformer import Transformer, TransformerShape
from jukebox.prior.model import Prior
from jukebox.sampling import needs
from jukebox.sampling.decode import decode_window
from jukebox.sampling.graphs import FixedStep
from jukebox.sampling.logits import Knobs, draw, gumbel, noise_keys

HALVES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WAITS = ("_local_scalar_dense", "nonzero", "equal", "item")


class Watch(TorchDispatchMode):
    """Notes operations on tensors elsewhere than on the device, and those that wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.operations += 1
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
        if any(not x.is_meta for x in tensors) or any(word in str(func) for word in WAITS):
            self.wrong.append(str(func))
        return result


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():  # inference mode would hide what composite operations are made of
        yield


def make(kind: str, form: str) -> tuple[Prior, torch.dtype]:
    """A prior with the products that a GPU computes."""
    with torch.device("meta"):
        prior = Prior(SHAPES[kind]()).eval().requires_grad_(False)
    needs._imitate(prior, form, "cuda")
    return prior, needs.cache_dtype(form, "cuda")


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("form", HALVES)
def test_no_tensor_of_a_step_is_made_on_the_cpu(kind, form):
    prior, dtype = make(kind, form)
    assert dtype == HALVES[form]
    cond = prior.condition(*needs._made_up(prior, B), dtype)
    state = prior.new_state(B, dtype)
    assert all(layer.kv.dtype == dtype and layer.kv.is_meta for layer in state.layers)
    state.position = prior.prefix + 5
    step = FixedStep(prior, state, cond)
    before = torch.zeros(B, 1, dtype=torch.int64, device="meta")
    with Watch() as watch:
        logits = step(before)
    assert not watch.wrong and watch.operations > 50
    assert logits.dtype == torch.float32 and logits.shape == (B, prior.net.bins) and logits.is_meta


@pytest.mark.parametrize("order", [3, 4, 6, 9, 12], ids=["summary", "spread", "encoder", "dense", "lyrics"])
def test_every_attention_kind_stays_on_the_device(order):
    shape = TransformerShape(
        n=24, width=16, depth=16 if order == 12 else 4, heads=2, attn_order=order, blocks=4, spread=2, lyric_len=5, encoder_len=7, m_attn=0.5
    )  # fmt: skip
    with torch.device("meta"):
        net, encoded, x = Transformer(shape).eval(), torch.zeros(B, 7, 16), torch.zeros(B, 14, 16)
    state = net.new_state(B)
    net.encode(encoded, state)
    for part in x.split([5, 8, 1], 1):
        state = state.fixed() if part.shape[1] == 1 else state
        with Watch() as watch:
            net.extend(part, state)
    assert not watch.wrong and watch.operations > 50


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("form", ["fp16"])
def test_a_whole_window_on_one_device(kind, form):
    """Conditioning, prefill in passes, steps of fixed shape and drawing: types and devices fit."""
    prior, dtype = make(kind, form)
    keys = noise_keys(torch.zeros(B, dtype=torch.int64), torch.arange(B), 0).to("meta")

    def choose(logits: torch.Tensor, place: int) -> torch.Tensor:
        return draw(logits, Knobs(0.9, top_k=3, min_p=0.1), gumbel(keys, place, logits.shape[1]))

    upper, y = needs._made_up(prior, B)
    given = torch.zeros(B, 7, dtype=torch.int64, device="meta")
    codes = decode_window.__wrapped__(
        prior, given, 12, choose, upper=upper, y=y, dtype=dtype, chunk_size=3, mask_lyric_codes=True, fixed=True
    )  # fmt: skip
    assert codes.is_meta and codes.shape == (B, 12)
