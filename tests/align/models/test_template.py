"""What is trained is what the saved tokenizer serves, or the tokenizer is refused by name."""

import pytest
from transformers import AutoTokenizer

from align.data.encode import encode_demonstrations, encode_documents, encode_prompts, encode_replies
from align.models.tokenizer import TokenizerError, load_tokenizer
from data_formats.chatml import default_system_turn
from data_formats.chatml import served as served_module
from data_formats.records import Demonstration, Document, Message
from tests.qwen_tokenizers import QWEN2_TEMPLATE, as_dicts, qwen
from tests.sentencepiece_tokenizers import SPACES, spaced_tokenizer
from tests.tiny_models import byte_tokenizer

TALK = (
    Message("system", " Be brief: 1 line. "),
    Message("user", "Say 12  things\n in é lines, don't"),
    Message("assistant", "One, two.\n\n▁three 你好 "),
    Message("user", "  And?"),
    Message("assistant", " what it is"),
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def loaded(folder, made, **options):
    made.save_pretrained(folder)
    return load_tokenizer(folder, **options)


def served(folder, turns, **options):
    """The ids that whoever loads the folder gets of a conversation."""
    return AutoTokenizer.from_pretrained(folder).apply_chat_template(as_dicts(turns), **options)["input_ids"]


def is_trained_as_served(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    for turns in (TALK, TALK[1:], TALK[:3], TALK[1:3]):
        rows, _ = encode_demonstrations(tokenizer, [Demonstration(turns)], 1000, "error")
        assert rows[0]["input_ids"] == served(folder, turns)
        (prompt,) = encode_prompts(tokenizer, [turns[:-1]])
        assert prompt == served(folder, turns[:-1], add_generation_prompt=True)
        (reply,) = encode_replies(tokenizer, [turns[-1].content])
        assert prompt + reply == rows[0]["input_ids"][: len(prompt + reply)]
        learnt = [id_ for id_, label in zip(rows[0]["input_ids"], rows[0]["labels"], strict=True) if label != -100]
        assert learnt[-len(reply) :] == reply  # the BOS token and the role line have no loss
    return rows[0]["input_ids"]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("spaces", SPACES)
def test_tokenizers_after_llamas(tmp_path, spaces, bos):
    tokenizer = loaded(tmp_path / "old", spaced_tokenizer(spaces, bos=bos))
    ids = is_trained_as_served(tmp_path / "new", tokenizer)
    assert (ids[0] == tokenizer.bos_token_id) == bos and tokenizer.bos_token_id not in ids[1:]
    text = "Say it\n in lines, don't"
    (block,) = encode_documents(tokenizer, [Document(text)], 100)
    assert block == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.pad_token_id]


def test_the_very_tokens_of_a_metaspace_turn(tmp_path):
    tokenizer = loaded(tmp_path, spaced_tokenizer("always", bos=True))
    (ids,) = encode_prompts(tokenizer, [[Message("user", "what it is")]])
    head, tail = ["<s>", "<|im_start|>", "▁user", "<0x0A>"], ["<|im_end|>", "▁", "<0x0A>"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[:4] == head and tokens[-6:] == [*tail, "<|im_start|>", "▁assistant", "<0x0A>"]
    assert "".join(tokens[4:-6]) == "what▁it▁is"


def test_a_bos_that_only_the_template_writes_stays(tmp_path):
    tokenizer = loaded(tmp_path / "old", spaced_tokenizer("never", template="{{ bos_token }}" + CHATML))
    assert is_trained_as_served(tmp_path / "new", tokenizer)[0] == tokenizer.bos_token_id
    again = load_tokenizer(tmp_path / "new")
    assert again.chat_template == tokenizer.chat_template


def test_a_bos_that_is_a_chatml_token_opens_turns_alone(tmp_path):
    """As SmolLM2's."""
    made = byte_tokenizer(chat_template=CHATML)
    made.bos_token = "<|im_start|>"
    ids = is_trained_as_served(tmp_path / "new", loaded(tmp_path / "old", made))
    assert ids.count(257) == 2


def test_a_newline_and_the_blanks_behind_it_in_one_token(tmp_path):
    """As SmolLM2's: a content that begins with two blanks keeps its border, every other one is as it is served."""
    tokenizer = loaded(tmp_path, byte_tokenizer(chat_template=CHATML, merges=(("Ċ", "Ġ"),)))
    asked = [Message("user", "  And?"), Message("user", " And\n\n  then?")]
    apart, same = (encode_prompts(tokenizer, [[turn]])[0] for turn in asked)
    assert same == served(tmp_path, asked[1:], add_generation_prompt=True) and 256 in same
    assert apart != served(tmp_path, asked[:1], add_generation_prompt=True) and 256 not in apart


@pytest.mark.parametrize("head", ["", "{{ bos_token }}"])
def test_the_default_system_turn_behind_a_bos(tmp_path, head, caplog):
    made = spaced_tokenizer("first", bos=True, template=head + QWEN2_TEMPLATE)
    tokenizer = loaded(tmp_path, made, own_template=True)
    assert default_system_turn(tokenizer) == Message("system", "You are a helpful assistant.")
    rows, _ = encode_demonstrations(tokenizer, [Demonstration(TALK[1:])], 1000, "error", default_system="template")
    assert rows[0]["input_ids"] == served(tmp_path, TALK[1:])
    assert (rows[0]["input_ids"][0] == tokenizer.bos_token_id) == bool(head)
    assert ("writes no BOS token" in caplog.text) == (not head)


@pytest.mark.parametrize("release", ["1.5", "2", "2.5", "3"])
def test_qwens_own_templates_are_served_as_trained(tmp_path, release, caplog):
    loaded(tmp_path, qwen(release), own_template=True)
    assert ("would not serve tools" in caplog.text) == (release in ("1.5", "2"))


REFUSED = {  # own templates
    "strips": (CHATML.replace("m.content", "m.content | trim"), "of a conversation with one question it serves"),
    "no opening": (CHATML.partition("{% if")[0], "it serves 'nothing'|it serves '.*' where"),
    "other words": (CHATML.replace("'assistant", "'bot").replace("start|>assistant", "start|>bot"), "where"),
    "no system turn": (CHATML.replace("{{ m.role }}", "{{ m.role if m.role != 'system' else 'user' }}"), "system turn"),
    "another format": ("{% for m in messages %}[INST]{{ m.content }}[/INST]{% endfor %}", "it writes no ChatML"),
    "text first": ("Hello! " + CHATML, "begin a conversation with .* but with 'Hello! '"),
    "its own refusal": ("{{ raise_exception('no\nsuch thing') }}", "TemplateError: no"),
    "mistake": ("{% for m in messages %}", "TemplateSyntaxError"),
    "unsafe": ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    "no such range": ("{% for i in range(10 ** 9) %}{{ i }}{% endfor %}", "OverflowError"),
    "giant power": ("{{ 9**9 **9 }}", "OverflowError: it computes with a power or number that may be giant"),
    "computed power": ("{{ 9 ** (messages | length * 10**9) }}", "OverflowError: it computes with a power"),
    "giant text": ("{{ '**' * 10000000000 }}", "OverflowError: .* giant: 10000000000"),
    "undefined": ("{{ nothing.at.all }}", "UndefinedError"),
    "endless": (
        "{% for i in range(9 ** 5) %}{% for j in range(9 ** 5) %}{% endfor %}{% endfor %}",
        "TimeoutError: it takes",
    ),
    "deep": ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
    "division": ("{{ 1 // (messages | length - 1) }}", "ZeroDivisionError"),
    "not a text": (7, "fails"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_an_own_template_that_serves_something_else_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(served_module, "SECONDS", 0.5)
    template, sentence = REFUSED[kind]
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = template
    if isinstance(template, str):
        tokenizer.save_pretrained(tmp_path)
    else:
        config = tmp_path / "tokenizer_config.json"
        config.write_text(config.read_text().replace("{", f'{{"chat_template": {template},', 1))
    with pytest.raises(TokenizerError, match=sentence) as caught:
        load_tokenizer(tmp_path, own_template=True)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
    if isinstance(template, str):
        assert load_tokenizer(tmp_path).chat_template != template  # ours takes its place


def test_powers_and_numbers_in_texts_and_calls_are_no_giants():
    harmless = """{% macro f(a) %}{{ a }}{% endmacro %}{{ f( **{'a': "don't 9**9**9 of 10000000000"}) }}{# 9**9**9 #}"""
    text = served_module.render_template(byte_tokenizer(chat_template=harmless), [{"role": "user", "content": "9**9"}])
    assert text == "don't 9**9**9 of 10000000000"


@pytest.mark.parametrize("side", ["rstrip", "lstrip"])
def test_control_tokens_that_swallow_white_space_are_refused(tmp_path, side):
    with pytest.raises(TokenizerError, match=r"ChatML would not be served as it is trained: .*\(token 3\d\)"):
        loaded(tmp_path, spaced_tokenizer("never", **{side: True}))


def test_another_token_before_every_text_is_refused(tmp_path):
    made = spaced_tokenizer("never", bos=True)
    made.bos_token = None
    with pytest.raises(TokenizerError, match="puts <s> before every text, which is no BOS token"):
        loaded(tmp_path, made)
