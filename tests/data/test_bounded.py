"""A chat template of anybody runs in a process of its own, within limits of time and memory."""

import os
import resource
import shutil
import signal
import subprocess
import time
import tomllib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from advisor.data.example import Message
from advisor.data.templates import bounded
from advisor.ground.errors import InputError, MachineNotReady
from tests.data.conftest import jsonl

GROWS = "{%% set ns = namespace(a='a') %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.a }}"
NESTS = "{%% set ns = namespace(a=[1]) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.a }}"
ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop with a condition": "{% for i in range(99999) if range(99999)|sum > 0 %}{% endfor %}",
    "a macro that calls itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "macros that branch": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "a recursive loop": "{% for x in [[1]] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "a repeated text": "{{ 'a' * 8000000000 }}",
    "repeated bytes": "{% set b = 'a'.encode() * 3000000000 %}{{ messages }}",
    "a repeated list": "{{ ['a'] * 8000000000 }}",
    "doubling by ~": GROWS % "{% set ns.a = ns.a ~ ns.a %}",
    "doubling by a method": GROWS % "{% set ns.a = ns.a.join([ns.a, ns.a]) %}",
    "doubling by a map": GROWS % "{% set ns.a = ns.a.translate({97: 'aa'}) %}",
    "doubling bytes": GROWS % "{% set ns.a = (ns.a ~ ns.a).encode().hex() %}",
    "a list in a list": NESTS % "{% set ns.a = [ns.a, ns.a] %}",
    "lists compared": NESTS % "{% set ns.a = [ns.a, ns.a] %}" + "{{ ns.a == ns.a[0] }}",
    "padding by an argument": "{{ '%*d' % (1000000000, 1) }}",
    "padding by a width in a map": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "a sum of lists": "{{ (([[1] * 200000] * 200)|sum(start=[]))|length }}",
    "a text in pieces": "{% set a = 'ab ' * 5000000 %}" + "{{ a.split()|length }}" * 5,
    "a large power": "{% set x = 10 %}{% set y = x ** 99999999 %}",
    "wrapped words": "{{ ('a ' * 4000000)|wordwrap(1) }}",
    "many slices": "{{ ['a']|slice(10000000000)|list|length }}",
    "endless output": (
        "{% for i in range(99999) %}{% for j in range(99) %}{{ 'a' * 999 }}{% endfor %}{% endfor %}"
    ),
}


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_does_not_end_is_stopped(monkeypatch, source):
    """By the kernel, whatever a template does; the next one is rendered."""
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.3)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    renderer = bounded.Renderer()
    with pytest.raises(InputError, match="the chat template: it "):
        renderer.render(source, {})
    assert renderer.render("{{ 1 + 1 }}", {}) == ("2", [])
    renderer.end()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    own = resource.getrusage(resource.RUSAGE_SELF)  # a child counts what it was started by
    most = max(before.ru_maxrss, own.ru_maxrss, bounded.MOST_BYTES >> 10)
    assert after.ru_maxrss <= most


ELSEWHERE = """
import datetime, runpy, signal, sys, time
sys.modules["resource"] = None
WITHOUT
class Slow(datetime.datetime):
    now = staticmethod(lambda: time.sleep(99))  # as what swaps: it hardly computes
datetime.datetime = Slow
runpy.run_path(SCRIPT, run_name="__main__")
"""


@pytest.mark.parametrize("without", ["", "del signal.setitimer"], ids=["macOS", "Windows"])
def test_the_wall_clock_ends_it_where_the_kernel_holds_no_memory(monkeypatch, tmp_path, without):
    """Whether it computes or not, and the next one is rendered."""
    script = repr(str(Path(bounded.__file__).with_name("worker.py")))
    text = ELSEWHERE.replace("SCRIPT", script).replace("WITHOUT", without)
    (tmp_path / "worker.py").write_text(text)
    monkeypatch.setattr(bounded, "__file__", str(tmp_path / "bounded.py"))
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.2)
    renderer = bounded.Renderer()
    for source in ("{{ strftime_now('%Y') }}", ENDLESS["nested loops"]):
        began = time.monotonic()
        with pytest.raises(InputError, match="does not come to an end"):
            renderer.render(source, {})
        assert time.monotonic() - began < 30
        assert renderer.render("{{ 1 + 1 }}", {}) == ("2", [])
    renderer.end()


def test_each_conversation_has_the_whole_budget(monkeypatch):
    """The limits are those of one rendering, not of all together."""
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.4)
    renderer, began = bounded.Renderer(), time.monotonic()
    while time.monotonic() - began < 1.2:
        text, _ = renderer.render("{% for i in range(20000) %}{{ i }}{% endfor %}", {})
        assert text.startswith("0123")
    renderer.end()


def test_a_process_that_is_ended_from_outside_is_no_fault_of_the_template():
    """It is named as what it is, and the next rendering starts another; a fork has its own."""
    renderer = bounded.Renderer()
    assert renderer.render("{{ a }}", {"a": "\ud800"})[0] == "\ud800"
    first = renderer._process.pid
    os.kill(first, signal.SIGTERM)  # of a run that is stopped: it still needs its templates
    assert renderer.render("a", {})[0] == "a"
    renderer._owner = 0
    assert renderer.render("a", {})[0] == "a"
    assert renderer._process.pid != first
    os.kill(renderer._process.pid, signal.SIGKILL)
    with pytest.raises(MachineNotReady, match="from outside"):
        renderer.render("a", {})
    assert renderer.render("a", {})[0] == "a"
    renderer.end()


@pytest.mark.train
def test_published_templates_are_written_as_transformers_writes_them(monkeypatch):
    """Text, refusal and the places of the answers, with the copies that come with trl."""
    from transformers.utils import chat_template_utils as theirs

    tool = {"type": "function", "function": {"name": "look", "description": "é", "parameters": {}}}
    call = {"id": "abcdefghi", "function": {"name": "look", "arguments": {"id": 4815162342}}}
    talk = [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": " Hi é 😀 "},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "look", "content": "{}"},
        {"role": "assistant", "content": "<think>\nt\n</think>\n\nYes\n"},
    ]
    folder = Path(find_spec("trl").submodule_search_locations[0], "chat_templates")
    cases = [
        {"conversations": [turns], "tools": tools, "chat_template": path.read_text("utf-8"),
         "return_assistant_tokens_mask": mask, "add_generation_prompt": not mask}
        for path in sorted(folder.glob("*.jinja"))
        for turns in (talk, talk[1:2], talk[:1])
        for tools in (None, [tool])
        for mask in (False, True)
    ]  # fmt: skip

    def written(case):
        try:
            return theirs.render_jinja_template(**case, bos_token="<s>", eos_token="</s>")
        except Exception as error:  # a template may raise anything
            return str(error)

    compiled = lru_cache(theirs._cached_compile_jinja_template)
    monkeypatch.setattr(theirs, "_compile_jinja_template", compiled)
    own = [written(case) for case in cases]
    bounded.bound_chat_templates()
    assert [written(case) for case in cases] == own
    assert len([one for one in own if isinstance(one, tuple)]) > len(cases) / 2 > 50


def test_a_template_does_not_leave_the_sandbox():
    """Not by `attr` either, which gives a text's `format` in Jinja2 3.1.5 and before."""
    with pytest.raises(bounded.RefusedByTemplate, match="unsafe"):
        bounded.RENDERER.render("{{ ('{0.__class__.__mro__}'|attr('format'))('x') }}", {})
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "jinja2>=3.1.6" in project["optional-dependencies"]["train"]


@pytest.mark.train
def test_one_process_renders_all_rows(call, tiny_model, tmp_path, monkeypatch):
    """None is started where no template is rendered."""
    started, start = [], subprocess.Popen

    def counted(*args, **options):
        started.append(args)
        return start(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", counted)
    bounded.RENDERER.end()
    jsonl(tmp_path, [{"prompt": f"What is {n}?", "completion": f"It is {n}"} for n in range(50)])
    for model, processes in ((), 0), (("--model", tiny_model), 1):
        code, _, err = call("check", "a.jsonl", *model)
        assert code == 0, err
        assert len([one for one in started if "worker.py" in str(one)]) == processes


def tokenizer_with(folder, template):
    """The tokenizer of a model, with another chat template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.train
def test_transformers_renders_within_the_limits(tiny_model):
    """`apply_chat_template` and the mask of answers stop, too; the message names file and row."""
    from trainers.rows.template import Templater

    endless = ENDLESS["nested loops"] + "{% generation %}{% endgeneration %}"
    templater = Templater(tokenizer_with(tiny_model, endless))
    templater.begin_row(7)
    told = r"chat_template\.jinja at row 7: it does not come to an end"
    with pytest.raises(InputError, match=told):
        templater.render((Message("user", "Hello"),))
    with pytest.raises(InputError, match=told):
        templater.chat((Message("user", "Hello"), Message("assistant", "Hi")))


@pytest.mark.train
@pytest.mark.parametrize(
    ("source", "told"),
    [(ENDLESS["doubling by ~"], "it "), ("{% for", "the chat template cannot be")],
)
def test_a_chat_with_a_broken_template_says_so(tiny_model, source, told):
    """`advise chat` names the template's file, also where it is no template."""
    from trainers.tools.results import prompt_ids

    with pytest.raises(InputError, match=r"chat_template\.jinja: ") as caught:
        prompt_ids(tokenizer_with(tiny_model, source), [{"role": "user", "content": "Hello"}])
    assert told in caught.value.text()


@pytest.mark.train
def test_check_names_the_template_that_does_not_end(call, tiny_model, tmp_path):
    """`advise check --model` ends with exit code 2 and the template's file."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(ENDLESS["doubling by ~"])
    jsonl(tmp_path, [{"prompt": "Hi", "completion": "Hello"}] * 20)
    code, _, err = call("check", "a.jsonl", "--model", tmp_path / "model")
    assert (code, "chat_template.jinja at row 1: it " in " ".join(err.split())) == (2, True)
