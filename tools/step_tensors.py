"""The tensors of a training run in the order in which they are made and freed, put into PyTorch's
allocator: weights first, then micro-batches, each a forward pass, the loss and a backward pass,
then the optimizer's step. `python -m tools.cache_table` tabulates what comes out, since it is too
slow for every estimate.

Layers come from `advisor.estimate.blocks`, operation by operation. Left out: several streams (FSDP
gathers weights on one of its own, whose blocks nobody else takes), NCCL's buffers, evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advisor.estimate.blocks.tape import JOINED, SAME, Tape, Tensor
from tools.caching import Block, CachingAllocator

# (slot, bytes per token): a tensor is made, or with 0 bytes freed.
Events = tuple[tuple[int, float], ...]
TILE_TOKENS, TILE_WORDS = 4096, 32768  # of a chunked loss: trl/kernels/chunked_logprob.py
GIVEN = -1  # the slot of the gradient that a layer is given


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One layer's tensors by pass.

    Attributes:
        plain: Of a forward pass that keeps nothing.
        keeping: Of one that keeps what the backward pass needs.
        backward: Of the backward pass, which frees it.
        input, output, gradient: Slots of the layer's input, its output and its input's gradient.
        gradients: Bytes of the gradient of each parameter that trains.
    """

    plain: Events
    keeping: Events
    backward: Events
    input: int
    output: int
    gradient: int
    gradients: tuple[int, ...]


def layer_tensors(
    tape: Tape, layer_input: Tensor, output: Tensor, gradients: Sequence[int]
) -> LayerTensors:
    """A recorded layer as events."""
    backward, gradient = _backward(tape, layer_input, output)
    return LayerTensors(
        plain=_forward(tape, layer_input, output, keeps=False),
        keeping=_forward(tape, layer_input, output, keeps=True),
        backward=backward,
        input=layer_input.storage,
        output=output.storage,
        gradient=gradient,
        gradients=tuple(gradients),
    )


def _forward(tape: Tape, layer_input: Tensor, output: Tensor, *, keeps: bool) -> Events:
    """Each tensor from its making to its last use, or kept if a backward node saves it."""
    saved = {storage for one in tape.operations for storage in one.saved} if keeps else set()
    last = {
        tensor.storage: place
        for place, one in enumerate(tape.operations)
        for tensor in (*one.inputs, one.output)
    }
    stay = {*saved, layer_input.storage, output.storage}
    born, events = {layer_input.storage}, []
    for place, one in enumerate(tape.operations):
        # Statistics and masks that only the backward node holds are tensors of no operation.
        beside = [storage for storage in one.saved if keeps and storage not in last]
        for storage in (one.output.storage, *beside):
            if storage not in born:
                born.add(storage)
                events.append((storage, tape.sizes[storage]))
        used = {tensor.storage for tensor in (*one.inputs, one.output)}
        events += [(storage, 0.0) for storage in used - stay if last[storage] == place]
    return tuple(events)


@dataclass(slots=True)
class _Gradient:
    """A gradient of an activation and how many tensors share it."""

    slot: int
    holders: int = 1


def _backward(tape: Tape, layer_input: Tensor, output: Tensor) -> tuple[Events, int]:
    """As Tape.backward_peak, tensor by tensor; and the slot of the input's gradient."""
    savers: dict[int, int] = {}
    for one in tape.operations:
        for storage in one.saved:
            if storage != layer_input.storage:
                savers[storage] = savers.get(storage, 0) + 1
    held = {id(output): _Gradient(GIVEN)}
    events: list[tuple[int, float]] = []
    slots = iter(range(GIVEN - 1, -(10**9), -1))

    def made(size: float) -> int:
        slot = next(slots)
        events.append((slot, size))
        return slot

    for one in reversed(tape.operations):
        given = held.pop(id(one.output), None)
        if given is None:
            continue
        passing = [made(one.scratch)] if one.scratch else []
        late = []
        for tensor in one.inputs:
            there = held.get(id(tensor))
            if not tensor.grad or (one.gradient == JOINED and there is not None):
                continue
            if one.gradient == SAME and there is None:
                held[id(tensor)] = given
                given.holders += 1
            elif there is None and one.in_place:
                late.append((id(tensor), tensor.size))
            elif there is None:
                held[id(tensor)] = _Gradient(made(tensor.size))
            elif there.holders > 1:  # somebody else holds the first: the sum is a new tensor
                there.holders -= 1
                passing += [] if one.gradient == SAME else [made(tensor.size)]
                held[id(tensor)] = _Gradient(made(tensor.size))
            elif one.gradient != SAME:
                passing.append(made(tensor.size))  # added to the first, then freed
        events += [(slot, 0.0) for slot in passing]
        given.holders -= 1
        if not given.holders:
            events.append((given.slot, 0.0))
        for storage in one.saved:
            if storage in savers:
                savers[storage] -= 1
                if not savers[storage]:
                    events.append((storage, 0.0))
        for key, size in late:
            held[key] = _Gradient(made(size))
    return tuple(events), held[id(layer_input)].slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What of a run decides its sequence of tensors.

    Attributes:
        layer: Its layers, all alike.
        weights: Bytes of each weight matrix of a layer.
        loss: "full": whole logits, with the float32 copies of transformers' loss; "chunked": never
            whole.
        checkpointed: Each layer is run again before its backward pass.
        foreach: The optimizer's update exists for all parameters at once.
        micro_steps: Micro-batches of an optimizer step.
        head_trains: Embeddings and output matrix get gradients.
    """

    layer: LayerTensors
    layers: int
    hidden: int
    vocab: int
    weights: tuple[int, ...]
    loss: str = "full"
    checkpointed: bool = True
    foreach: bool = False
    micro_steps: int = 1
    head_trains: bool = False


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a counter of the allocator shows after a run, in bytes.

    Attributes:
        weights: Allocated before the first micro-batch.
        states: The optimizer's.
        gradients: Of all parameters that train.
    """

    weights: int
    states: int
    gradients: int
    allocated: int
    reserved: int
    retries: int


def peaks(
    training: Training,
    lengths: Sequence[int],
    *,
    limit_bytes: int | None = None,
    expandable: bool = False,
) -> Peaks:
    """The peaks of a run over micro-batches of so many tokens each.

    Raises OutOfMemory where the limit is too low for it.
    """
    device = CachingAllocator(limit_bytes, expandable=expandable)
    run = _Run(training, device)
    for place, tokens in enumerate(lengths, 1):
        run.micro_batch(tokens)
        if place % training.micro_steps == 0:
            run.step()
    return Peaks(
        weights=run.weights,
        states=run.states,
        gradients=run.gradient_bytes,
        allocated=device.peak_allocated_bytes,
        reserved=device.peak_reserved_bytes,
        retries=device.retries,
    )


class _Run:
    def __init__(self, training: Training, device: CachingAllocator) -> None:
        self.training, self.device = training, device
        self.gradients: list[Block] | None = None  # of the step so far
        self.states = self.gradient_bytes = 0
        for _ in range(training.layers):
            for size in (*training.weights, *training.layer.gradients):
                device.allocate(size)
        for _ in range(2):
            device.allocate(self.head_bytes)
        self.weights = device.allocated_bytes

    @property
    def head_bytes(self) -> int:
        return 2 * self.training.vocab * self.training.hidden

    def micro_batch(self, tokens: int) -> None:
        """Forward pass, loss and backward pass over one micro-batch."""
        t, device = self.training, self.device
        layer, is_first = t.layer, self.gradients is None
        self.gradients = [] if self.gradients is None else self.gradients
        stream = device.allocate(tokens * t.hidden * 2)
        kept: list[tuple[Block, dict[int, Block]]] = []
        for _ in range(t.layers):
            live = {layer.input: stream}
            self._play(layer.plain if t.checkpointed else layer.keeping, tokens, live)
            output = live.pop(layer.output)
            kept.append((stream, live))
            stream = output
        gradient, logits = self._loss(tokens, stream)
        if t.head_trains:
            self._gradient(self.head_bytes, keep=is_first)
        while kept:
            layer_input, live = kept.pop()
            if t.checkpointed:
                live = {layer.input: layer_input}
                self._play(layer.keeping, tokens, live)
                device.free(live.pop(layer.output))
            live[GIVEN] = gradient
            self._play(layer.backward, tokens, live)
            for size in layer.gradients:
                self._gradient(size, keep=is_first)
            gradient = live.pop(layer.gradient)
            device.free(layer_input)
        if t.head_trains:
            self._gradient(self.head_bytes, keep=is_first)
        device.free(gradient)
        for block in logits:
            device.free(block)

    def step(self) -> None:
        """The optimizer's step: two states of each gradient's size at the first one, and zero_grad,
        which frees the gradients.
        """
        gradients, self.gradients = self.gradients or [], None
        if not self.states:
            before = self.device.allocated_bytes
            self.gradient_bytes = sum(block.size for block in gradients)
            for block in gradients:
                self.device.allocate(block.size)
                self.device.allocate(block.size)
            self.states = self.device.allocated_bytes - before
        if self.training.foreach:
            updates = [self.device.allocate(block.size) for block in gradients]
            for block in updates:
                self.device.free(block)
        for block in gradients:
            self.device.free(block)

    def _play(self, events: Events, tokens: int, live: dict[int, Block]) -> None:
        allocate, free = self.device.allocate, self.device.free
        for slot, size in events:
            if size:
                live[slot] = allocate(int(size * tokens))
            else:
                free(live.pop(slot))

    def _gradient(self, size: int, *, keep: bool) -> None:
        """A parameter's gradient: kept from the first micro-batch, added to by later ones."""
        block = self.device.allocate(size)
        if keep and self.gradients is not None:
            self.gradients.append(block)
        else:
            self.device.free(block)

    def _loss(self, tokens: int, stream: Block) -> tuple[Block, list[Block]]:
        """The last norm and the loss, forwards and backwards: the gradient of the last layer's
        output, and logits that the trainer's variable holds until the step is over.

        transformers, loss/loss_utils.py, ForCausalLMLoss: logits in 16 bit, in float32, shifted,
        log-softmax, and the gradients of the last three.
        """
        t = self.training
        allocate, free = self.device.allocate, self.device.free
        wide = allocate(tokens * t.hidden * 4)
        normed = allocate(tokens * t.hidden * 2)
        held: list[Block] = []
        if t.loss == "full":
            size = tokens * t.vocab
            logits = allocate(2 * size)
            floats = allocate(4 * size)
            free(logits)
            shifted, softmax = allocate(4 * size), allocate(4 * size)
            free(shifted)
            held.append(floats)
            picked = allocate(4 * size)  # nll_loss_backward
            of_softmax = allocate(4 * size)
            free(picked)
            free(softmax)
            unshifted = allocate(4 * size)
            free(of_softmax)
            narrow = allocate(2 * size)
            free(unshifted)
            of_normed = allocate(tokens * t.hidden * 2)
            free(narrow)
        else:
            of_normed = allocate(tokens * t.hidden * 2)
            tile = min(tokens, TILE_TOKENS) * min(t.vocab, TILE_WORDS)
            free(allocate(2 * tile))
        of_wide = allocate(tokens * t.hidden * 4)
        gradient = allocate(tokens * t.hidden * 2)
        for block in (of_normed, of_wide, wide, normed, stream):
            free(block)
        return gradient, held
