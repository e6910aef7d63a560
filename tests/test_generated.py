"""Generated pages and pictures are fresh and complete."""

import itertools
import re
import subprocess
import xml.etree.ElementTree as ET

import pytest
from msgspec.structs import replace

from advisor.methods import schemes, updates
from advisor.ruleset.load import load_rules
from advisor.schema.rules import named_facts
from tools.generate import __main__ as generate
from tools.generate import questions_picture, rule_pages
from tools.generate.steps_picture import outcomes_of, picture
from tools.generate.svg import text_width


@pytest.fixture(scope="module")
def rules():
    return load_rules()


@pytest.fixture(scope="module")
def pages(rules):
    return rule_pages.pages(rules)


def test_committed_files_are_fresh():
    """`python -m tools.generate` would change no file that is committed."""
    made = generate.committed()
    assert len(made) == 14
    assert generate.stale(made) == [], "run python -m tools.generate"


def test_what_a_rule_changes_is_not_committed():
    """Pages of rules and JSON Schemas are made from the rules, so a rule changes its own files."""
    command = ["git", "ls-files", "docs/rules", "rules/schema"]
    listed = subprocess.run(command, cwd=generate.ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    assert listed.stdout == ""


def test_check_says_what_is_stale_and_writing_repairs_it(tmp_path, monkeypatch, capsys):
    """`--check` exits with 1 and names files; writing repairs them and drops pages of no step."""
    for name in ("docs", "rules"):
        (tmp_path / name).mkdir()
    (tmp_path / "rules" / "gone.md").write_text("x")
    monkeypatch.setattr(generate, "committed", lambda: {tmp_path / "docs" / "a.md": "new"})
    monkeypatch.setattr(generate, "pages", lambda: {tmp_path / "rules" / "gate.md": "x"})
    for arguments, code, said in (
        (["--check"], 1, "a.md is stale"), ([], 0, "gone.md"), (["--check"], 0, ""),
    ):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["generate", *arguments])
        assert (generate.main(), said in capsys.readouterr().out) == (code, True)
    assert [path.name for path in (tmp_path / "rules").iterdir()] == ["gate.md"]


def changed_pages(rules, **changes):
    """The pages after the first recommending rule was changed, and the name of that rule's page."""
    every = [rule for listed in rules.rules.values() for rule in listed]
    rule = next(rule for rule in every if rule.kind == "recommend")
    listed = tuple(
        replace(one, **changes) if one is rule else one for one in rules.rules[rule.table]
    )
    anew = replace(rules, rules={**rules.rules, rule.table: listed})
    return rule_pages.pages(anew), f"{rule.table}.md"


def test_a_changed_reason_changes_its_page_and_no_other(rules, pages):
    """A page shows what its rules say, even with a pipe, angle bracket or line break in it."""
    anew, page = changed_pages(rules, because="either | or\n<b>more")
    assert [name for name in pages if pages[name] != anew[name]] == [page]
    (line,) = (line for line in anew[page].splitlines() if "either" in line)
    assert "either \\| or &lt;b>more" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six cells


def test_every_rule_stands_on_exactly_one_page_once(rules, pages):
    """Each rule has one line, on the page of its step."""
    shown = {table: re.findall(r"</a>`([^`]+)`", pages[f"{table}.md"]) for table in rules.tables}
    wanted = {table: [] for table in rules.tables}
    for rule in (*(one for listed in rules.rules.values() for one in listed), *rules.inactive):
        wanted[rule.table].append(rule.id)
    assert {table: sorted(ids) for table, ids in shown.items()} == {
        table: sorted(ids) for table, ids in wanted.items()
    }


def test_a_page_lists_rules_in_the_order_in_which_they_win(rules, pages):
    """What forbids comes first, then later layers, and inside a layer higher tiers."""
    layers = ["base", *rules.layers]
    for table, listed in rules.rules.items():
        places = {rule.id: pages[f"{table}.md"].index(f"</a>`{rule.id}`") for rule in listed}
        ranked = sorted(
            (rule for rule in listed if rule.kind in ("recommend", "forbid")),
            key=lambda rule: places[rule.id],
        )
        ranks = [
            (1,) if rule.kind == "forbid" else (0, layers.index(rule.layer), rules.tiers[rule.tier])
            for rule in ranked
        ]
        assert ranks == sorted(ranks, reverse=True), table


def test_every_source_has_an_entry_that_names_its_rules(rules, pages):
    """What a rule rests on can be looked up, and back from there."""
    entries = dict(re.findall(r"### `([^`]+)`\n\n(.*?)(?=\n\n###|\Z)", pages["sources.md"], re.S))
    assert set(entries) == set(rules.sources)
    every = [rule for listed in rules.rules.values() for rule in listed]
    named = [(rule.id, source) for rule in every for source in rule.sources]
    assert [one for one, source in named if f"[{one}]" not in entries[source]] == []


def test_every_fact_has_an_entry(rules, pages):
    """Each fact has its heading, or its line among the signals; each value of a choice is named."""
    page = pages["facts.md"]
    for fact in named_facts(rules.facts):
        assert (f"### `{fact.id}`" in page) != (f'<a id="{fact.id}"></a>' in page), fact.id
        assert [value for value in fact.values if f"`{value}`" not in page] == [], fact.id


def test_links_between_pages_lead_somewhere(rules, pages):
    """Every relative link names a page or file that exists, and an anchor on it."""
    anchors = {
        name: (
            set(re.findall(r'<a id="([^"]+)"', text))
            | {heading.lower() for heading in re.findall(r"^### `([^`]+)`$", text, re.M)}
        )
        for name, text in pages.items()
    }
    links = [
        (name, *target.partition("#")[::2])
        for name, text in pages.items()
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if not target.startswith("http")
    ]
    assert len(links) > 100
    for name, target, anchor in links:
        assert target in pages or (generate.PAGES / target).resolve().exists(), f"{name}: {target}"
        assert not anchor or anchor.lower() in anchors[target], f"{name}: {target}#{anchor}"


def texts(drawing):
    """(text, left, top, right, bottom) of every line of text."""
    boxes = []
    for node in drawing.iter("{http://www.w3.org/2000/svg}text"):
        size, x, y = float(node.get("font-size")), float(node.get("x")), float(node.get("y"))
        width = text_width(node.text, size, bold=node.get("font-weight") == "700")
        left = x - {"start": 0, "middle": width / 2, "end": width}[node.get("text-anchor")]
        boxes.append((node.text, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return boxes


def test_the_picture_shows_every_step_fact_and_outcome(rules):
    """Steps in order; all that they look at and conclude; how many rules there are."""
    shown = [text for text, *_ in texts(ET.fromstring(picture(rules)))]
    tables = rules.tables.values()
    places = [shown.index(table.id.replace("_", " "), len(tables)) for table in tables]
    assert len(places) == len(set(places))
    named = {
        name.replace("_", " ")
        for table in tables
        for name in (*table.inputs, *outcomes_of(rules, table))
    }
    assert len(named) > 60
    assert named - set(shown) <= {"scheme"}  # what the last but two steps are about


def test_a_new_rule_or_method_leaves_the_picture_as_it_is(rules, pages):
    """It shows steps and facts, no counts or schemes, and has the same bytes for the same rules."""
    fewer = replace(rules, rules={table: listed[1:] for table, listed in rules.rules.items()})
    turned = replace(rules, sources=dict(reversed(rules.sources.items())))
    assert picture(fewer) == picture(turned) == picture(rules)
    assert rule_pages.pages(turned) == pages
    shown = {text for text, *_ in texts(ET.fromstring(picture(rules)))}
    assert not shown & {*schemes(), *updates()}


def test_the_picture_of_questions_gives_the_answers_that_the_rules_give(rules):
    """Each line is asked of the rules: without the one that decides, its answer is another."""
    shown = questions_picture.picture(rules)
    assert shown.count("dpo+lora") == 2  # the line, and the description for a screen reader
    asked = [f"{place}. {one.ask}" for place, one in enumerate(questions_picture.QUESTIONS, 1)]
    assert [one for one in asked if one not in shown] == []
    chain = [rule for rule in rules.rules["chain"] if "dpo" not in str(rule.then)]
    without = replace(rules, rules={**rules.rules, "chain": chain})
    assert "dpo+lora" not in questions_picture.picture(without)


@pytest.mark.parametrize("drawn", [picture, questions_picture.picture], ids=["steps", "questions"])
def test_no_text_of_a_picture_overlaps_another_or_a_line(rules, drawn):
    """Every word can be read: nothing is written or drawn across it, nothing leaves the picture."""
    drawing = ET.fromstring(drawn(rules))
    _, _, width, height = map(float, drawing.get("viewBox").split())
    boxes = texts(drawing)
    lines = [
        ("a line", min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
        for node in drawing.iter("{http://www.w3.org/2000/svg}polyline")
        for (x0, y0), (x1, y1) in itertools.pairwise(
            tuple(map(float, point.split(","))) for point in node.get("points").split()
        )
    ]
    for place, (text, left, top, right, bottom) in enumerate(boxes, 1):
        assert min(left, top, width - right, height - bottom) > 0, text
        crossing = [
            other
            for other, x0, y0, x1, y1 in (*boxes[place:], *lines)
            if x0 < right and left < x1 and y0 < bottom and top < y1
        ]
        assert crossing == [], text
