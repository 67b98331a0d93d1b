# ---
# jupyter:
#   kernelspec:
#     display_name: python3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kernel server
#
# > One process imports the heavy libraries once and forks a Jupyter kernel for each notebook.

# %%
#| default_exp lab.kernel_server

# %% [markdown]
# Every notebook of this project runs in a kernel of its own. A new kernel spends five to ten
# seconds of processor time on importing torch and transformers, which is more than most pages
# need to run. The kernel server pays for these imports once: it imports the libraries, waits,
# and forks a child for each kernel that is asked for. The child inherits the imported modules
# and nothing else; no module of `moral_sc` is imported before the fork.
#
# A fork copies only the thread that calls it, so the server never computes anything and runs
# no thread of Python's. OpenBLAS, which starts threads when numpy is imported, stops them
# before a fork and starts them again after it. Where a fork is not safe (macOS, Windows, a
# process that has initialised CUDA), [execution](12_execution.ipynb) starts kernels as Jupyter
# does.

# %%
#| export
import hashlib, json, os, signal, socket, subprocess, sys, tempfile, threading, time
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property

# %%
#| hide
from pathlib import Path
from unittest.mock import patch

from fastcore.test import *

tmp = Path(tempfile.mkdtemp())

# %% [markdown]
# ## Server
#
# The server runs as `python -m moral_sc.lab.kernel_server SOCKET`. A client connects to the
# socket and sends one line of JSON with the arguments, the environment and the working folder
# of a kernel. The server answers with the process id, and with the exit status when the kernel
# has ended. A kernel whose client has gone is killed. The server itself ends, with all its
# kernels, when its standard input is closed: that happens whenever the process that started it
# ends, however it ends.

# %%
#| export
PRELOADED = [ # Libraries that are imported before the fork
    'IPython', 'ipykernel.kernelapp', 'ipykernel.debugger', 'numpy', 'pandas', 'scipy.stats',
    'scipy.optimize', 'torch', 'numba', 'plotly.graph_objects', '_plotly_utils.basevalidators',
    'narwhals.stable.v1', 'kaleido', 'typer', 'fastcore.all', 'transformers',
    'transformers.models.llama.modeling_llama', 'transformers.generation.utils', 'nbformat']

def _import_libraries():
    import warnings
    from importlib import import_module
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in PRELOADED:
            with suppress(ImportError): import_module(name)
        with suppress(Exception): _use_once(sys.modules['numba'])

def _use_once(numba): # Not plotly: it would look for a notebook here, find none and draw nothing
    "Do what a kernel would otherwise do at its first compiled function"
    numba.njit(lambda: 0)()

def _unsafe()->str:
    "Why this process must not be forked, or an empty string"
    if threading.active_count()>1: return 'an imported library has started a thread'
    torch = sys.modules.get('torch')
    if torch and torch.cuda.is_initialized(): return 'CUDA is initialised'
    return ''

def _run_kernel(request, connection):
    "Be a kernel: runs in the forked child, tells the client its process id, does not return"
    status = 1
    try:
        os.setsid() # The client may signal the group as soon as it knows its number
        connection.sendall(f'{os.getpid()}\n'.encode())
        connection.close()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        os.environ.clear()
        os.environ.update(request['env'])
        os.chdir(request['cwd'])
        sys.path.insert(0, '') # The working folder, as in a kernel of Jupyter's
        sys.argv = ['ipykernel_launcher', *request['argv']]
        tempfile.tempdir = None
        for name in [m for m in sys.modules if m.split('.')[0]=='moral_sc']: del sys.modules[name]
        if 'numpy' in sys.modules: sys.modules['numpy'].random.seed()
        from ipykernel.kernelapp import IPKernelApp
        IPKernelApp.launch_instance(request['argv'])
        status = 0
    except SystemExit as e: status = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        with suppress(BaseException): __import__('atexit')._run_exitfuncs()
        with suppress(BaseException): sys.stderr.flush()
        os._exit(status)


# %%
#| export
def _receive_line(connection):
    "One line from a socket, without its end"
    data = b''
    while not data.endswith(b'\n'):
        part = connection.recv(65536)
        if not part: break
        data += part
    return data

def serve(
    path, # Of the Unix socket on which to listen
):
    "Import the libraries, then fork a kernel for each request until standard input is closed"
    import gc
    import selectors
    _import_libraries()
    problem = _unsafe()
    print(problem or 'ready', flush=True)
    if problem: return
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f'{path}~')
    listener.listen(64)
    os.rename(f'{path}~', path) # A client that sees the path can connect
    wake_read,wake_write = os.pipe()
    for fd in (wake_read, wake_write): os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN) # An interrupt is the client's to handle
    signal.set_wakeup_fd(wake_write)
    print('listening', flush=True)
    kernels = {} # Process id to the connection of its client
    gc.freeze()
    with selectors.DefaultSelector() as selector:
        for f in (listener, wake_read, 0): selector.register(f, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key,_ in selector.select()]
            if wake_read in ready:
                os.read(wake_read, 4096)
                _report_ended(kernels, selector)
            for pid,connection in kernels.items():
                if connection in ready: # A client sends nothing after its request: it has gone
                    selector.unregister(connection)
                    with suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
            if listener in ready:
                connection = _fork_kernel(listener, kernels, (wake_read, wake_write))
                if connection: selector.register(connection, selectors.EVENT_READ)
            if 0 in ready and not os.read(0, 4096): break
    for pid in kernels:
        with suppress(ProcessLookupError): os.killpg(pid, signal.SIGKILL)
    os._exit(0) # The libraries have nothing to clean up: nothing was computed

def _report_ended(kernels, selector):
    "Send the exit status of each kernel that has ended to its client"
    while kernels: # Each is a child that has not been waited for
        pid,status = os.waitpid(-1, os.WNOHANG)
        if not pid: return
        with kernels.pop(pid) as connection, suppress(OSError):
            with suppress(KeyError): selector.unregister(connection)
            connection.sendall(f'{os.waitstatus_to_exitcode(status)}\n'.encode())

def _fork_kernel(listener, kernels, inherited):
    connection,_ = listener.accept()
    try: request = json.loads(_receive_line(connection))
    except ValueError: return connection.close()
    pid = os.fork()
    if not pid:
        for c in [listener, *kernels.values()]: c.close()
        for fd in inherited: os.close(fd)
        _run_kernel(request, connection)
    kernels[pid] = connection
    return connection


# %%
#| export
if __name__=='__main__' and '__file__' in globals(): serve(sys.argv[1])


# %% [markdown]
# ## Client
#
# A kernel that another process has started cannot be a `subprocess.Popen`; `ForkedKernel` has
# the part of its interface that jupyter_client uses.

# %%
#| export
class ForkedKernel:
    "A kernel that a server has forked, with the interface of `subprocess.Popen`"
    stdin = stdout = stderr = None
    def __init__(self, connection): # Connected, the request sent
        self._connection = connection
        self.pid = int(_receive_line(connection))
        self.returncode = None

    def _read_status(self, wait):
        if self.returncode is None:
            self._connection.settimeout(wait)
            try: line = _receive_line(self._connection)
            except (BlockingIOError, TimeoutError): return
            except OSError: line = b''
            self.returncode = int(line or -signal.SIGKILL) # No answer: the server is gone
            self._connection.close()

    def poll(self):
        "Return the exit status, or None while the kernel runs"
        self._read_status(0)
        return self.returncode

    def wait(self, timeout=None):
        "Wait for the end and return the exit status"
        self._read_status(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired('kernel', timeout)
        return self.returncode

    def send_signal(self, number): # As Popen: nothing happens after the end
        if self.poll() is None:
            with suppress(ProcessLookupError): os.kill(self.pid, number)
    def terminate(self): self.send_signal(signal.SIGTERM)
    def kill(self): self.send_signal(signal.SIGKILL)


# %% [markdown]
# Some variables are read when a library is loaded (`OMP_NUM_THREADS`, for example), so a kernel
# can only come from a server that was started with the same ones. A process keeps one server
# for each such environment; variables that differ from kernel to kernel are listed in
# `PER_KERNEL` and are set after the fork. Kernels find the server they come from, with a hash of
# its environment, in the variable `MORAL_SC_KERNEL_SERVER`. A page that runs other pages thus uses
# the server that is there.

# %% [markdown]
# The path of a Unix socket may have about 100 characters, so a long `TMPDIR` cannot hold one.

# %%
#| export
LONGEST_FOLDER = 60 # Characters of the path of a folder for sockets

@contextmanager
def socket_folder():
    "A temporary folder with a path short enough for Unix sockets, or None if there is none"
    usable = (p for p in (tempfile.gettempdir(), '/tmp', '/var/tmp') # noqa: S108 private below it
              if len(os.fsencode(p))<=LONGEST_FOLDER and os.access(p, os.W_OK))
    base = next(usable, None) if os.name=='posix' else None
    if not base: yield None
    else:
        with tempfile.TemporaryDirectory(prefix='moral_sc', dir=base,
                                         ignore_cleanup_errors=True) as folder: yield folder


# %%
long = tmp/('x'*90)
long.mkdir()
with patch.object(tempfile, 'tempdir', str(long)), socket_folder() as folder:
    assert len(folder)<LONGEST_FOLDER+20 and Path(folder).stat().st_mode & 0o77==0

# %%
#| export
PER_KERNEL = ( # Beginnings of names; those of the second line are set by ipykernel
    'MORAL_SC_', 'TMPDIR', 'JPY_', 'PWD', 'OLDPWD', 'PYTEST_',
    'TERM', 'CLICOLOR', 'FORCE_COLOR', 'PAGER', 'GIT_PAGER', 'MPLBACKEND', 'PYDEVD_')
START_TIMEOUT = 120 # Seconds for the imports, on a slow disk
SERVER_VARIABLE = 'MORAL_SC_KERNEL_SERVER'

def _shared(env): return {k: v for k,v in env.items() if not k.startswith(PER_KERNEL)}

def _environment_hash(env):
    items = [sys.executable, *sorted(_shared(env).items())]
    return hashlib.sha256(repr(items).encode()).hexdigest()

class ServerAddress:
    "The address of a running kernel server and the means to start a kernel in it"
    def __init__(self,
        pid:int,     # Of the server
        socket:str,  # Its path
        env_hash:str, # Of its environment
    ):
        self.pid = pid
        self._socket = socket
        self.variable = f'{pid} {env_hash} {socket}'

    def start(self,
        argv:list, # Arguments of the kernel, without the interpreter
        env:dict,  # Its whole environment
        cwd,       # Its working folder
    )->ForkedKernel:
        "Fork a kernel"
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._socket)
        parent = f'--IPKernelApp.parent_handle={self.pid}' # Read at import otherwise
        env = {**env, SERVER_VARIABLE: self.variable}
        request = dict(argv=[*argv, parent], env=env, cwd=str(cwd))
        connection.sendall(json.dumps(request).encode()+b'\n')
        return ForkedKernel(connection)

class KernelServer(ServerAddress):
    "A running kernel server"
    def __init__(self,
        env:dict, # Its environment
    ):
        self._folder = ExitStack()
        path = f'{self._folder.enter_context(socket_folder())}/server'
        command = [sys.executable, '-P', '-X', 'frozen_modules=off', # As Jupyter's kernels
                   '-m', 'moral_sc.lab.kernel_server', path]
        self._process = subprocess.Popen( # noqa: S603 our own module
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True)
        super().__init__(self._process.pid, path, _environment_hash(env))

    @cached_property
    def problem(self):
        "Why it cannot fork kernels, or an empty string; waits for the imports"
        return self._await('ready') or self._await('listening')

    def _await(self, expected):
        timer = threading.Timer(START_TIMEOUT, self._process.kill)
        timer.start()
        try: line = self._process.stdout.readline().strip()
        finally: timer.cancel()
        return '' if line==expected else line or 'the server did not start'

    def close(self):
        "End the server and all its kernels"
        with suppress(OSError): self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired): self._process.wait(5)
        self._process.kill()
        self._process.stdout.close()
        self._folder.close()


# %%
#| export
_servers = {} # Environment to its server, or to None where forking is not safe
_lock = threading.Lock()

def _inherited(env):
    "The server that a process above this one has started, if it has this environment and runs"
    pid,env_hash,path = env.get(SERVER_VARIABLE, '0  ').split(' ', 2)
    if env_hash!=_environment_hash(env): return None
    runs = lambda: os.path.exists(f'/proc/{pid}/exe') # Not of a process that has ended
    until = time.monotonic()+START_TIMEOUT
    while not os.path.exists(path):
        if not runs() or time.monotonic()>until: return None
        time.sleep(.05)
    return ServerAddress(int(pid), path, env_hash) if runs() else None

def _may_fork(env): return sys.platform=='linux' and not env.get('MORAL_SC_ISOLATED_KERNELS')

def kernel_server(
    env:dict, # Of the kernel to be started
)->ServerAddress|None: # None where kernels must be started anew, one by one
    "Return a server for kernels with this environment"
    if not _may_fork(env): return None
    if server := _inherited(env): return server
    shared = _shared(env)
    key = (os.getpid(), *sorted(shared.items()))
    with _lock:
        if key not in _servers:
            server = KernelServer(shared)
            if server.problem: server.close()
            _servers[key] = None if server.problem else server
        return _servers[key]

def share_kernel_server(
    env:dict, # Of the kernels
)->KernelServer|None: # None where kernels must be started anew, one by one
    "Start a server for this process and the processes it starts, without waiting for its imports"
    if not _may_fork(env): return None
    server = KernelServer(_shared(env))
    os.environ[SERVER_VARIABLE] = server.variable
    return server


# %% [markdown]
# The first kernel waits for the imports, the next ones do not:

# %%
env = {k: v for k,v in os.environ.items()
       if k not in ('MORAL_SC_ISOLATED_KERNELS', SERVER_VARIABLE)}
start = time.perf_counter()
server = kernel_server(env)
imports = time.perf_counter()-start
imports>0, server.problem

# %% [markdown]
# Any arguments of a kernel will do to see the life of a child. This one prints the version of
# ipykernel and ends:

# %%
child = server.start(['--version'], env, '/')
child.wait(60), child.poll()

# %%
test_eq(child.returncode, 0)
test_eq(server, kernel_server({**env, 'MORAL_SC_RUNS': 'elsewhere'}))
test_eq(kernel_server({**env, 'MORAL_SC_ISOLATED_KERNELS': '1'}), None)
inherited = kernel_server({**env, SERVER_VARIABLE: server.variable, 'TERM': 'other'})
test_eq((inherited.variable, inherited is server), (server.variable, False))
test_eq(_inherited({**env, SERVER_VARIABLE: server.variable, 'OMP_NUM_THREADS': '7'}), None)


# %% [markdown]
# `pytest` runs several processes. They share the server that the first of them has started with
# `share_kernel_server`, and wait until it listens. A server that has ended is not waited for.

# %%
def inherit(pid, path):
    return _inherited({**env, SERVER_VARIABLE: f'{pid} {_environment_hash(env)} {path}'})

threading.Timer(.2, (tmp/'listening').touch).start()
test_eq(inherit(os.getpid(), tmp/'listening').pid, os.getpid())
ended = subprocess.Popen([sys.executable, '-c', ''])
test_eq(inherit(ended.pid, tmp/'never'), None)

# %% [markdown]
# A kernel that is killed is reported. A kernel ends when its client has gone, and when the server
# ends its kernels end too.

# %%
from jupyter_client import write_connection_file

def new_kernel(name):
    folder = tempfile.mkdtemp(prefix='k')
    file,_ = write_connection_file(f'{folder}/{name}.json', transport='ipc', ip=f'{folder}/s')
    return server.start(['-f', file], env, folder)

def is_alive(pid): return Path(f'/proc/{pid}').exists()

a,b,c = (new_kernel(k) for k in 'abc')
a.kill()
test_eq(a.wait(30), -signal.SIGKILL)
c._connection.close()
stop = time.perf_counter()+30
while is_alive(c.pid) and time.perf_counter()<stop: time.sleep(.05)
assert not is_alive(c.pid)
test_eq(b.poll(), None)
server.close()
_servers.clear()
test_eq(b.wait(30), -signal.SIGKILL)


# %% [markdown]
# ## Provisioner
#
# jupyter_client starts kernels through a provisioner. Ours differs from the usual one in a
# single step.

# %%
#| export
def fork_provisioner(
    manager,             # A `KernelManager` that has not started its kernel
    server:ServerAddress,
):
    "A kernel provisioner that asks `server` for its process"
    from jupyter_client.provisioning import LocalProvisioner
    class ForkProvisioner(LocalProvisioner):
        async def launch_kernel(self, cmd, **kwargs):
            argv = cmd[cmd.index('ipykernel_launcher')+1:]
            argv = [a for a in argv if not a.startswith('-X')]
            self.process = server.start(argv, kwargs['env'], kwargs.get('cwd') or os.getcwd())
            self.pid = self.pgid = self.process.pid
            self.cwd = kwargs.get('cwd')
            return self.connection_info
    return ForkProvisioner(kernel_id='forked', kernel_spec=manager._kernel_spec, parent=manager)
