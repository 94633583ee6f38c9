"""Places to write to: links, mount points, devices, long names, permissions, and leftovers of killed writes."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skillweave.artefact import write_json, write_text
from skillweave.errors import UserError
from skillweave.files import disk, place
from skillweave.files.atomic import atomic_file, atomic_folder
from skillweave.files.lock import claim
from skillweave.files.place import seal
from skillweave.files.recover import drop, settle, sweep


def write(path: Path, *names: str) -> None:
    with atomic_folder(path) as temporary:
        for name in names:
            (temporary / name).write_text(name)


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system, or a file system, that cannot exchange two names."""
    monkeypatch.setattr(disk, "renameat2", lambda source, target, flags: errno.EINVAL)


# -- links, devices, mount points -------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_folder_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    (tmp_path / "disk").mkdir()
    if there:
        write(tmp_path / "disk" / "mine", "old")
    (tmp_path / "link").symlink_to("disk/mine")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["mine"]
    assert os.listdir(tmp_path / "disk" / "mine") == ["new"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "link"]


def test_a_link_to_a_file_stays(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_text(tmp_path / "link.txt", "new")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_loop_of_links_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UserError, match="leads back to itself"):
        write(tmp_path / "a", "x")


def test_the_working_folder_may_change_while_something_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with atomic_folder("out") as temporary:
        os.chdir("/")
        (temporary / "x").write_text("x")
    assert os.listdir(tmp_path / "out") == ["x"]


@pytest.mark.parametrize("target", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
@pytest.mark.parametrize("piped", [True, False])
def test_standard_output_is_written_to_not_replaced(tmp_path: Path, target: str, piped: bool) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from skillweave.artefact import write_text; print('before'); "
        "write_text(sys.argv[1], 'written\\n'); print('after')"
    )
    command = [sys.executable, "-c", code, target]
    if piped:
        out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    else:
        with open(tmp_path / "out", "w") as file:
            subprocess.run(command, cwd=tmp_path, stdout=file, check=True)
        out = (tmp_path / "out").read_text()
    assert out == "before\nwritten\nafter\n"


def test_a_device_is_left_a_device() -> None:
    write_json("/dev/null", {"a": 1})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(UserError, match="is a file"):
        write(Path("/dev/null"), "x")


def test_a_mount_point_gets_the_new_files_and_keeps_what_is_not_ours(disk_of: Callable[[str], Path]) -> None:
    mounted = disk_of("1m")
    for name in ("lost+found", ".Trash-0"):
        (mounted / name).mkdir()
    write(mounted, "old.json", "both")
    write(mounted, "new.json", "both")
    assert mounted.is_mount()
    assert sorted(os.listdir(mounted)) == [".Trash-0", "both", "lost+found", "new.json"]
    assert sorted(os.listdir(mounted.parent)) == ["disk"]
    with pytest.raises(UserError, match="no space left"), atomic_folder(mounted) as temporary:
        (temporary / "big").write_bytes(b"\0" * 2**21)
    assert sorted(os.listdir(mounted)) == [".Trash-0", "both", "lost+found", "new.json"]


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY, errno.EPERM])
def test_a_folder_that_cannot_be_renamed_gets_the_new_files(tmp_path: Path, monkeypatch, code: int) -> None:
    write(tmp_path / "p", "old")
    inode = (tmp_path / "p").stat().st_ino
    monkeypatch.setattr(disk, "renameat2", lambda source, target, flags: code)
    write(tmp_path / "p", "new")
    assert (tmp_path / "p").stat().st_ino == inode
    assert os.listdir(tmp_path / "p") == ["new"]
    assert os.listdir(tmp_path) == ["p"]


# -- names and permissions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "n" * 101, " ", "a\nb", ".hidden", "-rf", "[v1]"])
def test_any_name_that_the_file_system_takes(tmp_path: Path, name: str) -> None:
    for version in ("old", "new"):
        write(tmp_path / name, version)
    assert os.listdir(tmp_path) == [name]
    assert os.listdir(tmp_path / name) == ["new"]
    write_text(tmp_path / "sub" / name, "text")
    assert os.listdir(tmp_path / "sub") == [name]


def test_a_name_that_is_too_long_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is too long for a path"):
        write(tmp_path / ("x" * 256), "x")
    with pytest.raises(UserError, match="is a file, so nothing can be in it"):
        (tmp_path / "file").touch()
        write(tmp_path / "file" / "sub" / "x", "x")


@pytest.mark.parametrize(
    ("mask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600), (0o002, 0o775, 0o664)]
)
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask, mask: int, folder: int, file: int) -> None:
    umask(mask)
    write(tmp_path / "p", "x")
    write_text(tmp_path / "t", "x")
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == folder
    assert stat.S_IMODE((tmp_path / "p" / "x").stat().st_mode) == file
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == file


def test_permissions_of_what_is_replaced_are_kept(tmp_path: Path, umask) -> None:
    umask(0o022)
    write(tmp_path / "p", "x")
    write_text(tmp_path / "t", "x")
    (tmp_path / "p").chmod(0o750)
    (tmp_path / "t").chmod(0o640)
    write(tmp_path / "p", "y")
    write_text(tmp_path / "t", "y")
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o640


def test_nobody_else_can_enter_the_folder_that_is_being_written(tmp_path: Path, umask) -> None:
    umask(0)
    with atomic_folder(tmp_path / "p") as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "p").stat().st_mode) == 0o777


def test_a_link_in_what_is_written_is_not_followed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "secret").write_text("theirs")
    synced: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    with atomic_folder(tmp_path / "p") as temporary:
        (temporary / "link").symlink_to(tmp_path / "secret")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x").write_text("x")
    assert (tmp_path / "secret").stat().st_ino not in synced
    for path in (tmp_path / "p" / "deep" / "x", tmp_path / "p" / "deep", tmp_path / "p", tmp_path):
        assert path.stat().st_ino in synced, f"{path} was not synced"


# -- what killed writes left ------------------------------------------------------------------------------------------


def make(folder: Path, names: dict[str, str]) -> None:
    for name, text in names.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "x").write_text(text)


@pytest.mark.parametrize(
    ("left", "found", "told"),
    [
        ({".p.old-aaaaaaaa": "old"}, "old", "brought back"),
        ({".p.old-aaaaaaaa": "old", ".p.new-aaaaaaaa": "new"}, "new", "finished"),
        ({".p.old-aaaaaaaa": "old", ".p.new-bbbbbbbb": "half"}, "old", "brought back"),
        ({".p.old-aaaaaaaa": "old", ".p.del-bbbbbbbb": "half"}, "old", "brought back"),
        ({".p.new-aaaaaaaa": "half"}, None, ""),
        ({".p.del-aaaaaaaa": "half"}, None, ""),
        ({"p": "whole", ".p.old-aaaaaaaa": "old", ".p.new-aaaaaaaa": "other"}, "whole", ""),
        ({".q.old-aaaaaaaa": "of another", ".p.old": "a person's"}, None, ""),
    ],
)
def test_a_reader_finds_the_version_that_a_killed_write_left(
    tmp_path: Path, capsys, left: dict[str, str], found: str | None, told: str
) -> None:
    make(tmp_path, left)
    settle(tmp_path / "p")
    assert ((tmp_path / "p" / "x").read_text() if (tmp_path / "p").exists() else None) == found
    said = capsys.readouterr().err
    assert told in said
    assert bool(told) == bool(said)
    write(tmp_path / "p", "next")
    strangers = [name for name in left if name in (".q.old-aaaaaaaa", ".p.old")]
    assert sorted(os.listdir(tmp_path)) == sorted([*strangers, "p"])
    cleared = any(name.startswith(".p.") and name != ".p.old" for name in left) and not told
    assert ("removed" in capsys.readouterr().err) == cleared


@pytest.mark.parametrize("stage", ["ready", "in"])
def test_a_reader_finishes_a_swap_inside_a_folder(tmp_path: Path, stage: str) -> None:
    place_ = tmp_path / "p"
    make(place_, {".making": "new"})
    hidden = (place_ / ".making").rename(place_ / f".skillweave.{stage}-{seal(place_, place_ / '.making')}")
    (hidden / "card.json").write_text("new")
    if stage == "ready":
        (place_ / "weights").write_text("old")
    settle(place_)
    assert sorted(os.listdir(place_)) == ["card.json", "x"]
    assert (place_ / "x").read_text() == "new"


@pytest.mark.parametrize("kind", ["ready", "in", "old", "new", "del"])
@pytest.mark.parametrize("linked", [True, False])
def test_hidden_names_of_a_stranger_cost_the_person_nothing(tmp_path: Path, kind: str, linked: bool, capsys) -> None:
    """An unpacked archive has hidden entries in a user's folder, with names like ours or as links out of the folder."""
    make(tmp_path, {"docs": "mine", "p": "mine"})
    for hidden in (tmp_path / "p" / f".skillweave.{kind}-aaaaaaaa", tmp_path / f".p.{kind}-aaaaaaaa"):
        if linked:
            hidden.symlink_to(tmp_path / "docs")
        else:
            make(hidden.parent, {hidden.name: "theirs"})
    settle(tmp_path / "p")
    assert (tmp_path / "p" / "x").read_text() == "mine"
    assert ("was not written here" in capsys.readouterr().err) == (kind in ("ready", "in") and not linked)
    write(tmp_path / "p", "next")
    assert os.listdir(tmp_path / "p") == ["next"]
    assert (tmp_path / "docs" / "x").read_text() == "mine"
    (tmp_path / f".q.{kind}-aaaaaaaa").symlink_to(tmp_path / "docs")
    settle(tmp_path / "q")
    assert not (tmp_path / "q").exists()


def test_a_path_with_a_nul_is_told() -> None:
    with pytest.raises(UserError, match="no path can have"):
        settle("a\0b")


def test_a_reader_who_may_not_rename_is_told_how(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path, {".p.old-aaaaaaaa": "old"})
    real = os.open

    def refuse(path, flags, *more, **named):
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"mv '.*/\.p\.old-aaaaaaaa' '.*/p'"):
        settle(tmp_path / "p")


def test_sweep_settles_all_places_in_a_folder(tmp_path: Path, capsys) -> None:
    make(tmp_path, {"s/.delta.old-aaaaaaaa": "old", "s/.policy.new-bbbbbbbb": "half", "s/deep/.t.new-cccccccc": "half"})
    (tmp_path / "s" / ".figures.json.new-dddddddd").write_text("{")
    (tmp_path / "s" / ".figures.json.lock").touch()
    (tmp_path / "s" / ".keep").touch()
    sweep(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "s", "s/.keep", "s/deep", "s/delta", "s/delta/x",
    ]  # fmt: skip
    assert "brought back" in capsys.readouterr().err


def test_what_a_write_within_a_write_left_goes_too(tmp_path: Path) -> None:
    make(tmp_path, {".p.new-aaaaaaaa": "half", "..p.new-aaaaaaaa.new-bbbbbbbb": "half"})
    (tmp_path / "..p.new-aaaaaaaa.lock").touch()
    write(tmp_path / "p", "x")
    assert os.listdir(tmp_path) == ["p"]


def test_an_old_version_that_is_half_removed_is_never_brought_back(tmp_path: Path, no_exchange, monkeypatch) -> None:
    write(tmp_path / "p", "a", "b")
    real, removed = os.unlink, []

    def die(name, *args, **more):
        if str(name) in ("a", "b") and removed:
            raise KeyboardInterrupt
        removed.append(name)
        real(name, *args, **more)

    monkeypatch.setattr(os, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "p", "c")
    monkeypatch.setattr(os, "unlink", real)
    shutil.rmtree(tmp_path / "p", ignore_errors=True)
    settle(tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_an_interrupt_between_the_two_renames_loses_nothing(tmp_path: Path, no_exchange, monkeypatch) -> None:
    write(tmp_path / "p", "old")
    real = os.replace

    def interrupted(source, target):
        if Path(target) == tmp_path / "p" and ".new-" in str(source):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "p", "new")
    assert os.listdir(tmp_path) == ["p"]
    assert os.listdir(tmp_path / "p") == ["old"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("what", ["gone", "theirs"])
def test_somebody_who_takes_no_lock_comes_in_between(tmp_path: Path, monkeypatch, exchange: bool, what: str) -> None:
    write(tmp_path / "p", "old")
    real, calls = disk.renameat2, []

    def meddled(source: bytes, target: bytes, flags: int) -> int:
        if not calls:
            shutil.rmtree(tmp_path / "p")
            if what == "theirs":
                make(tmp_path, {"p": "theirs"})
        calls.append(flags)
        return real(source, target, flags) if exchange else errno.ENOSYS

    monkeypatch.setattr(disk, "renameat2", meddled)
    write(tmp_path / "p", "new")
    assert os.listdir(tmp_path / "p") == ["new"]
    kept = [path for path in tmp_path.iterdir() if path.name != "p"]
    assert [(path / "x").read_text() for path in kept] == (["theirs"] if what == "theirs" else [])


@pytest.mark.parametrize("way", ["exchange", "two steps", "inside"])
def test_files_that_others_put_there_meanwhile_are_kept(tmp_path: Path, monkeypatch, capsys, way: str) -> None:
    """Where they lie before the command begins, it refuses to begin; they must not be lost an hour later either."""
    if way == "two steps":
        monkeypatch.setattr(disk, "renameat2", lambda *_: errno.ENOSYS)
    if way == "inside":
        monkeypatch.setattr(place, "is_mount", lambda path: path.name == "p")
    (tmp_path / "p").mkdir()
    with claim(tmp_path / "p"):
        for name in ("one", "two"):  # what this process puts there itself is replaced without a word
            write(tmp_path / "p", name)
        (tmp_path / "p" / "score.json").write_text("theirs")
        (tmp_path / "p" / ".late.json.lock").touch()
        if way == "inside":
            with pytest.raises(
                UserError, match=r"p got 'score\.json' while it was written anew, which would be deleted"
            ):
                write(tmp_path / "p", "three")
            assert {"two", "score.json"} < set(os.listdir(tmp_path / "p"))
            (kept,) = (tmp_path / "p").glob("p.kept-*")
            assert os.listdir(kept) == ["three"]
            return
        write(tmp_path / "p", "three")
    assert os.listdir(tmp_path / "p") == ["three"]
    (kept,) = tmp_path.glob("p.kept-*")
    assert (kept / "score.json").read_text() == "theirs"
    assert (
        f"got 'score.json' while it was written anew: the folder as it was is kept as {kept}" in capsys.readouterr().err
    )
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize("stage", ["ready", "in", "old"])
def test_what_recovery_brings_back_was_not_put_there_by_others(tmp_path: Path, no_exchange, stage: str, capsys) -> None:
    place_ = tmp_path / "p"
    make(tmp_path, {".making": "old"})
    if stage == "old":
        (tmp_path / ".making").rename(tmp_path / ".p.old-aaaaaaaa")
    else:
        place_.mkdir()
        making = (tmp_path / ".making").rename(place_ / ".making")
        making.rename(place_ / f".skillweave.{stage}-{seal(place_, making)}")
    write(place_, "new")
    assert sorted(os.listdir(tmp_path)) == ["p"]
    assert os.listdir(place_) == ["new"]
    assert "while it was written anew" not in capsys.readouterr().err


def test_a_hidden_file_that_others_put_on_a_mount_point_meanwhile_stays_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(place, "is_mount", lambda path: path.name == "p")
    (tmp_path / "p").mkdir()
    with claim(tmp_path / "p"):
        (tmp_path / "p" / ".DS_Store").touch()
        write(tmp_path / "p", "new")
    assert sorted(name for name in os.listdir(tmp_path / "p") if not name.endswith(".lock")) == [".DS_Store", "new"]


def test_files_of_others_that_are_deleted_meanwhile_are_no_reason_to_keep_a_copy(tmp_path: Path) -> None:
    make(tmp_path, {"p": "old"})
    (tmp_path / "p" / "files").mkdir()
    (tmp_path / "p" / "files" / "last").touch()
    with claim(tmp_path / "p"):
        (tmp_path / "p" / "files" / "last").unlink()
        write(tmp_path / "p", "new")
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.parametrize(
    ("call", "fails"), [("listdir", "p"), ("listdir", "files"), ("stat", "files"), ("stat", "one")]
)
@pytest.mark.parametrize("when", ["at the claim", "at the end"])
def test_what_could_not_be_read_is_not_taken_for_files_of_others(
    tmp_path: Path, monkeypatch, call: str, fails: str, when: str
) -> None:
    monkeypatch.setattr(place, "is_mount", lambda path: path.name == "p")
    make(tmp_path, {"p": "old"})
    (tmp_path / "p" / "files").mkdir()
    (tmp_path / "p" / "files" / "one").touch()
    real, broken = getattr(os, call), False

    def failing(path, *args, **more):
        if broken and Path(path).name == fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *args, **more)

    monkeypatch.setattr(os, call, failing)
    broken = when == "at the claim"
    with contextlib.suppress(UserError), claim(tmp_path / "p") as claimed:
        broken = not broken
        with contextlib.suppress(OSError):
            assert claimed.strangers(tmp_path / "p") == []
    broken = False
    assert not list(tmp_path.rglob("*.lock"))
    write(tmp_path / "p", "new")
    assert os.listdir(tmp_path / "p") == ["new"]


def test_a_lock_is_known_by_its_text_and_not_by_its_name_alone(tmp_path: Path) -> None:
    for name, text in {".notes.lock": "mine", ".made.lock": "", ".held.lock": '{"pid": 1}', ".link.lock": None}.items():
        if text is None:
            (tmp_path / name).symlink_to("nowhere")
        else:
            (tmp_path / name).write_text(text)
    assert place.files_below(tmp_path) == [".link.lock", ".notes.lock"]


def test_a_folder_that_is_dropped_is_whole_or_gone(tmp_path: Path, monkeypatch) -> None:
    make(tmp_path, {"step": "x"})
    monkeypatch.setattr(os, "unlink", lambda *args, **more: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        drop(tmp_path / "step")
    monkeypatch.undo()
    assert not (tmp_path / "step").exists()
    drop(tmp_path / "step")
    assert os.listdir(tmp_path) == []


def test_a_bind_mount_of_the_same_disk_is_seen(monkeypatch, tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("36 35 98:0 /a /mnt/with\\040space rw - ext4 /dev/x rw\n")
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: real(table if str(self) == "/proc/self/mountinfo" else self))
    assert place.is_mount(Path("/mnt/with space"))
    assert not place.is_mount(Path("/mnt/with"))


def test_a_temporary_folder_that_somebody_removed_is_told(tmp_path: Path) -> None:
    write(tmp_path / "p", "old")
    with pytest.raises(UserError, match="was removed while"), atomic_folder(tmp_path / "p") as temporary:
        shutil.rmtree(temporary)
    assert os.listdir(tmp_path / "p") == ["old"]
    with pytest.raises(UserError, match="is a folder"), atomic_file(tmp_path / "p"):
        pass
