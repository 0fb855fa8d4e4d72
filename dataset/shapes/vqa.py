"""Questions about a scene, and ten annotators who mostly agree."""

from collections import Counter
from random import Random
from typing import NamedTuple

from dataset.shapes.captions import article, plural
from dataset.shapes.scene import COLOURS, CONVERSE, SHAPES, Item, Scene, pick, rand_below, shuffled

NUMBERS = ('0', '1', '2', '3', '4')
YES_NO = ('yes', 'no')
ANNOTATORS = 10
DISSENT = (0, 0, 1, 1, 2, 3)  # how many annotators answer otherwise, each equally often
# What a dissenting annotator may answer.
CONFUSED = {
    'red': ('orange', 'pink'),
    'orange': ('yellow', 'red'),
    'yellow': ('orange', 'gold'),
    'green': ('blue', 'dark green'),
    'blue': ('purple', 'navy'),
    'purple': ('violet', 'blue'),
    'pink': ('purple', 'rose'),
    'black': ('gray', 'navy'),
    'circle': ('ball', 'dot'),
    'square': ('box', 'rectangle'),
    'triangle': ('arrow', 'cone'),
    'star': ('flower', 'cross'),
    'cross': ('plus', 'x'),
    'heart': ('love', 'leaf'),
    'diamond': ('rhombus', 'kite'),
    'ring': ('circle', 'donut'),
    '0': ('1',),
    '1': ('2', '0'),
    '2': ('3', '1'),
    '3': ('4', '2'),
    '4': ('3',),
    'yes': ('no',),
    'no': ('yes',),
    'above': ('below', 'over'),
    'below': ('above', 'under'),
}
ANSWERS = tuple(dict.fromkeys([*CONFUSED, *(word for words in CONFUSED.values() for word in words)]))
# What is plainly untrue of a pair: whether an item inside another touches it is a matter of taste, so nobody is asked.
FALSE_RELATIONS = {
    'above': ('below', 'inside', 'touching'),
    'below': ('above', 'around', 'touching'),
    'inside': ('around', 'above', 'below'),
    'around': ('inside', 'above', 'below'),
    'touching': ('inside', 'above', 'below'),
}


class Question(NamedTuple):
    text: str
    answer: str
    question_type: str  # its opening words, as in VQA v2


def only(rng: Random, scene: Scene, item: Item) -> str:
    """A name that fits no other item of the scene: its shape, half of the time where that is enough, or its kind."""
    alone = sum(other.shape == item.shape for other in scene.items) == 1
    return item.shape if alone and rand_below(rng, 2) else f'{item.colour} {item.shape}'


def colour_question(rng: Random, scene: Scene) -> Question | None:
    shapes = Counter(item.shape for item in scene.items)
    options = [item for item in scene.items if shapes[item.shape] == 1]
    if not options:
        return None
    item = pick(rng, options)
    return Question(f'what color is the {item.shape}?', item.colour, 'what color is the')


def shape_question(rng: Random, scene: Scene) -> Question | None:
    colours = Counter(item.colour for item in scene.items)
    options = [item for item in scene.items if colours[item.colour] == 1]
    if not options:
        return None
    item = pick(rng, options)
    return Question(f'what shape is the {item.colour} object?', item.shape, 'what shape is the')


def count_question(rng: Random, scene: Scene) -> Question:
    """Of all items, of those of one shape, or of those of one colour; mostly of a shape or colour that is there."""
    field = pick(rng, ('all', 'shape', 'colour'))
    if field == 'all':
        return Question('how many objects are there?', str(len(scene.items)), 'how many')
    values = [getattr(item, field) for item in scene.items]
    value = pick(rng, values) if rand_below(rng, 4) else pick(rng, SHAPES if field == 'shape' else COLOURS)
    noun = plural(value) if field == 'shape' else f'{value} objects'
    return Question(f'how many {noun} are there?', str(values.count(value)), 'how many')


def relation_question(rng: Random, scene: Scene) -> Question:
    """What is above (below, inside, around, touching) the other item; or which of above and below it is."""
    (a, b), relation = scene.items[:2], scene.relation
    if rand_below(rng, 2):
        a, b, relation = b, a, CONVERSE[relation]
    if relation in ('above', 'below') and rand_below(rng, 2):
        text = f'is the {only(rng, scene, a)} above or below the {only(rng, scene, b)}?'
        return Question(text, relation, 'is the')
    return Question(f'what is {relation} the {only(rng, scene, b)}?', a.shape, 'what is')


def yes_no_question(rng: Random, scene: Scene) -> Question:
    """Whether something is there, or how the related items lie; the answers are equally often yes and no."""
    answer = pick(rng, YES_NO)
    make = pick(rng, (ask_colour, ask_shape, ask_kind, ask_relation))
    text, question_type = make(rng, scene, answer == 'yes')
    return Question(text, answer, question_type)


def ask_colour(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    present = {item.colour for item in scene.items}
    colour = pick(rng, [colour for colour in COLOURS if (colour in present) == truth])
    return f'is there {article(colour)} object?', 'is there a'


def ask_shape(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    present = {item.shape for item in scene.items}
    shape = pick(rng, [shape for shape in SHAPES if (shape in present) == truth])
    return f'is there a {shape}?', 'is there a'


def ask_kind(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    """A false kind is made of a colour and a shape that are both there, on different items, wherever that can be."""
    kinds = [item.kind for item in scene.items]
    mixed = [(c, s) for c, _ in kinds for _, s in kinds if (c, s) not in kinds]
    absent = mixed or [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in kinds]
    colour, shape = pick(rng, kinds if truth else absent)
    return f'is there {article(colour)} {shape}?', 'is there a'


def ask_relation(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    a, b = shuffled(rng, scene.items[:2])
    relation = scene.relation if a == scene.items[0] else CONVERSE[scene.relation]
    said = relation if truth else pick(rng, FALSE_RELATIONS[relation])
    return f'is the {only(rng, scene, a)} {said} the {only(rng, scene, b)}?', 'is the'


MAKERS = {  # kind: (what makes the question, VQA v2's answer type)
    'colour': (colour_question, 'other'),
    'shape': (shape_question, 'other'),
    'count': (count_question, 'number'),
    'relation': (relation_question, 'other'),
    'yes/no': (yes_no_question, 'yes/no'),
}


def annotate(rng: Random, answer: str) -> list[str]:
    """Ten answers, at least seven of them right."""
    dissent = pick(rng, DISSENT)
    answers = [pick(rng, CONFUSED[answer]) for _ in range(dissent)] + [answer] * (ANNOTATORS - dissent)
    return shuffled(rng, answers)


def questions(rng: Random, scene: Scene, image: str, first_id: int) -> list[dict]:
    """One annotated VQA row of each kind that the scene allows, ids from `first_id` upwards."""
    rows = []
    for kind, (make, answer_type) in MAKERS.items():
        question = make(rng, scene)
        if question is None:
            continue
        rows.append(
            {
                'question_id': first_id + len(rows),
                'question': question.text,
                'image': image,
                'dataset': 'vqa',
                'answer': annotate(rng, question.answer),
                'answer_type': answer_type,
                'question_type': question.question_type,
                'kind': kind,
            }
        )
    return rows
