"""Archives are listed and read in place, as the folder that they were packed from."""

import io
import shutil
import tarfile

import pytest

from cluster.io.errors import UserError
from datasets.images import BadImage
from datasets.passes.collection import list_images
from datasets.prepare.config import PrepareConfig
from datasets.prepare.listing import Listing, read_files
from datasets.prepare.sources import SOURCES
from tests.support.archives import pack

FILES = {
    "train/audi/1.jpg": b"a" * 3000,
    "train/bmw/Citro\u00ebn 2.jpg": b"b",
    "test/audi/3.jpg": b"c",
    "__MACOSX/train/audi/._1.jpg": b"x",
    "loose.jpg": b"y",
}
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tar.xz")


def list_folder(root, **options) -> Listing:
    config = PrepareConfig(source="folder", root=str(root), out="/unused", **options)
    return SOURCES["folder"](config)


def contents(listing: Listing) -> dict[str, object]:
    """Content by split, class and name."""
    rows = zip(listing.references.to_pylist(), listing.read(listing.references), strict=True)
    return {
        f"{row['split']}/{listing.classes[row['label']]}/{row['path'].rsplit('/', 1)[1]}": content
        for row, content in rows
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_listed_and_read_as_its_folder(tmp_path, suffix):
    for name, content in FILES.items():
        (tmp_path / "cars" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cars" / name).write_bytes(content)
    archive = tmp_path / f"cars{suffix}"
    pack(archive, FILES)
    folder, packed = list_folder(tmp_path / "cars"), list_folder(archive)
    images = {name: content for name, content in FILES.items() if content[:1] in b"abc"}
    assert contents(packed) == contents(folder) == images
    assert {(path.removeprefix(f"{archive}/"), reason) for path, reason in packed.unused} == {
        (path.removeprefix(f"{tmp_path}/cars/"), reason) for path, reason in folder.unused
    }
    assert packed.references["path"][0].as_py() == f"{archive}/test/audi/3.jpg"


def test_archives_of_splits_in_a_folder(tmp_path):
    pack(tmp_path / "train.zip", {"train/audi/1.jpg": b"1", "train/bmw/2.jpg": b"2"})
    pack(tmp_path / "test.tar.gz", {"audi/3.jpg": b"3"})
    (tmp_path / "README.md").write_text("")
    listing = list_folder(tmp_path)
    assert contents(listing) == {
        "train/audi/1.jpg": b"1",
        "train/bmw/2.jpg": b"2",
        "test/audi/3.jpg": b"3",
    }
    assert [path for path, _ in listing.unused] == [f"{tmp_path}/README.md"]


def test_an_archive_beside_class_folders_is_not_opened(tmp_path):
    for name in ("audi/1.jpg", "bmw/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "backup.zip").write_bytes(b"no zip")
    listing = list_folder(tmp_path)
    assert listing.classes == ("audi", "bmw")
    assert [path for path, _ in listing.unused] == [f"{tmp_path}/backup.zip"]


def test_a_folder_of_the_name_of_an_archive_is_a_folder(tmp_path):
    for name in ("a.zip/1.jpg", "b.zip/2.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(name.encode())
    assert contents(list_folder(tmp_path)) == {
        "train/a.zip/1.jpg": b"a.zip/1.jpg",
        "train/b.zip/2.jpg": b"b.zip/2.jpg",
    }


def test_a_table_in_an_archive_names_its_images(tmp_path):
    files = {"train.csv": b"id,label\n1,x\n2,y\n", "train/1.jpg": b"1", "train/2.jpg": b"2"}
    pack(tmp_path / "cars.zip", files)
    config = PrepareConfig(source="table", root=str(tmp_path / "cars.zip"), out="/unused")
    listing = SOURCES["table"](config)
    assert contents(listing) == {"train/x/1.jpg": b"1", "train/y/2.jpg": b"2"}


def test_tables_in_archives_of_splits(tmp_path):
    for split in ("train", "test"):
        files = {f"{split} {n}.jpg": f"{split} {n}".encode() for n in range(2)}
        rows = f"file_name,label\n{split} 0.jpg,x\n{split} 1.jpg,y\n"
        pack(tmp_path / f"{split}.tar", {**files, "metadata.csv": rows.encode()})
    found = contents(list_folder(tmp_path))
    assert set(found) == {
        f"{split}/{name}/{split} {n}.jpg"
        for split in ("train", "test")
        for n, name in enumerate("xy")
    }
    assert found["test/y/test 1.jpg"] == b"test 1"


def test_names_in_utf_8_without_its_flag_as_macos_packs_them(tmp_path):
    archive = tmp_path / "cars.zip"
    pack(archive, {"Citroen/1.jpg": b"1", "M\u00fcller/2.jpg": b"2"})
    plain = archive.read_bytes()
    archive.write_bytes(plain.replace(b"Citroen", "Citro\u00eb".encode()))
    assert contents(list_folder(archive)) == {
        "train/Citro\u00eb/1.jpg": b"1",
        "train/M\u00fcller/2.jpg": b"2",
    }
    archive.write_bytes(plain.replace(b"Citroen", b"Citro\x82n"))  # of the DOS code page
    assert "train/Citro\u00e9n/1.jpg" in contents(list_folder(archive))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damage_is_named_when_listed_and_when_read(tmp_path, suffix):
    archive = tmp_path / f"cars{suffix}"
    rng = bytes((31 * n * n) % 251 for n in range(40_000))
    pack(archive, {f"{name}/1.jpg": rng[n:] for n, name in enumerate(("audi", "bmw"))})
    listing = list_folder(archive)
    content = bytearray(archive.read_bytes())
    archive.write_bytes(b"")
    assert all(isinstance(found, BadImage) for found in listing.read(listing.references))
    with pytest.raises(UserError, match=f"root is .*cars{suffix} can't be read as an archive"):
        list_folder(archive)
    archive.write_bytes(content[: len(content) // 3])
    found = list(listing.read(listing.references))
    assert len(found) == 2 and isinstance(found[1], BadImage)
    archive.unlink()
    assert [str(reason) for reason in listing.read(listing.references)] == ["missing file"] * 2


def test_a_file_that_is_gone_or_too_large_is_bad_and_the_others_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.prepare.listing.MAX_FILE_BYTES", 10)
    for suffix in SUFFIXES:
        archive = tmp_path / f"cars{suffix}"
        pack(archive, {"a/1.jpg": b"1", "b/2.jpg": b"2" * 11, "b/3.jpg": b"3"})
        references = list_folder(archive).references
        pack(archive, {"b/3.jpg": b"3", "b/2.jpg": b"2" * 11})
        gone, large, good = read_files(references)
        assert str(gone) == "missing file"
        assert str(large) == "too large: more than 256 MiB"
        assert good == b"3"


def test_an_archive_with_a_password_is_refused(tmp_path):
    archive = tmp_path / "cars.zip"
    pack(archive, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    content = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # as APPNOTE.TXT has them
        at = content.find(signature)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(signature, at + 1)
    archive.write_bytes(content)
    with pytest.raises(UserError, match="needs a password; unpack it"):
        list_folder(archive)


def test_links_in_a_tar(tmp_path):
    archive = tmp_path / "cars.tar"
    pack(archive, {"a/1.jpg": b"1", "b/2.jpg": b"2"})
    with tarfile.open(archive, "a") as tar:
        for name, target, kind in (
            ("./b/hard.jpg", "./a/1.jpg", tarfile.LNKTYPE),
            ("./b/soft.jpg", "2.jpg", tarfile.SYMTYPE),
            ("./b/nowhere.jpg", "../../x.jpg", tarfile.SYMTYPE),
            ("./b/itself.jpg", "itself.jpg", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)
    found = contents(list_folder(archive))
    assert found["train/b/hard.jpg"] == b"1"
    assert found["train/b/soft.jpg"] == b"2"
    for name in ("nowhere", "itself"):
        assert str(found[f"train/b/{name}.jpg"]) == "a link to nothing"


def test_archives_of_one_name_are_refused_where_they_hold_the_same_paths(tmp_path):
    pack(tmp_path / "cars.zip", {"audi/1.jpg": b"1", "bmw/2.jpg": b"2"})
    pack(tmp_path / "cars.tar", {"audi/3.jpg": b"3", "bmw/4.jpg": b"4"})
    assert sorted(map(str, contents(list_folder(tmp_path)).values())) == [
        str(number) for number in (b"1", b"2", b"3", b"4")
    ]
    pack(tmp_path / "cars.tar", {"audi/1.jpg": b"3", "bmw/4.jpg": b"4"})
    said = r"cars.zip holds audi/1.jpg, and so does cars.tar/audi/1.jpg; rename one"
    with pytest.raises(UserError, match=said):
        list_folder(tmp_path)


def test_what_macos_puts_beside_archives_is_not_opened(tmp_path):
    for split in ("train", "test"):
        pack(tmp_path / f"{split}.zip", {"a/1.jpg": b"1", "b/2.jpg": b"2"})
        (tmp_path / f"._{split}.zip").write_bytes(b"\0\5\x16\7")
    listing = list_folder(tmp_path)
    assert len(listing.references) == 4
    assert [reason for _, reason in listing.unused] == ["hidden"] * 2


@pytest.mark.parametrize("splits", [("train",), ("train", "test")])
def test_names_in_latin_1_in_a_tar(tmp_path, splits):
    for split in splits:
        with tarfile.open(
            tmp_path / f"{split}.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1"
        ) as tar:
            for name in ("Citro\u00ebn/1.jpg", "audi/2.jpg"):
                info = tarfile.TarInfo(name)
                info.size = 1
                tar.addfile(info, io.BytesIO(name[:1].encode()))
    found = contents(list_folder(tmp_path))
    assert found.keys() == {
        f"{split}/{name}" for split in splits for name in ("Citro\u00ebn/1.jpg", "audi/2.jpg")
    }
    assert found["train/Citro\u00ebn/1.jpg"] == b"C"
    assert contents(list_folder(tmp_path / "train.tar"))["train/audi/2.jpg"] == b"a"


@pytest.mark.parametrize(
    ("old", "new"),
    [("M\u00fcller".encode(), b"M\xff\xfeller"), (b"PK\1\2\x14\3\x14", b"PK\1\2\x14\3\x63")],
)
def test_a_zip_of_odd_names_or_a_later_version_is_refused(tmp_path, old, new):
    archive = tmp_path / "cars.zip"
    pack(archive, {"M\u00fcller/1.jpg": b"1", "b/2.jpg": b"2"})
    listing, content = list_folder(archive), archive.read_bytes()
    assert old in content
    archive.write_bytes(content.replace(old, new))
    for root in (archive, tmp_path):
        with pytest.raises(UserError, match=f"root is .*{root.name}': .* can't be read as an arch"):
            list_folder(root)
    assert all(isinstance(found, BadImage) for found in listing.read(listing.references))


def test_a_plain_tar_is_read_image_by_image(tmp_path, monkeypatch):
    """A task has up to 500 images: not all of them are in memory at once."""
    pack(tmp_path / "cars.tar", {f"{name}/1.jpg": name.encode() for name in "bca"})
    listing, opened = list_folder(tmp_path / "cars.tar"), []
    open_member = tarfile.TarFile.extractfile
    monkeypatch.setattr(
        tarfile.TarFile,
        "extractfile",
        lambda tar, info: opened.append(info.name) or open_member(tar, info),
    )
    for number, content in enumerate(listing.read(listing.references)):
        assert content == b"abc"[number : number + 1]
        assert opened == ["./a/1.jpg", "./b/1.jpg", "./c/1.jpg"][: number + 1]


def test_a_tar_that_ends_too_early_keeps_the_images_before(tmp_path):
    archive = tmp_path / "cars.tar"
    pack(archive, {f"{name}/1.jpg": name.encode() * 2000 for name in "cab"})
    listing, content = list_folder(archive), archive.read_bytes()
    archive.write_bytes(content[: 512 + 2048 + 512 + 2048 + 512 + 700])
    a, b, c = listing.read(listing.references)
    assert a == b"a" * 2000 and c == b"c" * 2000
    assert isinstance(b, BadImage) and str(b).startswith("unreadable: ")


def test_predict_takes_an_archive(tmp_path):
    pack(tmp_path / "field.zip", {"a/1.jpg": b"1", ".hidden": b"", "2.jpg": b"2"})
    images = list_images(str(tmp_path / "field.zip"))
    assert list(images.read(images.references)) == [b"2", b"1"]
    shutil.copy(tmp_path / "field.zip", tmp_path / "other")
    assert len(list_images(str(tmp_path / "other")).references) == 1, "by its name alone, an image"
