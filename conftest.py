"Each notebook under `nbs/` is a test: it is run from top to bottom at one scale"
import json
import os
import re
import tempfile
from importlib.util import find_spec

import pytest

from moral_sc.lab.execution import execute, kernel_environment
from moral_sc.lab.kernel_server import share_kernel_server
from moral_sc.lab.reproduce import expected_seconds

os.environ['IN_TEST'] = '1'

# `pytest -m smoke`: a page of each package, the command line, and one page of each paper
SMOKE = {
    'foundation/30_statistics', 'language/20_chat', 'superposition/20_model',
    'constitution/10_principles', 'bias/bbq/10_items', 'lab/cli/20_superposition',
    'lab/cli/40_bias', 'papers/superposition/mathematics', 'papers/constitution/pipeline',
    'papers/self_correction/toy_size',
}


def pytest_addoption(parser):
    parser.addoption('--scale', default='quick', choices=['quick', 'cpu', 'gpu'],
                     help='scale of the notebooks that have one (quick)')
    parser.addoption('--isolated', action='store_true',
                     help='start each kernel as a new process instead of forking it')


def pytest_xdist_auto_num_workers(config):
    """One more than cores, since a worker waits while its kernel starts and stops; fewer for
    few pages, since a worker spends ten seconds on imports"""
    pages = sum(a.endswith('.ipynb') for a in config.args) or 240
    return min((os.cpu_count() or 1)+1, 9, (pages+2)//3)


WORKER_ENV = {'OMP_NUM_THREADS': '1'}  # Of the kernels of several workers


def pytest_configure(config):
    """First models that several pages train are trained once in a session, and the workers share
    a kernel server"""
    if 'PYTEST_XDIST_WORKER' in os.environ: return
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ['MORAL_SC_SHARED'] = folder.name
    config.add_cleanup(folder.cleanup)
    if config.getoption('numprocesses', None) and not config.getoption('--isolated'):
        server = share_kernel_server(kernel_environment() | WORKER_ENV)
        if server: config.add_cleanup(server.close)


SECONDS = 'pages/seconds'


def pytest_collection_modifyitems(config, items):
    "The longest pages come first, so that none is left alone at the end"
    seconds = {f'nbs/papers/{page}.ipynb::quick': s for page,s in expected_seconds().items()}
    seconds |= config.cache.get(SECONDS, {})  # Of the last run
    items.sort(key=lambda item: -seconds.get(item.nodeid, 0))


def pytest_runtest_logreport(report):
    if report.when=='call' and report.passed: _seconds[report.nodeid] = round(report.duration, 1)


def pytest_sessionfinish(session):
    if 'PYTEST_XDIST_WORKER' in os.environ or not _seconds: return
    cache = session.config.cache
    cache.set(SECONDS, cache.get(SECONDS, {}) | _seconds)


_seconds = {}  # Of the pages of this session


def pytest_collect_file(file_path, parent):
    nbs = parent.config.rootpath/'nbs'
    if file_path.suffix!='.ipynb' or not file_path.is_relative_to(nbs): return
    if any(p[0] in '_.' for p in file_path.relative_to(nbs).parts): return
    return Notebook.from_parent(parent, path=file_path)


def pytest_ignore_collect(collection_path, config):
    return True if collection_path.is_dir() and collection_path.name[0] in '_.' else None


class Failed(Exception): pass


class Notebook(pytest.File):
    def collect(self): yield Page.from_parent(self, name=self.config.getoption('scale'))


class Page(pytest.Item):
    def __init__(self, **kw):
        super().__init__(**kw)
        self.needs = []
        page = self.path.relative_to(self.config.rootpath/'nbs').with_suffix('').as_posix()
        if page in SMOKE: self.add_marker('smoke')
        for c in json.loads(self.path.read_text('utf-8'))['cells']:
            source = ''.join(c['source'])
            for m in re.findall(r'^#\| *mark: *(\w+)', source, re.M): self.add_marker(m)
            for m in re.findall(r'^#\| *needs: *(\w+)', source, re.M): self.needs.append(m)

    def setup(self):
        for m in self.needs:
            if find_spec(m) is None: pytest.skip(f'needs the package {m}')
        if self.get_closest_marker('gpu') is None: return
        import torch
        if not torch.cuda.is_available(): pytest.skip('needs an accelerator, and there is none')

    def runtest(self):
        root = self.config.rootpath
        dst = root/'_runs'/self.name/self.path.relative_to(root/'nbs')
        env = dict(WORKER_ENV) if 'PYTEST_XDIST_WORKER' in os.environ else {}
        if self.config.getoption('--isolated'): env['MORAL_SC_ISOLATED_KERNELS'] = '1'
        res = execute(self.path, dst, dict(scale=self.name), env=env)
        if not res.ok: raise Failed(res)

    def repr_failure(self, excinfo):
        if not isinstance(excinfo.value, Failed): return super().repr_failure(excinfo)
        res = excinfo.value.args[0]
        where = self.path.relative_to(self.config.rootpath)
        return f'{where}, cell {res.cell}\n\n{res.source}\n\n{res.traceback}'

    def reportinfo(self):
        return self.path, 0, f'{self.path.relative_to(self.config.rootpath)}[{self.name}]'
