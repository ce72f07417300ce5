"""The algebra of labels: union-find, meeting, reducing, reshaping."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fxgrow.labels import LabelBook, Where
from fxgrow.planes import Plane, compress, reshape_blocks, reshape_plane

HERE = Where("test", None)


def plane(labels, *shape, zero=()):
    return Plane(np.asarray(labels).reshape(shape), zero)


def partition(roots):
    """Equal numbers for equal roots, in order of appearance."""
    seen: dict[int, int] = {}
    return [seen.setdefault(int(r), len(seen)) for r in roots]


@st.composite
def factorisations(draw):
    """Two shapes of equal size that are refinements of common blocks."""
    blocks = draw(
        st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3)
    )
    merged = [math.prod(b) for b in blocks]
    fine = [size for b in blocks for size in b]
    return merged, fine


@settings(derandomize=True, deadline=None)
@given(st.integers(2, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_union_find_equals_the_naive_one(count, pairs):
    book = LabelBook()
    labels = book.fresh(count)
    naive = list(range(count))
    pairs = [(a % count, b % count) for a, b in pairs]
    for a, b in pairs:
        old, new = naive[a], naive[b]
        naive = [new if n == old else n for n in naive]
    if pairs:  # all at once: one root may meet several
        left, right = zip(*pairs, strict=True)
        book.unite(labels[list(left)], labels[list(right)])
    assert partition(book.find(labels)) == partition(naive)
    assert not (book.find(labels) == 0).any(), "nothing unites with the outside by itself"


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.data())
def test_unite_broadcasts(shape, data):
    keep = [data.draw(st.booleans()) for _ in shape]
    book = LabelBook()
    full = book.fresh(math.prod(shape)).reshape(shape)
    small_shape = [n if k else 1 for n, k in zip(shape, keep, strict=True)]
    small = book.fresh(math.prod(small_shape)).reshape(small_shape)
    book.unite(full, small)
    roots = book.find(full)
    assert np.array_equal(roots, np.broadcast_to(book.find(small), shape))
    assert len(np.unique(roots)) == math.prod(small_shape)


@settings(derandomize=True, deadline=None)
@given(factorisations())
def test_split_then_merge_is_the_identity(shapes):
    merged, fine = shapes
    labels = np.arange(math.prod(merged)).reshape(merged)
    split, _ = reshape_plane(labels, merged, fine)
    back, _ = reshape_plane(split, fine, merged)
    assert np.array_equal(np.broadcast_to(back, merged), labels)


@settings(derandomize=True, deadline=None)
@given(factorisations(), st.data())
def test_reshape_of_a_plane_equals_reshape_of_the_whole(shapes, data):
    merged, fine = shapes
    varies = [data.draw(st.booleans()) for _ in fine]
    small = [n if v else 1 for n, v in zip(fine, varies, strict=True)]
    labels = np.arange(math.prod(small)).reshape(small)
    result, _ = reshape_plane(labels, fine, merged)
    assert all(n in (1, m) for n, m in zip(result.shape, merged, strict=True)), "broadcast shape"
    whole = np.broadcast_to(labels, fine).reshape(merged)
    assert np.array_equal(np.broadcast_to(result, merged), whole)


@settings(derandomize=True, deadline=None)
@given(factorisations(), st.booleans())
def test_blocks_cover_both_shapes_with_equal_products(shapes, backwards):
    old, new = shapes[::-1] if backwards else shapes
    blocks = reshape_blocks(old, new)
    assert [d for olds, _ in blocks for d in olds] == list(range(len(old)))
    assert [d for _, news in blocks for d in news] == list(range(len(new)))
    for olds, news in blocks:
        assert math.prod(old[d] for d in olds) == math.prod(new[d] for d in news)


def test_blocks_of_incommensurable_sizes_are_one():
    assert reshape_blocks((4, 6), (8, 3)) == [([0, 1], [0, 1])]


def test_compress_drops_what_does_not_vary():
    labels = np.broadcast_to(np.arange(3).reshape(3, 1), (3, 4))
    assert compress(labels).shape == (3, 1)
    assert compress(np.full((3, 4), 7)).shape == (1, 1)


def test_planes_of_different_operands_unite():
    book = LabelBook()
    a, b = book.fresh(3), book.fresh(3)
    (out,) = book.meet([([plane(a, 1, 3)], (2, 3)), ([plane(b, 3)], (3,))], 2, HERE)
    assert out.labels.shape == (1, 3)
    assert np.array_equal(book.find(a), book.find(b))
    assert len(np.unique(book.find(a))) == 3


def test_planes_of_one_operand_coexist():
    book = LabelBook()
    rows, columns = book.fresh(2), book.fresh(3)
    planes = [plane(rows, 2, 1), plane(columns, 1, 3)]
    out = book.meet([(planes, (2, 3)), ([], ())], 2, HERE)
    assert len(out) == 2
    assert len(np.unique(book.find(np.r_[rows, columns]))) == 5


def test_alignment_with_the_unlabelled_freezes():
    book = LabelBook()
    labels = book.fresh(3)
    book.meet([([plane(labels, 3)], (3,)), ([], (3,))], 1, HERE)
    book.settle()
    assert [f.code for f in book.frozen] == ["unlabelled"]
    assert np.array_equal(np.sort(book.frozen[0].labels.ravel()), labels)


def test_numbers_do_not_freeze():
    book = LabelBook()
    book.meet([([plane(book.fresh(3), 3)], (3,)), ([], (1,))], 1, HERE)
    book.settle()
    assert not book.frozen


def test_contraction_over_part_of_a_grid_merges():
    book = LabelBook()
    grid = book.fresh(6)
    (out,) = book.contract([plane(grid, 2, 3)], [1], HERE)
    assert out.labels.shape == (2, 1)
    assert partition(book.find(grid)) == [0, 0, 0, 1, 1, 1]


def test_contraction_over_a_whole_plane_needs_a_zero():
    book = LabelBook()
    stream, column = book.fresh(3), book.fresh(3)
    axis = ("w", 1)
    met = book.meet(
        [([plane(stream, 3)], (3,)), ([plane(column, 3, zero=(axis,))], (3,))],
        1,
        HERE,
        product=True,
    )
    assert book.contract(met, [0], HERE) == []
    book.settle()
    assert axis in book.closers
    assert not book.frozen


def test_contraction_that_nothing_closes_freezes():
    book = LabelBook()
    book.contract([plane(book.fresh(3), 3)], [0], HERE)
    book.settle()
    assert [f.code for f in book.frozen] == ["product"]


def test_mixing_is_written_down_with_its_code():
    book = LabelBook()
    labels = book.fresh(4)
    kept = book.mix([plane(labels, 1, 4), plane(book.fresh(2), 2, 1)], [1], "mean", HERE)
    assert [p.labels.shape for p in kept] == [(2, 1)]
    assert [m.code for m in book.mixings] == ["mean"]


@given(
    st.integers(2, 5).flatmap(
        lambda rows: st.lists(
            st.lists(st.integers(1, 12), min_size=rows, max_size=rows), min_size=1, max_size=8
        )
    )
)
@settings(derandomize=True, max_examples=200, deadline=None)
def test_columns_are_united_however_they_overlap(columns):
    book = LabelBook()
    book.fresh(12)
    planes = [Plane(np.array(row)[None]) for row in zip(*columns, strict=True)]
    if len(columns) > 1:
        book.meet([([p], p.labels.shape) for p in planes], 2, HERE)
    else:
        for row in planes[1:]:
            book.unite(planes[0].labels, row.labels)
    groups = {label: {label} for label in range(1, 13)}
    for column in columns:
        whole = set().union(*(groups[label] for label in column))
        groups.update(dict.fromkeys(whole, whole))
    roots = book.find(np.arange(1, 13))
    for a in range(1, 13):
        assert {b for b in range(1, 13) if roots[b - 1] == roots[a - 1]} == groups[a]
