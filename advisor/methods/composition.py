"""Reading a composition: `sft>rm>ppo+lora`, `rag & sft+lora`, `sft+qlora@per_task`,
`encoder:sft+full`, a remedy alone.

answer      := remedy [" & " remedy]
remedy      := prompting | rag | ... | ["encoder:"] chain "+" scheme ["@per_task"]
chain       := objectives in running order joined by ">"
scheme      := an update, alone or on a quantised base: full | lora | qlora | adapter | ...
"""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from advisor.ground.errors import Fault, did_you_mean, refuse, unknown_name
from advisor.methods import objectives, remedies, scheme_of, schemes

ENCODER, PER_TASK = "encoder:", "@per_task"


class Composition(Struct, frozen=True, kw_only=True):
    """A whole answer: remedies that train nothing, and at most one training chain.

    Written `sft>rm>ppo+lora`, `cpt>sft+full`, `sft+qlora@per_task`, `rag & sft+lora`,
    `encoder:sft+full` or a remedy alone. `qlora` is read and written; inside it is update `lora` on
    quantization `nf4`.
    """

    chain: tuple[str, ...] = ()
    update: str | None = None
    quantization: str | None = None
    per_task: bool = False
    encoder: bool = False
    remedies: tuple[str, ...] = ()

    @property
    def scheme(self) -> str | None:
        """The everyday spelling of update and quantization: full, lora, qlora, ..."""
        return None if self.update is None else scheme_of(self.update, self.quantization)

    @property
    def training(self) -> str:
        """The training part alone, or an empty string: 'sft+qlora@per_task'."""
        if not self.chain:
            return ""
        base = f"{'encoder:' if self.encoder else ''}{'>'.join(self.chain)}+{self.scheme}"
        return base + ("@per_task" if self.per_task else "")

    def __str__(self) -> str:
        return " & ".join([*self.remedies, *([self.training] if self.training else [])])


def compose(
    chain: str, scheme: str, *, per_task: bool = False, remedies: tuple[str, ...] = ()
) -> Composition:
    """The composition of a chain fact ('encoder:sft', 'sft>rm>ppo') and a scheme name."""
    found = schemes().get(scheme)  # 'qlora' is lora on nf4
    return Composition(
        chain=tuple(chain.removeprefix(ENCODER).split(">")),
        update=scheme if found is None else found.update,
        quantization=None if found is None else found.quantization,
        per_task=per_task,
        encoder=chain.startswith(ENCODER),
        remedies=remedies,
    )


def parse_composition(text: str, *, at: str = "composition") -> Composition:
    """The composition a text stands for.

    Raises InputError naming the part that is wrong and what is allowed.
    """
    found: list[str] = []
    training: Composition | None = None
    faults: list[Fault] = []
    for part in (piece.strip() for piece in text.split("&")):
        if part in remedies():
            found.append(part)
            continue
        if "+" not in part:
            known = [*remedies(), *(f"sft+{scheme}" for scheme in schemes())]
            faults.append(
                Fault(
                    where=at,
                    what=f"'{part}' is neither a remedy nor a chain with a scheme",
                    allowed=(
                        f"remedies: {', '.join(remedies())}; or objectives joined by '>' with"
                        " '+' and"
                        f" one of {', '.join(schemes())}: sft+lora"
                    ),
                    hint=did_you_mean(part, known),
                )
            )
            continue
        per_task = part.endswith(PER_TASK)
        chain, scheme = part.removesuffix(PER_TASK).rsplit("+", 1)
        if chain in schemes() and scheme in objectives():
            faults.append(
                Fault(
                    where=at,
                    what=f"'{part}' names the scheme before the objective",
                    hint=f"did you mean '{scheme}+{chain}'?",
                )
            )
            continue
        named = [("objective", one.strip()) for one in chain.removeprefix(ENCODER).split(">")]
        for kind, name in (*named, ("scheme", scheme)):
            names = objectives() if kind == "objective" else tuple(schemes())
            if name not in names:
                faults.append(unknown_name(kind, name, names, at=at))
        if training is not None:
            faults.append(
                Fault(
                    where=at,
                    what="two training chains in one answer",
                    allowed="one chain, with remedies beside it",
                )
            )
        if not faults:
            training = compose(chain, scheme, per_task=per_task)
    refuse(faults)
    if training is None:
        return Composition(remedies=tuple(found))
    return replace(training, remedies=tuple(found))
