"""What people call their columns, and the roles they can be mapped to."""

from __future__ import annotations

from collections.abc import Mapping

from advisor.ground.errors import Fault, InputError, nearest

# Role -> other spellings of it in `--map ROLE=COLUMN`.
ROLES = {
    "messages": ("conversations", "conversation"),
    "question": ("prompt", "query", "instruction", "problem", "user"),
    "context": ("input",),
    "answer": ("completion", "response", "output", "reply", "assistant", "solution"),
    "system": ("system_prompt",),
    "history": (),
    "tools": ("functions",),
    "text": ("document", "content"),
    "label": ("class", "category"),
    "chosen": ("preferred",),
    "rejected": ("dispreferred",),
    "ranked": ("ranking",),
    "good": ("kto_tag", "feedback"),
    "ground_truth": ("reference_answer", "final_answer"),
    "transcript": (),
}
SPELLINGS = {spelling: role for role, spellings in ROLES.items() for spelling in (role, *spellings)}

CONVERSATIONS = (
    "messages",
    "conversations",
    "conversation",
    "dialog",
    "dialogue",
    "chat",
    "turns",
    "contents",
)
QUESTIONS = (
    "prompt",
    "question",
    "query",
    "instruction",
    "instructions",
    "problem",
    "request",
    "user",
    "human",
    "q",
    "user_message",
    "user_input",
    "question_text",
    "question_title",
    "sql_prompt",
    "input",
    "task",
)
ANSWERS = (
    "completion",
    "answer",
    "response",
    "output",
    "outputs",
    "reply",
    "assistant",
    "a",
    "answers",
    "answer_text",
    "assistant_message",
    "bot",
    "gpt",
    "target",
    "solution",
    "generated_answer",
    "expected_output",
    "best_answer",
    "correct_answer",
    "sql",
    "code",
)
# Column pairs that belong together; where one is there, other possible columns do not make the file
# ambiguous.
PAIRS = (
    ("prompt", "completion"),
    ("instruction", "output"),
    ("question", "answer"),
    ("query", "response"),
    ("input", "output"),
    ("prompt", "response"),
    ("instruction", "response"),
    ("problem", "solution"),
    ("question", "answers"),
    ("query", "answers"),
    ("q", "a"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("human", "gpt"),
)
SUMMARIES = ("summary", "highlights", "tldr", "abstract")
SUMMARISED = ("document", "article", "dialogue", "text", "content", "report", "body")
CONTEXTS = (
    "input",
    "context",
    "passage",
    "background",
    "inputs",
    "document",
    "paragraph",
    "schema",
    "sql_context",
    "question_content",
)
SYSTEMS = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions", "function_definitions")
TEXTS = (
    "text",
    "content",
    "document",
    "body",
    "article",
    "page_content",
    "markdown",
    "sentence",
    "review",
    "comment",
    "tweet",
    "message",
    "utterance",
    "post",
    "story",
    "raw_text",
    "email",
)
LABELS = (
    "label",
    "labels",
    "class",
    "category",
    "intent",
    "sentiment",
    "topic",
    "tag",
    "target",
    "label_text",
    "label_name",
    "coarse_label",
    "department",
    "rating",
    "stars",
    "emotion",
    "spam",
    "is_spam",
)
CHOSEN = (
    "chosen",
    "preferred",
    "preferred_output",
    "accepted",
    "winner",
    "better",
    "chosen_response",
    "response_chosen",
    "preferred_response",
    "response_j",
    "positive",
    "good",
)
REJECTED = (
    "rejected",
    "dispreferred",
    "non_preferred_output",
    "loser",
    "worse",
    "rejected_response",
    "response_rejected",
    "dispreferred_response",
    "response_k",
    "negative",
    "non_preferred",
    "bad",
)
GOOD = (
    "kto_tag",
    "label",
    "good",
    "is_good",
    "desirable",
    "is_desirable",
    "thumbs_up",
    "thumbs",
    "feedback",
    "liked",
    "upvoted",
    "binary_feedback",
)
GOOD_WORDS = frozenset(
    ("true", "yes", "1", "1.0", "good", "up", "thumbs_up", "positive", "desirable", "👍")
)
BAD_WORDS = frozenset(
    ("false", "no", "0", "0.0", "bad", "down", "thumbs_down", "negative", "undesirable", "👎")
)
TRUTHS = (
    "ground_truth",
    "reference_answer",
    "final_answer",
    "expected_answer",
    "gold_answer",
    "gold",
    "answer_key",
    "reference",
    "reward_model",
    "verifier",
    "test_cases",
    "tests",
    "test",
    "test_list",
    "unit_tests",
    "verification_info",
)
# A class label is about one text, or about two that are compared: these pairs.
COMPARED = (
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question1", "question2"),
    ("question", "sentence"),
)
METADATA = (
    "id", "idx", "index", "uid", "uuid", "guid", "source", "lang", "language", "locale", "split",
    "subset", "dataset", "license", "url",
    "uri", "link", "domain", "file", "filename", "path", "origin", "version", "author", "date",
    "time", "timestamp", "created",
    "created_at", "updated_at", "meta", "metadata", "score", "model", "row", "unnamed:_0",
    "column_1", "year",
    "dump", "repo", "repo_name", "repo_path", "file_path", "size", "extension", "language_score",
    "token_count",
)  # fmt: skip


def normal(column: str) -> str:
    """A column's name for comparison: lower case, spaces and dashes as underscores."""
    return column.strip().lower().replace(" ", "_").replace("-", "_")


def read_mapping(
    mapping: Mapping[str, str], columns: tuple[str, ...], *, at: str
) -> dict[str, str]:
    """A stated mapping by roles' own names.

    Raises InputError with every unknown role and column.
    """
    faults: list[Fault] = []
    result: dict[str, str] = {}
    for spelling, column in mapping.items():
        role = SPELLINGS.get(normal(str(spelling)))
        if role is None:
            faults.append(
                Fault(
                    where="--map",
                    what=f"unknown role '{spelling}'",
                    allowed=f"roles: {', '.join(ROLES)}",
                    hint=nearest(spelling, SPELLINGS),
                )
            )
            continue
        if column not in columns:
            folded = {normal(name): name for name in columns}
            if normal(str(column)) in folded:
                hint = f"did you mean '{folded[normal(str(column))]}'?"
            else:
                hint = nearest(column, columns)
            faults.append(
                Fault(
                    where="--map",
                    what=f"{at} has no column '{column}'",
                    allowed=f"columns: {', '.join(columns)}",
                    hint=hint,
                )
            )
            continue
        if role in result:
            faults.append(
                Fault(
                    where="--map",
                    what=f"two columns for the role '{role}': {result[role]} and {column}",
                    hint="roles spelt alike: " + ", ".join((role, *ROLES[role])),
                )
            )
            continue
        result[role] = column
    # `input` is what a lone question column is often called, and `label` the verdict on a given
    # answer.
    if (
        "context" in result
        and "question" not in result
        and "messages" not in result
        and normal(next(s for s in mapping if SPELLINGS.get(normal(s)) == "context")) == "input"
    ):
        result["question"] = result.pop("context")
    if "label" in result and "answer" in result and "good" not in result:
        result["good"] = result.pop("label")
    if "label" in result and "messages" in result:
        result["good"] = result.pop("label")
    if faults:
        raise InputError(faults=faults)
    return result
