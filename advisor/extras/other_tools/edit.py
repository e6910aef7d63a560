"""Changes of a configuration as a diff of its own text: comments, order and quotes stay."""

from __future__ import annotations

import difflib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml as pyyaml

from advisor.extras.other_tools.file import FLAGS, ToolFile, steps
from advisor.extras.other_tools.mapping import same_value
from advisor.extras.other_tools.tool import meant_key
from advisor.ground.shape import Path_
from advisor.ground.terminal import MASK, mask_secrets

AROUND = 2  # lines beside a change


def diff_of(file: ToolFile, changes: Mapping[str, Any]) -> tuple[str, ...]:
    """The changes as lines of a unified diff without secrets; empty for a script and for none."""
    if not changes or file.is_script:
        return ()
    renamed = {old: new for old in changes if (new := meant_key(file.tool, old)) is not None}
    before, after = edited(file.text, {}), edited(file.text, changes, renamed)
    lines = diff(file.text, as_it_stands(file.text, before, after), file.name)
    secrets = [str(value) for value in file.secrets.values()]
    found = []
    for line in lines:
        for secret in secrets:
            line = line.replace(secret, MASK)
        found.append(mask_secrets(line))
    return tuple(found)


def diff(before: str, after: str, name: str) -> list[str]:
    """Lines of a unified diff."""
    old, new = before.splitlines(), after.splitlines()
    return list(difflib.unified_diff(old, new, name, f"{name} (changed)", lineterm="", n=AROUND))


def as_it_stands(text: str, before: str, after: str) -> str:
    """The text with what changed from `before` to `after`, which are the same written anew."""
    own, old, new = text.splitlines(), before.splitlines(), after.splitlines()
    place = {len(old): len(own)}  # line of `before` -> line of the text
    for tag, i1, i2, j1, j2 in _opcodes(old, own):
        for step in range(i2 - i1):
            place[i1 + step] = j1 + step if tag == "equal" else min(j1 + step, j2)
    lines, at = [], 0
    for tag, i1, i2, j1, j2 in _opcodes(old, new):
        if tag != "equal":
            lines += [*own[at : place[i1]], *new[j1:j2]]
            at = place[i2]
    return "\n".join([*lines, *own[at:]]) + "\n"


def _opcodes(one: list[str], other: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    return difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes()


def edited(text: str, changes: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> str:
    """The text with other values: dotted key -> value, or None; `renamed` ones keep their place."""
    from ruamel.yaml import YAML
    from ruamel.yaml.util import load_yaml_guess_indent

    _, indent, offset = load_yaml_guess_indent(text)
    yaml = YAML()
    document: Any = None
    yaml.preserve_quotes, yaml.width = True, 100_000
    yaml.indent(mapping=2, sequence=indent or 2, offset=offset or 0)
    with suppress(ValueError):
        document = json.loads(text)
    is_json = document is not None
    document = document if is_json else yaml.load(text)
    for old, new in (renamed or {}).items():
        if changes.get(old, 0) is None and changes.get(new) is not None and old in document:
            _rename(document, old, new)
    for key, value in changes.items():
        _change(document, steps(key), value)
    if is_json:
        second = text.partition("\n")[2]
        spaces = len(second) - len(second.lstrip()) or None
        return json.dumps(document, indent=spaces, ensure_ascii=False) + "\n"
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()


def _change(document: Any, path: Path_, value: Any) -> None:
    """Set a value where it is, or take it away."""
    node, last = document, path[-1]
    for step in path[:-1]:
        if not _holds(node, step) or node[step] is None:
            if value is None or not isinstance(node, dict):
                return
            node[step] = _in_one_line({}) if hasattr(node, "ca") else {}
        node = node[step]
    if value is None and _holds(node, last):
        _remove(node, last)
    elif _holds(node, last) and same_value(node[last], value):
        return  # it stays as it is written: 1.0e-4
    elif value is not None and (isinstance(node, dict) or _holds(node, last)):
        node[last] = _in_one_line(value) if hasattr(node, "ca") else value


def _holds(node: Any, step: str | int) -> bool:
    if isinstance(node, list):
        return isinstance(step, int) and step < len(node)
    return isinstance(node, dict) and step in node


def _rename(node: Any, old: str, new: str) -> None:
    """Another name at the same place, with the comments behind it."""
    if not hasattr(node, "ca"):
        node[new] = node.pop(old)
        return
    place, comments = list(node).index(old), node.ca.items.pop(old, None)
    node.insert(place, new, node.pop(old))
    if comments is not None:
        node.ca.items[new] = comments


def _remove(node: Any, step: str | int) -> None:
    """Take a key away. Comments on the lines behind it belong to what comes next and stay."""
    comments = node.ca.items.pop(step, None) if hasattr(node, "ca") else None
    keys = list(node) if isinstance(node, dict) else []
    place = keys.index(step) if keys else 0
    del node[step]
    behind: Any = comments[2] if comments is not None and len(comments) > 2 else None
    rest = behind.value.partition("\n")[2] if behind is not None else ""
    if not rest.strip() or not place:
        return
    before = keys[place - 1]
    kept = node.ca.items.get(before)
    if kept is not None and kept[2] is not None:
        kept[2].value = kept[2].value.rstrip("\n") + "\n" + rest
    elif not isinstance(node[before], dict | list):
        behind.value = "\n" + rest
        node.ca.items[before] = [None, None, behind, None]


def _is_plain(text: str) -> bool:
    """Whether PyYAML reads the text without quotes in a list of one line as itself."""
    try:
        return bool(pyyaml.safe_load(f"[{text}]") == [text]) and text.lower() not in FLAGS
    except pyyaml.YAMLError:
        return False


def _in_one_line(value: Any) -> Any:
    """A value in brackets; numbers and flags so that PyYAML does not take them for others."""
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap, CommentedSeq
    from ruamel.yaml.scalarstring import SingleQuotedScalarString

    if isinstance(value, list):
        sequence = CommentedSeq(map(_in_one_line, value))
        sequence.fa.set_flow_style()
        return sequence
    if isinstance(value, dict):
        mapping = CommentedMap({key: _in_one_line(one) for key, one in value.items()})
        mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, str) and not _is_plain(value):
        return SingleQuotedScalarString(value)
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return YAML().load(repr(value).replace("e", ".0e"))
    return value
