"""What autograd does with the memory of a block, without tensors: operations are recorded in order,
and the tape says what they keep and how high memory rises while they run backwards.

Sizes are bytes per token. What is counted follows torch.autograd:
- a tensor that several operations save is one storage and counts once; a view keeps the whole
  storage that it looks into (torch/csrc/autograd/saved_variable.cpp);
- backward nodes run in reverse order of their creation; what a node saved is freed after it ran,
  and so is the gradient it was given (torch/csrc/autograd/engine.cpp, evaluate_function);
- a second gradient of one tensor is added in place if nobody else holds the first
  (torch/csrc/autograd/input_buffer.cpp, accumulate).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# How an operation hands its gradient on: a new tensor for each input, the same one, or (a part of a
# split) as one of several that the split joins into one.
NEW, SAME, JOINED = "new", "same", "joined"


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of a block: `width` elements per token in `storage`, which views share."""

    width: float
    bytes_each: int
    storage: int
    grad: bool  # whether it requires a gradient

    @property
    def size(self) -> float:
        """Bytes per token."""
        return self.width * self.bytes_each


@dataclass(slots=True, eq=False)
class Operation:
    """One recorded operation.

    Args:
        name: As in torch's derivatives.yaml, or the kernel's.
        inputs: Tensors it reads; parameters are not among them.
        output: What it makes.
        saved: Storages that its backward node keeps.
        gradient: NEW, SAME or JOINED.
        scratch: Bytes per token that its backward node holds beside the gradients it makes.
        in_place: Whether it writes its gradients into what it saved (Liger's kernels).
    """

    name: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    saved: tuple[int, ...]
    gradient: str
    scratch: float
    in_place: bool


class Tape:
    """The operations of one block in order."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.sizes: list[float] = []  # bytes per token of each storage

    def tensor(self, width: float, bytes_each: int, *, grad: bool = True) -> Tensor:
        """A tensor with a storage of its own, such as the block's input."""
        self.sizes.append(width * bytes_each)
        return Tensor(width, bytes_each, len(self.sizes) - 1, grad)

    def outside(self, width: float, bytes_each: int) -> Tensor:
        """A tensor that another layer holds: here it takes nothing."""
        self.sizes.append(0.0)
        return Tensor(width, bytes_each, len(self.sizes) - 1, grad=True)

    def record(
        self,
        name: str,
        inputs: Sequence[Tensor],
        width: float,
        bytes_each: int,
        *,
        saves: Sequence[Tensor] = (),
        saves_output: bool = False,
        beside: float = 0.0,
        scratch: float = 0.0,
        gradient: str = NEW,
        trains: bool = False,
        in_place: bool = False,
        view: bool = False,
    ) -> Tensor:
        """Record an operation and return its output.

        Args:
            name: As in derivatives.yaml.
            inputs: Tensors it reads.
            width: Elements of the output per token.
            bytes_each: Bytes of one of them.
            saves: Which inputs its backward node needs.
            saves_output: Whether it needs its own result.
            beside: Bytes per token of small tensors that it saves beside (statistics, a mask).
            scratch: Bytes per token that it holds in the backward pass beside gradients.
            gradient: NEW, SAME or JOINED.
            trains: Whether a parameter of it gets a gradient.
            in_place: Whether gradients are written into what was saved.
            view: Whether the output shares the first input's storage.
        """
        grad = trains or any(one.grad for one in inputs)
        if view:
            output = Tensor(width, bytes_each, inputs[0].storage, grad)
        else:
            output = self.tensor(width, bytes_each, grad=grad)
        saved: list[int] = []
        if grad:
            saved = [one.storage for one in saves]
            if saves_output:
                saved.append(output.storage)
            if beside:
                self.sizes.append(beside)
                saved.append(len(self.sizes) - 1)
        operation = Operation(
            name, tuple(inputs), output, tuple(saved), gradient, scratch, in_place
        )
        self.operations.append(operation)
        return output

    def saved_bytes(self, leaving_out: Sequence[Tensor] = ()) -> float:
        """Bytes per token that the forward pass keeps for the backward pass."""
        found = {storage for one in self.operations for storage in one.saved}
        found -= {one.storage for one in leaving_out}
        return sum([self.sizes[storage] for storage in found])

    def backward_peak(self, end: Tensor, leaving_out: Sequence[Tensor] = ()) -> float:
        """Bytes per token at the worst point of the backward pass from `end`: what is still saved,
        and the gradients of activations alive; those of parameters are left out.
        """
        sizes, outside = self.sizes, {one.storage for one in leaving_out}
        savers: dict[int, int] = {}
        for one in self.operations:
            for storage in one.saved:
                if storage not in outside:
                    savers[storage] = savers.get(storage, 0) + 1
        alive = sum([sizes[storage] for storage in savers])
        # A gradient is a list [bytes, holders], which SAME operations share.
        held: dict[int, list[float]] = {id(end): [end.size, 1]}
        alive += end.size
        peak = alive
        for one in reversed(self.operations):
            given = held.pop(id(one.output), None)
            if given is None:
                continue
            made, passing, late = 0.0, one.scratch, 0.0
            for tensor in one.inputs:
                if not tensor.grad:
                    continue
                key, there = id(tensor), held.get(id(tensor))
                if one.gradient == SAME:
                    if there is None:
                        held[key] = given
                        given[1] += 1
                    elif there[1] > 1:  # somebody else holds the first: the sum is a new tensor
                        there[1] -= 1
                        held[key] = [tensor.size, 1]
                        made += tensor.size
                    continue
                if one.gradient == JOINED:
                    if there is None:
                        held[key] = there = [0.0, 1]
                    if given[1] == 1:  # taken over
                        there[0] += given[0]
                        given[0] = 0.0
                    continue
                if one.in_place and there is None:
                    held[key] = [tensor.size, 1]
                    late += tensor.size
                    continue
                if there is None:
                    held[key] = [tensor.size, 1]
                    made += tensor.size
                elif there[1] > 1:
                    there[1] -= 1
                    held[key] = [tensor.size, 1]
                    made += tensor.size
                    passing += tensor.size
                else:
                    passing += tensor.size
            alive += made
            peak = max(peak, alive + passing)
            alive += late
            given[1] -= 1
            if given[1] == 0:
                alive -= given[0]
            for storage in one.saved:
                if storage in savers:
                    savers[storage] -= 1
                    if not savers[storage]:
                        alive -= sizes[storage]
        return peak

    def forward_peak(self, leaving_out: Sequence[Tensor] = ()) -> float:
        """Bytes per token at the worst point of a forward pass that saves nothing: each tensor
        lives from its making to its last use.
        """
        outside = {one.storage for one in leaving_out}
        last: dict[int, int] = {}
        for index, one in enumerate(self.operations):
            for tensor in (*one.inputs, one.output):
                last[tensor.storage] = index
        alive, peak, born = 0.0, 0.0, set(outside)
        for index, one in enumerate(self.operations):
            storages = {tensor.storage for tensor in (*one.inputs, one.output)} - outside
            for storage in storages - born:
                born.add(storage)
                alive += self.sizes[storage]
            peak = max(peak, alive)
            alive -= sum([self.sizes[storage] for storage in storages if last[storage] == index])
        return peak
