"""Which package imports which, and how long the scripts are."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ('Pretrain', 'Retrieval', 'Pretrain_nlvr', 'NLVR', 'VQA')
PROGRAMS = {*SCRIPTS, 'predict', 'demo'}
PACKAGES = ('dataset', 'models', 'utils', 'evaluation', 'reports', 'optim', 'scheduler')
OUTSIDE = {'tests', 'benchmarks', 'examples'}

# No module of a package imports these.
FORBIDDEN = {
    'utils': {'dataset', 'models', 'evaluation', 'reports', 'engine', 'inference', 'optim', 'scheduler'},
    'evaluation': {'dataset', 'models', 'reports', 'engine', 'inference', 'optim', 'scheduler'},
    'optim': {'dataset', 'models', 'evaluation', 'reports', 'engine', 'inference'},
    'scheduler': {'dataset', 'models', 'evaluation', 'reports', 'engine', 'inference'},
    'models': {'dataset', 'evaluation', 'reports', 'engine', 'inference', 'optim', 'scheduler'},
    'dataset': {'reports', 'engine', 'inference', 'optim', 'scheduler'},
    'reports': {'engine', 'optim', 'scheduler'},
}


def modules_of(package):
    return sorted((ROOT / package).rglob('*.py'))


def imported(path):
    """The first names of everything that a module imports, inside functions, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: a relative import'
            names.add(node.module.split('.')[0])
    return names


@pytest.mark.parametrize('package', FORBIDDEN)
def test_imports_follow_the_arrows(package):
    forbidden = FORBIDDEN[package] | PROGRAMS | OUTSIDE
    modules = modules_of(package)
    assert modules
    found = {str(path.relative_to(ROOT)): imported(path) & forbidden for path in modules}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_engine_and_the_programs_import_no_program():
    paths = [ROOT / f'{name}.py' for name in (*PROGRAMS, 'engine', 'inference')]
    assert {path.name: names for path in paths if (names := imported(path) & (PROGRAMS | OUTSIDE))} == {}
    assert not any('inference' in imported(ROOT / f'{name}.py') for name in SCRIPTS)
    assert not imported(ROOT / 'engine.py') & {'models', 'evaluation', 'reports', 'inference'}
    assert not imported(ROOT / 'inference.py') & {'evaluation', 'reports', 'engine', 'optim', 'scheduler'}


def test_the_five_scripts_are_short():
    lines = {name: len((ROOT / f'{name}.py').read_text().splitlines()) for name in SCRIPTS}
    assert sum(lines.values()) < 850, lines


def test_every_module_has_a_docstring():
    paths = [path for package in PACKAGES for path in modules_of(package)]
    paths += [ROOT / f'{name}.py' for name in (*PROGRAMS, 'engine', 'inference')]
    assert len(paths) > 60
    without = [path for path in paths if not ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))]
    assert [str(path.relative_to(ROOT)) for path in without] == []
