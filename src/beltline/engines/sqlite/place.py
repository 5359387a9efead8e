"""The file: where it may lie, how it is made, and how a connection to it is opened.

A new file is built beside its place under another name and moved there whole, so that nobody ever sees half of one. All processes take the side lock
(`<file>-lock`) for that, as for every write. Nothing of a file that is not ours is touched.
"""

import errno
import os
import stat
import sys
from pathlib import Path

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import EngineForeign, EngineUnavailable, EngineUnsafe
from beltline.engines.sqlite import schema
from beltline.engines.sqlite.trouble import damaged

# File systems where locks or shared memory of two hosts do not meet; SQLite's WAL cannot live on them.
NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "coda",
        "glusterfs",
        "gfs2",
        "lustre",
        "ncpfs",
        "ocfs2",
        "beegfs",
        "gpfs",
        "orangefs",
        "pvfs2",
        "virtiofs",
        "vboxsf",
        "prl_fs",
        "webdav",
        "davfs",
    ]
)
NETWORK_FUSE = (
    "fuse.sshfs",
    "fuse.s3fs",
    "fuse.glusterfs",
    "fuse.rclone",
    "fuse.gcsfuse",
    "fuse.cephfs",
    "fuse.ceph-fuse",
    "fuse.nfs",
    "fuse.smb",
    "fuse.davfs",
    "fuse.goofys",
    "fuse.juicefs",
    "fuse.vmhgfs-fuse",
)
SYNCHRONOUS = {Durability.DISK: "FULL", Durability.OS: "NORMAL", Durability.MEMORY: "OFF"}
CACHE_KB = 32 * 1024
CHECKED_BYTES = 32 * 1024 * 1024  # files up to this size are checked whole whenever they are opened: some milliseconds


def affected(version: str) -> bool:
    """Whether this SQLite can corrupt a WAL file under two connections (fixed in 3.51.3; backports 3.44.6 and 3.50.7)."""
    number = tuple(int(part) for part in version.split("."))[:3]
    if (3, 44, 6) <= number < (3, 45) or (3, 50, 7) <= number < (3, 51):
        return False
    return (3, 7, 0) <= number < (3, 51, 3)


def check_library(version: str | None = None) -> None:
    """Raises EngineUnsafe."""
    version = version or apsw.sqlite_lib_version()
    if affected(version):
        raise EngineUnsafe(
            f"This SQLite ({version}) has a bug that can corrupt a queue used by two processes.",
            why="Fixed in 3.51.3.",
            help="Upgrade apsw: pip install --upgrade 'apsw>=3.51.3'",
        )


def filesystem_of(path: Path, mounts: str | None = None) -> str:
    """The type of the file system under `path` ("" = not known here). `mounts`: text of /proc/self/mounts."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mounts").read_text(errors="replace")
        except OSError:
            return ""
    best, kind = "", ""
    text = str(path)
    for line in mounts.splitlines():
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
        inside = text == point or text.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind


def check_filesystem(folder: Path, mounts: str | None = None) -> None:
    """Raises EngineUnsafe for a file system shared by hosts."""
    kind = filesystem_of(folder, mounts)
    if kind in NETWORK or kind.startswith(NETWORK_FUSE):
        raise EngineUnsafe(
            f"{folder} is on a network file system ({kind}).",
            why="Its locks do not hold between hosts: messages would be lost or handed out twice.",
            help="Put the file on a local disk. For workers on several hosts use an engine that is a server.",
        )


def prepare(path: Path) -> Path:
    """The real path of the file, in a folder that exists and can be written. Raises EngineUnavailable, EngineUnsafe, EngineForeign."""
    folder = Path(os.path.realpath(path.parent))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, "cannot be created", error) from None
    real = Path(os.path.realpath(folder / path.name))
    folder = real.parent
    check_filesystem(folder)
    if real.is_dir():
        raise EngineForeign(f"{real} is a folder.", help="Give the path of a file in it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unusable(folder, "cannot be written", None)
    if real.exists() and not os.access(real, os.R_OK | os.W_OK):
        raise _unusable(real, "cannot be read and written", None)
    return real


def _unusable(place: Path, what: str, error: OSError | None) -> EngineUnavailable:
    reason = f" ({error.strerror})" if error is not None and error.strerror else ""
    return EngineUnavailable(
        f"{place} {what}{reason}.",
        effect="none",
        help=f"Give this user the right to write there (chmod u+rwx {place}), or choose another path.",
        forbidden=error is None or isinstance(error, PermissionError),
    )


def inspect(path: Path) -> None:
    """Look at the first page without SQLite. Raises EngineForeign, EngineUnsafe; returns for ours."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise EngineForeign(f"{path} is no regular file.", help="Give Beltline a path of its own.")
    if mode & 0o022:
        raise EngineUnsafe(
            f"{path} can be written by other users.", why="Whoever writes a queue decides what workers run.", help=f"chmod go-w {path}"
        )
    with path.open("rb") as file:
        page = file.read(100)
    if page[:16] != b"SQLite format 3\x00":
        raise EngineForeign(f"{path} is not a Beltline queue.", why="Nothing in it was changed.", help="Give Beltline a path of its own.")
    if len(page) < 100:
        raise damaged(str(path), "its first page is cut off")
    if int.from_bytes(page[68:72], "big") != schema.APPLICATION_ID:
        raise EngineForeign(
            f"{path} is a SQLite database of another program.", why="Nothing in it was changed.", help="Give Beltline a path of its own."
        )


def create(path: Path) -> None:
    """Put a new, empty queue at `path` unless there is one. The caller holds the side lock."""
    if path.exists() and path.stat().st_size > 0:
        return
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    made.unlink(missing_ok=True)
    os.close(os.open(made, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    try:
        db = apsw.Connection(str(made), flags=apsw.SQLITE_OPEN_READWRITE)
        try:
            db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}; PRAGMA auto_vacuum = NONE")
            schema.migrate(db)
            db.execute("PRAGMA journal_mode = WAL")
        finally:
            db.close()
        _sync(made)
        made.replace(path)
        _sync(path.parent)
    finally:
        made.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EACCES):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(fd)


def connect(path: Path, level: Durability, *, read_only: bool = False) -> apsw.Connection:
    """A connection with our settings. Its busy handler waits only for what is short (recovery, another's checkpoint)."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=300)
    try:
        db.set_busy_timeout(5000)
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON")
        if read_only:
            db.execute("PRAGMA query_only = ON")
        else:
            set_level(db, level)
            if db.execute("PRAGMA journal_mode").get != "wal" and db.execute("PRAGMA journal_mode = WAL").get != "wal":
                raise EngineUnsafe(f"{path} cannot be put into WAL mode.", help="Put the file on a local disk.")
            db.execute("PRAGMA journal_size_limit = 67108864")
    except BaseException:
        db.close(True)
        raise
    return db


def set_level(db: apsw.Connection, level: Durability) -> None:
    db.execute(f"PRAGMA synchronous = {SYNCHRONOUS[level]}")
    if sys.platform == "darwin" and level is Durability.DISK:
        db.execute("PRAGMA fullfsync = ON; PRAGMA checkpoint_fullfsync = ON")  # fsync alone stops at the drive's cache there


def check_content(db: apsw.Connection, path: Path) -> None:
    """Raises EngineForeign when the pages do not fit together."""
    try:
        found = db.execute("PRAGMA quick_check(1)").get
    except (apsw.CorruptError, apsw.NotADBError) as error:
        found = str(error)
    if found != "ok":
        raise damaged(str(path), str(found).replace("\n", " "))
