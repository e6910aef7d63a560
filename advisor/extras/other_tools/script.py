"""A Python script or a notebook that trains, read as a configuration of TRL: what its calls say in
the words of TRL's command line, with the line of each value. Nothing of it is run.

`python_values` follows names; rules/tools/scripts.yaml says which call holds which setting.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from advisor.extras.other_tools.file import (
    Command,
    ToolFile,
    command_line,
    script_line,
    take_secrets,
)
from advisor.extras.other_tools.notebook import Edit, Source, inserted, replaced, source_of
from advisor.extras.other_tools.python_values import (
    AT_LINE,
    BY_GPU,
    FORMATS,
    UNKNOWN,
    Code,
    Found,
    Made,
)
from advisor.extras.other_tools.tool import ANY, VALUES, Tool, known_names, tool_named
from advisor.ground.errors import InputError
from advisor.ground.memory_errors import MemoryRanOut, memory_error
from advisor.ground.resources import rules_dir
from advisor.ground.shape import Choice, Date, Keys, ListOf, MapOf, Number, Text
from advisor.ground.yaml_files import LINK, read_shipped

TEXTS = MapOf(of=Text())
PARTS = {
    "version": Choice(values=(1,)),
    "checked": Date(help="the day somebody read the libraries' code"),
    "sources": ListOf(of=Text(pattern=LINK, such_as="https://...")),
    "trainers": MapOf(
        of=Keys(
            keys={
                "command": Text(help="the command of TRL that trains the same"),
                "takes": ListOf(of=Text(), help="the names of its positional arguments"),
                "why": Text(help="why it is not estimated"),
            }
        )
    ),
    "configs": MapOf(of=Text(help="the library whose defaults count")),
    "not_estimated": ListOf(of=ListOf(of=Text(), least=2), help="[start of a class's name, why]"),
    "calls": MapOf(of=TEXTS, help="call -> its keyword -> the setting"),
    "defaults": MapOf(of=VALUES, help="library -> setting -> what it is if left out"),
    "open": MapOf(of=ListOf(of=ANY, least=2), help="setting -> values to look at"),
    "unsaid": MapOf(of=ListOf(of=Text()), help="library -> findings that do not hold for it"),
    "objectives": MapOf(of=Text(), help="command that only Python has -> our objective"),
    "shared_bytes": MapOf(
        of=Number(), help="quantization -> bytes of a weight that Unsloth shares"
    ),
    "unsloth_yaml": Keys(
        help="the file of `unsloth train`",
        keys={"keys": TEXTS, "defaults": VALUES},
        required=("keys", "defaults"),
    ),
}
SCRIPTS_FILE = Keys(
    help="What is read out of Python code that trains, in the words of TRL's command line",
    keys=PARTS,
    required=tuple(PARTS),
)
MODEL, LENGTH, BATCH = "model_name_or_path", "max_length", "per_device_train_batch_size"
FAST = ("FastLanguageModel", "FastModel", "FastVisionModel", "FastTextModel")
NAMES = {"trl": "TRL", "transformers": "transformers' Trainer", "unsloth": "Unsloth"}
# Settings that a call with unknown keywords may hold, and that decide memory.
DECIDING = (BATCH, LENGTH, "gradient_accumulation_steps", "bf16", "fp16", "optim",
            "gradient_checkpointing", "learning_rate", "num_train_epochs", "max_steps")  # fmt: skip
NO_DTYPE = (
    "no dtype is given: transformers 5 loads the format of the checkpoint, earlier ones float32"
)
NO_LENGTH = "it is None: no row is cut, and the longest one counts"
BITS, QUANTISED = "BitsAndBytesConfig", "quantization_config"
BY_HAND = "by hand: the code has no call yet that takes it"
OF_OTHER_CALLS = ("use_peft", "use_rslora", "use_dora", "use_bnb_nested_quant", "dtype",
                  "attn_implementation", "model_revision", "trust_remote_code")  # fmt: skip
OF_ADAPTERS = ("AutoPeftModel", "PeftModel")


class Setting(NamedTuple):
    """Where a value stands."""

    node: ast.expr  # that writes the value
    call: ast.Call | None  # that takes it
    keyword: str


class Asked(NamedTuple):
    """What is known beside the code."""

    # Whether the GPU has it, by what the code's own outputs say of the memory that ran out.
    bfloat16: Callable[[MemoryRanOut | None], bool | None] = lambda _: None
    flags: Mapping[str, Any] | None = None  # of the command that starts it
    model: str | None = None  # where the code does not say it


class ScriptFile(ToolFile, kw_only=True):
    """Python code as a configuration of TRL."""

    source: Source
    settings: dict[str, Setting]
    calls: dict[str, ast.Call]  # name of a call in scripts.yaml -> the one that counts
    own_defaults: dict[str, Any]
    given: dict[str, Any]  # `values`, and what is None
    asked: Asked

    checked: ClassVar[str] = "script"

    @property
    def defaults(self) -> dict[str, Any]:
        return {**ToolFile.defaults.fget(self), **self.own_defaults}  # type: ignore[attr-defined]

    def place(self, node: ast.AST | None) -> dict[str, int | None]:
        """The line of a node, inside its cell where there are cells."""
        return self.source.place(getattr(node, "lineno", 0))

    def at(self, key: str) -> str:
        setting = self.settings.get(key.split(".")[0])
        found = self.place(setting.node) if setting is not None else {}
        if found.get("cell") is not None:
            return f"{self.name}: cell {found['cell']}, line {found['line']}"
        return f"{self.name}:{found['line']}" if found.get("line") else self.name

    def reads_column(self, name: str) -> bool:
        column = rf"\[\s*['\"]{re.escape(name)}['\"]\s*\]|\{{{re.escape(name)}\}}"
        return re.search(column, self.source.text) is not None

    def told(self) -> dict[str, Any]:
        """`found` and `unknown` of the document."""
        found = {
            key: {"value": self.given[key], **self.place(self.settings[key].node)}
            for key in self.settings
            if key in self.given
        }
        files: Mapping[str, Any] = next(iter(self.values.get("datasets", ())), {})
        if "data_files" in files:  # a file is found by what reads it
            found["dataset_name"] = {**found["datasets"], "value": files["path"]}
        trained = {"value": self.judged_as or self.command.name}
        found["command"] = {**trained, **self.place(self.calls["trainer"])}
        unknown = [
            {"key": key, **self.place(one.node), "why": one.why}
            for key, one in self.left_out.items()
        ]
        return {"found": found, "unknown": unknown}

    def left_open(self) -> dict[str, Sequence[Any]]:
        usual, found = table()["open"], {}
        for key, one in self.left_out.items():
            plain = [option for option in one.options if not isinstance(option, Made)]
            found[key] = plain or usual.get(key, ())
        return {key: options for key, options in found.items() if len(options) > 1}

    # ------------------------------------------------------------------- changes

    def with_changes(self, changes: Mapping[str, Any]) -> str | None:
        """The code with these settings; None if that takes a hand. What was written is read again:
        it has to say these settings, and every other one as before.
        """
        if self.asked.flags:
            return None
        # Where they stand, but for what follows from others; where all stand; where calls take them
        for attempt in range(3):
            edits, more = list[Edit](), dict[ast.Call, list[str]]()
            bits = {key: value for key, value in changes.items() if self._is_new_bit(key)}
            if bits and (loads := self._with_bits(bits)) is not None:
                edits += loads
            elif bits:
                return None
            for key, value in changes.items():
                if key in bits:
                    continue
                keyword, call = self._taker(key)
                if value is None or call is None:
                    return None
                if key not in self.settings:
                    more.setdefault(call, []).append(f"{keyword}={value!r}")
                    continue
                node = self.settings[key].node
                if attempt == 0 and isinstance(node, ast.BinOp):
                    continue
                if attempt == 2:
                    node = next((one.value for one in call.keywords if one.arg == keyword), node)
                is_format = isinstance(node, ast.Attribute) and value in FORMATS
                edits.append(replaced(node, f"torch.{value}" if is_format else repr(value)))
            edits += [inserted(call, several) for call, several in more.items()]
            text = self.source.edited(self.text, edits)
            with suppress(InputError):
                again = read_script(self.path, self.name, text, self.asked)
                if isinstance(again, ScriptFile) and again.values == {**self.values, **changes}:
                    return text
        return None

    def _is_new_bit(self, key: str) -> bool:
        """Whether a setting is one of a quantisation that the code does not have yet."""
        is_loaded = "from_pretrained" in self.calls and BITS not in self.calls
        return is_loaded and key not in self.settings and key in table()["calls"][BITS].values()

    def _with_bits(self, bits: Mapping[str, Any]) -> list[Edit] | None:
        """The edits that load the model with a quantisation, the only one of its call; None where
        keywords that are handed on may hold one.
        """
        call, names = self.calls["from_pretrained"], table()["calls"][BITS]
        if any(one.arg is None for one in call.keywords):
            return None
        given = {ours: bits[theirs] for ours, theirs in names.items() if bits.get(theirs)}
        given["bnb_4bit_compute_dtype"] = "float16" if self.values.get("fp16") else "bfloat16"
        text = f"{BITS}({', '.join(f'{key}={value!r}' for key, value in given.items())})"
        placed = next((one.value for one in call.keywords if one.arg == QUANTISED), None)
        if placed is not None:
            edits = [replaced(placed, text)]
        else:
            edits = [inserted(call, [f"{QUANTISED}={text}"])]
        imports = [one for one in self.source.tree.body if isinstance(one, ast.ImportFrom)]
        of_it = [one for one in imports if one.module == "transformers"]
        if not of_it:
            return None
        if not any(name.name == BITS for one in of_it for name in one.names):
            at = (of_it[0].lineno, 0)
            edits.append(Edit(at, at, f"from transformers import {BITS}\n"))
        return edits

    def _taker(self, key: str) -> tuple[str, ast.Call | None]:
        """The keyword of a setting, and the call that takes it; None without one."""
        if (setting := self.settings.get(key)) is not None:
            return setting.keyword, setting.call if setting.keyword else None
        if self._is_new_bit(key):
            return key, self.calls["from_pretrained"] if self._with_bits({key: True}) else None
        calls = table()["calls"]
        for by, names in {BITS: calls[BITS], **calls}.items():  # which from_pretrained had, too
            if by in self.calls and key in names.values():
                return next(ours for ours, one in names.items() if one == key), self.calls[by]
        elsewhere = key in (MODEL, *OF_OTHER_CALLS) or key.startswith(("lora_", "load_in", "bnb_"))
        return key, None if elsewhere else self.calls.get("config")

    def taken_by(self, key: str) -> str:
        _, call = self._taker(key)
        if call is None:
            return BY_HAND
        if key in self.settings:
            return self.source.words(self.settings[key].node.lineno)
        return f"a new argument of {Code.last_name(call.func)}, {self.source.words(call.lineno)}"

    def diff(self, changes: Mapping[str, Any]) -> list[str]:
        after = self.with_changes(changes) if changes else None
        if after is None or not self.source.cells:
            return self.lines_of_diff(self.text, after or self.text)
        lines = []
        again = source_of(after, self.name, is_notebook=True)
        for old, new in zip(self.source.cells, again.cells, strict=True):
            lines += self.lines_of_diff(old.text, new.text, f" cell {old.number}")
        return lines

    def by_hand(self, changes: Mapping[str, Any]) -> list[str]:
        """The changes as arguments of the calls that take them, with their lines."""
        lines = []
        for key, value in changes.items():
            keyword, call = self._taker(key)
            sign = "-" if value is None else "+"
            if call is None:
                new = (
                    f"{by}({ours}={value!r})"
                    for by in ("BitsAndBytesConfig", "LoraConfig")
                    for ours, one in table()["calls"][by].items()
                    if one == key
                )
                lines.append(f"{sign} {next(new, f'{key}={value!r}')}  # {BY_HAND}")
            else:
                place = self.source.words(call.lineno)
                lines.append(f"{sign} {Code.last_name(call.func)}({keyword}={value!r})  # {place}")
        return lines


@cache
def table() -> Mapping[str, Any]:
    """rules/tools/scripts.yaml."""
    data: Mapping[str, Any] = read_shipped(
        rules_dir() / "tools" / "scripts.yaml", shape=SCRIPTS_FILE
    ).data
    return data


@cache
def library_tool(library: str, start: str) -> Tool:
    """TRL as a tool, under the name of the library that trains."""
    base = tool_named("trl")
    released = {"trl": base.release, "unsloth": "2026.8", **base.made_with}[library]
    objectives = [
        {"ours": {"objective": ours}, "theirs": {"command": theirs}, "read_only": True}
        for theirs, ours in table()["objectives"].items()
    ]
    more = {"objective": objectives}
    if library == "transformers":  # whose Trainer does not deprecate it
        liger = {"ours": {"kernels": "liger"}, "theirs": {"use_liger_kernel": True}}
        more["kernels"] = [liger]
    mapping = [
        {**one, "either": [*more[one["about"]], *one["either"]]}
        if one.get("about") in more
        else one
        for one in base.mapping
    ]
    own = {
        "name": NAMES[library], "release": released, "start": f"{start} {{file}}",
        "mapping": mapping, "made_with": {**base.made_with, "trl": base.release},
        "refuses_unknown": False,
    }  # fmt: skip
    return Tool(**{**vars(base), **own})


def unsloth_states(kept: Any, command: str) -> dict[str, Any]:
    """What an estimate hears of Unsloth: activations that it moves away, a loss in parts, weights
    that its vLLM and the trainer hold together.
    """
    loss = {"loss": "chunked"} if command in ("sft", "grpo") else {}
    return {
        **loss,
        "shares_weights": True,
        **({"checkpointing": "offload"} if kept == "unsloth" else {}),
    }


def read_script(path: Path, name: str, text: str, asked: Asked) -> ScriptFile | str:
    """The script; its lines for a shell if it builds no trainer. Raises InputError for what is no
    Python, unless a command in it starts a tool.
    """
    is_notebook = path.suffix.lower() == ".ipynb"
    try:
        source = source_of(text, name, is_notebook=is_notebook)
        if asked.flags is None and source.commands:
            asked = asked._replace(flags=(script_line(source.commands) or ("", {}))[1])
        bfloat16 = asked.bfloat16(memory_error(source.outputs))
        code = Code(source.tree, bfloat16, asked.flags)
        trainers = table()["trainers"]
        built = [
            Made(of, one.call, one.at)
            for one in code.made(lambda _: True)
            if (of := code.base_of(one.name, trainers)) in trainers
            or (of.endswith("Trainer") and of in code.imported)
        ]
        paths = {id(one): code.path(one.at) for one in built}
        built.sort(key=lambda one: (paths[id(one)] is None, paths[id(one)] or (one.at.order,)))
        if not built:
            return source.commands if is_notebook else text
        return _Reading(source, code, built, asked).file(path, name, text)
    except RecursionError:
        raise InputError("its code is nested too deep to be read", where=name) from None
    except InputError:
        if not is_notebook and command_line(text) is not None:
            return text  # lines for a shell under the name of a script
        raise


class _Reading:
    """The settings of the first trainer that is built."""

    def __init__(self, source: Source, code: Code, built: Sequence[Made], asked: Asked) -> None:
        self.source, self.code, self.asked = source, code, asked
        self.trainer = built[0].name
        alike = [one for one in table()["trainers"] if self.trainer.endswith(one)]
        foreign = {**table()["trainers"][max(alike, key=len, default="Trainer")]}
        foreign["why"] = f"what {self.trainer} trains is not estimated"
        self.entry = table()["trainers"].get(self.trainer, foreign)
        self.values: dict[str, Any] = {}
        self.settings: dict[str, Setting] = {}
        self.calls: dict[str, ast.Call] = {"trainer": built[0].call}
        self.unknown: dict[str, Found] = {}
        self.notes: list[str] = list(source.notes)
        self.on: dict[bool, list[str]] = {}  # True: what the GPU decides; False: defaults
        self.followed: set[ast.Call] = set()
        self.adapters: Sequence[Made] = ()  # what wraps the model
        self.masks: Sequence[str] = ()  # findings that the code's own masks answer
        self.why = self.entry.get("why", "")
        self.library, self.used = "trl", list[str]()  # whose defaults count
        self.is_plain = self.trainer in PLAIN_TRAINERS
        self.given, _ = code.keywords(built[0], self.entry.get("takes", ()))
        if len(built) > 1:
            lines = "; ".join(self._line(one.call) for one in built[1:])
            several = "another trainer is" if len(built) == 2 else f"{len(built) - 1} more are"
            self.notes.append(f"read is the first trainer; {several} built ({lines})")
        self._config()
        self._model()
        self._adapter()
        self._trainer_itself()
        self._data()
        self._split()
        self._rest()

    def _line(self, node: ast.AST) -> str:
        return self.source.words(getattr(node, "lineno", 0))

    def _placed(self, why: str) -> str:
        """A reason with its lines as the file counts them."""
        return re.sub(f"{AT_LINE}(\\d+)", lambda one: self.source.words(int(one[1])), why)

    # ------------------------------------------------------------------- one setting

    def put(self, key: str, found: Found, call: ast.Call | None, keyword: str) -> None:
        """Take one value, the first that is given; or that it is not known."""
        if key in self.values or key in self.unknown:
            return
        value = found.plain()
        if value is None and keyword == LENGTH:
            found, value = Found(UNKNOWN, found.node, (), NO_LENGTH), UNKNOWN
        if value == "" and key == MODEL:
            found, value = (
                Found(UNKNOWN, found.node, (), "nothing is said where it starts"),
                UNKNOWN,
            )
        if value is UNKNOWN:
            made = found.value.name if isinstance(found.value, Made) else ""
            why = found.why or (f"what {made}() gives is not known" if made else "it is no value")
            self.unknown[key] = Found(UNKNOWN, found.node, (), self._placed(why), found.options)
            self.settings[key] = Setting(found.node, call, keyword)
            return
        self.values[key] = value
        self.settings[key] = Setting(found.node, call, keyword)
        self.rests(key, found)

    def rests(self, key: str, found: Found) -> None:
        """Note whose default a value is, or that the GPU decides it."""
        for note in dict.fromkeys(found.notes if key not in tool_named("trl").no_effect else ()):
            said = [] if note in (BY_GPU, f"--{key}") else [note]
            where = ", ".join([*said, self._line(found.node)])
            self.on.setdefault(note == BY_GPU, []).append(f"{key} ({where})")

    def lack(self, key: str, why: str, node: ast.expr, options: Sequence[Any] = ()) -> None:
        """Say that a setting is not known."""
        if key not in self.values and key not in self.unknown:
            self.unknown[key] = Found(UNKNOWN, node, (), self._placed(why), tuple(options))

    def take(self, by: str, made: Made, takes: Sequence[str] = ()) -> dict[str, Found]:
        """Take what a call of scripts.yaml says. Returns its arguments by name."""
        given, open_ = self.code.keywords(made, takes)
        names = table()["calls"][by]
        self.calls.setdefault(by, made.call)
        for keyword, found in given.items():
            if keyword in names:
                self.put(names[keyword], found, made.call, keyword)
        if open_:
            for key in names.values():
                self.lack(key, open_, made.call)
        return given

    # ------------------------------------------------------------------- the object of settings

    def _config(self) -> None:
        configs, node = table()["configs"], self.calls["trainer"]
        found = self.given.get("args")
        made = found.value if found is not None else None
        ends, replaced = ("Config", "Arguments", "Args"), dict[str, Found]()
        if isinstance(made, Made) and made.name.rpartition(".")[2] == "replace":
            replaced, _ = self.code.keywords(made, ("of",))
            changed = replaced.pop("of", None)
            made = changed.value if changed is not None else None
        if not isinstance(made, Made) or not self.code.base_of(made.name, configs).endswith(ends):
            several = self.code.made(lambda name: self.code.base_of(name, configs) in configs)
            if found is None and len(several) != 1:
                self.library = "transformers" if self.is_plain else "trl"
                return
            if len(several) != 1 or isinstance(made, Made):
                why = (found.why if found is not None else "") or "what `args` is is not followed"
                for key in DECIDING if found is not None and found.value is not None else ():
                    self.lack(key, why, node)
                return
            made = several[0]
        base = self.code.base_of(made.name, configs)
        self.library = configs.get(base, "trl")
        given, open_ = self.code.keywords(made, ("output_dir",))
        given |= replaced
        fields = self.code.fields(made.name)
        for name in fields:
            if name not in given:
                given[name] = self.code.field_of(made, name, made.call)
        self.calls["config"] = made.call
        tool = tool_named("trl")
        for keyword, one in given.items():
            if keyword == "model_init_kwargs":
                self._init_kwargs(one)
                continue
            key = tool.renamed.get(keyword, keyword)
            is_own = keyword in fields and key not in known_names("trl")  # of the code, for itself
            if not is_own:
                self.put(key, one, made.call, keyword)
        if made.parsed:
            open_ = "a flag of the command line gives it"
            for name, value in self.code.flags.items():
                if (key := tool.renamed.get(name, name)) in known_names("trl"):
                    self.put(key, Found(value, made.call), made.call, name)
        for key in DECIDING if open_ else ():
            if key != LENGTH or self.library != "transformers":
                self.lack(key, open_, made.call)

    def _init_kwargs(self, found: Found) -> None:
        if isinstance(found.value, dict):
            self._loaded(found.value, None)

    # ------------------------------------------------------------------- the model

    def _model(self) -> None:
        found = next((self.given[one] for one in MODELS if one in self.given), None)
        last = self._follow(found) if found is not None else None
        if last is None:
            loads = self.code.made(lambda name: name.endswith(LOADER) and _is_model(name))
            last = loads[0] if len(loads) == 1 else None
            wraps = self.code.made(lambda name: name.endswith("get_peft_model"))
            self.adapters = wraps[:1] if last is not None else self.adapters
        if last is None and self.asked.model is not None:
            last = Found(self.asked.model, self.calls["trainer"])
        if last is None:
            why = found.why if found is not None else "no model is handed to the trainer"
            options, why = found.options if found is not None else (), why or "it is not followed"
            self.lack(MODEL, why, self.calls["trainer"], options)
            return
        if isinstance(last, Found):
            self.put(MODEL, last, self.calls["trainer"], "model")
            return
        owner = last.name.partition(".")[0]
        for start, why in table()["not_estimated"]:
            if owner.startswith(start) and not (
                self.trainer == "RewardTrainer" and start == "AutoModelForSequenceClassification"
            ):
                self.why = self.why or f"{owner}: {why}"
        if owner in FAST:
            self.used.append("unsloth")
            takes = ("model_name", "max_seq_length", "dtype", "load_in_4bit")
            self.take("FastLanguageModel.from_pretrained", last, takes)
        else:
            given = self.take("from_pretrained", last, ("pretrained_model_name_or_path",))
            self._loaded(given, last.call)
        if MODEL not in self.values and self.asked.model is not None:
            self.unknown.pop(MODEL, None)
            self.put(MODEL, Found(self.asked.model, last.call), None, "")
        elif MODEL not in self.values:
            self.lack(MODEL, "it is not named where it is loaded", last.call)

    def _follow(self, found: Found) -> Made | Found | None:
        """The call that loads the trained model, or its name; on the way what wraps it."""
        wraps: list[Made] = []
        for _ in range(20):
            made = found.value
            if isinstance(made, Made):
                if made.call in self.followed:
                    return None
                self.followed.add(made.call)
            if isinstance(made, str):
                self.adapters = wraps
                return found
            if not found.known:  # whichever way leads to a model
                ways = (
                    self._follow(Found(one, found.node))
                    for one in found.options
                    if isinstance(one, Made)
                )
                first = next((one for one in ways if one is not None), None)
                self.adapters = [*wraps, *self.adapters]
                return first
            if not isinstance(made, Made):
                return None
            owner, _, last = made.name.rpartition(".")
            given, _ = self.code.keywords(made, ("model", "peft_config"))
            if last == "from_pretrained" and not owner.startswith(OF_ADAPTERS):
                self.adapters = wraps
                return made if _is_model(made.name) else None
            if last == "from_pretrained":
                self.lack("lora_r", "the adapter that is loaded says it", made.call)
                self.values["use_peft"] = True
                if owner == "AutoPeftModel" or "model" not in given or owner.startswith("Auto"):
                    return None
            wraps.append(made)
            if last.startswith("prepare_model_for"):
                on = given.get("use_gradient_checkpointing")
                if on is None or on.known:
                    kept = Found(on is None or bool(on.value), on.node if on else made.call)
                    self.put(KEPT, kept, made.call, f"use_{KEPT}")
            if not given:
                return None
            found = given.get("model") or next(iter(given.values()))
        return None

    def _loaded(self, given: Mapping[str, Found], call: ast.Call | None) -> None:
        """What a loaded model's other keywords say."""
        names = table()["calls"]["from_pretrained"]
        for keyword, one in given.items():
            if keyword in names and call is None:
                self.put(names[keyword], one, call, keyword)
        flash = given.get("use_flash_attention_2")
        if flash is not None and flash.plain() is True:
            self.put("attn_implementation", Found("flash_attention_2", flash.node), call, "")
        found = given.get("quantization_config")
        if found is not None:
            made = found.value
            if isinstance(made, Made) and made.name == "BitsAndBytesConfig":
                self.take("BitsAndBytesConfig", made)
                self.used.append("bitsandbytes")
            elif isinstance(made, Made):
                self.why = self.why or f"{made.name}: this kind of quantisation is not estimated"
            elif found.known:
                self.rests("load_in_4bit", found)
            else:
                self.lack("load_in_4bit", found.why, found.node, (True, False))
        self.used.append("model")
        if not {"dtype", "load_in_4bit", "load_in_8bit"} & {*self.values, *self.unknown}:
            self.lack("dtype", NO_DTYPE, call or self.calls["trainer"], ("auto", "float32"))

    # ------------------------------------------------------------------- the adapter

    def _adapter(self) -> None:
        found, call = self.given.get("peft_config"), self.calls["trainer"]
        for made in self.adapters:
            owner, _, last = made.name.rpartition(".")
            if last != "get_peft_model":
                continue
            call = made.call
            if owner in FAST:
                self.used.append("unsloth")
                self.values["use_peft"] = True
                self.settings["use_peft"] = Setting(call, call, "")
                self.values.pop(KEPT, None)  # what the settings of the trainer say has no effect
                self.take("FastLanguageModel.get_peft_model", made, ("model", "r"))
                return
            given, _ = self.code.keywords(made, ("model", "peft_config"))
            found = given.get("peft_config")
        for one in self.code.made(lambda name: name == "add_adapter") if found is None else ():
            found, call = (
                next(iter(self.code.keywords(one, ("config",))[0].values()), None),
                one.call,
            )
        if found is None or found.value is None:
            self.values.setdefault("use_peft", False)
            if found is not None:
                self.rests("use_peft", found)
            return
        made = found.value
        if isinstance(made, Made) and made.name == "LoraConfig":
            self.values["use_peft"] = True
            self.settings["use_peft"] = Setting(made.call, call, "peft_config")
            self.take("LoraConfig", made)
            self.used.append("peft")
        elif isinstance(made, Made) and made.name.endswith("Config"):
            self.values["use_peft"] = True
            self.why = self.why or f"{made.name}: of adapters only LoRA is estimated from Python"
        else:
            for key in ("use_peft", "lora_r"):
                self.lack(key, found.why or "what the adapter is is not followed", found.node)

    # ------------------------------------------------------------------- the rest

    def _trainer_itself(self) -> None:
        """Settings that earlier releases took as arguments of the trainer."""
        tool = tool_named("trl")
        for keyword, found in self.given.items():
            key = tool.renamed.get(keyword, keyword)
            if keyword == "model_init_kwargs":
                self._init_kwargs(found)
            elif key in known_names("trl") and keyword not in self.entry.get("takes", ()):
                if keyword in ("max_seq_length", "max_length"):
                    self.values.pop(LENGTH, None)
                self.put(key, found, self.calls["trainer"], keyword)

    def _data(self) -> None:
        found = self.given.get("train_dataset")
        made = found.value if found is not None else None
        for _ in range(20):
            if not isinstance(made, Made) or made.name.rpartition(".")[2] in LOADS:
                break
            inner = [one.value for one in self.code.keywords(made, ("model",))[0].values()]
            if isinstance(made.call.func, ast.Attribute):
                inner.insert(0, self.code.value(made.call.func.value, made.at).value)
            made = next((one for one in inner if isinstance(one, Made)), None)
        if not isinstance(made, Made):
            several = self.code.made(lambda name: name.rpartition(".")[2] in LOADS)
            made = several[0] if len(several) == 1 else None
        if made is None:
            why = found.why if found is not None else ""
            node = found.node if found is not None else self.calls["trainer"]
            self.lack("dataset_name", why or "what loads the rows is not followed", node)
            return
        by = made.name.rpartition(".")[2]
        given, _ = self.code.keywords(made, ("path", "name") if by == "load_dataset" else ("path",))
        given = {key: one for key, one in given.items() if key in OF_DATA}
        named = given.get("path") or given.get("path_or_paths") or given.get("dataset_path")
        if named is None or named.plain() is UNKNOWN:
            why = named.why if named is not None else "it is not named where it is loaded"
            self.lack("dataset_name", why, made.call)
            return
        plain = {key: one.plain() for key, one in given.items() if one.plain() is not UNKNOWN}
        files = plain.get("data_files")
        if isinstance(files, dict):
            plain["data_files"] = files.get("train", next(iter(files.values()), None))
        if isinstance(plain.get("path"), list):
            plain = {"path": "json", "data_files": plain["path"]}
        if by == "load_dataset" and not plain.keys() & {"data_files", "data_dir"}:
            self.put("dataset_name", named, made.call, "path")
            for keyword, key in (("name", "dataset_config"), ("split", "dataset_train_split")):
                if keyword in given:
                    self.put(key, given[keyword], made.call, keyword)
            return
        plain = {key: value for key, value in plain.items() if value is not None}
        self.values["datasets"] = [plain]
        self.settings["datasets"] = Setting(made.call, made.call, "path")

    def _split(self) -> None:
        """The share of rows, or their number, that the one `train_test_split` holds out."""
        several = self.code.made(lambda name: name.rpartition(".")[2] == "train_test_split")
        if len(several) != 1:
            return
        made = several[0]  # a method of the rows, or a function that takes them first
        takes = ("test_size",) if isinstance(made.call.func, ast.Attribute) else ()
        given, _ = self.code.keywords(made, takes)
        rest, held = given.get("train_size"), given.get("test_size")
        if held is None and rest is None:
            held = Found(USUAL_SPLIT, made.call)
        elif held is None and rest is not None and isinstance(share := rest.plain(), float):
            held = Found(round(1 - share, 6), rest.node)
        if held is not None:
            self.put("test_split_size", held, made.call, "test_size")

    def _rest(self) -> None:
        for one in self.code.made(lambda name: name.endswith(f"{KEPT}_enable")):
            if self.code.holds(one.at.conditions, one.at):
                self.unknown.pop(KEPT, None)
                self.values.pop(KEPT, None)
                self.put(KEPT, Found(True, one.call), None, "")
        if self.code.made(lambda name: name.rpartition(".")[2] in MASKS):
            self.values.setdefault("completion_only_loss", True)
            self.masks = MASKED
        self._tokenized_length()
        formats = [one for one in ("dtype", "bf16", "fp16") if one in self.values]
        if "unsloth" in self.used and formats and not any(map(self.values.get, formats)):
            self.values = {k: one for k, one in self.values.items() if k not in formats}
            loaded = self.calls.get("FastLanguageModel.from_pretrained", self.calls["trainer"])
            self.put("dtype", self.code.on_bfloat16(loaded, "bfloat16", "float16"), None, "")

    def _tokenized_length(self) -> None:
        """The length that the code's own tokenizer calls cut rows to: TRL's trainers have one of
        their own, and only what `.map` calls is before them.
        """
        if LENGTH in self.values or LENGTH in self.unknown:
            return
        mapped = {
            Code.last_name(one)
            for name, call, _ in self.code.calls
            if name.rpartition(".")[2] == "map"
            for one in [*call.args[:1], *(k.value for k in call.keywords if k.arg == "function")]
        }
        found: list[tuple[Found, ast.Call | None, str]] = []
        for name, call, at in self.code.calls:
            if not self.is_plain and getattr(at.scope.node, "name", "") not in mapped:
                continue
            given: dict[str, Found] = {}
            for one in call.keywords:
                said = self.code.value(one.value, at)
                spread = said.value if isinstance(said.value, dict) else {}
                given |= spread if one.arg is None else {one.arg: said}
            keyword = "max_length" if {"truncation", "padding"} & given.keys() else ""
            keyword = "model_max_length" if name.endswith(LOADER) else keyword
            if keyword in given:
                found.append((given[keyword], call, keyword))
        if not self.is_plain and not found:
            return
        for node, at in self.code.slices if not found else ():
            if LENGTH_NAME.search(Code.last_name(node)):
                found.append((self.code.value(node, at), None, ""))
        plain = [one.plain() for one, _, _ in found]
        if found and all(one == plain[0] for one in plain):
            self.put(LENGTH, *found[0])
        elif found:
            why = next((one.why for one, _, _ in found if one.why), "rows are cut in several ways")
            options = dict.fromkeys(one for one in plain if isinstance(one, int))
            self.lack(LENGTH, why, found[0][0].node, tuple(options))
        else:
            self.lack(LENGTH, "no call of the tokenizer says it", self.calls["trainer"])

    def file(self, path: Path, name: str, text: str) -> ScriptFile:
        """What was read, as a file of TRL."""
        library = "transformers" if self.is_plain else "trl"
        library = "unsloth" if "unsloth" in self.used else library
        start = "jupyter execute" if path.suffix.lower() == ".ipynb" else "python"
        about, defaults = library_tool(library, start), dict[str, Any]()
        for layer in (self.library, *dict.fromkeys(self.used), *["trainer"] * self.is_plain):
            defaults |= table()["defaults"][layer]
        for key, one in self.unknown.items():  # one of those that the code chooses between
            plain = [option for option in one.options if not isinstance(option, Made)]
            defaults |= {key: plain[0]} if plain else {}
        given = {key: value for key, value in self.values.items() if key not in self.unknown}
        secrets, kept = take_secrets(given), given.get(KEPT)
        is_unsloth, command = library == "unsloth", self.entry.get("command", "sft")
        values = self._counted({key: one for key, one in given.items() if one is not None})
        first = f"judged by what {about.name} does in the release known here ({about.release})"
        for by_gpu, what in ((True, BY_GPU), (False, BY_DEFAULT)):
            self.notes += [f"{what}: {', '.join(self.on[by_gpu])}"] if by_gpu in self.on else []
        said = "transformers' Trainer is read as `trl sft`, which is nearest"
        return ScriptFile(
            path=path, name=name, text=text, about=about, values=values, secrets=secrets, marks={},
            command=Command(command, said if self.is_plain else ""), meant=dict(values),
            notes=[first, *dict.fromkeys(self.notes)], source=self.source, settings=self.settings,
            calls=self.calls, left_out=self.unknown, own_defaults=defaults, given=given,
            judged_as="trainer" if self.is_plain else "", not_estimated=self.why, asked=self.asked,
            unsaid=[*self.masks, *table()["unsaid"].get(library, ())],
            stated=unsloth_states(kept or "unsloth", command) if is_unsloth else {},
            ran_out=memory_error(self.source.outputs),
        )  # fmt: skip

    def _counted(self, values: dict[str, Any]) -> dict[str, Any]:
        """What the values come to: as TRL says it, and as the library takes it."""
        if isinstance(kept := values.get(KEPT), str):
            values[KEPT] = kept.lower() not in ("false", "none", "")
        if values.pop("full_finetuning", False) is True:
            values["load_in_4bit"] = False
        if values.get("bnb_4bit_quant_type") == "fp4":
            values["bnb_4bit_quant_type"] = "nf4"
            self.notes.append("fp4 is counted as nf4, which takes the same memory")
        if str(values.get(MODEL)).lower().endswith("-bnb-4bit"):
            if values.get("load_in_4bit") is not True:
                self.notes.append(f"{values[MODEL]} is stored in 4 bit, and loaded so")
            values["load_in_4bit"] = True
        return values


USUAL_SPLIT = 0.25  # of train_test_split, in datasets as in scikit-learn
BY_DEFAULT = "defaults that a flag, a call or the environment may change"
MODELS = ("model", "model_name", "model_init")
LOADER, KEPT = ".from_pretrained", "gradient_checkpointing"
MASKS = ("train_on_responses_only", "DataCollatorForCompletionOnlyLM")
LENGTH_NAME = re.compile(r"(?i)(max|cut|block|seq|context).*(len|size|off)")
MASKED = (
    "trl/questions-not-masked", "trl/learns-the-questions", "trl/answers-of-no-conversation",
)  # fmt: skip
PLAIN_TRAINERS = ("Trainer", "Seq2SeqTrainer")
LOADS = ("load_dataset", "load_from_disk", "from_json", "from_csv", "from_parquet", "read_csv",
         "read_json", "read_parquet")  # fmt: skip
OF_DATA = ("path", "name", "data_files", "data_dir", "split", "path_or_paths", "dataset_path")


def _is_model(name: str) -> bool:
    """Whether a loader is that of a model, not of a tokenizer or a configuration."""
    ends = ("Tokenizer", "TokenizerFast", "Processor", "Config", "Extractor")
    return not name.rpartition(".")[0].endswith(ends)
