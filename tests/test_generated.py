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


# --------------------------------------------------------------------------- freshness


def test_committed_files_are_fresh():
    """`python -m tools.generate` would change no file that is committed."""
    made = generate.committed()
    assert len(made) == 10
    assert generate.stale(made) == [], "run python -m tools.generate"


def test_what_a_rule_changes_is_not_committed():
    """Pages of rules and JSON Schemas are made from the rules, so a rule changes its own files."""
    listed = subprocess.run(
        ["git", "ls-files", "docs/rules", "rules/schema"],
        cwd=generate.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a checkout")
    assert listed.stdout == ""


def test_check_says_what_is_stale_and_writing_repairs_it(tmp_path, monkeypatch, capsys):
    """`--check` exits with 1 and names the file; without it the file is written, the page of a step
    that no longer exists goes, and the next check passes.
    """
    for name in ("docs", "rules"):
        (tmp_path / name).mkdir()
    (tmp_path / "rules" / "gone.md").write_text("x")
    monkeypatch.setattr(generate, "committed", lambda: {tmp_path / "docs" / "a.md": "new"})
    monkeypatch.setattr(generate, "pages", lambda: {tmp_path / "rules" / "gate.md": "x"})
    for arguments, code, said in (
        (["--check"], 1, "a.md is stale"), ([], 0, "gone.md"), (["--check"], 0, ""),
    ):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["generate", *arguments])
        assert generate.main() == code
        assert said in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "rules").iterdir()] == ["gate.md"]


# --------------------------------------------------------------------------- pages


def mutated(rules, **changes):
    """The rule set with its first recommending rule changed, and that rule's table."""
    table, rule = next(
        (table, rule)
        for table, listed in rules.rules.items()
        for rule in listed
        if rule.kind == "recommend"
    )
    listed = tuple(
        replace(other, **changes) if other is rule else other for other in rules.rules[table]
    )
    return replace(rules, rules={**rules.rules, table: listed}), table


def test_a_changed_reason_changes_its_page_and_no_other(rules, pages):
    """A page shows what its rules say, so a page that nobody made anew is noticed."""
    changed, table = mutated(rules, because="Another reason altogether.")
    anew = rule_pages.pages(changed)
    assert [name for name in pages if pages[name] != anew[name]] == [f"{table}.md"]
    assert "Another reason altogether." in anew[f"{table}.md"]


def test_a_pipe_in_a_reason_stays_in_its_cell(rules):
    """A reason with a pipe, an angle bracket or a line break does not break the table."""
    changed, table = mutated(rules, because="either | or\n<b>more")
    line = next(
        line for line in rule_pages.pages(changed)[f"{table}.md"].splitlines() if "either" in line
    )
    assert "either \\| or &lt;b>more" in line
    assert len(re.findall(r"(?<!\\)\|", line)) == 7  # six cells


def test_every_rule_stands_on_exactly_one_page_once(rules, pages):
    """Each rule has one line, on the page of its step."""
    shown = [
        (found, name)
        for name, text in pages.items()
        if name.removesuffix(".md") in rules.tables
        for found in re.findall(r"</a>`([^`]+)`", text)
    ]
    every = [rule for listed in rules.rules.values() for rule in listed]
    assert sorted(shown) == sorted(
        (rule.id, f"{rule.table}.md") for rule in (*every, *rules.inactive)
    )


def test_a_page_lists_rules_in_the_order_in_which_they_win(rules, pages):
    """Later layers come first, and inside a layer higher tiers."""
    layers = ["base", *rules.layers]
    for table, listed in rules.rules.items():
        text = pages[f"{table}.md"]
        ranked = sorted(
            (rule for rule in listed if rule.kind == "recommend"),
            key=lambda rule: text.index(f"</a>`{rule.id}`"),
        )
        ranks = [(layers.index(rule.layer), rules.tiers[rule.tier]) for rule in ranked]
        assert ranks == sorted(ranks, reverse=True), table
        forbids = [text.index(f"</a>`{rule.id}`") for rule in listed if rule.kind == "forbid"]
        first = [text.index(f"</a>`{rule.id}`") for rule in ranked[:1]]
        assert all(place < start for place in forbids for start in first), table


def test_every_source_has_an_entry_that_names_its_rules(rules, pages):
    """What a rule rests on can be looked up, and back from there."""
    entries = dict(re.findall(r"### `([^`]+)`\n\n(.*?)(?=\n\n###|\Z)", pages["sources.md"], re.S))
    assert set(entries) == set(rules.sources)
    for listed in rules.rules.values():
        for rule in listed:
            for source in rule.sources:
                assert f"[{rule.id}]" in entries[source]


def test_every_fact_has_an_entry(rules, pages):
    """Each fact has its heading, or its line among the signals; each value of a choice is named."""
    for fact in named_facts(rules.facts):
        assert (f"### `{fact.id}`" in pages["facts.md"]) != (
            f'<a id="{fact.id}"></a>' in pages["facts.md"]
        ), fact.id
        assert all(f"`{value}`" in pages["facts.md"] for value in fact.values), fact.id


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


# --------------------------------------------------------------------------- picture


@pytest.fixture(scope="module")
def drawing(rules):
    return ET.fromstring(picture(rules))


def texts(drawing):
    """(text, left, top, right, bottom) of every line of text."""
    boxes = []
    for node in drawing.iter("{http://www.w3.org/2000/svg}text"):
        size, x, y = float(node.get("font-size")), float(node.get("x")), float(node.get("y"))
        width = text_width(node.text, size, bold=node.get("font-weight") == "700")
        left = x - {"start": 0, "middle": width / 2, "end": width}[node.get("text-anchor")]
        boxes.append((node.text, left, y - 0.75 * size, left + width, y + 0.2 * size))
    return boxes


def test_the_picture_shows_every_step_fact_and_outcome(rules, drawing):
    """Steps in order; all that they look at and conclude; how many rules there are."""
    shown = [text for text, *_ in texts(drawing)]
    places = [
        shown.index(table.id.replace("_", " "), len(rules.tables))
        for table in rules.tables.values()
    ]
    assert len(places) == len(set(places))
    named = {
        name.replace("_", " ")
        for table in rules.tables.values()
        for name in (*table.inputs, *outcomes_of(rules, table))
    }
    assert len(named) > 60
    assert named - set(shown) <= {"scheme"}  # what the last but two steps are about


def test_a_new_rule_or_method_leaves_the_picture_as_it_is(rules, pages):
    """It shows steps and facts: no rule is counted and no scheme is named. The same rules give the
    same bytes, whatever order a dictionary has.
    """
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
    assert all(
        f"{place}. {one.ask}" in shown for place, one in enumerate(questions_picture.QUESTIONS, 1)
    )
    decides = {"chain": [rule for rule in rules.rules["chain"] if "dpo" not in str(rule.then)]}
    assert "dpo+lora" not in questions_picture.picture(
        replace(rules, rules={**rules.rules, **decides})
    )


@pytest.mark.parametrize("drawn", [picture, questions_picture.picture], ids=["steps", "questions"])
def test_no_text_of_a_picture_overlaps_another_or_a_line(rules, drawn):
    """Every word can be read: nothing is written or drawn across it, nothing leaves the picture."""
    drawing = ET.fromstring(drawn(rules))
    _, _, width, height = map(float, drawing.get("viewBox").split())
    boxes = texts(drawing)
    for i, (text, left, top, right, bottom) in enumerate(boxes):
        assert min(left, top, width - right, height - bottom) > 0, text
        for other, *box in boxes[i + 1 :]:
            assert right <= box[0] or box[2] <= left or bottom <= box[1] or box[3] <= top, (
                f"{text} and {other}"
            )
    for node in drawing.iter("{http://www.w3.org/2000/svg}polyline"):
        points = [tuple(map(float, point.split(","))) for point in node.get("points").split()]
        for (x0, y0), (x1, y1) in itertools.pairwise(points):
            for text, left, top, right, bottom in boxes:
                assert (
                    max(x0, x1) <= left
                    or min(x0, x1) >= right
                    or max(y0, y1) <= top
                    or min(y0, y1) >= bottom
                ), text
