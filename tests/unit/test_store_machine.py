"""Four servers over one folder as a state machine that hypothesis drives: whatever happens, in whatever order, an answer is
what was put under its key, or none, and the folder stays under its size."""

import multiprocessing
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from klein.store.disk import Disk, locked
from klein.store.store import Store
from unit.test_store import MOST, key, same, spoil, value

MEMORY, ENTRIES = 20_000, 16  # more than fit
SERVERS, NUMBERS = st.integers(0, 3), st.integers(0, ENTRIES - 1)


def put(folder: Path, number: int) -> None:
    Disk(folder, MOST).put(key(number), value(number), "a test")


class Servers(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.servers = [self.started() for _ in range(4)]

    def started(self) -> Store:
        return Store(self.folder, MOST, MEMORY)

    @rule(server=SERVERS, number=NUMBERS)
    def what_was_just_put_is_there(self, server, number):
        self.servers[server].put(key(number), value(number), "a test")
        assert same(self.servers[server].get(key(number)), value(number))

    @rule(server=SERVERS, number=NUMBERS)
    def an_answer_is_right_or_none(self, server, number):
        got = self.servers[server].get(key(number))
        assert got is None or same(got, value(number))

    @rule(server=SERVERS)
    def a_server_is_started_again(self, server):
        self.servers[server] = self.started()

    @rule(number=NUMBERS, after=st.floats(0, 0.01))
    def a_writer_is_killed(self, number, after):
        writer = multiprocessing.get_context("fork").Process(target=put, args=(self.folder, number))
        writer.start()
        time.sleep(after)
        writer.kill()
        writer.join()

    @rule(server=SERVERS, number=NUMBERS, left=st.integers(0, 40_000))
    def the_disk_is_full_in_mid_write(self, server, number, left):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
        try:
            self.servers[server].put(key(number), value(number), "a test")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    @rule(seed=st.integers(0, 2**32))
    def an_entry_is_cut_or_flipped_or_exchanged_or_its_clock_jumps(self, seed):
        spoil(self.folder, random.Random(seed))
        fresh = Store(self.folder, MOST, 0)
        for number in range(ENTRIES):
            got = fresh.get(key(number))
            assert got is None or same(got, value(number))

    @rule(server=SERVERS)
    def the_entries_can_be_listed(self, server):
        self.servers[server].entries()

    @invariant()
    def the_folder_is_under_its_size(self):
        with locked(self.folder):
            assert sum(path.stat().st_size for path in self.folder.glob("*.safetensors")) <= MOST

    def teardown(self):
        shutil.rmtree(self.folder)


TestServers = Servers.TestCase
TestServers.settings = settings(
    max_examples=25,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
