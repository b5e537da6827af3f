"""Chat templates in the public formats of many models, and tokenizers that hold their special tokens.

They are written from the formats: what stands before and after a turn of each role. ``CHATS`` has them by name.
"""

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

# Contents are a text, or parts of text and images; `said` writes either, with the format's mark for an image.
SAID = (
    "{%- macro said(content) -%}{%- if content is string -%}{{ content }}{%- else -%}{%- for part in content -%}"
    "{%- if part.type == 'image' -%}<image>{%- else -%}{{ part.text }}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)


def headed(header, end, names="", ask=None, begin="", after=""):
    """A format with a header and an end around each turn, the same for all roles.

    Args:
        header: with ``ROLE`` where the role's name stands.
        end: what follows a content.
        names: a mapping of jinja from roles to their names in this format.
        ask: the generation prompt; the assistant's header if None.
        begin: what the prompt begins with.
        after: what follows the generation prompt.
    """
    name = f"{{{{ ({names or '{}'}).get(message.role, message.role) }}}}"
    own = "{{ (" + (names or "{}") + ").get('assistant', 'assistant') }}"
    ask = header.replace("ROLE", own) if ask is None else ask
    return (
        f"{SAID}{begin}{{% for message in messages %}}{header.replace('ROLE', name)}"
        f"{{{{ said(message.content) }}}}{end}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{ask}{after}{{% endif %}}"
    )


def by_role(begin="", ask="", **written):
    """A format that writes each role in its own way, ``CONTENT`` standing for what is said."""
    cases = "".join(
        f"{{%- {'if' if number == 0 else 'elif'} message.role == '{role}' -%}}"
        + " }}{{ said(message.content) }}{{ ".join(f"'{piece}'" for piece in text.split("CONTENT")).join(
            ("{{ ", " }}")
        )
        for number, (role, text) in enumerate(written.items())
    )
    return (
        f"{SAID}{{{{ '{begin}' }}}}{{%- for message in messages -%}}{cases}"
        "{%- else -%}{{ raise_exception('unknown role ' + message.role) }}{%- endif -%}{%- endfor -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ '{ask}' }}}}{{%- endif -%}}"
    )


QWEN_TOOL = "<|im_start|>user\\n<tool_response>\\nCONTENT\\n</tool_response><|im_end|>\\n"
CHATML = {role: f"<|im_start|>{role}\\nCONTENT<|im_end|>\\n" for role in ("system", "user", "assistant")}
DEFAULT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")


@dataclass(frozen=True)
class Chat:
    """A template.

    Attributes:
        template: in jinja.
        special: the format's special tokens.
        added: its tokens that are whole but not special.
        system: whether it has a system turn of its own; ``user`` where it writes it into the user's turn.
        tool: whether it has a tool's turn.
        apart: whether special or added tokens end and begin turns, so that a user can type any text.
        bos: the first token.
    """

    template: str | None
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    system: bool | str = True
    tool: bool = True
    apart: bool = True
    bos: str = "<s>"

    def tokenizer(self):
        """Bytes, and the format's tokens."""
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        special = dict.fromkeys([self.bos, "<image>", "</s>", *self.special])
        tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in self.added])
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=self.bos, eos_token="</s>", chat_template=self.template
        )


LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA4 = ("<|header_start|>", "<|header_end|>", "<|eot|>")
AYA = (
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
)
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>")
KIMI = ("<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|im_end|>")
MISTRAL = ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
VICUNA = "A chat between a curious user and an artificial intelligence assistant. "

CHATS = {
    "chatml": Chat(headed("<|im_start|>ROLE\n", "<|im_end|>\n"), IM),
    "qwen2_vl": Chat(DEFAULT + by_role(**CHATML, tool=QWEN_TOOL, ask="<|im_start|>assistant\\n"), IM),
    "qwen3_vl": Chat(
        by_role(**CHATML, tool=QWEN_TOOL, ask="<|im_start|>assistant\\n"),
        IM,
        ("<tool_response>", "</tool_response>"),
    ),
    "internvl": Chat(headed("<|im_start|>ROLE\n", "<|im_end|>\n"), IM),
    "minicpm": Chat(headed("<|im_start|>ROLE\n", "<|im_end|>\n", after="<think>\n\n</think>\n\n"), IM),
    "llava_onevision": Chat(headed("<|im_start|>ROLE \n", "<|im_end|>"), IM),
    "llava_next_34b": Chat(headed("<|im_start|>ROLE\n", "<|im_end|>"), IM),
    "llama 3": Chat(
        headed("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>", "{'tool': 'ipython'}", begin="<s>"),
        LLAMA3,
    ),
    "llama 4": Chat(
        headed("<|header_start|>ROLE<|header_end|>\n\n", "<|eot|>", "{'tool': 'ipython'}", begin="<s>"), LLAMA4
    ),
    "granite": Chat(
        headed("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n", "{'tool': 'tool_response'}"),
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    "granite vision": Chat(headed("<|ROLE|>\n", "\n"), apart=False),
    "phi": Chat(
        headed("<|ROLE|>\n", "<|end|>\n"), ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")
    ),
    "gemma3": Chat(
        SAID + "<s>{% for message in messages %}{% if message.role == 'system' %}"
        "<start_of_turn>user\n{{ said(message.content) }}\n\n{% else %}"
        "{% if message.role != 'user' or loop.first or messages[0].role != 'system' or loop.index > 2 %}"
        "<start_of_turn>{{ {'assistant': 'model'}.get(message.role, message.role) }}\n{% endif %}"
        "{{ said(message.content) | trim }}<end_of_turn>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        system="user",
    ),
    "gemma4": Chat(
        headed("<|turn>ROLE\n", "<turn|>\n", "{'assistant': 'model'}", begin="<s>"), ("<|turn>", "<turn|>")
    ),
    "mistral3": Chat(
        by_role(
            begin="<s>",
            system="[SYSTEM_PROMPT]CONTENT[/SYSTEM_PROMPT]",
            user="[INST]CONTENT[/INST]",
            assistant="CONTENT</s>",
            tool="[TOOL_RESULTS]CONTENT[/TOOL_RESULTS]",
        ),
        MISTRAL,
    ),
    "llava pixtral": Chat(
        by_role(begin="<s>", system="CONTENT\\n\\n", user="[INST]CONTENT[/INST]", assistant="CONTENT</s>"),
        MISTRAL,
        tool=False,
    ),
    "llava_next mistral": Chat(
        by_role(
            system="<<SYS>>\\nCONTENT\\n<</SYS>>\\n\\n", user="[INST] CONTENT [/INST]", assistant=" CONTENT</s> "
        ),
        tool=False,
        apart=False,
    ),
    "llama 2": Chat(
        SAID + "{% for message in messages %}{% if message.role == 'system' %}"
        "<s>[INST] <<SYS>>\n{{ said(message.content) }}\n<</SYS>>\n\n{% elif message.role == 'user' %}"
        "{% if loop.index != 2 or messages[0].role != 'system' %}<s>[INST] {% endif %}"
        "{{ said(message.content) }} [/INST]"
        "{% elif message.role == 'assistant' %} {{ said(message.content) }} </s>"
        "{% else %}{{ raise_exception('no tools') }}{% endif %}{% endfor %}",
        tool=False,
        apart=False,
    ),
    "deepseek": Chat(
        by_role(
            begin="<s>",
            ask="<｜Assistant｜><think>\\n",
            system="CONTENT",
            user="<｜User｜>CONTENT",
            assistant="<｜Assistant｜>CONTENT</s>",
            tool="<｜tool▁outputs▁begin｜>CONTENT<｜tool▁outputs▁end｜>",
        ),
        added=DEEPSEEK,
    ),
    "deepseek vl": Chat(
        by_role(
            system="CONTENT\\n\\n",
            user="User: CONTENT\\n\\n",
            assistant="Assistant: CONTENT</s>",
            ask="Assistant:",
        ),
        tool=False,
        apart=False,
    ),
    "deepseek vl2": Chat(
        by_role(user="<|User|>: CONTENT\\n\\n", assistant="<|Assistant|>: CONTENT</s>", ask="<|Assistant|>:"),
        ("<|User|>", "<|Assistant|>"),
        system=False,
        tool=False,
    ),
    "glm4v": Chat(
        headed("<|ROLE|>\n", "", "{'tool': 'observation'}", begin="[gMASK]<sop>", after="<think>"),
        GLM,
        ("<think>",),
    ),
    "kimi": Chat(
        "{%- set headers = {'system': 'system', 'tool': 'system', 'user': 'user', 'assistant': 'assistant'} -%}"
        + headed(
            "<|im_{{ headers[message.role] }}|>ROLE<|im_middle|>",
            "<|im_end|>",
            ask="<|im_assistant|>assistant<|im_middle|>",
        ),
        KIMI,
    ),
    "aya": Chat(
        headed(
            "<|START_OF_TURN_TOKEN|><|ROLE_TOKEN|>",
            "<|END_OF_TURN_TOKEN|>",
            "{'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}",
            begin="<s>",
        ),
        AYA,
        tool=False,
    ),
    "alpaca": Chat(
        by_role(
            system="CONTENT\\n\\n",
            user="### Instruction:\\nCONTENT\\n\\n",
            assistant="### Response:\\nCONTENT</s>\\n\\n",
            ask="### Response:\\n",
        ),
        tool=False,
        apart=False,
    ),
    "vicuna": Chat(
        f"{{% if messages[0].role != 'system' %}}{VICUNA}{{% endif %}}"
        + by_role(system="CONTENT ", user="USER: CONTENT ", assistant="ASSISTANT: CONTENT</s>", ask="ASSISTANT:"),
        tool=False,
        apart=False,
    ),
    "llava": Chat(
        by_role(system="CONTENT ", user="USER: CONTENT ", assistant="ASSISTANT: CONTENT ", ask="ASSISTANT:"),
        tool=False,
        apart=False,
    ),
    "vicuna 1.0": Chat(
        by_role(
            system="CONTENT\\n", user="###Human: CONTENT", assistant="###Assistant: CONTENT", ask="###Assistant:"
        ),
        tool=False,
        apart=False,
    ),
    "idefics": Chat(
        headed(
            "ROLE: ",
            "<end_of_utterance>\n",
            "{'user': 'User', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'}",
            begin="<s>",
        ),
        ("<end_of_utterance>",),
    ),
    "smolvlm": Chat(
        headed(
            "ROLE: ",
            "<end_of_utterance>\n",
            "{'user': 'User', 'assistant': 'Assistant', 'system': 'System', 'tool': 'Tool'}",
            begin="<|im_start|>",
        ),
        ("<end_of_utterance>",),
        bos="<|im_start|>",
    ),
}
