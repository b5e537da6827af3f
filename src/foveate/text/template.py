"""What a chat template writes between two turns, read off conversations whose contents are marks."""

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from foveate.text.flat import flat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("system", "user", "assistant", "tool")
CONTENT = re.compile(rf"zq({'|'.join(ROLES)})qz")
# One letter per message: the roles' first letters, and c and d for an assistant's calls of two tools. Templates
# that refuse one of these conversations are asked the others.
ASKING = ("u", "su", "uau", "uauau", "suau", "uu", "uat", "uct", "udt", "uctt", "uctau", "udtau", "uctu")
ENDED = ("u", "ua")
LETTERS = {role[0]: role for role in ROLES} | {"c": "assistant", "d": "assistant"}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {"c": ("look", {}), "d": ("measure", {"unit": "metre"})}


@dataclass(frozen=True)
class Gap:
    """The text between two contents.

    Attributes:
        before: the role of the turn that ends, or ``start``.
        after: the role of the turn that begins, or ``end``.
        text: as `flat_text` reads it, blanks as one space.
        asks: whether it is a generation prompt: an answer is to follow.
    """

    before: str
    after: str
    text: str
    asks: bool = False


def gaps_of(tokenizer: "PreTrainedTokenizerBase", template: str) -> list[Gap]:
    """The different gaps that a template writes; none where it cannot be rendered."""
    found: dict[Gap, None] = {}
    for letters, asks in [*((letters, True) for letters in ASKING), *((letters, False) for letters in ENDED)]:
        pieces = _rendered(tokenizer, template, letters, asks)
        # Text and roles in turns: the text before the first content, the role of that, and so on.
        texts, roles = pieces[::2], ["start", *pieces[1::2], "assistant" if asks else "end"]
        for index, text in enumerate(texts):
            last = index == len(texts) - 1
            found[Gap(roles[index], roles[index + 1], _collapsed(tokenizer, text), asks and last)] = None
    return list(found)


def _rendered(tokenizer: "PreTrainedTokenizerBase", template: str, letters: str, asks: bool) -> list[str]:
    """The rendered conversation, split at its contents; empty if the template refuses it or drops the user."""
    best: list[str] = []
    # Templates want contents as text or in parts, and arguments of calls as an object or as text.
    for parts, quoted in product((False, True), (False, True) if {*letters} & {*CALLS} else (False,)):
        messages = [_message(letter, parts, quoted) for letter in letters]
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=asks
            )
        except Exception:  # a template is someone's program, and refuses roles and orders in its own way
            continue
        pieces = CONTENT.split(str(text))
        if pieces[1::2].count("user") == letters.count("u") and len(pieces) > len(best):
            best = pieces
    return best


def _message(letter: str, parts: bool, quoted: bool) -> dict[str, Any]:
    role = LETTERS[letter]
    text = f"zq{role}qz"
    message: dict[str, Any] = {"role": role, "content": [{"type": "text", "text": text}] if parts else text}
    if letter in CALLS:
        name, arguments = CALLS[letter]
        function = {"name": name, "arguments": json.dumps(arguments) if quoted else arguments}
        message["tool_calls"] = [{"id": "abcdefghi", "type": "function", "function": function}]
    if role == "tool":
        message |= {"name": "look", "tool_call_id": "abcdefghi"}
    return message


def _collapsed(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """`flat_text` of a text with one space for blanks, at its ends, too, where tokenizers may lose them."""
    inner = " ".join(flat_text(tokenizer, text.strip()).split())
    if not inner:
        return " " if text else ""
    return f"{' ' * text[0].isspace()}{inner}{' ' * text[-1].isspace()}"
