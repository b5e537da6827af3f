"""Where the user's turns are in a prompt without a chat template: the ways to mark turns that are known.

A prompt is of the first format whose mark of a user's turn it holds. Formats with marks that nobody types come
first.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """A way to mark turns, in patterns.

    Attributes:
        user: what a user's turn begins with.
        end: what ends it.
        other: what marks a turn that is not the user's though it begins so, such as a tool's.
        within: a text without which the prompt is of another format.
    """

    user: str
    end: str
    other: str = r"(?!)"
    within: str = ""


RESPONSE = r"\s*<tool_response>"
# Role names in mixed case count at the start of a line only, where a user would hardly write one.
FORMATS = (
    Format(r"<\|im_start\|>user\b", r"<\|im_end\|>", RESPONSE),  # ChatML: Qwen, InternVL, MiniCPM
    Format(r"<\|start_header_id\|>user<\|end_header_id\|>", r"<\|eot_id\|>"),  # Llama 3
    Format(r"<\|header_start\|>user<\|header_end\|>", r"<\|eot\|>"),  # Llama 4
    Format(r"<\|im_user\|>user<\|im_middle\|>", r"<\|im_end\|>"),  # Kimi
    Format(r"<\|start_of_role\|>user<\|end_of_role\|>", r"<\|end_of_text\|>"),  # Granite
    Format(r"<start_of_turn>user\b", r"<end_of_turn>"),  # Gemma
    Format(r"<\|turn>user\b", r"<turn\|>"),  # Gemma 4
    Format(r"<\|START_OF_TURN_TOKEN\|><\|USER_TOKEN\|>", r"<\|END_OF_TURN_TOKEN\|>"),  # Aya, Command
    Format(r"<[|｜]User[|｜]>:?", r"<[|｜]Assistant[|｜]>"),  # DeepSeek
    Format(r"<\|user\|>", r"<\|end\|>|<\|assistant\|>|<\|observation\|>", RESPONSE),  # Phi, GLM, Granite Vision
    Format(r"<用户>", r"<AI>"),  # MiniCPM
    Format(r"\[INST\](?:\s*<<SYS>>(?s:(?!\[/INST\]).)*?<</SYS>>)?", r"\[/INST\]"),  # Llama 2, Mistral
    Format(r"(?:^|\n|>)[ \t]*User:", r"<end_of_utterance>", within="<end_of_utterance>"),  # Idefics, SmolVLM
    Format(r"#{2,3}[ \t]*Instruction:", r"#{2,3}[ \t]*Response:"),  # Alpaca
    Format(r"\bUSER:", r"\bASSISTANT:"),  # Vicuna, LLaVA
    Format(r"(?:^|\n|>|#{2,3})[ \t]*(?:Human|User):", r"(?:^|\n|#{2,3})[ \t]*Assistant:|\bAssistant:\s*$"),
)


def user_turns(prompt: str) -> list[tuple[int, int]]:
    """The ``(start, end)`` of the contents of the user's turns; a prompt without marks of turns is one turn."""
    for known in FORMATS:
        if known.within not in prompt:
            continue
        user, ends, other = map(re.compile, (known.user, known.end, known.other))
        turns = []
        start = user.search(prompt)
        while start:
            end = ends.search(prompt, start.end())
            if not other.match(prompt, start.end()):
                turns.append((start.end(), end.start() if end else len(prompt)))
            start = user.search(prompt, end.end()) if end else None
        if turns:
            return turns
    return [(0, len(prompt))]
