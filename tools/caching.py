"""PyTorch's caching allocator for CUDA in pure Python: which blocks it splits, keeps and gives
back, for a sequence of tensors. One stream, one device, no CUDA graphs.

Constants and rules are those of torch 2.13: c10/core/AllocatorConfig.h and
c10/cuda/CUDACachingAllocator.cpp, whose functions are named beside ours. They have stayed the same
since torch 1.4, `expandable_segments` since 2.1. Left out: `garbage_collection_threshold`,
`max_split_size_mb` and `roundup_power2_divisions`, which are off unless someone sets them, and
tensors used on several streams, which wait for an event before they are free.

Counters, as `torch.cuda` names them:
- allocated: blocks that tensors hold, rounded up as described below (`memory_allocated`);
- active: allocated, and blocks whose tensors are gone but which another stream may still read; the
  same number here (`memory_stats()["active_bytes.all.current"]`);
- reserved: all segments that CUDA handed out, whether tensors hold them or not
  (`memory_reserved`); allocated blocks, cached blocks, and what splitting leaves between them;
- nvidia-smi: reserved, the CUDA context and its kernels, and what libraries take from CUDA
  directly, such as NCCL's buffers; this allocator knows nothing of those.
"""

from __future__ import annotations

from bisect import bisect_left, insort

MIN_BLOCK = 512  # kMinBlockSize: sizes are rounded up to multiples of it
SMALL_SIZE = 2**20  # kSmallSize: up to here from the small pool
SMALL_SEGMENT = 2 * 2**20  # kSmallBuffer: segments of the small pool
LARGE_SEGMENT = 20 * 2**20  # kLargeBuffer: segments for sizes below MIN_LARGE
MIN_LARGE = 10 * 2**20  # kMinLargeAlloc: from here a segment of its own size
ROUND_LARGE = 2 * 2**20  # kRoundLarge: rounded up to multiples of it


class OutOfMemory(Exception):
    """No segment could be had, also after all cached ones were given back."""


class Block:
    """A stretch of a segment, held by a tensor or free."""

    __slots__ = ("address", "free", "mapped", "next", "pool", "previous", "size")

    def __init__(self, pool: Pool, address: int, size: int) -> None:
        self.pool, self.address, self.size = pool, address, size
        self.free = self.mapped = True
        self.previous: Block | None = None
        self.next: Block | None = None


class Pool:
    """The free blocks of one pool by size, then address, as BlockComparatorSize orders them."""

    def __init__(self, *, is_small: bool) -> None:
        self.is_small = is_small
        self.segment_bytes = SMALL_SEGMENT if is_small else LARGE_SEGMENT
        self.order: list[tuple[int, int]] = []
        self.at: dict[int, Block] = {}
        self.end: Block | None = None  # of an expandable segment: what is not mapped yet

    def insert(self, block: Block) -> None:
        insort(self.order, (block.size, block.address))
        self.at[block.address] = block

    def remove(self, block: Block) -> None:
        del self.order[bisect_left(self.order, (block.size, block.address))]
        del self.at[block.address]

    def best_fit(self, size: int) -> Block | None:
        """The smallest free block that holds so much, the lowest address first."""
        place = bisect_left(self.order, (size, 0))
        return self.at[self.order[place][1]] if place < len(self.order) else None


class CachingAllocator:
    """The state of one device.

    Args:
        limit_bytes: What CUDA can hand out in all; None: without limit.
        expandable: `expandable_segments:True`: one segment per pool that grows at its end.
    """

    def __init__(self, limit_bytes: int | None = None, *, expandable: bool = False) -> None:
        self.limit_bytes, self.expandable = limit_bytes, expandable
        self.small, self.large = Pool(is_small=True), Pool(is_small=False)
        self.allocated_bytes = self.reserved_bytes = 0
        self.peak_allocated_bytes = self.peak_reserved_bytes = 0
        self.retries = 0  # how often cached segments were given back: num_alloc_retries
        self._next_address = 0

    def allocate(self, size_bytes: int) -> Block:
        """A block for a tensor of so many bytes.

        Raises OutOfMemory where none can be had.
        """
        size = rounded_bytes(size_bytes)
        pool = self.small if size <= SMALL_SIZE else self.large
        block = pool.best_fit(size)
        if block is None:
            block = self._new_block(pool, size)
            if block is None:
                self.retries += 1
                self.empty_cache()
                block = self._new_block(pool, size)
            if block is None:
                raise OutOfMemory(
                    f"{size_bytes:,} bytes; {self.reserved_bytes:,} of {self.limit_bytes:,} are"
                    f" reserved, {self.allocated_bytes:,} allocated"
                )
        if block.address in pool.at:
            pool.remove(block)
        if self._should_split(block, size):
            rest = Block(pool, block.address + size, block.size - size)
            rest.previous, rest.next = block, block.next
            if block.next is not None:
                block.next.previous = rest
            block.next, block.size = rest, size
            pool.insert(rest)
        block.free = False
        self.allocated_bytes += block.size
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return block

    def free(self, block: Block) -> None:
        """Give a tensor's block back to its pool, joined with free neighbours (free_block)."""
        if block.free:
            raise ValueError(f"the block at {block.address} is free already")
        self.allocated_bytes -= block.size
        block.free = True
        self._merge_and_insert(block)

    def empty_cache(self) -> None:
        """Give back all segments that no tensor holds a part of (release_cached_blocks); of an
        expandable one its free pages.
        """
        for pool in (self.large, self.small):
            for block in list(pool.at.values()):
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.next is None:
                    pool.remove(block)
                    self.reserved_bytes -= block.size

    def _should_split(self, block: Block, size: int) -> bool:
        """should_split."""
        rest = block.size - size
        return rest >= MIN_BLOCK if block.pool.is_small or self.expandable else rest > SMALL_SIZE

    def _new_block(self, pool: Pool, size: int) -> Block | None:
        """alloc_block: a new segment, or the end of the expandable one mapped further."""
        if self.expandable:
            return self._expanded(pool, size)
        segment = segment_bytes(size)
        if not self._reserve(segment):
            return None
        block = Block(pool, self._next_address, segment)
        # Segments are never neighbours: addresses only order them.
        self._next_address += segment + 1
        return block

    def _reserve(self, size: int) -> bool:
        if self.limit_bytes is not None and self.reserved_bytes + size > self.limit_bytes:
            return False
        self.reserved_bytes += size
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)
        return True

    def _merge_and_insert(self, block: Block) -> None:
        """try_merge_blocks with both neighbours, if they are free and mapped alike."""
        before, after = block.previous, block.next
        if before is not None and before.free and before.mapped:
            block.pool.remove(before)
            block.address, block.size = before.address, before.size + block.size
            block.previous = before.previous
            if before.previous is not None:
                before.previous.next = block
        if after is not None and after.free and after.mapped:
            block.pool.remove(after)
            block.size += after.size
            block.next = after.next
            if after.next is not None:
                after.next.previous = block
        block.pool.insert(block)

    def _expanded(self, pool: Pool, size: int) -> Block | None:
        """try_allocate_expandable_block: the first unmapped stretch with room, together with a free
        block before it, mapped in pages of the pool's segment size.
        """
        if pool.end is None:
            # As much address space as can ever be needed; small and large have their own.
            pool.end = Block(pool, 0, 2**62)
            pool.end.mapped = False
        first: Block | None = pool.end
        while first is not None and first.previous is not None:
            first = first.previous
        while first is not None:
            if first.free and _room_from(first, size) and (not first.mapped or _is_last(first)):
                return self._map(first, size)
            first = first.next
        return None

    def _map(self, first: Block, size: int) -> Block | None:
        """map_block, until the block that starts here is large enough."""
        block = first
        while not block.mapped or block.size < size:
            hole = block if not block.mapped else block.next
            assert hole is not None
            wanted = size if hole is block else size - block.size
            page = hole.pool.segment_bytes
            mapped = min(hole.size, -(-wanted // page) * page)
            if not self._reserve(mapped):
                return None
            block = _mapped_part(hole, mapped)
            self._merge_and_insert(block)
        return block

    def _unmap(self, block: Block) -> None:
        """unmap_block: the whole pages inside a free block."""
        page = block.pool.segment_bytes
        start = -(-block.address // page) * page
        stop = (block.address + block.size) // page * page
        if stop <= start:
            return
        pool = block.pool
        pool.remove(block)
        if block.address < start:
            head = Block(pool, block.address, start - block.address)
            head.previous, head.next = block.previous, block
            if block.previous is not None:
                block.previous.next = head
            block.previous = head
            pool.insert(head)
        if stop < block.address + block.size:
            tail = Block(pool, stop, block.address + block.size - stop)
            tail.previous, tail.next = block, block.next
            if block.next is not None:
                block.next.previous = tail
            block.next = tail
            pool.insert(tail)
        block.address, block.size, block.mapped = start, stop - start, False
        self.reserved_bytes -= block.size
        for other in (block.previous, block.next):
            if other is not None and not other.mapped:
                _join(block, other)


def rounded_bytes(size_bytes: int) -> int:
    """What a request is rounded up to (round_size)."""
    return max(MIN_BLOCK, -(-size_bytes // MIN_BLOCK) * MIN_BLOCK)


def segment_bytes(rounded: int) -> int:
    """The segment that is asked of CUDA for a rounded request (get_allocation_size)."""
    if rounded <= SMALL_SIZE:
        return SMALL_SEGMENT
    if rounded < MIN_LARGE:
        return LARGE_SEGMENT
    return -(-rounded // ROUND_LARGE) * ROUND_LARGE


def _room_from(block: Block | None, size: int) -> bool:
    """Whether free and unmapped stretches from here on hold so much."""
    found = 0
    while block is not None and block.free and found < size:
        found += block.size
        block = block.next
    return found >= size


def _is_last(block: Block) -> bool:
    """Whether an unmapped stretch follows."""
    return block.next is not None and not block.next.mapped


def _mapped_part(hole: Block, size: int) -> Block:
    """The first bytes of an unmapped stretch as a mapped block; the rest stays a hole."""
    if size == hole.size:
        hole.mapped = True
        return hole
    block = Block(hole.pool, hole.address, size)
    block.previous, block.next = hole.previous, hole
    if hole.previous is not None:
        hole.previous.next = block
    hole.previous = block
    hole.address, hole.size = hole.address + size, hole.size - size
    return block


def _join(block: Block, other: Block) -> None:
    """Two unmapped neighbours as one, in the place of `block`, or of the endless one."""
    keep, gone = (other, block) if other.pool.end is other else (block, other)
    first = keep if keep.address < gone.address else gone
    keep.address = first.address
    keep.size += gone.size
    keep.previous = gone.previous if gone is first else keep.previous
    keep.next = keep.next if gone is first else gone.next
    if keep.previous is not None:
        keep.previous.next = keep
    if keep.next is not None:
        keep.next.previous = keep
