"""What the tests of VQA.py and of predict.py share."""

import pytest

from tests.tiny import arguments


@pytest.fixture(scope='session')
def vqa_run(shapes, pretrained, tmp_path_factory):
    """The output folder of two epochs of VQA.py, which also wrote checkpoints inside the epochs."""
    import VQA

    folder = tmp_path_factory.mktemp('vqa')
    VQA.main([*arguments('vqa', shapes, folder, 'save_every=8'), '--checkpoint', str(pretrained)])
    return folder
