"""Chat templates in the styles that families of models have, written for these tests."""

from tests.export.runs import CHATML

ZEPHYR = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}"
    "\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and system is defined %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}"
    "{{ message['content'] | trim }} [/INST]{% else %} {{ message['content'] | trim }} {{ eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
DATED = (
    "{{ bos_token }}<|system|>{{ strftime_now('%d %b %Y') }}\n{% if messages[0]['role'] == 'system' %}"
    "{{ messages[0]['content'] }}{% set messages = messages[1:] %}{% endif %}<|end|>"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# The system message stands in the last question.
MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set messages = messages[1:] %}{% endif %}{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}[INST] {% if system is defined and (loop.last or"
    " (loop.revindex == 2 and messages[-1]['role'] == 'assistant')) %}{{ system }}\n\n{% endif %}"
    "{{ message['content'] }}[/INST]{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for message in messages if message['role'] != 'system' %}"
    "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %}{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Thinks unless it is told not to; earlier answers lose their thoughts.
THINKING = (
    "{% set places = namespace(last=0) %}{% for message in messages %}"
    "{% if message.role == 'user' %}{% set places.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% set words = message.content %}{% set thoughts = message.reasoning_content or '' %}"
    "{% if '</think>' in words %}{% set thoughts = words.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set words = words.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > places.last %}<think>\n{{ thoughts }}\n</think>\n\n{{ words.lstrip('\n') }}"
    "{% else %}{{ words }}{% endif %}<|im_end|>\n"
    "{% else %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
# Braces, quotes and characters that no Modelfile holds.
ODD = (
    '{{ bos_token }}{% for message in messages %}{{ "{{" }}{{ message.role }}{{ "}}" }}"""\u00a0{{ \'{\' }}'
    "{{ message.content }}{{ '}' }}\u200b\r\n{% endfor %}{% if add_generation_prompt %}"
    "{{ '{{' }}assistant{{ '}}' }}\"\"\"\u00a0{{ '{' }}{% endif %}"
)
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}" + ZEPHYR

STYLES = {
    "chatml": CHATML, "zephyr": ZEPHYR, "llama_2": LLAMA_2, "llama_3": LLAMA_3, "dated": DATED,
    "gemma": GEMMA, "no_system": NO_SYSTEM, "thinking": THINKING, "odd": ODD,
    "tools": TOOLS,
}  # fmt: skip

# A template that no fixed texts make, and why.
REFUSED = {
    "leaves words out": "{% for message in messages %}{{ message['role'] }}{% endfor %}",
    "depending on how many": (
        "{% for message in messages %}<{{ loop.index }}>{{ message['content'] }}{% endfor %}"
    ),
    "in another order": MISTRAL,
    "refuses a plain conversation": "{{ raise_exception('never') }}",
    "comes out as": (
        "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] | replace('Hello', 'Bye') }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
}
