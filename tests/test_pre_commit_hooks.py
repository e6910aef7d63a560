"""`.pre-commit-hooks.yaml`, and `advise check` with the several files that pre-commit gives it."""

import re
import shlex
import tomllib

import pytest
import yaml

from advisor.cli import COMMANDS
from advisor.commands.check import check_each
from advisor.commands.check_options import CheckOptions
from advisor.ground.errors import InputError
from tests.conftest import PAIRS, ROOT

HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text("utf-8"))


def test_the_hook_starts_a_command_that_this_package_installs():
    """pre-commit installs the repository into an environment and runs `entry` with file names."""
    (hook,) = HOOKS
    assert hook.keys() <= {
        "id", "name", "description", "entry", "language", "files", "types", "require_serial",
    }  # fmt: skip
    told = [hook[key] for key in ("id", "language", "types")]
    assert told == ["advise-check", "python", ["yaml"]]
    assert hook["require_serial"] is True  # else half of the files in each of two processes
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    program, command = shlex.split(hook["entry"])
    assert (program in project["scripts"], command in COMMANDS) == (True, True)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("trl.yaml", True), ("configs/axolotl-8b.yml", True), ("a/b/llamafactory.yaml", True),
        ("plan.yaml", False), (".github/workflows/test.yaml", False), ("trl.py", False),
    ],
)  # fmt: skip
def test_the_hook_takes_the_files_that_export_writes(path, wanted):
    """A repository has many YAML files: others than these are taken only if it asks for them."""
    assert bool(re.search(HOOKS[0]["files"], path)) is wanted


def test_several_files_are_checked_one_after_another(approved, call, tmp_path):
    """A file that cannot be read keeps nobody from seeing the next one."""
    (tmp_path / "good.jsonl").write_text(PAIRS)
    (tmp_path / "empty.jsonl").touch()
    approved(call("check", "empty.jsonl", "good.jsonl"))
    assert call("check", "good.jsonl", "good.jsonl")[0] == 0


CONFIGURATION = """\
model_name_or_path: Qwen/Qwen3-8B
dataset_name: rows
use_peft: true
lora_r: 16
per_device_train_batch_size: {batch}
max_length: 1024
dtype: bfloat16
"""


@pytest.mark.extra("other_tools")
def test_configurations_that_fit_and_that_do_not(call, tmp_path):
    """What the hook runs: the GPU is named, and one file that does not fit stops the commit."""
    for name, batch in (("trl_small.yaml", 1), ("trl_large.yaml", 64)):
        (tmp_path / name).write_text(CONFIGURATION.format(batch=batch))
    code, out, err = call("check", "--gpu", "RTX 4090", "trl_small.yaml", "trl_large.yaml")
    assert (code, err) == (3, "")
    assert out.index("== trl_small.yaml") < out.index("== trl_large.yaml") < out.index("Does not")
    assert call("check", "--gpu", "RTX 4090", "trl_small.yaml", "trl_small.yaml")[0] == 0


@pytest.mark.parametrize(("codes", "ends"), [([0, 0], 0), ([0, 3, 0], 3), ([3, 2, 0], 2)])
def test_several_files_end_with_the_worst_of_their_codes(codes, ends, capsys):
    """2, cannot be read, is worse than 3, does not fit: of that file nothing is known."""
    results = {f"{place}.yaml": code for place, code in enumerate(codes)}
    assert check_each(list(results), results.__getitem__, CheckOptions()) == ends


@pytest.mark.parametrize(
    ("option", "flag"), [({"as_json": True}, "--json"), ({"show_row": 0}, "--show-row")]
)
def test_an_option_about_one_file_is_refused_for_several(option, flag):
    """Nothing is checked, and the flag is named."""
    with pytest.raises(InputError, match=f"{flag} is about one file, and there are 2"):
        check_each(
            ["a", "b"], lambda path: pytest.fail(f"{path} was checked"), CheckOptions(**option)
        )
    assert check_each(["a"], lambda path: 3, CheckOptions(**option)) == 3
