"""The store gives what was put, or nothing: whatever happens to its folder, and whoever else writes there.

Values here are made from their keys, so that any process can tell a wrong one.
"""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import torch

from klein.model_loaders.formats.files import open_checkpoint
from klein.store.disk import Disk, encoded, locked
from klein.store.keys import content, digest
from klein.store.stamp import source, stamp
from klein.store.store import Store
from tools import small
from tools.store import main as command

MOST = 300_000  # bytes: some 15 of the values here


def key(number: int) -> str:
    return digest("test", number=number)


def value(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    length = 1 + number * 977 % 9000
    floats = torch.randn(length, generator=generator)
    return {"a": floats, "half": floats.bfloat16(), "bytes": torch.tensor([number % 256], dtype=torch.uint8), "one": floats[0]}


def same(got: dict, want: dict) -> bool:
    return got.keys() == want.keys() and all(got[n].dtype == want[n].dtype and torch.equal(got[n], want[n]) for n in want)


def size(folder: Path) -> int:
    """Of all that lies there but the lock, which is empty."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            pass
    return total


def test_what_was_put_is_got_in_this_life_and_the_next(tmp_path):
    first = Store(tmp_path, MOST, MOST)
    assert first.get(key(1)) is None
    first.put(key(1), value(1), "a test")
    assert same(first.get(key(1)), value(1))
    assert same(Store(tmp_path, MOST, MOST).get(key(1)), value(1))
    assert same(Store(tmp_path, MOST, 0).get(key(1)), value(1))
    assert Store(tmp_path, MOST, MOST).get(key(2)) is None


def test_what_is_got_can_be_changed_without_harm(tmp_path):
    for store in (Store(None, 0, MOST), Store(tmp_path, MOST, 0)):
        mine = value(1)
        store.put(key(1), mine, "a test")
        mine["a"].zero_()
        store.get(key(1))["a"].zero_()
        assert same(store.get(key(1)), value(1))


def test_memory_keeps_what_was_asked_for_last():
    store = Store(None, 0, 3 * 400)
    for number in range(3):
        store.put(key(number), {"x": torch.full((100,), float(number))}, "a test")
    store.get(key(0))
    store.put(key(3), {"x": torch.zeros(100)}, "a test")
    assert store.get(key(1)) is None and all(store.get(key(number)) for number in (0, 2, 3))


def test_the_folder_keeps_what_was_asked_for_last_and_stays_under_its_size(tmp_path):
    disk = Disk(tmp_path, 3500)
    for number in range(3):
        assert disk.put(key(number), {"x": torch.full((200,), float(number))}, "a test")
        os.utime(tmp_path / f"{key(number)}.safetensors", (number, number))
    assert disk.get(key(0))
    assert disk.put(key(3), {"x": torch.zeros(200)}, "a test")
    assert [disk.get(key(number)) is not None for number in range(4)] == [True, False, True, True]
    assert size(tmp_path) <= 3500
    assert not disk.put(key(4), {"x": torch.zeros(1000)}, "too large") and len(disk.entries()) == 3


def test_entries_say_what_they_are_and_can_be_removed_and_nothing_else_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    store = Store(tmp_path, MOST, MOST)
    store.put(key(1), value(1), "the prompt 'a cat'")
    (entry,) = store.entries()
    assert (entry.key, entry.what) == (key(1), "the prompt 'a cat'")
    assert store.disk.usage() == (1, entry.nbytes)
    assert entry.nbytes == (tmp_path / f"{key(1)}.safetensors").stat().st_size and abs(entry.used - time.time()) < 100
    store.clear()
    assert store.entries() == [] and store.get(key(1)) is None
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", "lock"}


@pytest.mark.parametrize("seed", range(8))
def test_an_entry_with_any_bit_flipped_or_cut_anywhere_is_none(tmp_path, seed):
    """Of 250 places, half of them in the header, which says what the bytes mean."""
    chance = random.Random(seed)
    whole = encoded(key(3), {"x": torch.arange(50.0), "y": torch.ones(3, dtype=torch.int32)}, "a test")
    disk, path = Disk(tmp_path, MOST), tmp_path / f"{key(3)}.safetensors"
    header = int.from_bytes(whole[:8], "little") + 8
    for _ in range(250):
        place = chance.randrange(chance.choice((header, len(whole))))
        damaged = bytearray(whole)
        damaged[place] ^= 1 << chance.randrange(8)
        for data in (damaged, whole[:place]):
            path.write_bytes(data)
            got = disk.get(key(3))
            # a flip in the header's blanks or of a letter's case that changes no meaning would be no damage
            assert got is None or same(got, {"x": torch.arange(50.0), "y": torch.ones(3, dtype=torch.int32)})
            assert data is damaged or got is None
            assert got is not None or not path.exists()


@pytest.mark.parametrize(
    "foreign",
    [
        b"",
        b"\0" * 5000,
        b"\xff" * 5000,
        b"hello",
        b"\x10" + b"\0" * 7 + b"[" * 16,
        b"\x02" + b"\0" * 7 + b"{}",
        "another key",
        "a folder",
        "a model",
    ],
)
def test_what_no_store_wrote_under_this_key_is_none(tmp_path, foreign):
    path = tmp_path / f"{key(1)}.safetensors"
    if foreign == "another key":
        path.write_bytes(encoded(key(2), value(1), "a test"))
    elif foreign == "a folder":
        path.mkdir()
    elif foreign == "a model":
        small.save({"x": value(1)["a"]}, path)
    else:
        path.write_bytes(foreign)
    store = Store(tmp_path, MOST, MOST)
    assert store.get(key(1)) is None
    store.put(key(1), value(1), "a test")
    assert same(store.get(key(1)), value(1))


def test_what_a_dead_writer_left_is_removed_by_the_next(tmp_path):
    (tmp_path / f"{key(1)}.tmp").write_bytes(b"half")
    assert Disk(tmp_path, MOST).put(key(2), value(2), "a test")
    assert not (tmp_path / f"{key(1)}.tmp").exists()


def test_a_disk_that_is_full_in_mid_write_leaves_nothing_and_memory_serves(tmp_path):
    """The system ends a write at 4000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
    try:
        store = Store(tmp_path, MOST, MOST)
        store.put(key(5), value(5), "a test")
        assert same(store.get(key(5)), value(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert size(tmp_path) == 0 and Store(tmp_path, MOST, MOST).get(key(5)) is None


def test_a_folder_that_may_only_be_read_is_read_and_memory_serves():
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        Disk(folder, MOST).put(key(1), value(1), "a test")
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        store = Store(folder, MOST, MOST)
        assert same(store.get(key(1)), value(1))
        store.put(key(2), value(2), "a test")
        assert same(store.get(key(2)), value(2))
        store.clear()
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        found = Disk(folder, MOST).get(key(1)), Disk(folder, MOST).get(key(2))
        shutil.rmtree(folder)
    assert same(found[0], value(1)) and found[1] is None


def test_a_folder_that_cannot_be_made_is_as_none(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store", MOST, MOST)
    store.put(key(1), value(1), "a test")
    assert same(store.get(key(1)), value(1)) and store.entries() == [] and store.disk.usage() == (0, 0)


def server(folder: str, seed: int, operations: int) -> None:
    """Operations of one process; status 1 for a wrong answer."""
    torch.set_num_threads(1)
    chance, store = random.Random(seed), Store(Path(folder), MOST, 20_000)
    for _ in range(operations):
        number, what = chance.randrange(40), chance.random()
        if what < 0.5:
            store.put(key(number), value(number), "a test")
        elif what < 0.95:
            got = store.get(key(number))
            if got is not None and not same(got, value(number)):
                os._exit(1)
        elif what < 0.99:
            store.entries()
        else:
            store = Store(Path(folder), MOST, 20_000)
    os._exit(0)


def spoil(folder: Path, chance: random.Random) -> None:
    """Cut an entry, flip a bit of it, make it another's, or set its clock."""
    entries = sorted(folder.glob("*.safetensors"))
    if not entries:
        return
    path, other = chance.choice(entries), chance.choice(entries)
    try:
        data = bytearray(path.read_bytes())
        what = chance.randrange(4)
        if what == 0:
            path.write_bytes(data[: chance.randrange(len(data) + 1)])
        elif what == 1 and data:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            path.write_bytes(data)
        elif what == 2 and path != other and len(data) <= other.stat().st_size:
            other.write_bytes(data)
        else:
            os.utime(path, (chance.randrange(2**32),) * 2)
    except FileNotFoundError:
        pass  # a server has just removed it


@pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.long)])
def test_four_servers_with_kills_and_damage_never_give_a_wrong_answer_nor_exceed_the_size(tmp_path, rounds):
    """Each round four servers do ten operations each; one is killed, and every look at the folder finds it small enough."""
    context, chance = multiprocessing.get_context("fork"), random.Random(rounds)
    for number in range(rounds):
        servers = [context.Process(target=server, args=(str(tmp_path), 4 * number + each, 10)) for each in range(4)]
        for process in servers:
            process.start()
        death = time.monotonic() + 0.03 * chance.random()
        while any(process.is_alive() for process in servers):
            if time.monotonic() > death:
                servers[0].kill()
            with locked(tmp_path):  # or a look would see one file before and the next after a server's write
                spoil(tmp_path, chance)
                assert size(tmp_path) <= MOST
            time.sleep(0.001)
        assert all(process.exitcode == 0 for process in servers[1:]), "a wrong answer, or a crash"
        assert servers[0].exitcode in (0, -signal.SIGKILL)
    last = Store(tmp_path, MOST, 0)
    for number in range(40):
        got = last.get(key(number))
        assert got is None or same(got, value(number))
    last.put(key(0), value(0), "a test")
    assert same(last.get(key(0)), value(0)) and size(tmp_path) <= MOST


def test_a_digest_tells_all_its_parts_apart():
    found = [
        digest("a", x=1),
        digest("b", x=1),
        digest("a", y=1),
        digest("a", x="1"),
        digest("a", x=[1]),
        digest("a", x=1, y=2),
    ]
    assert len(set(found)) == len(found) and digest("a", x=1, y=2) == digest("a", y=2, x=1)
    tensors = [{"x": torch.zeros(2)}, {"y": torch.zeros(2)}, {"x": torch.zeros(1, 2)}, {"x": torch.zeros(2, dtype=torch.int32)}]
    assert len({content(each) for each in tensors}) == 4 == len({json.dumps(sorted(each)) + content(each) for each in tensors})


def changed(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Another value of one tensor, in place, the file's times restored as far as a program can."""
    from safetensors.torch import load_file

    times = path.stat()
    small.save({**{n: t.clone() for n, t in load_file(path).items()}, name: tensor}, path.with_name("new"))
    path.write_bytes(path.with_name("new").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_stamp_is_of_the_content_and_made_once(tmp_path, monkeypatch):
    store = Store(tmp_path / "store", MOST, MOST)
    state = {"a": torch.randn(300), "b": torch.zeros(5), "empty": torch.zeros(0)}
    first, copy = (small.save(state, tmp_path / name) for name in ("first.safetensors", "copy.safetensors"))
    want = stamp(source([first]), store)
    assert want == stamp(source([copy]), store) and len(want) == 64
    monkeypatch.setattr("klein.store.stamp._content", None)  # it would fail if it were called
    assert stamp(source([first]), Store(tmp_path / "store", MOST, MOST)) == want


def test_a_file_that_was_changed_has_another_stamp(tmp_path):
    store = Store(None, 0, MOST)
    path = small.save({"a": torch.randn(300), "b": torch.zeros(5)}, tmp_path / "a.safetensors")
    of = source([path])
    before = stamp(of, store)
    changed(path, "b", torch.ones(5))
    assert stamp(of, store) is None  # of the file as it was there is none any more
    after = stamp(source([path]), store)
    assert after and after != before


@pytest.mark.parametrize("data", [b"", b"GGUF" + b"\0" * 100, b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_what_is_no_safetensors_file_has_no_stamp(tmp_path, data):
    (tmp_path / "a.gguf").write_bytes(data)
    assert stamp(source([tmp_path / "a.gguf"]), Store(None, 0, MOST)) is None


def gguf(path: Path, seed: int) -> Path:
    from tools import small_gguf

    tensors = {"token_embd.weight": ("Q4_K", small_gguf.packed("Q4_K", (8, 256), seed))}
    return small_gguf.write(tensors, path, "qwen3", 8)


def test_a_gguf_file_has_the_stamp_of_its_content(tmp_path):
    """Where its tensors lie says whoever opened it."""
    store, stamps = Store(None, 0, MOST), []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        checkpoint = open_checkpoint(gguf(tmp_path / f"{name}.gguf", seed))
        stamps.append(stamp(source(checkpoint.files, checkpoint.spans), store))
    assert stamps[0] and stamps[0] == stamps[1] != stamps[2]


def test_what_is_asked_for_in_memory_is_the_last_to_go_from_the_folder(tmp_path):
    size = len(encoded(key(1), value(1), "a test")) + len(encoded(key(2), value(2), "a test"))
    store = Store(tmp_path, size + 100, MOST)
    for number in (1, 2):
        store.put(key(number), value(number), "a test")
        os.utime(tmp_path / f"{key(number)}.safetensors", (number, number))
    assert store.get(key(1))
    store.put(key(2000), {"a": torch.zeros(1)}, "a test")
    left = Disk(tmp_path, MOST)
    assert left.get(key(1)) and not left.get(key(2))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "klein", tmp_path], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a file system")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_on_a_full_disk_nothing_is_half_written_and_all_is_right_that_is_there(small_disk):
    disk = Disk(small_disk, 2**30)
    written = [disk.put(key(number), value(number), "a test") for number in range(60)]
    assert any(written) and not all(written)
    for number, there in enumerate(written):
        got = disk.get(key(number))
        assert same(got, value(number)) if there else got is None
    assert not list(small_disk.glob("*.tmp"))
    disk.clear()
    assert disk.put(key(1), value(1), "a test") and same(disk.get(key(1)), value(1))


def test_a_folder_without_locks_is_not_waited_for(tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("klein.store.disk._lock", refuse)
    monkeypatch.setattr("klein.store.disk.time.sleep", None)  # it would fail if it were called
    assert not Disk(tmp_path, MOST).put(key(1), value(1), "a test")


def test_the_command_lists_and_clears(tmp_path, capsys):
    Disk(tmp_path, MOST).put(key(1), value(1), "text by qwen: a cat")
    command([str(tmp_path), "--clear"])
    listed, total = capsys.readouterr().out.splitlines()
    assert listed.endswith("text by qwen: a cat") and total.startswith("1 entries, ")
    assert Disk(tmp_path, MOST).usage() == (0, 0)
