"""Read the key table of the installed Axolotl.

Its schemas alone are imported, and of a plugin only the module with its arguments: the packages
that plugins need are not.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from tools.other_tools.probe.kinds import INSTEAD, Kinds, plain_value
from tools.other_tools.probe.trying_models import experience

PACKAGE = "axolotl"


def name_of(cls: Any) -> str | None:
    """The name of a model in the table; None of any other type."""
    if not (isinstance(cls, type) and issubclass(cls, BaseModel) and cls is not BaseModel):
        return None
    root = cls.__module__.split(".")[0]
    return cls.__name__ if root == PACKAGE else f"{root}.{cls.__name__}"


class Models:
    """Every model that is asked for, with its bases and what it adds to them.

    Args:
        whole: The model of a whole file. What it and its bases hold is tried on it, since its
            validators look at all keys.
    """

    def __init__(self, whole: type[BaseModel]) -> None:
        self.whole = whole
        self.found: dict[str, dict[str, Any]] = {}

    def add(self, cls: type[BaseModel]) -> str:
        """Take a model and its bases into the table. Returns its name there."""
        name = name_of(cls)
        assert name is not None, f"{cls} is no model"
        if name in self.found:
            return name
        bases = [self.add(base) for base in map(model, cls.__bases__) if base is not None]
        inherited = self.resolved(bases)
        whole = {}
        for field_name, field in cls.model_fields.items():
            key, others = names(field_name, field, cls)
            entry = self.entry(field) | ({"also": others} if others else {})
            tried = self.whole if issubclass(self.whole, cls) else cls
            whole[key] = entry | experience(tried, key, entry)
        own = {key: entry for key, entry in whole.items() if inherited.get(key) != entry}
        self.found[name] = ({"bases": bases} if bases else {}) | unknown(cls) | {"keys": own}
        # What a reader of the table puts together is what the model has.
        assert self.resolved([name]) == whole, name
        return name

    def resolved(self, listed: list[str]) -> dict[str, Any]:
        """All keys of these models with those of their bases; the first model wins."""
        keys: dict[str, Any] = {}
        for name in reversed(listed):
            entry = self.found[name]
            keys |= self.resolved(entry.get("bases", [])) | entry["keys"]
        return keys

    def entry(self, field: FieldInfo) -> dict[str, Any]:
        """The line of one key."""
        kinds = Kinds(class_name=name_of)
        kinds.add(field.annotation)
        for limit in field.metadata:
            kinds.limit(limit)
        for nested in kinds.classes:
            self.add(nested)
        return kinds.entry() | default_of(field) | deprecation(field)


def deprecation(field: FieldInfo) -> dict[str, Any]:
    """What a field's own declaration says about its end."""
    if not field.deprecated:
        return {}
    words = getattr(field.deprecated, "message", field.deprecated)  # a decorator, or its text
    instead = INSTEAD.search(words) if isinstance(words, str) else None
    return {"deprecated": True} | ({"instead": instead[1]} if instead else {})


def model(cls: type) -> type[BaseModel] | None:
    """The class itself, if it is a model with fields."""
    return cls if issubclass(cls, BaseModel) and cls.model_fields else None


def unknown(cls: type[BaseModel]) -> dict[str, str]:
    """What the model does with keys that it does not know, unless it ignores them."""
    words = {"forbid": "refused", "allow": "kept"}
    extra = cls.model_config.get("extra")
    return {"unknown": words[extra]} if extra in words else {}


def names(name: str, field: FieldInfo, cls: type[BaseModel]) -> tuple[str, list[str]]:
    """How a file calls a field, and by which other names it may."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        listed = [choice for choice in alias.choices if isinstance(choice, str)]
    else:
        listed = [alias] if isinstance(alias, str) else [name]
    if cls.model_config.get("populate_by_name") and name not in listed:
        listed.append(name)
    return listed[0], listed[1:]


def default_of(field: FieldInfo) -> dict[str, Any]:
    """`default`, `required`, or `filled` where it is worked out when a file is read."""
    if field.is_required():
        return {"required": True}
    if field.default_factory in (list, dict):
        return {"default": field.default_factory()}
    if field.default is PydanticUndefined or field.default_factory is not None:
        return {"filled": True}
    try:
        return {"default": plain_value(field.default)}
    except TypeError:
        return {"filled": True}


# --------------------------------------------------------------------------- plugins


def plugins(models: Models) -> dict[str, list[str]]:
    """Plugin, as a file lists it -> the models whose keys it brings."""
    found = {name: [models.add(cls)] if cls else [] for name, cls in plugin_models()}
    assert found
    return found


@cache
def plugin_models() -> tuple[tuple[str, type[BaseModel] | None], ...]:
    """Each plugin of the tool's own, as a file lists it, with the model of its keys."""
    spec = importlib.util.find_spec(f"{PACKAGE}.integrations")
    assert spec is not None
    assert spec.submodule_search_locations
    found = []
    for folder in sorted(Path(spec.submodule_search_locations[0]).iterdir()):
        for plugin, arguments in classes_of(folder) if folder.is_dir() else ():
            package = f"{PACKAGE}.integrations.{folder.name}"
            model = None if arguments is None else arguments_of(package, arguments)
            found.append((f"{package}.{plugin}", model))
    return tuple(found)


def classes_of(folder: Path) -> Iterator[tuple[str, str | None]]:
    """Each plugin of a package, and the class of its arguments."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            bases = [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
            if isinstance(node, ast.ClassDef) and "BasePlugin" in bases:
                yield node.name, returned(node)


def returned(plugin: ast.ClassDef) -> str | None:
    """The text that `get_input_args` returns."""
    for method in plugin.body:
        if isinstance(method, ast.FunctionDef) and method.name == "get_input_args":
            for node in ast.walk(method):
                if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant):
                    return str(node.value.value).rsplit(".", 1)[-1]
    return None


def arguments_of(package: str, name: str) -> type[BaseModel]:
    """The class of a plugin's arguments, without importing the plugin."""
    bare = types.ModuleType(package)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    bare.__path__ = list(spec.submodule_search_locations or ())
    sys.modules[package] = bare
    try:
        cls: type[BaseModel] = getattr(importlib.import_module(f"{package}.args"), name)
    finally:
        del sys.modules[package]
    return cls


def main() -> dict[str, Any]:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    models = Models(AxolotlInputConfig)
    made: dict[str, Any] = {"commands": {"train": [models.add(AxolotlInputConfig)]}}
    made["plugins"] = plugins(models)
    made["classes"] = models.found
    made["release"] = version(PACKAGE)
    made["made_with"] = {name: version(name) for name in ("transformers", "pydantic")}
    return made
