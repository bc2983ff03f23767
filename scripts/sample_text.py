"""Text for the sample models to learn from, and to be examined on: composed, with the right answer.

    python scripts/sample_text.py --output sample_data

writes `searches.jsonl`, searches to rerank documents for, of the kind that the model is examined on.

Every list and sentence below was written for this project; every name of a person or a brand is put
together from syllables or is a common first name. What is marked as held out is never shown in training.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from make_sample_reviews import Composer, Dice

SEARCHES = 60
SEARCHES_SEED = 20261


def items(block: str) -> tuple[str, ...]:
    """The entries of a lexicon: between lines and upright strokes."""
    return tuple(item.strip() for item in re.split(r"[|\n]", block) if item.strip())


def reviews(dice: Dice) -> Iterator[tuple[str, str]]:
    """Products in turn with a review of each, without typing slips; they never end."""
    composer = Composer(dice)
    while True:
        for product in composer.products:
            yield product, composer.text(product, dice.pick(("positive", "negative")))


# --- Entities: persons, places and products in sentences. ---------------------------------------

_ENTITY_PATTERNS = items(
    """
    {per} bought a {prod} in {loc}.|{per} lives in {loc}.|{per} and {per} met in {loc} last {day}.
    The {prod} that {per} ordered never arrived.|We flew from {loc} to {loc} on {day}.
    My {relative} {per} swears by the {prod}.|I ordered the {prod} from a shop in {loc}.
    At the station in {loc} I met {per}.|{per} told us that the {prod} works well.
    Has anyone tried the {prod}?|The weather in {loc} was terrible in {month}.
    Ask for {per} at the front desk.|Our waiter, {per}, had grown up in {loc}.
    {loc} is lovely in {month}.|{prod} or {prod}, which one is better?|I grew up near {loc}.
    Thank you, {per}, for the tickets to {loc}!|Dear {per}, your {prod} is ready.
    They sell the {prod} everywhere in {loc}.|Yesterday {per} called from {loc}.
    The train to {loc} was late again.|The doctor, {per}, was very kind.|My {prod} broke after two weeks.
    I have had the {prod} since {month}.|{per} repaired my {prod} on {day}.
    Not a single bus goes to {loc} on {day}.|According to {per} there is snow in {loc}.
    The new {prod} is louder than the old one.|We drove through {loc} at night.
    {per} wrote a book about {loc}.|Compared with the {prod} it is cheap.|She moved to {loc} with {per}.
    He sold his {prod} to {per}.|I sent the {prod} back to {loc}.|My {relative} gave me a {prod}.
    A parcel from {loc} came for {per}.|We asked {per} about the {prod}.|Is {per} at home on {day}?
    """
)
_HELD_OUT_ENTITY_PATTERNS = items(
    """
    Nobody but {per} knew the way to {loc}.|Between {loc} and {loc} the road is closed.
    I lent {per} my {prod} and never saw it again.|If you visit {loc}, look for {per}.
    Instead of a {prod} they sent an empty box.|{per} complained about the {prod} twice.
    A friend of {per} drove us to {loc}.|Greetings from {loc}!|Does {per} still own that {prod}?
    It was {per} who fixed the {prod}.|The {prod} was made in {loc}.|My boss, {per}, hates {loc}.
    """
)
_FIRST_NAMES = items(
    """
    Anna|Omar|Lucy|Ivan|Maria|Peter|Aisha|Tom|Elena|Jack|Nina|Paul|Sara|David|Emma|Karim|Julia|Mark|Leila
    Hugo|Clara|Simon|Mina|Oscar|Laura|Victor|Zoe|Adam|Irene|Felix|Rosa|Daniel|Amara|George|Helen|Samir|Ruth
    """
)
_PLACES = items(
    """
    London|Paris|Lisbon|Oslo|Vienna|Madrid|Rome|Cairo|Lima|Boston|Chicago|Toronto|Sydney|Delhi|Tokyo|Seoul
    Nairobi|Lagos|Athens|Dublin|Prague|Warsaw|Geneva|Naples|Porto|Bergen|Leeds|Bristol|Denver|Quito|Havana
    Norway|Spain|Italy|Kenya|Peru|Japan|Brazil|Egypt|Canada|New York|Cape Town|San Diego|Hong Kong
    """
)
_HELD_OUT_FIRST_NAMES = items("Sofia|Noah|Ingrid|Tariq|Naomi|Erik|Beatrice|Kofi|Marta|Philip")
_HELD_OUT_PLACES = items("Berlin|Helsinki|Montreal|Santiago|Glasgow|Valencia|Ireland|New Delhi")
_SYLLABLES = items(
    "ba|bel|cor|da|den|el|fa|gar|hal|in|jor|ka|kel|lo|lun|ma|mer|na|nor|o|pa|per|ri|ro|sa|sel|ta|tor|u|va|za"
)
_SURNAME_ENDINGS = items("sen|son|ov|ez|ski|er|man|ini|ley|wood|ford|ells|ard|mann|ura|ani")
_PLACE_ENDINGS = items("ton|burg|ville|stad|port|mouth|haven|field|grad|dorf")
_BRAND_ENDINGS = items("ix|ora|on|ax|io|eo|ify|ara|exa|tron|os|ium|ella")
_VERSIONS = items("Pro|Mini|Max|Plus|Air|Home|Go|One|X2|S3|300|500|7|12|2000")
_OTHERS = {
    "day": items("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"),
    "month": items("January|March|April|May|June|July|August|October|November|December"),
    "relative": items("sister|brother|mother|father|neighbour|uncle|cousin|colleague|daughter"),
}


#: Where a name begins in its text, where it ends, and what it names: PER, LOC or PROD.
Entity = tuple[int, int, str]


class EntityText:
    """Sentences with names in them. `held_out`: of patterns, first names and places not in training."""

    def __init__(self, dice: Dice, *, held_out: bool = False) -> None:
        self._dice = dice
        self._held_out = held_out
        self._patterns = _HELD_OUT_ENTITY_PATTERNS if held_out else _ENTITY_PATTERNS
        self._first_names = _HELD_OUT_FIRST_NAMES if held_out else _FIRST_NAMES
        self._places = _HELD_OUT_PLACES if held_out else _PLACES
        self._reviews = reviews(dice)

    def example(self) -> tuple[str, list[Entity]]:
        """A text and its entities, in order."""
        text = ""
        entities: list[Entity] = []
        for part in re.split(r"(\{\w+\})", self._pattern()):
            if part.startswith("{"):
                slot = part[1:-1]
                part = self._filler(slot)
                if slot not in _OTHERS:
                    entities.append((len(text), len(text) + len(part), slot.upper()))
            text += part
        return text, entities

    def _pattern(self) -> str:
        """A pattern; in training with other words in it and reviews around it, as what is no name may be
        anything."""
        dice, pattern = self._dice, self._dice.pick(self._patterns)
        if self._held_out:
            return pattern
        pattern = " ".join(
            dice.pick(self._aside().lower().split(" "))
            if word.isalpha() and word.islower() and dice.chance(0.15)
            else word
            for word in pattern.split(" ")
        )
        if dice.chance(0.4):
            aside = self._aside()
            pattern = dice.pick((f"{aside} {pattern}", f"{pattern} {aside}", aside))
        return pattern

    def _aside(self) -> str:
        """The first sentence of a review without a place in it."""
        while True:
            sentence = re.split(r"(?<=[.!?]) ", next(self._reviews)[1])[0]
            if not any(place in sentence for place in _PLACES):
                return sentence

    def _filler(self, slot: str) -> str:
        dice = self._dice
        if slot == "per":
            first, last = self._name(self._first_names), self._invented(_SURNAME_ENDINGS)
            return dice.pick((f"{first} {last}", f"{first} {last}", first, f"{first[0]}. {last}"))
        if slot == "loc":
            return self._name(self._places) if dice.chance(0.6) else self._invented(_PLACE_ENDINGS)
        if slot == "prod":
            brand = self._invented(_BRAND_ENDINGS)
            return f"{brand} {dice.pick(_VERSIONS)}" if dice.chance(0.7) else brand
        return dice.pick(_OTHERS[slot])

    def _name(self, known: tuple[str, ...]) -> str:
        """One of these; in training mostly a blend of two, so that none is known by heart."""
        dice = self._dice
        if self._held_out or dice.chance(0.3):
            return dice.pick(known)
        blend = dice.pick(known)[: 1 + dice.below(4)] + dice.pick(known)[-2 - dice.below(4) :]
        return blend.replace(" ", "").capitalize()

    def _invented(self, endings: tuple[str, ...]) -> str:
        parts = [self._dice.pick(_SYLLABLES) for _ in range(1 + self._dice.below(2))]
        return ("".join(parts) + self._dice.pick(endings)).capitalize()


# --- Searches: a query, and reviews that answer it or do not. -----------------------------------

QUERIES = items("{}|a {}|review of a {}|looking for a {}|what do they say of the {}?")
#: How well each of a search's documents answers it.
RELEVANCE = (1.0, 0.0, 0.0, 0.0)


def searches(dice: Dice) -> Iterator[tuple[str, list[str]]]:
    """Queries such as "looking for a hotel", each with four reviews, the first of which is of one. They
    never end."""
    composer = Composer(dice)
    while True:
        products = dice.shuffled(composer.products)[: len(RELEVANCE)]
        texts = [composer.text(one, dice.pick(("positive", "negative"))) for one in products]
        yield dice.pick(QUERIES).format(products[0]), texts


# --- Numerals in words, and the same sentence with digits. ---------------------------------------

_ONES = items(
    """
    zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen
    seventeen|eighteen|nineteen
    """
)
_TENS = items("twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety")
_GOODS = items("apples|books|chairs|tickets|lamps|eggs|stamps|shirts|candles|bottles|roses|keys")
_SUM_PATTERNS = items(
    """
    {n} {goods} cost {m} dollars = {n} {goods} cost ${m}
    we sold {n} {goods} for {m} dollars = we sold {n} {goods} for ${m}
    {n} of {m} {goods} are broken = {n} of {m} {goods} are broken
    send {n} {goods} to room {m} = send {n} {goods} to room {m}
    {n} percent of the {goods} are gone = {n}% of the {goods} are gone
    """
)


def in_words(number: int) -> str:
    """A number below 100 in English: forty-two."""
    if number < 20:
        return _ONES[number]
    tens = _TENS[number // 10 - 2]
    return tens if number % 10 == 0 else f"{tens}-{_ONES[number % 10]}"


def sum_text(dice: Dice, *, held_out: bool = False) -> tuple[str, str]:
    """A sentence with numerals, and with digits. `held_out`: of numbers that training does not have."""

    def number() -> int:
        while True:
            value = dice.below(dice.pick((20, 100)))
            if (value > 20 and value % 7 == 0) == held_out:
                return value

    pattern, answer = dice.pick(_SUM_PATTERNS).split(" = ")
    n, m, goods = number(), number(), dice.pick(_GOODS)
    words = pattern.format(n=in_words(n), m=in_words(m), goods=goods)
    return words, answer.format(n=n, m=m, goods=goods)


def write_searches(output: Path) -> None:
    """Write `searches.jsonl` into the folder: a query, documents, and the place of the right one."""
    dice = Dice(SEARCHES_SEED)
    lines = []
    for query, documents in islice(searches(dice), SEARCHES):
        shuffled = dice.shuffled(documents)
        answer = shuffled.index(documents[0])
        lines.append(json.dumps({"query": query, "documents": shuffled, "answer": answer}))
    (output / "searches.jsonl").write_text("".join(line + "\n" for line in lines))


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description="Write the sample searches.")
    parser.add_argument(
        "--output", type=Path, default=Path(__file__).resolve().parent.parent / "sample_data"
    )
    write_searches(parser.parse_args().output)


if __name__ == "__main__":
    main()
