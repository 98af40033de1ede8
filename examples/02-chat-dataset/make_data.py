"""Writes conversations.jsonl: people who ask a help desk, leave out what it needs, and are asked for it.

The same seed gives the same bytes. No conversation occurs twice.

    python examples/02-chat-dataset/make_data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SEED = 20260402
ROWS = 240

THINGS = ["laptop", "badge", "phone", "monitor", "docking station", "headset", "keyboard", "projector"]
TROUBLES = ["does not start", "is broken", "was lost on the train", "makes a strange noise", "is too slow for my work"]
SITES = ["north building", "south building", "warehouse", "laboratory", "main building"]
GREETINGS = ["Hello,", "Good morning,", "Hi there,", "Sorry to bother you,"]
THANKS = ["Thank you!", "Great, thanks.", "Perfect.", "Thanks a lot."]


def conversation(rng: random.Random) -> list[dict[str, str]]:
    """One conversation: a trouble, the place asked for, an answer; sometimes the person writes once more.

    What the desk says follows from what was said before, so that there is something to learn in it.
    """
    thing, trouble, site = rng.choice(THINGS), rng.choice(TROUBLES), rng.choice(SITES)
    room = rng.randrange(100, 500)
    turns = [
        f"{rng.choice(GREETINGS)} my {thing} {trouble}.",
        f"I am sorry about your {thing}. In which building and room are you?",
        f"Room {room}, {site}.",
        f"A colleague brings another {thing} to room {room} in the {site} today.",
    ]
    if rng.random() < 0.5:
        turns += [rng.choice(THANKS), f"You are welcome. Write again if no {thing} comes to room {room}."]
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]


def main() -> None:
    """Write the file beside this one."""
    rng, rows = random.Random(SEED), {}
    while len(rows) < ROWS:
        messages = conversation(rng)
        rows[messages[3]["content"]] = json.dumps({"messages": messages}, ensure_ascii=False)
    (Path(__file__).parent / "conversations.jsonl").write_text("\n".join(rows.values()) + "\n")


if __name__ == "__main__":
    main()
