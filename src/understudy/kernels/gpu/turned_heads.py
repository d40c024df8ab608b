"""Heads of queries and keys of a draft's nodes on a GPU: normed, turned by position, and kept in the cache with their values; for
use inside the kernel of `draft_layer`."""

import triton
import triton.language as tl


@triton.jit
def turned_rows(
    made, cosines, sines, norm, epsilon, node, heads, whole, mask, EACH: tl.constexpr,
    DIM: tl.constexpr, D: tl.constexpr, NORM: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr,
    FIRST: tl.constexpr,
):  # fmt: skip
    """Queries or keys of `node`, of DIM numbers, normed and turned by its position: [M, D] float32. They are numbers `heads` [M] of
    those of EACH numbers in its line of `whole`, or the beginnings of these."""
    c = tl.arange(0, D)
    held = mask[:, None] & (c < DIM)[None, :]
    half: tl.constexpr = TURNED // 2
    # among those that are turned
    t = c - FIRST
    inside = (t >= 0) & (t < TURNED)
    # which number is turned to each place together with which other, by which angle, and whether it is the second of both
    if ORDER == 0:
        own, other, second = c, tl.where(t < half, c + half, c - half), t >= half
        angle = t if ANGLES >= TURNED else t % half
    elif ORDER == 1:
        own, other, angle, second = c, FIRST + (t ^ 1), t // 2, t % 2 == 1
    else:
        second, angle = t >= half, t % half
        own = FIRST + 2 * angle + second.to(tl.int32)
        other = FIRST + 2 * angle + 1 - second.to(tl.int32)
    own, other = tl.where(inside, own, c), tl.where(inside, other, c)
    line = made + node * whole + heads[:, None] * EACH
    straight = tl.load(line + own[None, :], held, other=0).to(tl.float32)
    across = tl.load(line + other[None, :], held, other=0).to(tl.float32)
    if NORM:
        factor = 1 / tl.sqrt(tl.sum(straight * straight, 1) / DIM + epsilon)
        straight *= factor[:, None] * tl.load(norm + own, c < DIM, other=0)[None, :]
        across *= factor[:, None] * tl.load(norm + other, c < DIM, other=0)[None, :]
    cosine = tl.where(inside, tl.load(cosines + node * ANGLES + angle, inside, other=0).to(tl.float32), 1.0)
    sine = tl.load(sines + node * ANGLES + angle, inside, other=0).to(tl.float32)
    return straight * cosine[None, :] + across * tl.where(second, sine, -sine)[None, :]


@triton.jit
def _own(
    made, cosines, sines, key_norm, epsilon, value_epsilon, node, head,
    KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    NORM: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr, FIRST: tl.constexpr,
    WHOLE: tl.constexpr, VALUES: tl.constexpr, VALUE_NORM: tl.constexpr,
):  # fmt: skip
    """The key [1, D], turned, and the value [S] of `node` for one head, as float32."""
    one = tl.arange(0, 1)
    key = turned_rows(
        made, cosines, sines, key_norm, epsilon, node, KV * GROUP + head + one, WHOLE, one == 0, DIM, DIM, D, NORM, ANGLES, TURNED,
        ORDER, FIRST,
    )  # fmt: skip
    d = tl.arange(0, S)
    # where values are made apart they follow the keys
    before: tl.constexpr = (KV * GROUP + KV) * DIM if VALUES else KV * GROUP * DIM
    value = tl.load(made + node * WHOLE + before + head * SIZE + d, d < SIZE, other=0).to(tl.float32)
    if VALUE_NORM:
        value /= tl.sqrt(tl.sum(value * value, 0) / SIZE + value_epsilon)
    return key, value


@triton.jit
def _put(key, value, keys, values, place, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr):
    """Write a key [1, D] and a value [S] to line `place` of the cache."""
    c, d = tl.arange(0, D), tl.arange(0, S)
    tl.store(keys + place * DIM + c[None, :], key.to(keys.dtype.element_ty), (c < DIM)[None, :])
    tl.store(values + place * SIZE + d, value.to(values.dtype.element_ty), d < SIZE)


@triton.jit
def kept(
    made, cosines, sines, key_norm, epsilon, value_epsilon, node, head, keys, values, place,
    KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    NORM: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr, FIRST: tl.constexpr,
    WHOLE: tl.constexpr, VALUES: tl.constexpr, VALUE_NORM: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The key [1, D] and the value [S] in line `place` of the cache: those of `node`, which are put there unless they are HELD."""
    if HELD:
        c, d = tl.arange(0, D), tl.arange(0, S)
        key = tl.load(keys + place * DIM + c, c < DIM, other=0)[None, :]
        value = tl.load(values + place * SIZE + d, d < SIZE, other=0)
    else:
        key, value = _own(
            made, cosines, sines, key_norm, epsilon, value_epsilon, node, head, KV, GROUP, DIM, D, SIZE, S, NORM, ANGLES, TURNED,
            ORDER, FIRST, WHOLE, VALUES, VALUE_NORM,
        )  # fmt: skip
        _put(key, value, keys, values, place, DIM, D, SIZE, S)
        key, value = key.to(keys.dtype.element_ty), value.to(values.dtype.element_ty)
    return key, value


@triton.jit(do_not_specialize=["places"])
def put_all(
    made, cosines, sines, query_norm, key_norm, epsilon, value_epsilon, keys, values, rows, slots, positions, places,
    KV: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, D: tl.constexpr, SIZE: tl.constexpr, S: tl.constexpr,
    NORM: tl.constexpr, ANGLES: tl.constexpr, TURNED: tl.constexpr, ORDER: tl.constexpr, FIRST: tl.constexpr,
    WHOLE: tl.constexpr, VALUES: tl.constexpr, VALUE_NORM: tl.constexpr,
):  # fmt: skip
    """The key and the value of one node for one head go to the cache, as `kept` puts them there."""
    node, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    key, value = _own(
        made, cosines, sines, key_norm, epsilon, value_epsilon, node, head, KV, GROUP, DIM, D, SIZE, S, NORM, ANGLES, TURNED,
        ORDER, FIRST, WHOLE, VALUES, VALUE_NORM,
    )  # fmt: skip
    slab = (tl.load(rows + node) * KV + head) * places
    _put(key, value, keys, values, slab + tl.load(slots + node) % places, DIM, D, SIZE, S)
