"""Writes train.jsonl and holdout.jsonl: purchase orders as people type them, and the JSON that a system takes.

The same seed gives the same bytes. No order occurs twice, within a file or across the two.

    python examples/01-quickstart/make_data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SEED = 20260401
TRAIN_ROWS = 480
HOLDOUT_ROWS = 50

SYSTEM = "Extract the order as JSON."

MATERIALS = [
    *("nitrile", "cotton", "steel", "copper", "nylon", "rubber", "plastic", "oak", "brass", "glass", "paper", "foam"),
    *("leather", "ceramic", "carbon", "silicone", "wool", "zinc", "bamboo", "vinyl"),
]
THINGS = [
    *("gloves", "hoses", "bolts", "screws", "labels", "filters", "trays", "brushes", "cables", "hooks", "valves"),
    *("sheets", "tubes", "bags", "caps", "seals", "clamps", "rollers", "washers", "panels"),
]
UNITS = {"boxes": "box", "packs": "pack", "crates": "crate", "pallets": "pallet", "cartons": "carton"}
PLACES = ["hall", "dock", "lab", "gate", "workshop", "depot"]
DAYS = {"Mon": "Monday", "Tue": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Fri": "Friday"}
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
NAMES = ["Priya", "Tom", "Aylin", "Jonas", "Mei", "Sara", "Luis", "Ada", "Femi", "Nora"]

WITH_DAY = [
    "Hi, could you send {quantity} {unit} of {item} to {place} by {day}? Thanks, {name}",
    "{name} here. We are nearly out of {item}: please get {quantity} {unit} to {place} before {day}.",
    "Please order {item}, {quantity} {unit}, for {place}. Needed on {day}. {name}",
    "{place} needs {quantity} more {unit} of {item}, {day} at the latest. Regards, {name}",
    "Can we have {item} again? {quantity} {unit} should do. Deliver to {place} on {day}, please. {name}",
    "Order for {day}: {quantity} {unit} of {item}, drop them at {place} and ask for {name}.",
    "Morning! The last delivery to {place} was short, so {quantity} {unit} of {item} must come {day}. {name}",
]
WITHOUT_DAY = [
    "No hurry, but {place} could use {quantity} {unit} of {item}. Cheers, {name}",
    "Hello, {quantity} {unit} of {item} for {place}, whenever you have them. {name}",
    "Same as last month, please: {item} for {place}, {quantity} {unit}. Any day is fine. {name}",
]


def order(rng: random.Random) -> tuple[str, dict[str, str | int | None]]:
    """One order: the text, and what it asks for. Numbers, units and days are normalised; a day may be missing."""
    item = f"{rng.choice(MATERIALS)} {rng.choice(THINGS)}"
    units = rng.choice(sorted(UNITS))
    quantity = rng.choice([*range(2, 13), *range(13, 100, 2)])
    written = NUMBERS[quantity - 2] if quantity <= 12 else str(quantity)
    place = f"{rng.choice(PLACES)} {rng.randrange(1, 10)}"
    short = rng.choice(sorted(DAYS))
    template = rng.choice(WITH_DAY + WITHOUT_DAY)
    text = template.format(
        quantity=written,
        unit=units,
        item=item,
        place=place,
        day=rng.choice([short, DAYS[short]]),
        name=rng.choice(NAMES),
    )
    day = DAYS[short] if template in WITH_DAY else None
    answer = {"item": item, "quantity": quantity, "unit": UNITS[units], "to": place, "day": day}
    return text[0].upper() + text[1:], answer


def row(text: str, answer: dict[str, str | int | None]) -> str:
    """A row of the Messages format."""
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": text},
        {"role": "assistant", "content": json.dumps(answer)},
    ]
    return json.dumps({"messages": messages})


def main() -> None:
    """Write both files beside this script."""
    rng = random.Random(SEED)
    orders: dict[str, dict[str, str | int | None]] = {}
    while len(orders) < TRAIN_ROWS + HOLDOUT_ROWS:
        text, answer = order(rng)
        orders[text] = answer
    rows = [row(text, answer) for text, answer in orders.items()]
    folder = Path(__file__).parent
    (folder / "train.jsonl").write_text("\n".join(rows[:TRAIN_ROWS]) + "\n")
    (folder / "holdout.jsonl").write_text("\n".join(rows[TRAIN_ROWS:]) + "\n")


if __name__ == "__main__":
    main()
