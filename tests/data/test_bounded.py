"""A chat template of anybody runs within limits of steps, time and memory."""

import resource
import shutil
import time
import tomllib
from pathlib import Path

import pytest
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from advisor.data.example import Message
from advisor.data.templates import bounded
from advisor.ground.errors import InputError
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
    "a repeated list": "{{ ['a'] * 8000000000 }}",
    "doubling by ~": GROWS % "{% set ns.a = ns.a ~ ns.a %}",
    "doubling by +": GROWS % "{% set ns.a = ns.a + ns.a %}",
    "doubling by a join": GROWS % "{% set ns.a = [ns.a, ns.a]|join(ns.a) %}",
    "doubling by a method": GROWS % "{% set ns.a = ns.a.join([ns.a, ns.a]) %}",
    "doubling by replacing": GROWS % "{% set ns.a = ns.a.replace('a', 'aa') %}",
    "doubling by a filter": GROWS % "{% set ns.a = ns.a|replace('a', 'aa') %}",
    "doubling by %": GROWS % "{% set ns.a = '%s%s' % (ns.a, ns.a) %}",
    "doubling by format": GROWS % "{% set ns.a = '{0}{0}'.format(ns.a) %}",
    "doubling by a block": GROWS % "{% set ns.a %}{{ ns.a }}{{ ns.a }}{% endset %}",
    "doubling by a map": GROWS % "{% set ns.a = ns.a.translate({97: 'aa'}) %}",
    "a list in a list": NESTS % "{% set ns.a = [ns.a, ns.a] %}",
    "lists compared": NESTS % "{% set ns.a = [ns.a, ns.a] %}" + "{{ ns.a == ns.a[0] }}",
    "a number as bytes": "{% set x = '%2999999999d'.encode() % 1 %}{{ x }}",
    "a map in a map": NESTS % "{% set ns.a = {'a': ns.a, 'b': ns.a} %}",
    "a call with itself": NESTS % "{% set ns.a = dict(a=ns.a, b=ns.a) %}",
    "a list of batches": NESTS % "{% set ns.a = (ns.a + ns.a)|batch(2)|list %}",
    "padding by %": "{{ '%1000000000d' % 1 }}",
    "a width behind zeros": "{% set x = '%0000000000300000000d' % 1 %}",
    "fields behind a name that never ends": (
        "{{ ('%(' ~ '{0}' * 20000 ~ ')').format('a' * 20000) }}"
    ),
    "padding by an argument": "{{ '%*d' % (1000000000, 1) }}",
    "padding by format": "{{ '{:>1000000000}'.format(1) }}",
    "padding by a width in a map": "{{ '{:>{w}}'.format(1, w=1000000000) }}",
    "padding by a width as a filter": "{{ '%*d'|format(1000000000, 1) }}",
    "padding bytes": "{{ 'a'.encode().center(1000000000) }}{{ (1).to_bytes(1000000000) }}",
    "repeated bytes": "{{ ('a'.encode() * 8000000000)|length }}",
    "a sum of lists": "{{ (([[1] * 2000] * 2000)|sum(start=[]))|length }}",
    "a text in pieces": "{% set a = 'ab ' * 5000000 %}{{ a.split()|length }}",
    "a text in lines": "{% set a = '\\n' * 5000000 %}{{ a.splitlines()|length }}",
    "a long range": "{{ range(1000000000)|list }}",
    "padding by a method": "{{ 'x'.ljust(1000000000) }}",
    "padding by a filter": "{{ 'x'|center(1000000000) }}",
    "a large power": "{% set x = 10 %}{{ x ** 99999 ** 2 }}",
    "rounding": "{{ 1.5|round(1000000000, 'floor') }}",
    "a large indent": "{{ {'a': [1] * 1000}|tojson(indent=10000000) }}",
    "many long texts": "{{ range(99999)|map('string')|map('center', 999999)|list|length }}",
    "many texts": "{{ range(16000)|map('string')|map('center', 60000)|list|length }}",
    "many padded numbers": "{{ (['%9999d'] * 16000)|map('format', 1)|list|length * 99 }}",
    "many fields": "{{ ('{0:>999999}' * 9999).format(1)|length }}",
    "many named fields": "{{ ('%(a)999999d' * 9999) % {'a': 1} }}",
    "looking through a list": (
        "{% set a = range(16000)|map('string')|list %}{{ range(16000)|select('in', a)|list }}"
    ),
    "a loop that looks through a list": (
        "{% set a = range(16000)|map('string')|list %}"
        "{% for i in range(16000) if i in a %}{% endfor %}"
    ),
    "many slices": "{{ ['a']|slice(10000000000)|list|length }}",
    "endless output": (
        "{% for i in range(99999) %}{% for j in range(99) %}{{ 'a' * 999 }}{% endfor %}{% endfor %}"
    ),
}


@pytest.fixture(scope="module")
def environment():
    return bounded.BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )


@pytest.mark.parametrize("source", ENDLESS.values(), ids=ENDLESS.keys())
def test_what_does_not_end_is_stopped(environment, monkeypatch, source):
    """Steps, time and sizes have limits, whatever a template does to go round them."""
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(bounded, "MOST_VALUES", 2**14)
    began, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="the chat template: it "):
        environment.from_string(source).render()
    assert time.thread_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


LARGEST = {  # source, with a number for {n} -> the largest that is rendered
    "{{ ('a' * {n})|length }}": 500, "{{ ['a'] * {n} }}": 200, "{{ 'x'.ljust({n}) }}": 498,
    "{{ '%{n}d' % 1 }}": 994, "{{ '{:>{n}}'.format(1) }}": 991, "{{ 'x'|center({n}) }}": 498,
    "{{ 'aa'.replace('a', 'b' * {n}) }}": 499, "{{ {'a': 'b' * {n}} }}": 500,
    "{{ 'abc'|indent({n}) }}": 248, "{{ ('%s' * {n}) % ((1,) * {n}) }}": 30,
    "{% set a = 'a' * 300 %}{{ a ~ a ~ 'b' * {n} }}": 399,
    "{% set a = 'b' * 400 %}{{ ('a' * {n} + a + a)|length }}": 200,
    "{% for i in range({n}) %}ab{% endfor %}": 498, "{{ range({n})|list|length }}": 255,
    "{% set x = range({n})|list %}{{ [x] == 1 }}": 254,
    "{{ range({n})|map('string')|map('center', 9)|list|length }}": 91,
    "{% set x = 3 %}{{ x ** {n} }}": 29, "{% set x = 10 %}{{ x ** -{n} }}": 15,
    "{% set x = 2 ** 20 %}{{ x * 2 ** {n} }}": 29,
}  # fmt: skip


def test_each_limit_lies_where_it_lay(environment, monkeypatch):
    """What is one character, value or digit below it is rendered: nothing sound is refused."""
    for name, limit in {"CHARACTERS": 1000, "BITS": 64, "VALUES": 256, "MADE": 1000}.items():
        monkeypatch.setattr(bounded, f"MOST_{name}", limit)

    def is_rendered(source, number):
        try:
            return bool(environment.from_string(source.replace("{n}", str(number))).render())
        except bounded.TemplateLimit:
            return False

    edges = {
        source: [is_rendered(source, n + more) for more in (0, 1)] for source, n in LARGEST.items()
    }
    assert edges == {source: [True, False] for source in LARGEST}


def test_each_conversation_has_the_whole_budget(environment, monkeypatch):
    """The limits are those of one rendering, not of all together."""
    monkeypatch.setattr(bounded, "MOST_SECONDS", 0.2)
    template = environment.from_string("{% for i in range(20000) %}{{ i }}{% endfor %}")
    began = time.thread_time()
    while time.thread_time() - began < 0.3:
        assert template.render().startswith("0123")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' ~ 1 ~ none }}|{{ [1, 'b', (2,), {'c': x}] }}|{{ () }}|{{ (1, 2)[1] }}|{{ [] }}",
        "{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ loop.last }}{% endfor %}",
        "{% macro m(a, b=2) %}{{ a + b }}{% endmacro %}{{ m(1) }}{% set y, z = 1, 2 %}{{ y * z }}",
        "{{ ' x '|trim|upper }}{{ 'a-b'.split('-')|join('+') }}{{ '%s=%d' % ('n', 3) }}",
        "{{ '**%s** * %d' % ('n', 3) }}{{ '* {} *'.format(1) }}{{ x|join(', ')|indent(2) }}",
        "{{ 'b{}'.format(1) }}{{ x|tojson }}{{ [3, 1]|sort|list }}{{ 2 ** 10 }}{{ 'ab' * 2 }}",
        "{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}"
        "{{ ns.n }}{% set t %}a{{ x }}{% endset %}{{ t }}{{ x if x is defined else '' }}",
    ],
)
def test_sound_templates_write_what_they_wrote(source):
    """Within the limits, every template writes what Jinja's sandbox writes."""
    ours, theirs = (
        made().from_string(source).render(x=[1, {"a": "é"}])
        for made in (bounded.BoundedEnvironment, ImmutableSandboxedEnvironment)
    )
    assert ours == theirs


def test_a_template_does_not_leave_the_sandbox(environment):
    """Not by `attr` either, which gives a text's `format` in Jinja2 3.1.5 and before."""
    with pytest.raises(SecurityError):
        environment.from_string("{{ ('{0.__class__.__mro__}'|attr('format'))('x') }}").render()
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert "jinja2>=3.1.6" in project["optional-dependencies"]["train"]


@pytest.mark.parametrize(
    "source",
    [
        "{% macro show(v) %}{{ v }}{% endmacro %}{{ show(x) }}",
        "{% set ns = namespace(n=x) %}{{ ns.n }}{{ {x: 1}.get(x) }}",
        "{{ '%s %d' % (x, x) }}{{ '{} {{{}}}'.format(x, x) }}{{ '%s'|format(x) }}",
        "{{ x|tojson }}{{ x|string }}{{ none|default(x, true) }}",
    ],
)
def test_a_large_number_is_a_value_as_any_other(environment, source):
    """Such as that of an order or a telephone, in a call of a tool."""
    assert "4815162342" in environment.from_string(source).render(x=4815162342)


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
    [(ENDLESS["doubling by ~"], "it makes a text of"), ("{% for", "the chat template cannot be")],
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
    assert code == 2
    assert "chat_template.jinja at row 1: it makes a text of" in " ".join(err.split())
