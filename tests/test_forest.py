"""Unions of labels, in any order."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from fxgrow.forest import Forest


@pytest.mark.parametrize("order", ["up", "down", "shuffled"])
@pytest.mark.parametrize("length", [2, 7, 9, 1000])
def test_chains(length, order):
    forest, steps = Forest(), np.arange(length - 1)
    labels = forest.fresh(length)
    if order == "down":
        steps = steps[::-1]
    elif order == "shuffled":
        np.random.default_rng(0).shuffle(steps)
    for i in steps:
        forest.unite(labels[i : i + 1], labels[i + 1 : i + 2])
        if order == "shuffled" and i % 100 == 0:
            forest.find(labels[:1])  # asked in between
    assert (forest.find(labels) == labels[0]).all()


@pytest.mark.parametrize("seed", range(20))
def test_roots_are_the_lowest_labels(seed):
    rng = np.random.default_rng(seed)
    forest = Forest()
    labels = forest.fresh(60)
    graph = nx.empty_graph(labels.tolist())
    for _ in range(12):
        a, b = rng.choice(labels, (2, 4))
        forest.unite(a, b)
        graph.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
        if rng.random() < 0.3:
            forest.find(rng.choice(labels, 5))
    for component in nx.connected_components(graph):
        own = np.array(sorted(component))
        assert (forest.find(own) == own[0]).all()
