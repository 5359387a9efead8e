"""What travels on the demo's line, and what its files are called. A name depends on the source alone, so a task done twice leaves the same files."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True)
class Photo:
    """A photo on its way down the line. Queues carry these few words; the pixels stay on the disk."""

    source: Path  # as it came; never written to
    out: Path  # finished pictures go here, those in between to out/.work
    name: str  # what all its files are called
    path: Path  # where its pixels are now: the source, then a file in out/.work
    width: int = 0  # the width it was asked to have; a smaller photo keeps its own
    copyright: str = ""
    artist: str = ""

    @classmethod
    def of(cls, source: Path, *, root: Path, out: Path, copyright: str = "", artist: str = "") -> Self:  # noqa: A002
        """A photo below `root`. Folders stay folders, and every suffix but ".jpg" stays in the name: a/cat.jpg, b/cat.jpg and cat.png never meet.

        Raises ValueError if the source is not below the root, or the root is `out`: finished pictures must not pass for new ones.
        """
        source, root, out = source.parent.resolve() / source.name, root.resolve(), out.resolve()
        if root == out:
            raise ValueError(f"photos and finished pictures need two folders, {out} cannot be both")
        name = source.relative_to(root).as_posix().removesuffix(".jpg")
        return cls(source, out, name, source, copyright=copyright, artist=artist)

    def draft(self, label: str | int) -> Path:
        return self.out / ".work" / f"{self.name}-{label}.jpg"

    def final(self, label: str | int) -> Path:
        return self.out / f"{self.name}-{label}.jpg"

    def at(self, path: Path, width: int = 0) -> Self:
        return replace(self, path=path, width=width)

    def credited(self, copyright: str, artist: str) -> Self:  # noqa: A002
        """With the notice that its file carries, where the sender gave none."""
        return replace(self, copyright=self.copyright or copyright, artist=self.artist or artist)


@dataclass(frozen=True)
class Album:
    """What comes off the line for one photo."""

    name: str
    pictures: list[Path]
    thumbnail: Path


def photos_in(root: Path, out: Path) -> Iterator[Path]:
    """All files below `root` with a picture's suffix, in order; hidden ones and those in `out` left out."""
    out = out.resolve()
    for folder, folders, files in os.walk(root.resolve()):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(folder, name) != out)
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(folder, name)
