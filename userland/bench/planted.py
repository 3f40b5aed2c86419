"""A long conversation with facts that are asked for much later.

Every fifth turn tells a fact, every fifth asks for one told before the window began; the other
turns are small talk. Questions use other words than the facts.
"""

import random
from dataclasses import dataclass

# Facts and questions.
FACTS = (
    ("My sister's dog is called Bello, and he is afraid of thunder.",
     "Do you remember the name of my sister's dog?"),
    ("The spare key of the cabin lies under the blue flower pot.",
     "Where did I say that we hide the spare key for the cabin?"),
    ("Grandfather was born in Trieste in 1931, above a bakery.",
     "In which town was my grandfather born?"),
    ("The wifi at the office is named Kestrel and the passphrase ends in 4471.",
     "What does the passphrase of the office wifi end in?"),
    ("I am allergic to walnuts, so I never order the carrot cake.",
     "Which nuts can't I eat?"),
    ("Our train to Vienna leaves at 6:42 from platform nine.",
     "When does our train to Vienna leave?"),
    ("Marta wants the meeting on Thursdays because her son swims on Mondays.",
     "Which weekday does Marta prefer for the meeting?"),
    ("The old car needs 10W-40 oil, nothing thinner, said the mechanic.",
     "Which oil did the mechanic recommend for the old car?"),
    ("Our landlord is Mr Okafor and he lives on the third floor.",
     "Who is our landlord?"),
    ("I paid 340 euros for the second-hand cello in Bruges.",
     "How much was the cello that I bought in Bruges?"),
    ("The backup runs at 2:30 every night and keeps eleven copies.",
     "How many copies does the nightly backup keep?"),
    ("Ines has moved to Coimbra to study marine biology.",
     "What is Ines studying, and where?"),
    ("The blood test said that my iron is low, and I should eat lentils.",
     "What did my blood test find?"),
    ("The bakery near the canal closes on Tuesdays.",
     "On which day is the bakery by the canal shut?"),
    ("My first teacher, Mrs Lindqvist, kept a parrot in the classroom.",
     "What animal did my first teacher have in class?"),
    ("Our server in the cellar is named heron and has 64 gigabytes of memory.",
     "How much memory does the machine in the cellar have?"),
    ("The tenant before us painted the kitchen in olive green.",
     "What colour was our kitchen when we moved in?"),
    ("Jonas proposed to Elif on the ferry to Gozo.",
     "Where did Jonas ask Elif to marry him?"),
    ("The novel that I could never finish is about a lighthouse keeper's widow.",
     "What is the book about that I never finished?"),
    ("We have agreed to pay the gardener 25 euros an hour from May on.",
     "What hourly wage does the gardener get?"),
    ("The red folder holds the insurance papers, the grey one the taxes.",
     "In which folder are the insurance papers?"),
    ("My cousin Tariq plays the oboe in an orchestra in Leeds.",
     "Which instrument does my cousin play?"),
    ("Uncle Pavel broke his left wrist when he fell from the plum tree.",
     "How did Uncle Pavel hurt himself?"),
    ("The release was moved to the ninth of March because of the audit.",
     "To which date was the release postponed?"),
    ("For the wedding cake we chose lemon with poppy seeds.",
     "What flavour will the wedding cake have?"),
    ("The neighbour's cat brought a live bat into our bedroom.",
     "What did the neighbour's cat once carry into our bedroom?"),
    ("My doctor's practice has moved to 18 Harbour Street.",
     "What is the new address of my doctor?"),
    ("Our football team lost the final by two penalties in Porto.",
     "How did our team lose the final?"),
    ("I keep the passports in the piano stool, under the sheet music.",
     "Where are our passports?"),
    ("The printer only works when the yellow cartridge is pushed in twice.",
     "What is the trick to get the printer going?"),
    ("Hanna is writing her thesis on moss in city parks.",
     "What is the subject of Hanna's thesis?"),
    ("Our first flat cost 410 a month and had no heating.",
     "What rent did we pay for our first flat?"),
    ("Father's favourite film is the one with the talking camel.",
     "Which film does my father like best?"),
    ("The vet said that the rabbit weighs 2.3 kilos and should eat less.",
     "What does the rabbit weigh according to the vet?"),
    ("The key of the archive room is kept by Beatriz, not by the porter.",
     "Who has the key to the archive?"),
    ("We promised Noor to bring saffron back from the journey.",
     "What did we promise to bring Noor?"),
    ("The bridge to the mill is closed for trucks over seven tonnes.",
     "How heavy may a truck be on the bridge to the mill?"),
    ("At school I was called Sparrow because I was always whistling.",
     "What was my nickname at school?"),
    ("The violin maker in Cremona has a waiting list of four years.",
     "How long does one wait for an instrument from the maker in Cremona?"),
    ("Our router restarts every night when the heat pump switches on.",
     "What makes our router restart at night?"),
)  # fmt: skip
_SUBJECTS = (
    "the rain of the last few days", "a soup with leeks and potatoes", "how to tidy a desk",
    "why the sky turns red in the evening", "a walk along the river", "the price of coffee",
    "what makes a good chair", "learning to whistle with two fingers", "clouds before a storm",
    "the smell of old books", "how bread rises", "a long drive on an empty road",
    "the sound of a market in the morning", "mending a bicycle tyre", "the first snow",
    "sleeping well in summer", "planting beans in a pot", "the noise of a refrigerator",
    "choosing a pair of shoes", "waiting in a queue", "a picnic on a windy hill", "folding maps",
    "writing letters by hand", "the taste of tap water", "finding a good melody",
)  # fmt: skip
_OPENINGS = (
    "I have been thinking about", "Let us talk a little about", "Somebody asked me about",
    "Today everything reminds me of", "On the way home I thought of", "Tell me something about",
)  # fmt: skip
_ENDINGS = (
    "Most people never notice such things, and I would like to hear how you see it, in your own "
    "words and without hurry.",
    "It is a small matter, but small matters fill the days, and I enjoy looking at them closely.",
    "Say whatever comes to your mind first; there is no wrong answer, and we have all evening.",
    "I could go on about it for an hour, yet I would rather listen to you for a change now.",
)
EVERY = 5  # turns: one of them tells a fact, one asks for one
OLD = 20


@dataclass(frozen=True, slots=True)
class PlantedTurn:
    text: str
    tells: int | None = None  # index of a fact
    asks: int | None = None


def conversation(turns: int, seed: int, old: int = OLD) -> list[PlantedTurn]:
    """The turns of a user. `old`: minimum number of turns between a fact and its question."""
    dice = random.Random(seed)
    order = dice.sample(range(len(FACTS)), len(FACTS))
    said: list[PlantedTurn] = []
    asked = set[int]()
    for at in range(turns):
        filler = f"{dice.choice(_OPENINGS)} {dice.choice(_SUBJECTS)}. {dice.choice(_ENDINGS)}"
        told = order[at // EVERY % len(order)]
        known = [turn.tells for turn in said[: max(0, at - old)] if turn.tells is not None]
        fresh = [fact for fact in known if fact not in asked] or known
        if at % EVERY == 0 and at // EVERY < len(order):
            said.append(PlantedTurn(f"{FACTS[told][0]} {filler}", tells=told))
        elif at % EVERY == EVERY - 1 and fresh:
            fact = dice.choice(fresh)
            asked.add(fact)
            said.append(PlantedTurn(f"{filler} {FACTS[fact][1]}", asks=fact))
        else:
            said.append(PlantedTurn(f"{filler} {dice.choice(_ENDINGS)}"))
    return said
