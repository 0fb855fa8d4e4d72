"""Metrics: the official figures, slow oracles, and clear errors."""

import json

import numpy as np
import pytest
import torch
from dataset.metrics import main, nlvr_consistency, retrieval_recall, vqa_accuracy, vqa_accuracy_per_question
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.vqa import normalize_answer, strip_punctuation
from tests.reference import load_json, load_reference


def captions(images, each):
    txt2img = {text: text // each for text in range(images * each)}
    return txt2img, {image: [text for text in txt2img if txt2img[text] == image] for image in range(images)}


def slow_ranks(scores, right):
    """Sort each row by (score, number), best first; the place of the first right one."""
    ranks = []
    for query, row in enumerate(np.asarray(scores)):
        order = sorted(range(len(row)), key=lambda c, row=row: (row[c], c), reverse=True)
        ranks.append(min(place for place, c in enumerate(order) if c in right[query]))
    return np.array(ranks)


def slow_recall(score_i2t, score_t2i, txt2img, img2txt):
    result = {}
    for side, scores, right in (('txt', score_i2t, img2txt), ('img', score_t2i, {t: [i] for t, i in txt2img.items()})):
        ranks = slow_ranks(scores, right)
        result |= {f'{side}_r{k}': 100 * float((ranks < k).mean()) for k in (1, 5, 10)}
        result[f'{side}_r_mean'] = sum(result[f'{side}_r{k}'] for k in (1, 5, 10)) / 3
    return result | {'r_mean': (result['txt_r_mean'] + result['img_r_mean']) / 2}


# ---- retrieval


def test_official_recall():
    reference = load_reference('recall')
    recall = retrieval_recall(reference['score_i2t'], torch.tensor(reference['score_t2i']), *captions(60, 5))
    assert recall == pytest.approx(reference['result'], rel=1e-12)
    assert list(recall) == list(reference['result'])
    assert all(type(value) is float for value in recall.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(1, 3), st.integers(1, 6), st.floats(0, 0.9), st.integers(0, 2**31))
def test_recall_against_sorting_with_ties_and_unscored_pairs(images, each, levels, unscored, seed):
    random = np.random.default_rng(seed)
    texts = images * each
    owner = random.permutation(np.repeat(np.arange(images), each))
    owner[random.integers(texts)] = owner[0]  # captions need not be equally many
    owner[:images] = random.permutation(images)  # but every image has one
    txt2img = {text: int(image) for text, image in enumerate(owner)}
    img2txt = {image: [text for text in txt2img if txt2img[text] == image] for image in range(images)}
    scores = []
    for shape in ((images, texts), (texts, images)):
        score = random.integers(levels, size=shape).astype(np.float32)
        scores.append(np.where(random.random(shape) < unscored, np.float32(-100), score))
    expected = slow_recall(*scores, txt2img, img2txt)
    assert retrieval_recall(*scores, txt2img, img2txt) == pytest.approx(expected)


def test_blocks_of_rows_do_not_change_the_result(monkeypatch):
    reference = load_reference('recall')
    monkeypatch.setattr('dataset.metrics.ROWS', 7)
    recall = retrieval_recall(reference['score_i2t'], reference['score_t2i'], *captions(60, 5))
    assert recall == pytest.approx(reference['result'], rel=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.int64])
def test_equal_scores_give_chance(dtype):
    recall = retrieval_recall(torch.zeros(50, 50, dtype=dtype), torch.zeros(50, 50, dtype=dtype), *captions(50, 1))
    assert [recall[key] for key in ('txt_r1', 'txt_r5', 'img_r1', 'img_r10')] == [2.0, 10.0, 2.0, 20.0]


def test_what_was_not_scored_stands_behind_what_was():
    score = torch.full((12, 12), -100.0)
    score[0, 0] = score[1, 2] = score[1, 3] = -50.0  # image 1 has candidates, but not its own text
    recall = retrieval_recall(score, torch.eye(12), *captions(12, 1))
    # Image 0 finds its text first; behind scored ones, and where nothing was scored, the higher number comes first.
    assert recall['txt_r1'] == pytest.approx(100 * 2 / 12) and recall['img_r1'] == 100.0
    assert recall['txt_r10'] == pytest.approx(100 * 11 / 12)  # all but image 1, whose text has place 11


@pytest.mark.parametrize('change, message', [
    (lambda i2t, t2i, txt2img, img2txt: img2txt.pop(2), 'image 2 has no text'),
    (lambda i2t, t2i, txt2img, img2txt: img2txt[1].clear(), 'image 1 has no text'),
    (lambda i2t, t2i, txt2img, img2txt: txt2img.pop(3), 'text 3 has no image'),
    (lambda i2t, t2i, txt2img, img2txt: txt2img.update({5: 9}), 'text 5 belongs to image 9, but there are 3 of them'),
    (lambda i2t, t2i, txt2img, img2txt: img2txt.update({3: [0]}), '4 images have a text, but 3 were scored'),
    (lambda i2t, t2i, txt2img, img2txt: i2t[1].fill_(torch.nan), 'score_i2t holds NaN in 1 of 3 rows, first in row 1'),
    (lambda i2t, t2i, txt2img, img2txt: t2i.t_(), r'score_i2t \[3, 6\] and score_t2i \[3, 6\] must be'),
])  # fmt: skip
def test_bad_retrieval_input(change, message):
    txt2img, img2txt = captions(3, 2)
    score_i2t, score_t2i = torch.rand(3, 6), torch.rand(6, 3)
    change(score_i2t, score_t2i, txt2img, img2txt)
    with pytest.raises(ValueError, match=message):
        retrieval_recall(score_i2t, score_t2i, txt2img, img2txt)


# ---- VQA


def test_official_vqa_accuracy():
    reference = load_json('vqa_accuracy')
    results, annotations = reference['results'], reference['annotations']
    assert vqa_accuracy(results, annotations) == reference['accuracy']
    per_question = vqa_accuracy_per_question(results, annotations)
    assert {str(question): value for question, value in per_question.items()} == reference['per_question']
    shuffled = results[::-1]
    assert vqa_accuracy(shuffled, annotations) == reference['accuracy']


@pytest.mark.parametrize('text, expected', [
    ('The Dog', 'dog'), ('a an the', ''), ('none', '0'), ('Ten', '10'), ('twenty two', 'twenty 2'),
    ('dont', "don't"), ("couldn'tve", "couldn't've"), ("couldnt've", "couldn't've"), ('couldntve', 'couldntve'),
    ("y'alld've", "y'all'd've"), ("let's", "let's"), ("somebody'd", 'somebodyd'), ('Im', 'im'), ('its', 'its'),
    ('1,000', '1000'), ('10.5', '10.5'), ('5.', '5'), ('u.s.', 'us'), ('.5', '.5'),
    ('dark-red', 'dark red'), ('left / right', 'left right'), ('left/right', 'left right'),
    ('red, (dark)', 'red dark'), ('1,000-2', '10002'), (' yes\n', 'yes'), ('one\ttwo', '1 2'),
])  # fmt: skip
def test_normalisation(text, expected):
    assert normalize_answer(text) == expected


def test_punctuation_becomes_a_space_only_between_words():
    assert strip_punctuation('apple,') == 'apple '  # officially not stripped: such an annotator agrees with nobody
    assert strip_punctuation('apple, pear,') == 'apple pear'


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(['cat', 'dog', 'The cat', 'cat!', '2']), min_size=2, max_size=12),
       st.sampled_from(['cat', 'a cat', 'two', 'fish']))  # fmt: skip
def test_accuracy_is_the_mean_over_leaving_one_annotator_out(answers, prediction):
    kept = answers if len(set(answers)) == 1 else [strip_punctuation(answer) for answer in answers]
    parts = []
    for left_out in range(len(kept)):
        others = kept[:left_out] + kept[left_out + 1 :]
        parts.append(min(1, others.count(normalize_answer(prediction)) / 3))
    expected = 100 * sum(parts) / len(parts)
    accuracy = vqa_accuracy([{'question_id': 'q', 'answer': prediction}], [{'question_id': 'q', 'answers': answers}])
    assert accuracy['overall'] == pytest.approx(expected, abs=1e-4)


def test_rows_of_an_annotation_file_are_scored_too():
    rows = [{'question_id': 'a', 'answer': ['red'] * 10, 'answer_type': 'other'},
            {'question_id': 7, 'answer': ['2'] * 10}]  # fmt: skip
    results = [{'question_id': 7, 'answer': 'two'}, {'question_id': 'a', 'answer': 'blue'}]
    accuracy = vqa_accuracy(results, rows)
    assert accuracy == {'overall': 50.0, 'perAnswerType': {'other': 0.0}, 'perQuestionType': {}}


ROW = {'question_id': 1, 'answers': [{'answer': 'red'}] * 10}


@pytest.mark.parametrize('results, annotations, message', [
    ([], [ROW], 'results: 1 annotated questions have no answer, first question 1'),
    ([{'question_id': 1, 'answer': 'x'}] * 2, [ROW], r'results: question 1 is there twice \(again in row 1\)'),
    ([{'question_id': 1, 'answer': 'x'}], [ROW, ROW], 'annotations: question 1 is there twice'),
    ([{'question_id': i, 'answer': 'x'} for i in (1, 2)], [ROW], 'results: 1 questions are not annotated'),
    ([{'question_id': 1, 'answer': 3}], [ROW], 'results: the answer to question 1 must be a string'),
    ([{'answer': 'x'}], [ROW], 'results: row 0 has no question_id'),
    ([{'question_id': 1, 'answer': 'x'}], [{'question_id': 1, 'answer': 'x'}], 'question 1 needs a list of answers'),
    ([], [], 'there is no question to score'),
])  # fmt: skip
def test_bad_vqa_input(results, annotations, message):
    with pytest.raises(ValueError, match=message):
        vqa_accuracy(results, annotations)


# ---- NLVR2


def test_consistency_counts_sentences():
    identifiers = ['dev-1-0-0', 'dev-1-1-0', 'dev-1-0-1', 'dev-2-0-0', 'test1-1-0-0']
    assert nlvr_consistency(identifiers, [True, False, True, True, True]) == 3 / 4
    assert nlvr_consistency(identifiers, torch.ones(5, dtype=torch.bool)) == 1.0


def test_bad_consistency_input():
    with pytest.raises(ValueError, match='identifier .dev-1-0. is not'):
        nlvr_consistency(['dev-1-0'], [True])
    with pytest.raises(ValueError, match='1 identifiers for 2 predictions'):
        nlvr_consistency(['dev-1-0-0'], [True, False])


# ---- the table


def write_log(folder, *entries):
    folder.mkdir()
    (folder / 'log.txt').write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
    return str(folder)


def table_of(capsys, *folders):
    main(['table', *folders])
    text = capsys.readouterr().out
    header, _, *lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    assert header == ['key', *folders]
    return {line[0]: line[1:] for line in lines}


def test_table_picks_the_best_validated_epoch_and_joins_runs(tmp_path, capsys):
    retrieval = write_log(
        tmp_path / 'retrieval',
        *(
            {
                'epoch': epoch,
                'train_loss_itc': 2.0 - epoch,
                'train_lr': 1e-5,
                'val_r_mean': mean,
                'val_itc_r_mean': -mean,
                'test_txt_r1': 10.0 * epoch,
                'test_itc_img_r10': 33.333333,
            }
            for epoch, mean in enumerate([50.0, 60.0, 60.0])
        ),
    )
    pretrain = write_log(tmp_path / 'pretrain', {'epoch': 0, 'train_loss_itc': 3.0}, {'epoch': 1, 'train_loss_itc': 2})
    table = table_of(capsys, retrieval, pretrain)
    figures = ['test_txt_r1', 'test_itc_img_r10', 'val_r_mean', 'val_itc_r_mean', 'train_loss_itc']
    assert list(table) == ['chosen by', 'epoch', *figures]
    assert table['chosen by'] == ['val_r_mean', 'last'] and table['epoch'] == ['1', '1']
    assert table['test_txt_r1'] == ['10', '-'] and table['test_itc_img_r10'] == ['33.33', '-']
    assert table['train_loss_itc'] == ['1', '2']


def test_table_of_nlvr_and_vqa(tmp_path, capsys):
    nlvr = write_log(tmp_path / 'nlvr', {'epoch': 0, 'val_acc': 0.81, 'test_acc': 0.5}, {'epoch': 1, 'val_acc': 0.8})
    vqa = write_log(tmp_path / 'vqa', {'epoch': 3, 'val_overall': 70.0, 'val_perAnswerType': {'yes/no': 80.0}})
    table = table_of(capsys, nlvr, vqa)
    assert table['val_acc'] == ['0.81', '-'] and table['test_acc'] == ['0.5', '-']
    assert table['val_overall'] == ['-', '70'] and table['val_perAnswerType.yes/no'] == ['-', '80']


@pytest.mark.parametrize('text, message', [
    (None, 'log.txt does not exist'), ('', 'is empty'), ('3\n', 'line 1: not a JSON object'),
    ('{"epoch": 0}\n{"epo', 'line 2: not a JSON object'),
])  # fmt: skip
def test_a_bad_log_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / 'log.txt').write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(['table', str(tmp_path)])
