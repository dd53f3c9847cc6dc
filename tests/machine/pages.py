"""The rules of the direct map, page by page, in plain Python: the oracle for the compiled ones.

Written from the text of the rules (arch/x86/mm/pat/set_memory.c), with another structure than analyze/rules.py: there
are no tables here, just a level and an attribute word for every single page. A leaf of level L is a naturally aligned
block of pages that all say L.
"""

from __future__ import annotations

from collections.abc import Iterator

SIZE = {1: 1, 2: 512, 3: 512 * 512}
PRESENT, WRITABLE, LARGE_PAT, GLOBAL = 0x1, 0x2, 0x80, 0x100
ON_PURPOSE = 0x800  # _PAGE_KERNEL_4K
HARDWARE = 0x60
KERNPG_TABLE = 0x63


class PageModel:
    """`n_pages` pages, holes at first. `rodata`: [first, end) pages that may not be writable."""

    def __init__(self, n_pages: int, rodata: tuple[int, int] = (0, 0)) -> None:
        self.n_pages = n_pages
        self.rodata = rodata
        self.level = bytearray(n_pages)
        self.attrs = [0] * n_pages

    def fill(self, first: int, n_leaves: int, level: int, attrs: int) -> None:
        n = n_leaves * SIZE[level]
        self.level[first : first + n] = bytes([level]) * n
        self.attrs[first : first + n] = [attrs] * n

    def leaf(self, page: int) -> tuple[int, int]:
        """First page of the leaf or hole page, and its number of pages."""
        size = SIZE[self.level[page] or 1]
        return page - page % size, size

    def change(
        self,
        page: int,
        n_pages: int,
        mask_set: int,
        mask_clr: int,
        *,
        n_done: int | None = None,
        force_split: bool = False,
        has_pgd: bool = False,
    ) -> list[tuple[int, int]]:
        """One call; the splits that it made, as (level split, first page of that leaf)."""
        splits: list[tuple[int, int]] = []
        if not (mask_set or mask_clr or force_split):
            return splits
        enforce = [False]
        done = 0
        while done < (n_pages if n_done is None else n_done):
            here, rest = page + done, n_pages - done
            if not self.level[here]:
                if has_pgd:
                    self._populate(here, page + n_pages, self._masked(KERNPG_TABLE, mask_set, mask_clr))
                done += rest if has_pgd else 1
            elif self.level[here] == 1:
                new = self._masked(self.attrs[here], mask_set, mask_clr)
                self.attrs[here] = self._protected(here, 1, new)
                done += 1
            else:
                first, size = self.leaf(here)
                if self._must_split(here, rest, mask_set, mask_clr, force_split, enforce):
                    splits.append((self.level[here], first))
                    self._split(first, size, enforce[0])
                else:
                    self.attrs[first : first + size] = [self._masked_large(self.attrs[here], mask_set, mask_clr)] * size
                    done += min(rest, first + size - here)
        return splits

    def split(self, page: int, level: int) -> bool:
        """Split the leaf of `level` above a page; False if there is none (any more)."""
        if self.level[page] != level:
            return False
        first, size = self.leaf(page)
        self._split(first, size, self._protected(first, size, self.attrs[page]) != self.attrs[page])
        return True

    def _masked(self, attrs: int, mask_set: int, mask_clr: int) -> int:
        attrs = attrs & ~mask_clr | mask_set
        return attrs if attrs & PRESENT else attrs & ~GLOBAL

    def _masked_large(self, attrs: int, mask_set: int, mask_clr: int) -> int:
        """pgprot_4k_2_large puts PAT where a page frame number that is stored inverted has an address bit."""
        attrs = self._masked(attrs, mask_set, mask_clr)
        return attrs if attrs & PRESENT else attrs & ~LARGE_PAT

    def _protected(self, first: int, n_pages: int, attrs: int) -> int:
        """Static protections: a present page of rodata is never writable."""
        touches = any(self.rodata[0] <= p < self.rodata[1] for p in (first, first + n_pages - 1)) or (
            first <= self.rodata[0] < min(first + n_pages, self.rodata[1])
        )
        return attrs & ~WRITABLE if touches and attrs & PRESENT else attrs

    def _must_split(
        self, page: int, rest: int, mask_set: int, mask_clr: int, force_split: bool, enforce: list[bool]
    ) -> bool:
        first, size = self.leaf(page)
        old = self.attrs[page]
        if force_split:
            return True
        if self._protected(first, size, old) != old:
            enforce[0] = True
            return True
        new = self._masked_large(old, mask_set, mask_clr)
        if new == old:
            return False
        covered = page == first and rest >= size
        return not covered or self._protected(first, size, new) != new

    def _split(self, first: int, size: int, enforce: bool) -> None:
        self.level[first : first + size] = bytes([self.level[first] - 1]) * size
        self.attrs[first : first + size] = [self._masked(self.attrs[first], 0, 0)] * size
        if enforce and size == SIZE[2]:  # "PUD splits cannot be fixed trivially"
            for page in range(first, first + size):
                self.attrs[page] = self._protected(page, 1, self.attrs[page])

    def _populate(self, page: int, end: int, attrs: int) -> None:
        """populate_pud and below: pieces up to the next 1G and 2M boundary in smaller entries, then large ones, then the
        rest. Nothing is looked at, so what was mapped before is mapped anew; only a table is never made of a leaf.
        """
        while page < end:
            giga, frame = page - page % SIZE[3], page - page % SIZE[2]
            if page == giga and end - page >= SIZE[3]:
                self.fill(page, 1, 3, attrs)
                page += SIZE[3]
            elif self.level[giga] == 3:
                page = min(end, giga + SIZE[3])
            elif page == frame and end - page >= SIZE[2]:
                self.fill(page, 1, 2, attrs)
                page += SIZE[2]
            else:
                if self.level[frame] != 2:
                    self.fill(page, 1, 1, attrs)
                page += 1

    def collapse(self, page: int, level: int) -> bool:
        """Make one leaf of the table of `level` entries above a page; False, and nothing done, where it may not be one."""
        size = SIZE[level + 1]
        first = page - page % size
        block = range(first, first + size)
        alike = {(self.level[p], self.attrs[p] & ~HARDWARE) for p in block} == {(level, self.attrs[first] & ~HARDWARE)}
        if not alike or not self.attrs[first] & PRESENT or (level == 1 and self.attrs[first] & ON_PURPOSE):
            return False
        self.fill(first, 1, level + 1, self.attrs[first])
        return True

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Rows of a snapshot of [first, end): (page, level, n_leaves, attrs); `first` starts a leaf or hole."""
        page = first
        run: tuple[int, int, int, int] | None = None
        while page < end:
            level = self.level[page]
            if not level:
                if run:
                    yield run
                run = None
                page += 512 if page % 512 == 0 and not any(self.level[page : page + 512]) else 1
                continue
            attrs = self.attrs[page]
            if run and run[1] == level and run[3] == attrs:
                run = (run[0], level, run[2] + 1, attrs)
            else:
                if run:
                    yield run
                run = (page, level, 1, attrs)
            page += SIZE[level]
        if run:
            yield run
