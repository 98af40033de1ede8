"""Mails that order one to three things, some with a correction, and the JSON that a system takes.

Harder than the quickstart's orders. The same seed gives the same rows, and no mail occurs twice.
"""

from __future__ import annotations

import json
import random
import runpy
from pathlib import Path
from typing import Any

SYSTEM = "Extract the order as JSON."
QUICKSTART = Path(__file__).resolve().parents[1] / "examples" / "01-quickstart" / "make_data.py"
WORDS: dict[str, Any] = runpy.run_path(str(QUICKSTART))
"""The quickstart's vocabulary: its materials, things, units, places, days, numbers and names."""
QUANTITIES = [*range(2, 13), *range(13, 100, 2)]
AS_WORDS = 12
"""Quantities up to this one are written as words."""
CORRECTED = 0.4
WITHOUT_DAY = 0.25

OPENINGS = ["Hi,", "Hello,", "Morning!", "Dear team,", "{name} here.", "Me again.", "As promised:"]
ASKS = ["please send {items} to {place}", "{place} needs {items}", "we are out of a few things at {place}: {items}"]
DAYS = [" by {day}", " before {day}", ", {day} at the latest", ", on {day} if you can"]
NO_DAYS = [", no hurry", "", ", whenever you have them", ", any day is fine"]
QUANTITY_CORRECTIONS = ["Sorry, make the {item} {quantity}.", "Oh, and {quantity} {item}, not {wrong}."]
PLACE_CORRECTIONS = ["Wait, not {wrong}: it all goes to {place}.", "Correction, deliver to {place} instead of {wrong}."]
DROPPED = ["Forget the {item}, we found some.", "On second thought, leave out the {item}."]


def make_rows(seed: int, count: int) -> list[str]:
    """So many different rows of the Messages format."""
    rng = random.Random(seed)
    mails: dict[str, dict[str, Any]] = {}
    while len(mails) < count:
        text, answer = _mail(rng)
        mails[text] = answer
    return [_row(text, answer) for text, answer in mails.items()]


def _mail(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """One mail and what it asks for in the end: a correction later in the mail counts, not what stood before."""
    names = rng.sample([f"{m} {t}" for m in WORDS["MATERIALS"] for t in WORDS["THINGS"]], rng.choice([1, 2, 2, 3]))
    items = [{"item": name, "quantity": _quantity(rng), "unit": rng.choice(sorted(WORDS["UNITS"]))} for name in names]
    place, name = _place(rng), rng.choice(WORDS["NAMES"])
    written = [f"{_written(each['quantity'])} {each['unit']} of {each['item']}" for each in items]
    listed = " and ".join(filter(None, [", ".join(written[:-1]), written[-1]]))
    day = None if rng.random() < WITHOUT_DAY else rng.choice(sorted(WORDS["DAYS"]))
    ending = rng.choice(NO_DAYS) if day is None else rng.choice(DAYS)
    sentences = [f"{rng.choice(OPENINGS)} {rng.choice(ASKS)}{ending}.".format(
        name=name, items=listed, place=place, day=day and rng.choice([day, WORDS["DAYS"][day]])
    )]  # fmt: skip
    if rng.random() < CORRECTED:
        sentence, items, place = _correction(rng, items, place)
        sentences.append(sentence)
    answer = {
        "items": [{**each, "unit": WORDS["UNITS"][each["unit"]]} for each in items],
        "to": place,
        "day": None if day is None else WORDS["DAYS"][day],
    }
    return " ".join([*sentences, name]), answer


def _correction(rng: random.Random, items: list[dict[str, Any]], place: str) -> tuple[str, list[dict[str, Any]], str]:
    """A sentence that changes the order, with the items and the place that hold after it."""
    kind = rng.choice(["quantity", "place", "dropped"] if len(items) > 1 else ["quantity", "place"])
    at = rng.randrange(len(items))
    if kind == "place":
        other = _place(rng, but=place)
        return rng.choice(PLACE_CORRECTIONS).format(place=other, wrong=place), items, other
    if kind == "dropped":
        return rng.choice(DROPPED).format(item=items[at]["item"]), items[:at] + items[at + 1 :], place
    old, new = items[at]["quantity"], _quantity(rng, but=items[at]["quantity"])
    sentence = rng.choice(QUANTITY_CORRECTIONS)
    text = sentence.format(item=items[at]["item"], quantity=_written(new), wrong=_written(old))
    return text, [{**each, "quantity": new} if each is items[at] else each for each in items], place


def _quantity(rng: random.Random, but: int | None = None) -> int:
    return rng.choice([number for number in QUANTITIES if number != but])


def _place(rng: random.Random, but: str | None = None) -> str:
    return rng.choice([each for kind in WORDS["PLACES"] for n in range(1, 10) if (each := f"{kind} {n}") != but])


def _written(quantity: int) -> str:
    return WORDS["NUMBERS"][quantity - 2] if quantity <= AS_WORDS else str(quantity)


def _row(text: str, answer: dict[str, Any]) -> str:
    messages = [("system", SYSTEM), ("user", text[0].upper() + text[1:]), ("assistant", json.dumps(answer))]
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in messages]})
