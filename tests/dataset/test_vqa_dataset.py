"""The datasets of visual question answering: weights of answers, batches, the answer list, bad input."""

import math

import pytest
import torch

from dataset.vqa_dataset import VQAEvalDataset, VQATrainingSet, read_answer_list, tokenize_answers, weighted_answers
from tests.helpers import read_rows, write_rows
from tests.tiny import resolved


def test_annotators_share_the_weight_and_visual_genome_has_one_half():
    row = {'dataset': 'vqa', 'answer': ['red', 'pink', 'red', 'red', 'rose', 'red', 'red', 'red', 'red', 'pink']}
    assert weighted_answers(row) == pytest.approx({'red': 0.7, 'pink': 0.2, 'rose': 0.1})
    assert weighted_answers({'dataset': 'vg', 'answer': 'on the table'}) == {'on the table': 0.5}
    assert weighted_answers({'dataset': 'vqa', 'answer': 'red'}) == {'red': 1.0}


def test_a_training_batch(shapes, tmp_path, tokenizer):
    """Questions cleaned, cut at 30 words and 25 tokens with [CLS]; answers complete and ended by one token; flat, with
    counts.
    """
    rows = read_rows(shapes, 'vqa_train')[:3]
    rows[0] |= {'question': 'What COLOR is the red-star, please?' + ' star' * 40}
    rows[1] |= {'dataset': 'vg', 'answer': 'dark green ' * 20}
    rows[2] |= {'answer': ['Red'] * 9 + ['dark green']}
    config = resolved('vqa', shapes, f'train_file={write_rows(tmp_path / "train.json", rows)}')
    dataset = VQATrainingSet(config, tokenizer, 0)
    batch = dataset.collate([dataset[0, index] for index in range(3)])
    assert batch['image'].shape == (3, 3, 32, 32)
    question = tokenizer.convert_ids_to_tokens(batch['question'].input_ids[0])
    assert len(question) == 25 and question[:7] == ['[CLS]', 'what', 'color', 'is', 'the', 'red', 'star']
    assert '[SEP]' not in question and ',' not in question
    counts = batch['k'].tolist()
    assert counts == [len(set(rows[0]['answer'])), 1, 2]
    assert batch['weights'].tolist()[-3:] == pytest.approx([0.5, 0.9, 0.1])
    assert math.isclose(sum(batch['weights'].tolist()[: counts[0]]), 1, rel_tol=1e-6)
    tokens = [tokenizer.convert_ids_to_tokens(ids[mask.bool()]) for ids, mask in zip(*batch['answer'], strict=True)]
    assert tokens[-2] == ['[CLS]', 'red', '[SEP]'] and tokens[-3] == ['[CLS]', *['dark', 'green'] * 20, '[SEP]']


def test_an_example_depends_on_epoch_and_index(shapes, tokenizer):
    dataset = VQATrainingSet(resolved('vqa', shapes), tokenizer, 0)
    first, again = (dataset[3, 7] for _ in range(2))
    assert torch.equal(first['image'], again['image'])
    assert not torch.equal(first['image'], dataset[4, 7]['image'])


def test_questions_of_a_split_are_cut_only_at_the_last_position_embedding(shapes, tmp_path, tokenizer, capsys):
    rows = read_rows(shapes, 'vqa_test')[:2]
    rows[0]['question'] = 'star ' * 45
    config = resolved('vqa', shapes, f'test_file={write_rows(tmp_path / "a.json", rows)}')
    questions = VQAEvalDataset(config, 'test', tokenizer)
    assert questions.collate([questions[0], questions[1]])['question'].input_ids.shape == (2, 46)
    rows[0]['question'] = 'zzzz ' * 60  # words of which the vocabulary has single letters only
    config = resolved('vqa', shapes, f'test_file={write_rows(tmp_path / "b.json", rows)}')
    questions = VQAEvalDataset(config, 'test', tokenizer)
    for _ in range(2):
        assert questions.collate([questions[0], questions[1]])['question'].input_ids.shape == (2, 64)
    assert capsys.readouterr().out.count('longer than 64 tokens') == 1


def test_the_answer_list(shapes, tmp_path, tokenizer):
    answers = read_answer_list(shapes / 'answer_list.json')
    tokens = tokenize_answers(tokenizer, answers, '[SEP]')
    lengths = tokens.attention_mask.sum(dim=1)
    assert (tokens.input_ids.gather(1, lengths[:, None] - 1) == tokenizer.sep_token_id).all()
    two_words = tokenizer.convert_ids_to_tokens(tokens.input_ids[answers.index('dark green')])
    assert two_words[:4] == ['[CLS]', 'dark', 'green', '[SEP]']
    for eos in ('', 'dark green', '</s>', '[EOS]'):
        with pytest.raises(ValueError, match='must be one token'):
            tokenize_answers(tokenizer, answers, eos)
    with pytest.raises(FileNotFoundError, match='dataset.prepare vqa'):
        read_answer_list(tmp_path / 'none.json')
    for text in ('{"a": 1}', '[]', '[1]', '["a"'):
        (tmp_path / 'bad.json').write_text(text)
        with pytest.raises(ValueError, match='answer_list: .*bad.json'):
            read_answer_list(tmp_path / 'bad.json')


def test_bad_rows_and_roots_are_named(shapes, tmp_path, tokenizer):
    rows = read_rows(shapes, 'vqa_train')[:4]
    del rows[2]['answer']
    config = resolved('vqa', shapes, f'train_file={write_rows(tmp_path / "a.json", rows)}')
    with pytest.raises(ValueError, match=r'a\.json: row 2 has no answer, and 1 of 4'):
        VQATrainingSet(config, tokenizer, 0)
    rows = read_rows(shapes, 'vqa_test')[:3]
    rows[2]['question_id'] = rows[0]['question_id']
    config = resolved('vqa', shapes, f'test_file={write_rows(tmp_path / "b.json", rows)}')
    with pytest.raises(ValueError, match=r'b\.json: row 2 has question_id .* so has row 0 of .*b\.json'):
        VQAEvalDataset(config, 'test', tokenizer)
    rows = read_rows(shapes, 'vqa_val')[:3]
    rows[1]['answer'] = 'red'
    config = resolved('vqa', shapes, f'val_file={write_rows(tmp_path / "c.json", rows)}')
    with pytest.raises(ValueError, match=r'c\.json: row 1 has 1 answer\(s\).*ten times'):
        VQAEvalDataset(config, 'val', tokenizer).check_annotated()
    with pytest.raises(FileNotFoundError, match='set vqa_root'):
        VQAEvalDataset(resolved('vqa', shapes, 'vqa_root=/nowhere'), 'val', tokenizer)
    rows = [row | {'dataset': 'vg', 'answer': 'red'} for row in read_rows(shapes, 'vqa_train')[:2]]
    file = write_rows(tmp_path / 'd.json', rows * 30)
    config = resolved('vqa', shapes, 'vg_root=/nowhere', f'train_file=[{shapes}/vqa_train.json, {file}]')
    with pytest.raises(FileNotFoundError, match=r'd\.json, row .*/nowhere.*set vg_root'):
        VQATrainingSet(config, tokenizer, 0)


def test_questions_about_unreadable_images_are_answered_with_a_blank_one_or_refused(shapes, tmp_path, tokenizer):
    rows = read_rows(shapes, 'vqa_test')[:3]
    rows[1]['image'] = 'images/none.jpg'
    file = write_rows(tmp_path / 'a.json', rows)
    questions = VQAEvalDataset(resolved('vqa', shapes, f'test_file={file}'), 'test', tokenizer)
    batch = questions.collate([questions[i] for i in range(3)])
    assert not batch['image'][1].any() and batch['image'][2].any()
    [(index, reason)] = batch['bad']
    assert index == 1 and 'a.json, row 1' in reason and 'none.jpg' in reason
    with pytest.raises(ValueError, match=r'a\.json, row 1: .*none.jpg.*on_bad_image: skip'):
        VQAEvalDataset(resolved('vqa', shapes, f'test_file={file}', 'on_bad_image=error'), 'test', tokenizer)[1]
