"""How the songs of a page grew from each other: who from whom, and where each begins on one common clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from jukebox.pages.page import Item, Page, Parent


@dataclass(eq=False)
class Node:
    """A song of the page, or a parent that is not on it (item None). origin_sec: its beginning, from its root's."""

    name: str
    item: Item | None
    parent: Parent | None = None
    length_sec: float = 0.0
    origin_sec: float = 0.0
    elder: Node | None = None
    children: list[Node] = field(default_factory=list)

    @property
    def kept_sec(self) -> float:
        """How much of it comes from its parent."""
        return self.parent.end_sec - self.parent.start_sec if self.parent else 0.0


class Family:
    """The songs of a page as trees. `of` gives a song's node; `roots` are those that others grew from."""

    def __init__(self, page: Page) -> None:
        self._nodes = {
            id(item): Node(item.name, item, item.parent, max((take.length_sec for take in item.takes), default=0.0))
            for item in page.all_items
        }
        nodes = list(self._nodes.values())
        by_key = {node.item.key: node for node in reversed(nodes) if node.item and node.item.key}
        strangers: dict[str, Node] = {}
        for node in nodes:
            if node.parent is None:
                continue
            elder = by_key.get(node.parent.key)
            if elder is None:
                elder = strangers.setdefault(node.parent.key or node.parent.name, Node(node.parent.name, None))
                elder.length_sec = max(elder.length_sec, node.parent.end_sec)
            node.elder = elder
            elder.children.append(node)
        everyone = [*strangers.values(), *nodes]
        self.roots = [node for node in everyone if node.children and node.elder is None]
        for _, node in self.walk():
            for child in node.children:
                assert child.parent
                child.origin_sec = node.origin_sec + child.parent.start_sec

    def of(self, item: Item) -> Node:
        """The node of a song of this page."""
        return self._nodes[id(item)]

    def walk(self) -> Iterator[tuple[int, Node]]:
        """Every node of the trees with its depth, elders first."""
        todo = [(0, root) for root in reversed(self.roots)]
        while todo:
            depth, node = todo.pop()
            yield depth, node
            todo += [(depth + 1, child) for child in reversed(node.children)]

    @property
    def length_sec(self) -> float:
        """From the first beginning to the last end."""
        return max((node.origin_sec + node.length_sec for _, node in self.walk()), default=0.0)
