"""Characters that do not belong in a text: NUL, chat template marks, text wrongly decoded."""

from __future__ import annotations

from typing import ClassVar

from advisor.data.checks import RowCheck, SeenRow

# Marks that chat templates and tokenizers write themselves: in the text they end a turn early or
# open a false one.
TEMPLATE_MARKS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]",
    "[/INST]", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>",
)  # fmt: skip
MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨", "Ã±", "â€™", "â€œ", "â€“", "Â ")


class BrokenText(RowCheck):
    """Rows with each of them."""

    place = 20
    says: ClassVar = {
        "nul-character": ("warning", "{rows} with a NUL character"),
        "template-marks-in-text": (
            "warning",
            "{rows} with marks of a chat template or tokenizer in the text, such as <|im_end|> or"
            " </s>: the trainer adds its own",
        ),
        "mojibake": (
            "warning",
            "{rows} with text wrongly decoded (Ã© for é): convert the file from its real encoding",
        ),
    }

    def see(self, row: SeenRow) -> None:
        text = row.text
        if "\0" in text:
            self.tallies["nul-character"].add(row.number)
        if ("<" in text or "[" in text) and any(mark in text for mark in TEMPLATE_MARKS):
            self.tallies["template-marks-in-text"].add(row.number)
        if not text.isascii() and any(mark in text for mark in MOJIBAKE):
            self.tallies["mojibake"].add(row.number)
