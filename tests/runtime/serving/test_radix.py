"""The tree of cached prefixes, by itself: matching, replacing tails, the order of eviction."""

from hypothesis import given
from hypothesis import strategies as st

from superscaler.runtime.memory import Chunks, Pool
from superscaler.runtime.serving.kv_layout import KVLayout
from superscaler.runtime.serving.radix import PrefixTree, common_start

PAGE = 4096
POOL = Pool("host", budget=1 << 24, chunk=PAGE)


def chunk() -> list[Chunks]:
    vtensor = POOL.reserve(PAGE)
    vtensor.extend(PAGE)
    return [vtensor.hold(0, PAGE)]


def insert(tree, *blocks):
    node = tree.root
    for block in blocks:
        node = node.children.get(block) or tree.insert(node, block, chunk())
    tree.touch(node)
    return node


def test_matching_goes_block_by_block_and_ends_inside_of_one():
    tree = PrefixTree()
    deep = insert(tree, (1, 2, 3), (4, 5, 6))
    assert tree.match([(1, 2, 3), (4, 5, 6)]) == (deep, None, 0)
    assert tree.match([(1, 2, 3), (4, 5, 9)]) == (deep.parent, deep, 2)
    assert tree.match([(1, 2, 9)]) == (tree.root, deep.parent, 2)
    assert tree.match([(7,)]) == (tree.root, None, 0)
    assert tree.match([]) == (tree.root, None, 0)


def test_a_longer_block_replaces_the_tail_it_contains():
    tree = PrefixTree()
    insert(tree, (1, 2, 3), (4,))
    insert(tree, (1, 2, 3), (4, 5))
    assert (tree.nodes, tree.tokens) == (2, 5)
    insert(tree, (1, 2, 3), (4, 6))
    assert (tree.nodes, tree.tokens) == (3, 7)


def test_leaves_go_before_their_parents_and_old_ones_first():
    tree, before = PrefixTree(), POOL.stats().committed
    old = insert(tree, (1,), (2,))
    insert(tree, (1,), (3,))
    insert(tree, (4,))
    assert tree.evict(1) == 1
    assert not old.chunks
    assert tree.evict(2) == 2
    assert list(tree.root.children) == [(4,)]
    tree.evict(5)
    assert tree.nodes == tree.tokens == POOL.stats().committed - before == 0


def test_of_equally_old_blocks_the_emptier_one_goes_first():
    tree = PrefixTree()
    full, tail = insert(tree, (1, 2, 3)), insert(tree, (4,))
    full.used = tail.used
    tree.touch(tail)
    full.used = tail.used
    tree._offer(full)
    tree.evict(1)
    assert full.chunks
    assert not tail.chunks
    tree.evict(1)


def test_what_is_mapped_elsewhere_is_passed_over_until_it_is_not():
    tree = PrefixTree()
    old, young = insert(tree, (1,)), insert(tree, (2,))
    user = POOL.reserve(PAGE)
    user.share_chunks(old.chunks)
    assert tree.evict(2) == 1
    assert old.chunks
    assert not young.chunks
    user.free()
    assert tree.evict(1) == 1


def test_using_a_prefix_often_does_not_grow_the_tree():
    tree = PrefixTree()
    node = insert(tree, (1,))
    for _ in range(5000):
        tree.touch(node)
    assert len(tree._leaves) < 200
    tree.evict(1)


TOKENS = st.lists(st.integers(0, 3), max_size=12)


@given(TOKENS, TOKENS)
def test_common_start(a, b):
    n = common_start(tuple(a), tuple(b))
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


@given(st.integers(1, 9), st.integers(1, 100), st.integers(0, 5000))
def test_every_token_begins_in_one_chunk(heads, dim, token):
    layout = KVLayout(layers=1, heads=heads, dim=dim)
    index = token * layout.row // PAGE
    assert layout.first_token(index, PAGE) <= token < layout.first_token(index + 1, PAGE)
    assert layout.chunks(token + 1, PAGE) >= index + 1
    assert layout.capacity(layout.chunks(token + 1, PAGE) * PAGE) >= token + 1
