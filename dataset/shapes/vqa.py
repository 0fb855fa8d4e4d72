"""Questions about a scene, with the answers of ten annotators who mostly agree."""

from collections import Counter
from random import Random
from typing import Literal, NamedTuple

from dataset.shapes.captions import article, plural
from dataset.shapes.scene import COLORS, CONVERSE, RELATION_WORDS, SHAPES, Item, Scene, pick, rand_below, shuffled

YES_NO = ('yes', 'no')
ANNOTATORS = 10
DISSENT = (0, 0, 1, 1, 2, 3)  # numbers of annotators who give another answer, equally likely
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


class Question(NamedTuple):
    text: str
    answer: str
    question_type: str  # its opening words, as in VQA v2


def unambiguous_name(rng: Random, scene: Scene, item: Item) -> str:
    """A name that fits no other item of the scene: color and shape, or half of the time the shape if it is unique."""
    is_unique = sum(other.shape == item.shape for other in scene.items) == 1
    return item.shape if is_unique and rand_below(rng, 2) else f'{item.color} {item.shape}'


def pick_unique(rng: Random, scene: Scene, field: Literal['color', 'shape']) -> Item | None:
    """A random item whose color or shape no other item of the scene has; None if there is none."""
    counts = Counter(getattr(item, field) for item in scene.items)
    options = [item for item in scene.items if counts[getattr(item, field)] == 1]
    return pick(rng, options) if options else None


def color_question(rng: Random, scene: Scene) -> Question | None:
    item = pick_unique(rng, scene, 'shape')
    return item and Question(f'what color is the {item.shape}?', item.color, 'what color is the')


def shape_question(rng: Random, scene: Scene) -> Question | None:
    item = pick_unique(rng, scene, 'color')
    return item and Question(f'what shape is the {item.color} object?', item.shape, 'what shape is the')


def count_question(rng: Random, scene: Scene) -> Question:
    """The number of all items, or of those of one shape or one color, mostly one that occurs in the scene."""
    field = pick(rng, ('all', 'shape', 'color'))
    if field == 'all':
        return Question('how many objects are there?', str(len(scene.items)), 'how many')
    values = [getattr(item, field) for item in scene.items]
    value = pick(rng, values) if rand_below(rng, 4) else pick(rng, SHAPES if field == 'shape' else COLORS)
    noun = plural(value) if field == 'shape' else f'{value} objects'
    return Question(f'how many {noun} are there?', str(values.count(value)), 'how many')


def relation_question(rng: Random, scene: Scene) -> Question:
    """Which item is above (below, beside) another, or whether an item is above or below another."""
    (a, b), relation = scene.items[:2], scene.relation
    if rand_below(rng, 2):
        a, b, relation = b, a, CONVERSE[relation]
    if relation in ('above', 'below') and rand_below(rng, 2):
        text = f'is the {unambiguous_name(rng, scene, a)} above or below the {unambiguous_name(rng, scene, b)}?'
        return Question(text, relation, 'is the')
    return Question(f'what is {relation} the {unambiguous_name(rng, scene, b)}?', a.shape, 'what is')


def yes_no_question(rng: Random, scene: Scene) -> Question:
    """Whether something is in the scene, or whether a relation is true; yes and no are equally likely."""
    answer = pick(rng, YES_NO)
    ask = pick(rng, (ask_color, ask_shape, ask_kind, ask_relation))
    text, question_type = ask(rng, scene, answer == 'yes')
    return Question(text, answer, question_type)


def ask_color(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    present = {item.color for item in scene.items}
    color = pick(rng, [color for color in COLORS if (color in present) == truth])
    return f'is there {article(color)} object?', 'is there a'


def ask_shape(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    present = {item.shape for item in scene.items}
    shape = pick(rng, [shape for shape in SHAPES if (shape in present) == truth])
    return f'is there a {shape}?', 'is there a'


def ask_kind(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    """A false kind combines the color of one item with the shape of another, if possible."""
    kinds = [item.kind for item in scene.items]
    mixed = [(c, s) for c, _ in kinds for _, s in kinds if (c, s) not in kinds]
    absent = mixed or [(c, s) for c in COLORS for s in SHAPES if (c, s) not in kinds]
    color, shape = pick(rng, kinds if truth else absent)
    return f'is there {article(color)} {shape}?', 'is there a'


def ask_relation(rng: Random, scene: Scene, truth: bool) -> tuple[str, str]:
    a, b = shuffled(rng, scene.items[:2])
    relation = scene.relation if a == scene.items[0] else CONVERSE[scene.relation]
    stated = relation if truth else pick(rng, [word for word in RELATION_WORDS if word != relation])
    return f'is the {unambiguous_name(rng, scene, a)} {stated} the {unambiguous_name(rng, scene, b)}?', 'is the'


QUESTIONS = {  # kind: (function that creates the question, answer type of VQA v2)
    'colour': (color_question, 'other'),
    'shape': (shape_question, 'other'),
    'count': (count_question, 'number'),
    'relation': (relation_question, 'other'),
    'yes/no': (yes_no_question, 'yes/no'),
}


def annotate(rng: Random, answer: str) -> list[str]:
    """Ten answers, at least seven of them correct."""
    dissent = pick(rng, DISSENT)
    answers = [pick(rng, CONFUSED[answer]) for _ in range(dissent)] + [answer] * (ANNOTATORS - dissent)
    return shuffled(rng, answers)


def questions(rng: Random, scene: Scene, image: str, first_id: int) -> list[dict]:
    """One annotated VQA row of each kind that the scene allows; ids start at `first_id`."""
    rows = []
    for kind, (create_question, answer_type) in QUESTIONS.items():
        question = create_question(rng, scene)
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
