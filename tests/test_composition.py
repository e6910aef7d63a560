"""Compositions: what is written, read back the same."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advisor.ground.errors import InputError
from advisor.methods import objectives, remedies, schemes
from advisor.methods.composition import parse_composition
from tests.conftest import examples


def test_the_parts_in_the_other_order_are_put_right():
    """The scheme stands behind; one fault says so, and not one for each word."""
    with pytest.raises(InputError) as caught:
        parse_composition("lora+sft")
    assert [fault.hint for fault in caught.value.faults] == ["did you mean 'sft+lora'?"]


def test_qlora_is_lora_on_a_4bit_base():
    """Inside there are two keys, and no second copy of LoRA."""
    composition = parse_composition("sft+qlora")
    found = (composition.update, composition.quantization, composition.scheme)
    assert found == ("lora", "nf4", "qlora")


@examples(2, deadline=200)
@given(
    st.lists(st.sampled_from(objectives()), min_size=1, max_size=3),
    st.sampled_from(list(schemes())),
    st.booleans(),
    st.booleans(),
    st.lists(st.sampled_from(remedies()), unique=True, max_size=2),
)
def test_any_composition_is_lossless(chain, scheme, per_task, encoder, remedies):
    """Text -> value -> text changes nothing."""
    chained = f"{'encoder:' if encoder else ''}{'>'.join(chain)}+{scheme}"
    text = " & ".join([*remedies, chained + ("@per_task" if per_task else "")])
    assert str(parse_composition(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompting & rag & sft+lroa", "did you mean 'lora'"),
        ("stf+lora", "did you mean 'sft'"),
        ("promting", "did you mean 'prompting'"),
        ("sft+lora & rm+lora", "two training chains"),
        ("", "neither"),
    ],
)
def test_says_what_is_wrong(text, said):
    """An unreadable composition names the part and the nearest known name."""
    with pytest.raises(InputError, match=said):
        parse_composition(text)
