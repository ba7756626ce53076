"""One step of a transformer as one compiled function: every layer for the next position of a few songs, on a CPU.

Operation by operation a step costs more in calls than in reading its weights (docs/benchmarks.md). Here numba compiles
it whole, once per machine (kept in `__pycache__`), and some threads walk through it together: each multiplies its share
of the rows of a matrix, and they meet after every product. A row is summed by one thread in a fixed order, 16 sums side
by side whatever the processor's vectors are, so that the result is the same for any number of threads, and for a song
with any others beside it.

Numbers come as arrays; weights and caches as addresses (`Field`, `Matrix`). Rows of weights and activations are padded with
zeros to LANES numbers, matrices with zero rows to BLOCK.
"""

# What numba compiles has no types that mypy could follow.
# mypy: disable-error-code="untyped-decorator,no-untyped-call,attr-defined,import-untyped,misc"

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from jukebox.nn.linear import BLOCK, LANES

FORMS: Final = ("fp32", "bf16", "int8")
ITEMSIZE: Final = (4, 2, 1)


class Matrix(IntEnum):
    """What a product is told of its weights, `[outputs, inputs]` row by row: addresses, and sizes with their padding.

    scale and bias `[outputs]` are float32; scale is read for 8 bits only.
    """

    WEIGHT, SCALE, BIAS, INPUTS, OUTPUTS = range(5)


class Field(IntEnum):
    """What a layer is told: addresses of its norms, four matrices (`Matrix` behind each), its cache."""

    NORM1, NORM1_BIAS, NORM2, NORM2_BIAS, QKV = range(5)
    OUT = QKV + len(Matrix)
    FC = OUT + len(Matrix)
    PROJ = FC + len(Matrix)
    STATE = PROJ + len(Matrix)  # S, width of a key
    CACHE = STATE + 1  # address of keys and values [B, pages, slots, 2S], float32
    CACHE_SONG = CACHE + 1  # numbers from song to song
    CACHE_PAGE = CACHE + 2  # numbers from page to page
    ENCODER = CACHE + 3  # 1 where keys and values are there already
    COUNT = CACHE + 4


_instruction: Any = intrinsic  # its types tell of what it is given, not of what is called
_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_FLOATS, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)
_BYTES, _LINE = ir.IntType(8).as_pointer(), 64
_AHEAD, _TO_L2 = 2, 1  # blocks of rows that are fetched before they are needed, and how near: 2 x the speed of 8 bits
_OPTIONS: dict[str, Any] = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
_ANY_ORDER = {"reassoc", "contract", "nsz", "arcp"}  # sums that one thread makes alone, in an order fixed when compiled


def _compiled(**more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """njit, kept on disk where there is a folder for it."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, **_OPTIONS, **more)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no place to keep it
            return njit(**_OPTIONS, **more)(function)  # type: ignore[no-any-return]

    return decorate


# ------------------------------------------------------------------------------------------------ instructions


@_instruction
def _at(context: Any, address: Any) -> Any:
    """Float32 numbers at an address."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], _FLOAT.as_pointer())

    return types.CPointer(types.float32)(types.intp), code


@_instruction
def _as_float(context: Any, bits: Any) -> Any:
    """The float32 of 32 bits."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), code


@_instruction
def _arrive(context: Any, address: Any) -> Any:
    """Add one to the counter at an address, seen by all threads at once."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.intp), code


@_instruction
def _count(context: Any, address: Any) -> Any:
    """Read the counter at an address as the other threads left it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        counter = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(counter, "seq_cst", 8)

    return types.int64(types.intp), code


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _weights(builder: Any, form: int, address: Any) -> Any:
    """LANES weights as float32: as they are, the upper halves of float32, or whole numbers."""
    if form == 0:
        return _load(builder, address, _FLOATS, 4)
    if form == 1:
        halves = builder.zext(_load(builder, address, ir.VectorType(ir.IntType(16), LANES), 2), _INTS)
        return builder.bitcast(builder.shl(halves, ir.Constant(_INTS, [16] * LANES)), _FLOATS)
    return builder.sitofp(builder.sext(_load(builder, address, ir.VectorType(ir.IntType(8), LANES), 1), _INTS), _FLOATS)


@_instruction(prefer_literal=True)
def _dots(
    context: Any, form: Any, rows: Any, songs: Any, weight: Any, stride: Any, x: Any, x_stride: Any, inputs: Any, scale: Any,
    bias: Any, y: Any, y_stride: Any,
) -> Any:  # fmt: skip
    """y = scale * (rows x songs dot products of `inputs` numbers) + bias; form, rows and songs are constants.

    Addresses: weight, scale (8 bits only) and bias of the first row, x and y of the first song, y at that row. Strides in
    bytes, from row to row and from song to song.
    """
    if not all(isinstance(kind, types.IntegerLiteral) for kind in (form, rows, songs)):
        return None
    which, R, B = form.literal_value, rows.literal_value, songs.literal_value

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        weight, stride, x, x_stride, inputs, scale, bias, y, y_stride = args[3:]
        whole = inputs.type
        fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fmuladd.v{LANES}f32"
        )
        prefetch = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [_BYTES, _INT, _INT, _INT]), "llvm.prefetch.p0"
        )
        ahead = builder.add(weight, builder.mul(stride, ir.Constant(whole, _AHEAD * BLOCK)))
        zero = ir.Constant(_FLOATS, [0.0] * LANES)
        sums = [[cgutils.alloca_once(builder, _FLOATS) for _ in range(R)] for _ in range(B)]
        for place in sum(sums, []):
            builder.store(zero, place)
        from_row = [builder.add(weight, builder.mul(stride, ir.Constant(whole, r))) for r in range(R)]
        from_song = [builder.add(x, builder.mul(x_stride, ir.Constant(whole, b))) for b in range(B)]
        begin, step = ir.Constant(whole, 0), ir.Constant(whole, LANES)
        with cgutils.for_range_slice(builder, begin, inputs, step, inc=True) as (i, _):
            x_offset = builder.mul(i, ir.Constant(whole, 4))
            offset = builder.mul(i, ir.Constant(whole, ITEMSIZE[which]))
            behind = builder.add(ahead, builder.mul(i, ir.Constant(whole, R * ITEMSIZE[which])))
            for line in range(R * LANES * ITEMSIZE[which] // _LINE):
                at = builder.inttoptr(builder.add(behind, ir.Constant(whole, line * _LINE)), _BYTES)
                builder.call(prefetch, [at, *(ir.Constant(_INT, number) for number in (0, _TO_L2, 1))])
            numbers = [_load(builder, builder.add(start, x_offset), _FLOATS, 4) for start in from_song]
            for r, start in enumerate(from_row):
                w = _weights(builder, which, builder.add(start, offset))
                for number, places in zip(numbers, sums, strict=True):
                    builder.store(builder.call(fma, [w, number, builder.load(places[r])]), places[r])
        found = _sums(builder, [builder.load(place) for place in sum(sums, [])])
        some = ir.VectorType(_FLOAT, R)
        for b in range(B):
            part = builder.shuffle_vector(found, found, _lanes(range(b * R, (b + 1) * R)))
            if which == 2:
                part = builder.fmul(part, _load(builder, scale, some, 4))
            part = builder.fadd(part, _load(builder, bias, some, 4))
            target = builder.add(y, builder.mul(y_stride, ir.Constant(whole, b)))
            builder.store(part, builder.inttoptr(target, some.as_pointer())).align = 4
        return context.get_dummy_value()

    address = types.intp
    return types.void(form, rows, songs, *[address] * 9), code


def _lanes(numbers: Iterable[int]) -> Any:
    chosen = list(numbers)
    return ir.Constant(ir.VectorType(_INT, len(chosen)), chosen)


def _sums(builder: Any, vectors: list[Any]) -> Any:
    """The sums over the lanes of up to LANES vectors, a power of two, side by side: `[len(vectors)]`.

    Halves onto halves, then quarters onto quarters ..., two vectors becoming one each time while there are two.
    """
    owners = [[i] * LANES for i in range(len(vectors))]  # whose sum a lane is part of
    width = LANES // 2
    while width:
        if len(vectors) == 1:  # with itself
            vectors, owners = vectors * 2, owners * 2
        low = [lane for lane in range(2 * LANES) if lane // width % 2 == 0]
        high = [lane + width for lane in low]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            builder.fadd(builder.shuffle_vector(a, b, _lanes(low)), builder.shuffle_vector(a, b, _lanes(high)))
            for a, b in pairs
        ]
        owners = [[(a + b)[lane] for lane in low] for a, b in zip(owners[::2], owners[1::2], strict=True)]
        width //= 2
    first = {owner: lane for lane, owner in reversed(list(enumerate(owners[0])))}
    return builder.shuffle_vector(vectors[0], vectors[0], _lanes(first[i] for i in range(len(first))))


@_instruction
def _pause(context: Any) -> Any:
    """Tell the processor that this thread waits, so that another on the same core is faster for it."""

    def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            wait = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(ir.VoidType(), []), "llvm.x86.sse2.pause"
            )
            builder.call(wait, [])
        return context.get_dummy_value()

    return types.void(), code


_PATIENCE: Final = 20_000  # looks at the counter before a waiting thread lets others run
_others_run: Any = types.ExternalFunction("sched_yield", types.int32()) if os.name == "posix" else njit(lambda: 0)


@_compiled()
def _meet(counters: int, goal: int) -> bool:
    """Arrive, and wait until so many arrivals are counted; False when the others were given up."""
    _arrive(counters)
    looks = 0
    while _count(counters) < goal:
        looks += 1
        _pause()
        if looks > _PATIENCE:
            if _count(counters + 8):
                return False
            _others_run()
    return True


# ------------------------------------------------------------------------------------------------------ parts


@_compiled(fastmath=_ANY_ORDER)
def _norm(x: Any, weight: Any, bias: Any, y: Any) -> None:
    """Layer norm of one position, eps 1e-5: `[W]` -> the first W of y."""
    n = len(x)
    mean = np.float32(0)
    for i in range(n):
        mean += x[i]
    mean /= np.float32(n)
    square = np.float32(0)
    for i in range(n):
        square += (x[i] - mean) * (x[i] - mean)
    scale = np.float32(1) / np.sqrt(square / np.float32(n) + np.float32(1e-5))
    for i in range(n):
        y[i] = (x[i] - mean) * scale * weight[i] + bias[i]


@_compiled()
def _copy(y: Any, x: Any) -> None:
    """x `[W]` into the first W of y."""
    for i in range(len(x)):
        y[i] = x[i]


@_compiled()
def _add(y: Any, x: Any, scale: Any) -> None:
    """y `[W]` plus scale times the first W of x, in place."""
    for i in range(len(y)):
        y[i] += scale * x[i]


@_compiled(fastmath=_ANY_ORDER)
def _exp(x: Any) -> Any:
    """e^x for float32 x from -87 to 88, within 2 units of the last place: 2^n times a series (Cephes' expf)."""
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    return p * _as_float(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))


@_compiled(fastmath=_ANY_ORDER)
def _quick_gelu(x: Any) -> None:
    """x sigmoid(1.702 x), in place."""
    for i in range(len(x)):
        v = x[i]
        t = min(max(np.float32(-1.702) * v, np.float32(-87)), np.float32(87))
        x[i] = v / (np.float32(1) + _exp(t))


@_compiled(fastmath=_ANY_ORDER)
def _attend(q: Any, kv: Any, state: int, first: int, seen: int, scores: Any, y: Any) -> None:
    """One head: q `[D]` against the first `seen` keys and values of a page `[slots, 2S]`, this head's from `first` on."""
    D = len(q)
    scale = np.float32(1) / np.sqrt(np.float32(D))
    most = np.float32(-np.inf)
    for j in range(seen):
        key = kv[j, first : first + D]
        score = np.float32(0)
        for d in range(D):
            score += q[d] * key[d]
        scores[j] = score * scale
        most = max(most, scores[j])
    total = np.float32(0)
    for j in range(seen):
        scores[j] = _exp(max(scores[j] - most, np.float32(-87)))
    for j in range(seen):
        total += scores[j]
    for d in range(D):
        y[d] = np.float32(0)
    for j in range(seen):
        value, p = kv[j, state + first : state + first + D], scores[j] / total
        for d in range(D):
            y[d] += p * value[d]


@_compiled()
def _product(form: int, matrix: Any, x: Any, y: Any, thread: int, threads: int) -> None:
    """This thread's share of x `[B, inputs]` times a matrix, into its columns of y `[B, outputs]`."""
    inputs, blocks = matrix[Matrix.INPUTS], matrix[Matrix.OUTPUTS] // BLOCK
    row = inputs * (4 if form == 0 else 2 if form == 1 else 1)
    songs, x_song, y_song = x.shape[0], x.strides[0], y.strides[0]
    for block in range(blocks * thread // threads, blocks * (thread + 1) // threads):
        first = block * BLOCK
        w = matrix[Matrix.WEIGHT] + first * row
        scale, bias = matrix[Matrix.SCALE] + 4 * first, matrix[Matrix.BIAS] + 4 * first
        x_at, y_at = x.ctypes.data, y.ctypes.data + 4 * first
        for _ in range(songs // 4):
            for half in range(2):
                s, b, w_at, at = scale + half * 16, bias + half * 16, w + half * 4 * row, y_at + half * 16
                if form == 0:
                    _dots(0, 4, 4, w_at, row, x_at, x_song, inputs, s, b, at, y_song)
                elif form == 1:
                    _dots(1, 4, 4, w_at, row, x_at, x_song, inputs, s, b, at, y_song)
                else:
                    _dots(2, 4, 4, w_at, row, x_at, x_song, inputs, s, b, at, y_song)
            x_at += 4 * x_song
            y_at += 4 * y_song
        for _ in range(songs % 4):
            if form == 0:
                _dots(0, 8, 1, w, row, x_at, x_song, inputs, scale, bias, y_at, y_song)
            elif form == 1:
                _dots(1, 8, 1, w, row, x_at, x_song, inputs, scale, bias, y_at, y_song)
            else:
                _dots(2, 8, 1, w, row, x_at, x_song, inputs, scale, bias, y_at, y_song)
            x_at += x_song
            y_at += y_song


# ------------------------------------------------------------------------------------------------------- step


@_compiled(fastmath={"nsz"})
def step(
    thread: int, threads: int, counters: int, form: int, heads: int, res_scale: Any, layers: Any, places: Any, head: Any,
    x_in: Any, x_out: Any, x: Any, normed: Any, qkv: Any, seen: Any, a: Any, mid: Any, m: Any, scores: Any, logits: Any,
) -> None:  # fmt: skip
    """What one of `threads` threads does of a step; all must call it with the same arguments but `thread`.

    counters: address of two int64, 0 before; the second is set to give the step up. layers `[depth, Field.COUNT]`, head `[Matrix]`: int64. places `[depth, 3]`:
    slot, page looked at and slots seen of each layer. x_in `[B, W]`; x_out `[B, W]` is added behind the transformer (or
    `[0, W]`: nothing). The rest is memory to work in, zero in its padding, first axis of x, normed and scores by thread:
    x `[threads, B, W]`, normed `[threads, B, inputs]`, qkv, seen, a, mid, m `[B, padded]`, scores `[threads, slots]`.
    logits `[B, padded bins]` is the result.
    """
    B, W = x_in.shape
    goal = 0
    own, h, own_scores = x[thread], normed[thread], scores[thread]
    for b in range(B):
        _copy(own[b], x_in[b])
    for layer in range(len(layers)):
        told = layers[layer]
        for b in range(B):
            _norm(own[b], carray(_at(told[Field.NORM1]), W), carray(_at(told[Field.NORM1_BIAS]), W), h[b])
        _product(form, told[Field.QKV :], h, qkv, thread, threads)
        goal += threads
        if not _meet(counters, goal):
            return
        _attention(told, places[layer], heads, qkv, seen, own_scores, thread, threads)
        goal += threads
        if not _meet(counters, goal):
            return
        _product(form, told[Field.OUT :], seen, a, thread, threads)
        goal += threads
        if not _meet(counters, goal):
            return
        for b in range(B):
            _add(own[b], a[b], np.float32(1))
            _norm(own[b], carray(_at(told[Field.NORM2]), W), carray(_at(told[Field.NORM2_BIAS]), W), h[b])
        _product(form, told[Field.FC :], h, mid, thread, threads)
        blocks = told[Field.FC + Matrix.OUTPUTS] // BLOCK
        for b in range(B):
            _quick_gelu(mid[b, blocks * thread // threads * BLOCK : blocks * (thread + 1) // threads * BLOCK])
        goal += threads
        if not _meet(counters, goal):
            return
        _product(form, told[Field.PROJ :], mid, m, thread, threads)
        goal += threads
        if not _meet(counters, goal):
            return
        for b in range(B):
            if res_scale != 1:  # x + s (a + m)
                _add(own[b], a[b], res_scale - np.float32(1))
            _add(own[b], m[b], res_scale)
    for b in range(B):
        _copy(h[b], own[b])
        if len(x_out):
            _add(h[b, :W], x_out[b], np.float32(1))
    _product(form, head, h, logits, thread, threads)


@_compiled()
def _attention(
    told: Any, place: Any, heads: int, qkv: Any, seen: Any, scores: Any, thread: int, threads: int
) -> None:  # fmt: skip
    """This thread's share of songs and heads: keep the key and value, look at what the place sees."""
    songs, state = len(qkv), told[Field.STATE]
    song_stride, page_stride = told[Field.CACHE_SONG], told[Field.CACHE_PAGE]
    D = state // heads
    for item in range(thread, songs * heads, threads):
        b, first = item // heads, item % heads * D
        cache = told[Field.CACHE] + 4 * b * song_stride
        if not told[Field.ENCODER]:
            kept = carray(_at(cache + 4 * place[0] * 2 * state), 2 * state)
            for d in range(first, first + D):
                kept[d] = qkv[b, state + d]
                kept[state + d] = qkv[b, 2 * state + d]
        page = carray(_at(cache + 4 * place[1] * page_stride), (place[2], 2 * state))
        _attend(qkv[b, first : first + D], page, state, first, place[2], scores, seen[b, first : first + D])
