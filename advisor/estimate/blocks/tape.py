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

from msgspec import Struct

from advisor.estimate.blocks.settings import ALL, BlockSettings, Style

# How an operation hands its gradient on: a new tensor for each input, the same one, or (a part of a
# split) as one of several that the split joins into one.
NEW, SAME, JOINED = "new", "same", "joined"


class Tensor(Struct, eq=False):
    """A tensor of a block: `width` elements per token in `storage`, which views share."""

    width: float
    bytes_each: int
    storage: int
    grad: bool  # whether it requires a gradient

    @property
    def size(self) -> float:
        """Bytes per token."""
        return self.width * self.bytes_each


class Operation(Struct, eq=False):
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


# Fused or split matrices -> the common names that adapt them (advisor.estimate.model.dims.ALIASES).
WHOLE = {
    "qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj"),
    "q_a_proj": ("q_proj",), "q_b_proj": ("q_proj",), "kv_a_proj_with_mqa": ("k_proj", "v_proj"),
    "kv_b_proj": ("k_proj", "v_proj"),
}  # fmt: skip


def gradients_before_cast(inputs: Sequence[Tensor], size: float) -> float:
    """Bytes per token that a product's gradients need beyond their own: each is made in the size of
    the output and cast or added up afterwards, one after the other (engine.cpp, validate_outputs).
    """
    peak, alive = 0.0, size * len(inputs)
    for one in inputs:
        peak = max(peak, alive + (one.size if one.size != size else 0.0))
        alive += one.size - size
    return peak - sum([one.size for one in inputs]) if inputs else 0.0


class Operations:
    """Records the operations of one block under given settings, in the style of its family."""

    def __init__(self, settings: BlockSettings, style: Style) -> None:
        self.settings, self.style = settings, style
        self.tape = Tape()

    # --- elementwise and views -------------------------------------------------------------------

    def cast(self, x: Tensor, bytes_each: int) -> Tensor:
        """`x.to(dtype)`: no copy if it has that dtype. Saves nothing (`_to_copy_backward`)."""
        if x.bytes_each == bytes_each:
            return x
        return self.tape.record("to", [x], x.width, bytes_each)

    def add(self, x: Tensor, y: Tensor, bytes_each: int | None = None) -> Tensor:
        """`x + y`: saves nothing, and hands one gradient to both (`add.Tensor: self: grad`)."""
        wide = bytes_each or max(x.bytes_each, y.bytes_each)
        x, y = (one if one.bytes_each == wide else self.promoted(one, wide) for one in (x, y))
        return self.tape.record("add", [x, y], max(x.width, y.width), wide, gradient=SAME)

    def promoted(self, x: Tensor, bytes_each: int) -> Tensor:
        """An operand that the kernel itself widens: no copy in the forward pass, a cast gradient
        in the backward pass (`handle_r_to_c`, `to`).
        """
        return self.tape.record("promoted", [x], x.width, bytes_each, view=True)

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """`x * y`: each factor saves the other (`mul.Tensor: self: grad * other`)."""
        wide = max(x.bytes_each, y.bytes_each)
        saves = [other for other, one in ((y, x), (x, y)) if one.grad]
        width = max(x.width, y.width)
        scratch = gradients_before_cast([one for one in (x, y) if one.grad], width * wide)
        return self.tape.record("mul", [x, y], width, wide, saves=saves, scratch=scratch)

    def product(self, x: Tensor, y: Tensor | None, width: float) -> Tensor:
        """`x @ y` of two activations (`bmm: self: grad.bmm(mat2^H), mat2: self^H.bmm(grad)`): both
        are saved, as casts of their own under autocast. `y` None: a constant.
        """
        factors = [x] if y is None else [x, y]
        if self.settings.autocast:
            factors = [self.cast(one, 2) for one in factors]
        return self.tape.record("bmm", factors, width, factors[0].bytes_each, saves=factors)

    def scale(self, x: Tensor) -> Tensor:
        """`x * number` or `x * constant`: saves no activation."""
        return self.tape.record("mul.Scalar", [x], x.width, x.bytes_each)

    def weigh(self, weight_bytes: int, x: Tensor) -> Tensor:
        """`weight * x` for a parameter vector: saves `x` only if the weight trains."""
        wide, trains = max(x.bytes_each, weight_bytes), self.settings.trains
        return self.tape.record(
            "mul", [x], x.width, wide, saves=[x] if trains else (), trains=trains,
            scratch=x.width * wide if trains else 0.0,
        )  # fmt: skip

    def activate(self, x: Tensor, *, saves_output: bool = False) -> Tensor:
        """silu, gelu, softplus save their input (`silu_backward(grad, self)`); relu, sigmoid, tanh
        and exp their result (`threshold_backward(grad, result, 0)`).
        """
        return self.tape.record(
            "relu" if saves_output else "silu", [x], x.width, x.bytes_each,
            saves=() if saves_output else [x], saves_output=saves_output,
        )  # fmt: skip

    def gelu_in_steps(self, x: Tensor) -> Tensor:
        """transformers' NewGELUActivation, 0.5 x (1 + tanh(c (x + 0.044715 x^3))), step by step:
        `pow` saves x, `tanh` its result, the last product both of its factors.
        """
        size, wide = x.width, x.bytes_each
        half = self.scale(x)
        if self.settings.autocast and self.settings.wide_list:
            wide = 4
        base = self.cast(x, wide)
        cube = self.tape.record("pow", [base], size, wide, saves=[base], scratch=2 * base.size)
        curve = self.activate(self.scale(self.add(x, self.scale(cube))), saves_output=True)
        return self.multiply(half, self.tape.record("add.Scalar", [curve], size, wide))

    def copy(self, x: Tensor, width: float | None = None) -> Tensor:
        """`contiguous`, `clone`: a copy that saves nothing and hands its gradient on; with a
        `width` rows that are gathered or repeated (`repeat_kv`), whose gradient is added up.
        """
        if width is None:
            return self.tape.record("clone", [x], x.width, x.bytes_each, gradient=SAME)
        return self.tape.record("gather", [x], width, x.bytes_each)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """`torch.cat`: saves nothing; its gradients are views of the output's."""
        width = sum([part.width for part in parts])
        return self.tape.record("cat", parts, width, parts[0].bytes_each, gradient=SAME)

    def part(self, x: Tensor, width: float) -> Tensor:
        """A slice: a view. Its gradient is a tensor of the whole, zero elsewhere
        (`slice_backward`)."""
        return self.tape.record("slice", [x], width, x.bytes_each, view=True)

    def split(self, x: Tensor, *widths: float) -> list[Tensor]:
        """`split`, `chunk`: views, whose gradients one node joins into a tensor of the whole."""
        whole = self.tape.record("split", [x], x.width, x.bytes_each, view=True)
        return [
            self.tape.record("part", [whole], width, x.bytes_each, view=True, gradient=JOINED)
            for width in widths
        ]

    # --- norms -----------------------------------------------------------------------------------

    def rms_norm(self, x: Tensor, *, in_float32: bool = False) -> Tensor:
        """transformers' RMSNorm.

        Step by step it holds a float32 copy of its input, which `pow` and the product save as one,
        and the normalised input if the weight trains: in the input's dtype (LLaMA), or in float32
        where the product is taken before the cast (Gemma, gpt-oss, OLMo 2). Fused (Liger's, torch's
        `_fused_rms_norm`) it saves its input.
        """
        s, tape = self.settings, self.tape
        if s.fused_norms:
            return tape.record(
                "rms_norm", [x], x.width, x.bytes_each, saves=[x], trains=s.trains, beside=4
            )
        wide = self.cast(x, 4)
        square = tape.record("pow", [wide], wide.width, 4, saves=[wide], scratch=2 * wide.size)
        mean = tape.record("mean", [square], 1, 4)
        root = tape.record("rsqrt", [mean], 1, 4, saves_output=True, scratch=0)
        normed = self.multiply(wide, root)
        if in_float32:
            return self.cast(self.weigh(4, normed), x.bytes_each)
        return self.weigh(s.norm_bytes, self.cast(normed, x.bytes_each))

    def layer_norm(self, x: Tensor) -> Tensor:
        """`native_layer_norm` saves its input and two numbers per token; autocast runs it in
        float32, on a float32 copy of its input (torch/csrc/autocast: fp32 list).
        """
        if self.settings.autocast and self.settings.wide_list:
            x = self.cast(x, 4)
        return self.tape.record(
            "native_layer_norm", [x], x.width, x.bytes_each, saves=[x], beside=8,
            trains=self.settings.trains,
        )  # fmt: skip

    # --- matrices --------------------------------------------------------------------------------

    def linear(self, x: Tensor, width: float, name: str = "", *, plain: bool = False) -> Tensor:
        """A linear layer (`mm: self: grad.mm(mat2.t()), mat2: self.t().mm(grad)`): it saves its
        input if its weight trains, a cast of its own where autocast or bitsandbytes makes one.

        `name` finds its LoRA adapter; `plain` is a matrix that is never quantised (a router).
        """
        s = self.settings
        quantised = s.quantised and not plain
        kept = s.trains or (quantised and s.quantised_inputs_kept)
        inner = self.cast(x, 2) if quantised or s.autocast else x
        result = self.tape.record(
            "mm", [inner], width, inner.bytes_each, saves=[inner] if kept else (), trains=s.trains
        )
        if quantised:
            result = self.cast(result, x.bytes_each)
        return self._adapted(x, result, width, name) if self._adapts(name) else result

    def _adapts(self, name: str) -> bool:
        """Whether a layer has a LoRA adapter; the parts of a fused matrix stand for the whole."""
        if ALL in self.settings.adapted:
            return bool(name)
        prefix = "shared_" if name.startswith("shared_") else ""
        return name in self.settings.adapted or any(
            prefix + one in self.settings.adapted
            for one in WHOLE.get(name.removeprefix(prefix), ())
        )

    def _adapted(self, x: Tensor, result: Tensor, width: float, name: str) -> Tensor:
        """peft 0.21, tuners/lora/layer.py and bnb.py: `result + B(A(dropout(x))) * scaling`.

        A saves its input: `x` itself where it has the adapter's dtype (once for all adapters of one
        input), else a cast of its own. PEFT casts to the adapter's dtype first, but on a quantised
        layer under autocast leaves that to autocast. Dropout saves a mask of one byte each
        (`native_dropout`), and its result is another input for each adapter.
        """
        s, tape = self.settings, self.tape
        inner = x
        if not (s.quantised and s.autocast):
            inner = self.cast(inner, s.adapter_bytes)
        if s.dropout:
            inner = tape.record(
                "native_dropout", [inner], x.width, inner.bytes_each, beside=x.width
            )
        computes = 2 if s.autocast or s.casts_adapter_inputs else s.adapter_bytes
        inner = self.cast(inner, computes)
        down = tape.record("mm", [inner], s.rank, computes, saves=[inner], trains=True)
        up = tape.record("mm", [down], width, computes, saves=[down], trains=True)
        scaled = self.scale(up)
        if s.quantised:  # defensive clone, and the correction cast to the result's dtype
            return self.add(self.copy(result), self.cast(scaled, result.bytes_each))
        return self.cast(self.add(result, scaled), result.bytes_each)
