"""Where the user's turns are in a prompt, by what the tokenizer's chat template writes between turns."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from foveate.text.flat import MARK, flat_text
from foveate.text.memory import remembered
from foveate.text.template import ROLES, Gap, gaps_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = re.compile(MARK)
NEVER = r"(?!)"


@dataclass(frozen=True)
class Turns:
    """How turns follow each other in the prompts of a template.

    Attributes:
        exits: of each role, and of ``start``, what ends its turn: a pattern, and for each of its groups the role
            that follows, or ``""`` where only the end is known.
        asks: what a template writes after the user's last turn, if it is text alone. A user may type that too, so
            only the one at the prompt's end counts.
    """

    exits: dict[str, tuple[re.Pattern[str], tuple[str, ...]]]
    asks: str

    def of_user(self, prompt: str) -> list[tuple[int, int]] | None:
        """The ``(start, end)`` of the contents of the user's turns; None if the prompt has no turns at all.

        Args:
            prompt: as `foveate.text.flat.flat` reads it, blanks as one space.
        """
        turns: list[tuple[int, int]] = []
        before, role, place = "", "start", 0
        while met := self.exits[role][0].search(prompt, place):
            if role == "user":
                turns.append((place, met.start()))
            after = self.exits[role][1][int(met.lastindex or 0) - 1]
            # Behind an end alone, the next turn is looked for from there on, as behind an answer.
            before, role, place = role, after or "assistant", met.end() if after else met.start()
        if role == "user":
            turns.append((place, len(prompt)))
        if (before, role) == ("user", "assistant") and self.asks and prompt.endswith(self.asks):
            turns[-1] = (turns[-1][0], len(prompt) - len(self.asks))
        return turns if turns or role != "start" else None


@remembered(last=4)
def turns_of(tokenizer: "PreTrainedTokenizerBase", template: str) -> Turns | None:
    """The turns of a chat template, rendered once per tokenizer; None if it cannot be rendered."""
    first = flat_text(tokenizer, tokenizer.bos_token or "")  # which a prompt written by hand may lack
    gaps = [
        replace(gap, text=gap.text.removeprefix(first).lstrip()) if gap.before == "start" else gap
        for gap in gaps_of(tokenizer, template)
    ]
    exits = {role: _either(_exits(gaps, role)) for role in ("start", *ROLES)}
    asks = min((gap.text.strip() for gap in gaps if gap.before == "user" and gap.asks), key=len, default="")
    return Turns(exits, "" if _MARK.search(asks) else asks) if gaps else None


def _exits(gaps: list[Gap], before: str) -> Iterator[tuple[str, str]]:
    """What may follow a turn of ``before``: the text that tells, and the next role, or ``""`` where it is open."""
    for after in ROLES:
        header = _header(gaps, after)
        pairs = [gap.text.rstrip() for gap in gaps if (gap.before, gap.after) == (before, after)]
        pairs = [text for text in pairs if text]
        if _MARK.search(header) or (header and pairs and before == "start"):
            yield header, after
        elif pairs:
            shared = _common_prefix(pairs) if before == "user" else _common_suffix(pairs)
            for text in [shared] if shared.strip() else pairs:
                # Users may type what is text alone. It ends their turn only where an answer follows.
                if before != "user" or after == "assistant" or _MARK.search(text):
                    yield text, after
    end = _common_prefix([gap.text for gap in gaps if gap.before == before == "user"])
    if _MARK.search(end):
        yield end, ""


def _header(gaps: list[Gap], role: str) -> str:
    """What every turn of a role begins with, and no other's; empty if there is no such text."""
    ends = {gap.before: gap.text for gap in gaps if gap.after == "end"}
    into = [
        gap.text.removeprefix(ends.get(gap.before, "")).rstrip() for gap in gaps if gap.after == role != gap.before
    ]
    header = _common_suffix([text for text in into if text])
    users = "" if role == "user" else _header(gaps, "user")
    if users and users in header:  # such as a tool's turn, written as a user's with a mark of its own
        header = header[header.rindex(users) :]
    others = {"system", "user"} if role == "user" else {role}  # some write the system's text into the user's turn
    shared = any(gap.text.rstrip().endswith(header) for gap in gaps if gap.after not in others)
    return "" if shared else header


def _common_prefix(texts: Iterable[str]) -> str:
    columns = zip(*texts, strict=False)
    return "".join(letters[0] for letters in takewhile(lambda letters: len({*letters}) == 1, columns))


def _common_suffix(texts: Iterable[str]) -> str:
    return _common_prefix(text[::-1] for text in texts)[::-1]


def _either(exits: Iterable[tuple[str, str]]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A pattern with a group for each of these texts, the longest first, and their roles."""
    roles: dict[str, str] = {}
    for text, role in exits:
        roles[text] = "user" if "user" in (role, roles.get(text)) else role
    texts = sorted(roles, key=len, reverse=True)  # a tool's turn may begin as a user's, and go on
    pattern = "|".join(f"({_pattern(text)})" for text in texts)
    return re.compile(pattern or NEVER), tuple(roles[text] for text in texts)


def _pattern(text: str) -> str:
    """A pattern for a flat text: blanks beside marks may be missing, or be there where none are written."""
    pieces = re.split(f" ?({MARK}) ?", text.strip())
    pattern = " ?".join(re.escape(piece) for piece in pieces if piece)
    if _MARK.match(text.lstrip()):
        return pattern
    if text[0] == " ":
        return rf"(?<![^\s{MARK[1:-1]}])" + pattern  # a blank stands before it, or an image
    return (r"\b" if re.match(r"\w", text) else "") + pattern
