"""One small catalogue serves every plug-in point: a decorator and a dict."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from bblab.errors import BblabError, near

T = TypeVar("T")


class Catalogue(Generic[T]):
    """Named things of one sort. Duplicates are errors; an unknown name lists the near ones."""

    def __init__(self, sort: str) -> None:
        self.sort = sort
        self._items: dict[str, T] = {}

    def __call__(self, name: str, *, replace: bool = False) -> Callable[[T], T]:
        def enter(item: T) -> T:
            self.add(name, item, replace=replace)
            return item

        return enter

    def add(self, name: str, item: T, *, replace: bool = False) -> None:
        old = self._items.get(name)
        # The same file loaded twice (a test, a notebook) is not a second definition.
        same_place = getattr(old, "__qualname__", None) == getattr(item, "__qualname__", "") and getattr(
            old, "__module__", None
        ) == getattr(item, "__module__", "")
        if old is not None and not replace and not same_place:
            raise BblabError(
                f"two {self.sort}s are called {name!r}",
                hint=f"rename one, or register yours with replace=True to take the place of {old!r}",
            )
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            raise BblabError(f"no {self.sort} {name!r}", hint=near(name, self._items)) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)
