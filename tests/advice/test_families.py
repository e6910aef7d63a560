"""What a model's name tells: encoders and sequence-to-sequence models, which are advised for what they
do, and what this tool cannot train, with where to go; what it can is never refused by name."""

import json
import random
from itertools import product

import pytest

from advisor.advice.planning import missing_for_plan
from advisor.advice.questions import may_train
from advisor.commands.wizard import AnswerCache
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.types import Answer, AnswerSet
from advisor.ground.yaml_files import read_yaml
from advisor.methods.families import (
    DECODER,
    ENCODER,
    SEQ2SEQ,
    families,
    family_of_name,
    kind_of_type,
)
from advisor.render.next_steps import next_steps
from advisor.render.words import what_to_do
from advisor.ruleset.facts import load_facts
from advisor.situation.build import situation_of
from advisor.situation.catalogue import catalogue_ids, organisation_models
from advisor.situation.models import model_shape
from advisor.situation.names import HARDWARE, original_of, out_of_scope, scope_file
from advisor.situation.suggestions import suggest_encoder
from tests.advice.situations import (
    RULES,
    UNKNOWN_MACHINE,
    advice_on,
    advised,
    drawn,
    random_advices,
    random_answers,
    stated,
)
from tests.conftest import scaled

# Published models of each kind, as their hubs and papers call them.
ENCODERS = [
    "roberta-base", "FacebookAI/roberta-large", "distilroberta-base",
    "FacebookAI/xlm-roberta-large", "XLM-R", "microsoft/deberta-v3-base",
    "microsoft/mdeberta-v3-base", "google-bert/bert-base-multilingual-cased", "mBERT",
    "google/electra-base-discriminator", "almanach/camembert-base",
    "distilbert/distilbert-base-multilingual-cased", "answerdotai/ModernBERT-large",
    "jhu-clsp/mmBERT-base", "albert/albert-base-v2", "microsoft/mpnet-base", "SetFit",
    "microsoft/MiniLM-L12-H384-uncased", "urchade/gliner_medium-v2.1", "dmis-lab/biobert-v1.1",
    "ProsusAI/finbert", "nlpaueb/legal-bert-base-uncased", "vinai/bertweet-base",
    "microsoft/codebert-base", "allenai/longformer-base-4096", "EuroBERT/EuroBERT-210m",
]  # fmt: skip
SEQ2SEQ_MODELS = [
    "google-t5/t5-small", "google/flan-t5-xxl", "google/mt5-base", "google/byt5-small",
    "Salesforce/codet5p-220m", "facebook/bart-large-cnn", "sshleifer/distilbart-cnn-12-6",
    "facebook/mbart-large-50", "facebook/nllb-200-distilled-600M", "facebook/m2m100_418M",
    "Helsinki-NLP/opus-mt-en-de", "google/pegasus-xsum", "allenai/led-base-16384",
    "bigscience/mt0-large", "google/madlad400-3b-mt", "CohereForAI/aya-101", "google/ul2",
]  # fmt: skip
DECODERS = [
    "Qwen/Qwen3-8B", "meta-llama/Llama-3.1-8B-Instruct", "mistralai/Mistral-7B-v0.3",
    "openai-community/gpt2", "gpt-5", "google/gemma-3-4b-it", "microsoft/phi-4",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "EleutherAI/pythia-1b", "baidu/ERNIE-4.5-0.3B-PT",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((name, ENCODER) for name in ENCODERS),
        *((name, SEQ2SEQ) for name in SEQ2SEQ_MODELS),
        *((name, DECODER) for name in DECODERS),
        *((name, None) for name in ("openai/whisper-large-v3", "facebook/hubert-large", "our-own")),
    ],
)
def test_a_name_gives_its_kind_away(name, kind):
    """Speech models and unknown names are not taken for an encoder of texts."""
    found = family_of_name(name)
    assert (None if found is None else found.kind) == kind


def test_every_architecture_of_the_list_has_its_kind():
    """That of its family, and nothing is listed under two kinds."""
    data = read_yaml(rules_dir() / "families.yaml").data["families"]
    listed = {(name, one["kind"]) for one in data.values() for name in one["model_types"]}
    assert len(listed) == len({name for name, _ in listed}) > 40
    assert all(kind_of_type(name) == kind for name, kind in listed)
    assert all(family.usual is None or family.usual in family.sizes for family in families())
    assert kind_of_type("llama") == kind_of_type(None) == DECODER


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("roberta-large", 355_359_744), ("our flan-t5 base", 247_577_856),
        ("facebook/bart-base", 139_420_416), ("BERT", 109_482_240),
    ],
)  # fmt: skip
def test_sizes_by_word(name, params):
    """A word of the name gives the size as transformers counts it; else the usual or nearer one."""
    shape, warnings = model_shape(name)
    assert shape.params == params
    assert name != "BERT" or "usual size" in warnings[0]
    assert model_shape("our RoBERTa", params_b=0.3)[0].layers == 24


@pytest.mark.parametrize("name", ["roberta-base", "google-bert/bert-large-uncased"])
@pytest.mark.parametrize(
    ("stated", "expected", "said"),
    [
        # Marked words need another recipe: the answer names what trains it.
        ({"task": "structured_output"}, "encoder:sft+full", "run_ner.py"),
        ({"task": "multi_department", "n_tasks": 8}, "encoder:sft+adapter@per_task", ""),
        ({"task": "classification", "n_tasks": 8}, "encoder:sft+adapter@per_task", ""),
        ({"task": "classification", "budget": "high", "priority": "quality"}, "encoder:sft+full", ""),
        ({"task": "other"}, "encoder:sft+full", ""),
    ],
)  # fmt: skip
def test_a_named_encoder_is_trained_for_what_it_can_do(name, stated, expected, said):
    """Entities, many tasks and classes are what encoders are for."""
    advice = advised(gpu="unknown", model=name, data_kind="paired", data_rows=3000, **stated)
    assert str(advice.recommendation.composition) == expected
    assert any(said in warning for warning in ("", *advice.warnings))


@pytest.mark.parametrize("name", SEQ2SEQ_MODELS)
def test_sequence_to_sequence_models_have_their_own_way(name):
    """Small ones are trained whole and large ones with LoRA; the reason names what they are."""
    advice = advised(
        task="generation", model=name, data_kind="paired", data_rows=5000, gpu="unknown"
    )
    large = model_shape(name)[0].params >= 1.5e9
    assert str(advice.recommendation.composition) == f"encoder:sft+{'lora' if large else 'full'}"
    reasons = " ".join(reason.text for reason in advice.recommendation.because)
    assert "sequence-to-sequence" in reasons
    assert advice.recommendation.estimate.memory is not None


def test_of_several_names_it_is_said_that_an_answer_is_about_one():
    """The name counts as a description, and its note says what was taken."""
    text = "Llama-2-7B / ChatGLM2-6B"
    advice = advised(task="classification", model=text, data_kind="paired", gpu="unknown")
    assert any("an answer is about one model" in said for said in advice.warnings)
    assert any("taken as" in said for said in advice.warnings)


def random_small(seed):
    """A situation with an encoder or a sequence-to-sequence model in it, by one name."""
    rng = random.Random(seed)
    kind, names = rng.choice(((ENCODER, ENCODERS), (SEQ2SEQ, SEQ2SEQ_MODELS)))
    stated = drawn(
        rng, (1, "task"), (1, "model", names), (1, "gpu", ("unknown", "T4", "A100 80GB", "none")),
        (0.5, "data_kind"), (0.5, "data_rows", (12, 64, 3000, 200_000)), (0.5, "budget"),
        (0.5, "priority"), (0.5, "depth"), (0.5, "n_tasks", (1, 6)),
        (0.5, "signals", (("latency_critical",), ("memory_bound",), ("teacher_available",))),
    )  # fmt: skip
    if stated.get("data_kind") == "none":
        stated.pop("data_rows", None)  # nothing can be counted
    return kind, stated


def test_naming_a_small_model_never_yields_a_chain_for_a_decoder():
    """A remedy, a refusal, or one supervised stage; and an encoder is never trained to write."""
    trained, refused = 0, set()
    for seed in range(scaled(120)):
        kind, stated = random_small(seed)
        try:
            advice = advised(**stated)
        except InputError:
            refused.add(kind)
            continue
        found = advice.recommendation.composition
        if found.chain:
            trained += 1
            assert found.encoder, (stated, str(found))
            assert found.chain == ("sft",)
            writes = ("customer_service", "chat_assistant", "generation", "code", "reasoning")
            assert kind == SEQ2SEQ or stated["task"] not in writes, stated
            assert advice.recommendation.stages[0].stage.learning_rate > 0
            assert isinstance(missing_for_plan(advice, advice.recommendation), list)
    assert trained > scaled(120) / 6
    assert refused <= {ENCODER}


FEW = [(rows, {"priority": "quality"}) for rows in (16, 40, 60)]
IN_A_HURRY = [
    *product(
        (64, 500, 5000, 100_000), ({"signals": ("latency_critical",)}, {"priority": "latency"})
    )
]


@pytest.mark.parametrize("budget", ["low", "medium", "high"])
@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        *((*one, "encoder:sft+full") for one in (*FEW, *IN_A_HURRY)),
        (8, {}, "prompting"),
        (15, {}, "prompting"),
    ],
)
def test_labels_want_an_encoder_whatever_the_budget(budget, rows, more, expected):
    """Money changes nothing; few labels name SetFit, and a handful goes into a prompt."""
    advice = advised(
        task="classification", data_kind="paired", data_rows=rows, budget=budget, gpu="unknown",
        **more,
    )  # fmt: skip
    assert str(advice.recommendation.composition) == expected
    assert rows >= 64 or rows < 16 or any("SetFit" in warning for warning in advice.warnings)


@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("The parcel arrived three weeks late and this is not what you promised, number {i}",
         "answerdotai/ModernBERT-base"),
        ("Die Lieferung kam leider erst nach drei Wochen bei mir zu Hause an, Nummer {i}",
         "jhu-clsp/mmBERT-base"),
        ("Посылка пришла на три недели позже, чем было обещано, номер {i}", "jhu-clsp/mmBERT-base"),
    ],
)  # fmt: skip
def test_the_suggested_encoder_reads_the_language_of_the_data(text, model, tmp_path):
    """English texts get the English encoder, all others a multilingual one, named beside it."""
    path = tmp_path / "labels.csv"
    rows = "".join(f'"{text.format(i=i)}",{"late" if i % 2 else "lost"}\n' for i in range(80))
    path.write_text(f"text,label\n{rows}", encoding="utf-8")
    advice = advised(task="classification", data_path=str(path), gpu="unknown")
    assert advice.situation.model.id == model
    found = suggest_encoder([])
    assert found.model == "answerdotai/ModernBERT-base"
    assert "jhu-clsp/mmBERT-base" in found.because


NAMES = {
    "embedding_model": (
        "BAAI/bge-m3", "Qwen/Qwen3-Embedding-0.6B", "Qwen3-Embedding-0.6B for our search",
        "all-MiniLM", "sentence-transformers/all-MiniLM-L6-v2",
        "intfloat/e5-mistral-7b-instruct", "thenlper/gte-large",
        "Alibaba-NLP/gte-Qwen2-7B-instruct", "google/embeddinggemma-300m",
        "nomic-ai/nomic-embed-text-v1.5", "fine-tune an embedding model for search",
        "a sentence transformer", "bge-m3 / all-MiniLM",
    ),
    "reranker": (
        "BAAI/bge-reranker-v2-m3", "Qwen/Qwen3-Reranker-4B",
        "cross-encoder/ms-marco-MiniLM-L6-v2", "a reranker",
    ),
    "speech_model": (
        "openai/whisper-large-v3", "whisper", "Whisper large v3 for our call centre",
        "facebook/wav2vec2-base", "nvidia/parakeet-tdt-0.6b-v2", "a text-to-speech model",
    ),
    "vision_model": (
        "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "llava-hf/llava-1.5-7b-hf",
        "meta-llama/Llama-3.2-11B-Vision-Instruct", "Llama 3.2 11B Vision",
        "google/paligemma-3b-pt-224", "a vision language model", "vision LLM",
    ),
    "image_generator": (
        "stabilityai/stable-diffusion-xl-base-1.0", "SDXL", "black-forest-labs/FLUX.1-dev",
        "a diffusion model",
    ),
    "closed_model": (
        "gpt-4.1-mini", "GPT-4o mini", "ChatGPT", "o3-mini", "claude-3-haiku",
        "Claude Sonnet 4.5", "gemini-2.5-flash", "mistral-large-latest",
    ),
    "packed_file": (
        "bartowski/Qwen3-8B-GGUF", "./Qwen3-8B-Q4_K_M.gguf", "mlx-community/Qwen3-8B-4bit",
        "a GGUF file",
    ),
}  # fmt: skip
OUTSIDE = {name: kind for kind, names in NAMES.items() for name in names}
# Names and words that only sound like one.
INSIDE = (
    "a model that answers whisper-quiet", "whisper-quiet",
    "Llama-3 embedding our company culture", "a model with word-embedding tables",
    "a chat model for embedded devices", "Qwen3-8B with bge-m3 for the search",
    "GPT-4o distilled into Llama 3 8B", "a model like GPT-4, 7B",
    "a 7B model that replaces Claude", "an 8B text model trained on Claude outputs",
    "chavinlo/gpt4-x-alpaca", "openai/gpt-oss-120b", "openai-community/gpt2-xl",
    "flux-capacitor-7b", "Piper-7B", "a 3B model for speech therapists",
    "a model for image captions of museums, 8B", "a model for diffusion of information",
    "claudette-8b", "deepseek-ai/DeepSeek-V3", "mistralai/Codestral-22B-v0.1",
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "google/gemma-3-12b-it",
    "meta-llama/Llama-4-Scout-17B-16E-Instruct", "Qwen/Qwen3.5-27B", "xlm-roberta-large",
    "google-t5/t5-base", "facebook/nllb-200-distilled-600M", "TheBloke/Llama-2-7B-GPTQ",
    "Llama 13B", "7B",
)  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), [*OUTSIDE.items(), *((name, None) for name in INSIDE)])
def test_what_a_name_tells(name, kind):
    """Each kind is recognised in a description, unless the word also names a model or compares."""
    found = out_of_scope(name)
    assert (found and found.kind) == kind
    if found is not None:
        assert found.where
        assert all(source.url.startswith("https://") for source in found.sources)


def test_no_text_model_of_the_catalogue_is_refused():
    """Catalogued models are in scope by id and short name, unless their model_type is not."""
    types = {name for kind in scope_file()["kinds"] for name in kind.get("model_types", ())}
    checked = 0
    for hub_id in catalogue_ids():
        model_type = organisation_models(hub_id.split("/")[0].lower())[hub_id].get("model_type")
        refused = model_type in types
        checked += not refused
        sorts = model_type is not None and kind_of_type(model_type) == ENCODER
        for name in (hub_id, hub_id.split("/", 1)[1]):
            found = out_of_scope(name, "classification" if sorts else None)
            assert (found is not None) is refused, name
    assert checked >= 100


def test_a_named_family_never_leads_to_training():
    """A model out of scope leads to no training, plan or promised training: to another tool, a
    closed one first to what helps without its weights.
    """
    rng = random.Random(5)
    for seed in range(scaled(60)):
        name = rng.choice([*OUTSIDE])
        known = {**random_answers(seed).known, "model": Answer(value=name, origin="flag")}
        task = known["task"].value
        if out_of_scope(name, task) is None:  # small embedding models sort texts
            assert task == "classification"
            continue
        try:
            advice = advice_on(situation_of(AnswerSet(known=known)), flips=True)
        except InputError:  # what was drawn contradicts itself
            continue
        found, *others = [advice.recommendation.composition, *(one.to for one in advice.flips)]
        assert advice.situation.suggestion is None
        assert not any(one.chain for one in (found, *others)), (name, known)
        if OUTSIDE[name] != "closed_model":
            assert (str(found), others) == ("other_tool", []), (name, known)
        assert advice.decided_by[0].startswith("evidence/")


def test_a_text_model_is_never_another_tools_matter(situation_files):
    """Random situations with models of the catalogue never end at another tool."""
    for seed, advice in random_advices(range(scaled(60)), situation_files):
        assert "other_tool" not in advice.recommendation.composition.remedies, seed


@pytest.mark.parametrize(
    ("stated", "composition"),
    [
        ({"task": "chat_assistant"}, "prompting"),
        ({"task": "qa", "data_kind": "raw_text"}, "rag"),
        ({"task": "qa", "facts_change_often": True}, "rag"),
        ({"task": "structured_output", "data_kind": "none"}, "constrained_decoding"),
        ({"task": "tool_use"}, "tool_use"),
        ({"task": "customer_service", "data_kind": "paired", "data_rows": 5000}, "other_tool"),
    ],
)
def test_what_helps_without_the_weights(stated, composition):
    """A closed model is prompted, searched for and given functions before it is left."""
    advice = advised(model="gpt-4.1-mini", **stated)
    assert str(advice.recommendation.composition) == composition
    assert ("weights cannot be downloaded" in what_to_do(advice)) is (composition == "other_tool")


def test_a_closed_model_is_served_by_its_vendor_first():
    """What to do with that vendor's model comes before a model of one's own; others see neither."""
    keys = {"task": "qa", "data_kind": "raw_text", "signals": ("facts_change_often",)}
    closed, own = (next_steps(advised(**keys, model=name)) for name in ("ChatGPT", "Qwen/Qwen3-8B"))
    assert "the vendor's own file search" in closed[0].ways[0].text
    assert [way for way in closed[0].ways if not way.when] == [*own[0].ways]


@pytest.mark.parametrize("gpu", ["TPU v5e", "Trainium", "Gaudi 2", "Ascend 910B"])
def test_a_device_that_is_not_trained_on(gpu):
    """The method is the same there, and the answer names the tool for that device."""
    advice = advised(task="qa", data_kind="paired", data_rows=5000, gpu=gpu)
    assert str(advice.recommendation.composition) == "sft+lora"
    assert advice.situation.outside.kind == HARDWARE
    assert advice.situation.outside.where


@pytest.mark.parametrize(
    ("name", "is_outside"),
    [
        *((name, False) for name in ("all-MiniLM", "BAAI/bge-m3", "a sentence transformer")),
        ("Qwen/Qwen3-Embedding-0.6B", True),
    ],
)
def test_small_embedding_models_sort_texts(name, is_outside):
    """With labelled texts such a model trains as any other encoder; a large one does not."""
    assert out_of_scope(name, "qa") is not None
    assert (out_of_scope(name, "classification") is not None) is is_outside


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("bartowski/Qwen3-8B-GGUF", "Qwen/Qwen3-8B"),
        ("./models/Qwen3-8B-Q4_K_M.gguf", "Qwen/Qwen3-8B"),
        ("mlx-community/Qwen3-8B-4bit", "Qwen/Qwen3-8B"),
        ("Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", "meta-llama/Llama-3.1-8B-Instruct"),
        ("TheBloke/Llama-2-7B-GGUF", "meta-llama/Llama-2-7b-hf"),
        ("nobody/knows-this-GGUF", ""),
    ],
)
def test_the_original_of_a_packed_copy(name, original):
    """Its name tells which model of the catalogue a copy was made from."""
    assert (original_of(name), original in out_of_scope(name).where) == (original, True)


@pytest.mark.parametrize(
    ("file", "text", "kind"),
    [
        ("config.json", '{"model_type": "whisper"}', "speech_model"),
        ("config.json", '{"model_type": "qwen2_5_vl"}', "vision_model"),
        ("model_index.json", "{}", "image_generator"),
        ("modules.json", "[]", "embedding_model"),
        ("config.json", '{"model_type": "qwen3"}', None),
        ("config.json", "{broken", None),  # another step says what is wrong with it
    ],
)
def test_a_folder_tells_by_its_files(tmp_path, file, text, kind):
    """A configuration of another kind, a pipeline of diffusers, a sentence transformer."""
    (tmp_path / file).write_text(text)
    found = out_of_scope(str(tmp_path))
    assert (found and found.kind) == kind


def test_every_kind_is_a_value_of_the_fact_and_has_models_that_exist():
    """The file, the fact and the rules speak of the same kinds; what is named instead is known."""
    kinds = {kind["kind"] for kind in scope_file()["kinds"]}
    assert kinds | {HARDWARE} == set(load_facts()["out_of_scope"].values)
    instead = {name for kind in scope_file()["kinds"] for name in kind.get("instead", ())}
    assert instead <= {*catalogue_ids()}


ASKED = ("--json", "--task", "qa")


@pytest.mark.parametrize(
    "named",
    [("--gpu", "L4", "--model", "openai/whisper-large-v3"), ("--gpu", "TPU v5e")],
    ids=["model", "device"],
)
def test_the_document_says_what_and_where(approved, call, named):
    """Exit code 0 without a plan, 3 where one was asked for, and the same document; no composition
    can be forced into a plan there.
    """
    (code, out, _), (with_plan, same, _) = (
        call(*ASKED, *named, *plan) for plan in ((), ("--plan", "p.yaml"))
    )
    assert (code, with_plan) == (0, 3)
    found, other = json.loads(out), json.loads(same)
    assert found["recommendation"] == other["recommendation"]
    steps = [found["recommendation"][key] for key in ("composition", "stages", "next_steps")]
    approved([steps, found["out_of_scope"], other["plan"], found["missing"], other["missing"]])


def test_what_a_name_says_is_not_the_last_word(call):
    """--choose with --force takes it all the same; GPTQ and AWQ are in scope."""
    asked = (*ASKED, "--gpu", "L4", "--model")
    code, out, _ = call(*asked, "my/whisper-large-8b", "--choose", "sft+lora", "--force")
    assert (code, json.loads(out)["recommendation"]["composition"]) == (0, "sft+lora")
    document = json.loads(call(*asked, "Qwen/Qwen3-8B-AWQ")[1])
    assert document["out_of_scope"] is None
    assert any("Qwen/Qwen3-8B, which it was made from" in said for said in document["warnings"])


def test_the_wizard_asks_no_further_once_it_knows():
    """A model out of scope settles the answer: no open question can lead to training."""
    seen = AnswerCache(UNKNOWN_MACHINE)
    facts = seen.facts(stated(task="customer_service", model="openai/whisper-large-v3"))
    assert facts["out_of_scope"] == "speech_model"
    open_questions = {fact.id for fact in load_facts().values() if fact.order} - {"task", "model"}
    assert not may_train(RULES, facts, open_questions)
    assert may_train(RULES, seen.facts(stated(task="customer_service")), open_questions)
